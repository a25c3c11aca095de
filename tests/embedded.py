"""Vectors for tests, without a model: a step in the layout of an embed step, and vectors that words decide."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from datakit import storage
from datakit.encoders.embed import write_index
from datakit.encoders.vectors import pack, save_array
from datakit.recipe import Model
from datakit.schema import digest, text_id
from datakit.step import Step, Work

DIMENSION = 16


@functools.cache
def vector(text: str) -> np.ndarray[Any, Any]:
    """float32 (16,), of length 1: the sum of a vector for each word. Texts with shared words are alike."""
    words = [np.frombuffer(bytes.fromhex(digest(word, size=DIMENSION)), np.int8) for word in text.split()]
    total = np.sum(words, axis=0).astype(np.float64)
    result: np.ndarray[Any, Any] = (total / np.linalg.norm(total)).astype(np.float32)
    return result


class Embedded(Model):
    texts: dict[str, list[str]]


def embedded_step(records: Sequence[dict[str, Any]]) -> Step:
    """A step with the vectors of all queries and positives of some rows, in the layout of an embed step."""
    sides = {"query": "query", "document": "positive"}
    texts = {role: sorted({r[side] for r in records if r[side]}) for role, side in sides.items()}

    def work(work: Work) -> None:
        bounds, files = {}, []
        for role, some in texts.items():
            number = len(files)
            bounds[role] = (number, number + 1)
            files.append(work.files("vectors", number, "ids.npy"))
            save_array(files[-1], pack([text_id(text) for text in some]))
            values = np.array([vector(text) for text in some], np.float32).reshape(-1, DIMENSION)
            save_array(work.files("vectors", number, "vectors.npy"), values)
        write_index((bounds, files), storage.join(work.folder, "index", "00000"))
        work.notes["dimension"] = DIMENSION
        work.finish(None)

    return Step("embed-test", 1, work, Embedded(texts=texts))
