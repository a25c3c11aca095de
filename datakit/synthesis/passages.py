"""The passages of a step: documents are cut, and as many passages are drawn as the recipe asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from datakit import storage
from datakit.schema import digest, text_id
from datakit.synthesis.chunking import passages, sentences

# What is taken from a document: passages, sentences, or all of its text.
Unit = Literal["passage", "sentence", "whole"]
Array = np.ndarray[Any, np.dtype[Any]]

FILE = "passages.parquet"
PASSAGE = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("rank", pa.uint64(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
    ]
)
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Passage:
    """A piece of a document. Its id is that of its text: what stands in two documents is asked about once."""

    id: str
    text: str
    document_id: str
    title: str | None
    language: str | None
    source: str | None


@dataclass(frozen=True)
class Cut:
    """Cuts the documents of one file into passages, and gives each the place at which it is drawn."""

    min_words: int
    max_words: int
    seed: int
    unit: Unit = "passage"

    def __call__(self, documents: str, folder: str) -> dict[str, Any]:
        records = []
        for batch in storage.read_table(documents).to_batches(_DOCUMENTS_AT_ONCE):
            for document in batch.to_pylist():
                records += self._records(document)
        storage.write_table(storage.join(folder, FILE), pa.Table.from_pylist(records, schema=PASSAGE))
        return {"passages": len(records)}

    def _records(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        records = []
        for text in self._texts(document["text"]):
            rank = int(digest("draw", str(self.seed), text_id(text), size=8), 16)
            records.append({**document, "passage_id": text_id(text), "rank": rank, "text": text})
        # A document gives its second passage only when every document has given its first.
        for turn, record in enumerate(sorted(records, key=lambda record: (record["rank"], record["passage_id"]))):
            record["round"] = turn
        return records

    def _texts(self, text: str) -> list[str]:
        if self.unit == "whole":
            return [text]
        return (sentences if self.unit == "sentence" else passages)(text, self.min_words, self.max_words)


def draw(files: Sequence[str], count: int | None) -> tuple[list[Array], int]:
    """The rows of each file that are drawn, `count` in all, ascending; and how many repeat the text of an earlier one.

    A passage whose text came before is not drawn. Takes about 60 bytes for each passage there is.
    """
    tables = [storage.read_table(file, columns=["passage_id", "round", "rank"]) for file in files]
    if not tables:
        return [], 0
    ids = np.concatenate([np.array(table.column("passage_id").to_pylist(), "S32") for table in tables])
    turns, ranks = (np.concatenate([table.column(name).to_numpy() for table in tables]) for name in ("round", "rank"))
    first = np.sort(np.unique(ids, return_index=True)[1])
    order = first[np.lexsort((first, ranks[first], turns[first]))]
    drawn = np.sort(order[:count])
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    parts = [drawn[(drawn >= start) & (drawn < end)] - start for start, end in itertools.pairwise(starts)]
    return parts, len(ids) - len(first)


# Some rows of a file of passages.
Part = tuple[str, Array]


def slices(files: Sequence[str], rows: Sequence[Array], size: int) -> Iterator[list[Part]]:
    """The drawn passages in order, `size` at a time."""
    parts: list[Part] = []
    room = size
    for file, left in zip(files, rows, strict=True):
        while len(left):
            parts.append((file, left[:room]))
            room, left = room - len(parts[-1][1]), left[room:]
            if room == 0:
                yield parts
                parts, room = [], size
    if parts:
        yield parts


def read(parts: Sequence[Part]) -> list[Passage]:
    """The passages themselves."""
    result = []
    for file, rows in parts:
        for record in storage.read_table(file).take(pa.array(rows)).to_pylist():
            names = ("text", "document_id", "title", "language", "source")
            result.append(Passage(record["passage_id"], *(record[name] for name in names)))
    return result
