"""What a teacher says of the training texts: an encoder's vectors, or a cross-encoder's scores. Computed once, kept in files."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError

from datakit import storage
from datakit.assets import Assets, locate
from datakit.errors import BuildError, UserError
from datakit.schema import digest
from trainer.batch import Batch, keys, pairs, ranks
from trainer.config_loss import Distillation
from trainer.data import TrainingRows, has_score
from trainer.model import first_line, quiet

log = logging.getLogger(__name__)

# One file each. Not more than so many, as a mapped file stays open.
BLOCK_ITEMS, MOST_BLOCKS = 1_024, 256
MODEL_BATCH = 32
QUERY, DOCUMENT = 1, 2


@dataclass(frozen=True)
class Teacher:
    """One value for each different item of the training rows: the vector of a text, as a query or a document, or a pair's score.

    An item is known by a 64-bit hash: with a million of them, two share one with a chance of 3e-8. In memory are the hashes.
    """

    name: str
    kind: Literal["embeddings", "scores"]
    keys: np.ndarray  # [n] ascending
    blocks: list[np.ndarray]  # float32 [size, d], the last one shorter; mapped files
    size: int

    @classmethod
    def open(cls, config: Distillation, rows: TrainingRows, folder: str) -> Teacher:
        """Computes what is not there yet. Stages with the same teacher and texts share the files; a killed run goes on after the
        last whole block, and the bytes are the same.

        Texts are bare, with the teacher's own prompts for queries and documents; scores went through the model's own activation.
        Graded rows have no part in it.
        Raises UserError where the teacher cannot be had, or is of another kind.
        """
        items, places = listed(rows, config.kind)
        model_digest = Assets(os.path.join(folder, ".none")).digest(config.teacher)
        what = (model_digest, config.kind, str(config.max_length), storage.bytes_digest(items.tobytes()))
        folder = os.path.join(folder, digest(*what)[:16])
        for leftover in Path(folder).glob("*.tmp"):
            leftover.unlink()
        size = max(BLOCK_ITEMS, -(-len(items) // MOST_BLOCKS))
        blocks, model, began, done = [], None, time.monotonic(), 0
        for start in range(0, len(items), size):
            part = places[start : start + size]
            path = os.path.join(folder, f"{start // size:05d}.npy")
            if not os.path.isfile(path):
                model = model or load(config)
                with storage.atomic(path) as file:
                    np.save(file, computed(model, config, texts_at(rows, config.kind, part)))
                done += len(part)
                rate = done / (time.monotonic() - began)
                left = (len(items) - start - len(part)) / rate
                log.info("teacher: %d of %d, %.0f/s, %.0f s left", start + len(part), len(items), rate, left)
            blocks.append(np.load(path, mmap_mode="r"))
        return cls(str(config.teacher), config.kind, items, blocks, size)

    def vectors(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the queries [B, d] and of the documents [N, d] of a batch, of norm 1."""
        queries, documents = ([each.text for each in texts] for texts in (batch.queries, batch.documents))
        return self._values(item_keys(QUERY, queries)), self._values(item_keys(DOCUMENT, documents))

    def scores(self, batch: Batch) -> np.ndarray:
        """Scores [B, 1 + K] of each row's positive and of its own mined negatives, NaN where it has no more of them."""
        documents = np.column_stack([batch.positive, batch.own])
        row, slot = np.nonzero(documents >= 0)
        found = np.full(documents.shape, np.nan, np.float32)
        queries = hashes([each.text for each in batch.queries])
        texts = hashes([each.text for each in batch.documents])
        found[row, slot] = self._values(pairs(queries[row], texts[documents[row, slot]]))[:, 0]
        return found

    def _values(self, wanted: np.ndarray) -> np.ndarray:
        place = np.searchsorted(self.keys, wanted)
        if not np.array_equal(self.keys[np.minimum(place, len(self.keys) - 1)], wanted):
            raise BuildError(f"The teacher '{self.name}' has not read all texts of this batch; it was opened with other rows.")
        values = np.empty((len(wanted), self.blocks[0].shape[1]), np.float32)
        block = place // self.size
        for number in np.unique(block):
            values[block == number] = self.blocks[number][place[block == number] % self.size]
        return values


def hashes(texts: Any) -> np.ndarray:
    return keys(texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string()), None)


def item_keys(role: int, texts: Any) -> np.ndarray:
    return pairs(np.array([role]), hashes(texts))


def listed(rows: TrainingRows, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The keys [n] of all different items, ascending, and where each stands first: its row and its slot, in one number.

    Slot 0 is the query, 1 the positive, 2 and more the mined negatives. Where no negatives are drawn, none is listed.
    """
    width = rows.most_negatives + 2
    found, places = [], []
    for start, block in rows.blocks():
        row = np.flatnonzero(~has_score(block))
        block = block.take(pa.array(row))
        place = (start + row) * width
        query = hashes(block.column("query"))
        lists = block.column("negatives").slice(0, len(row) if rows.data.negatives else 0)
        texts = pc.struct_field(lists.flatten(), "text")
        owner = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        slot = place[owner] + 2 + ranks(owner)
        filled = np.flatnonzero(pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False))
        documents = hashes(pa.concat_arrays([block.column("positive"), texts.take(pa.array(filled))]))
        places.append(np.concatenate([place + 1, slot[filled]]))
        if kind == "scores":
            found.append(pairs(np.concatenate([query, query[owner[filled]]]), documents))
        else:
            places.append(place)
            found += [pairs(np.array([DOCUMENT]), documents), pairs(np.array([QUERY]), query)]
    items, first = np.unique(np.concatenate(found), return_index=True)
    return items, np.concatenate(places)[first]


def texts_at(rows: TrainingRows, kind: str, places: np.ndarray) -> list[tuple[str, str]]:
    """The items at some places: (role, text), or (query, document)."""
    roles = np.where(places % (rows.most_negatives + 2), "document", "query").tolist()
    return [
        (each["query"] if kind == "scores" else role, each["text"]) for each, role in zip(rows.texts(places), roles, strict=True)
    ]


def computed(model: Any, config: Distillation, items: list[tuple[str, str]]) -> np.ndarray:
    """The values float32 [n, d] of a block. It goes through the model in batches that depend on the block alone."""
    settings = {"batch_size": MODEL_BATCH, "show_progress_bar": False}
    if config.kind == "scores":
        values = np.asarray(model.predict(items, **settings), np.float32)[:, None]
    else:
        values = np.zeros((len(items), model.get_embedding_dimension()), np.float32)
        for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
            if places := [place for place, item in enumerate(items) if item[0] == role]:
                values[places] = encode([items[place][1] for place in places], normalize_embeddings=True, **settings)
    if not np.isfinite(values).all():
        wrong = items[int(np.argmin(np.isfinite(values).all(1)))]
        raise BuildError(f"The teacher '{config.teacher}' gives what is no number, as for {wrong[1][:80]!r}. Choose another one.")
    return values


def load(config: Distillation) -> Any:
    """The teacher, in float32 on a CPU, as it was saved on a GPU. Raises UserError for what is none, or one of another kind."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    path = locate(config.teacher)
    if config.kind == "embeddings" and os.path.exists(path) and not os.path.isfile(os.path.join(path, "modules.json")):
        # sentence-transformers would guess how to pool.
        raise UserError(
            f"The teacher '{config.teacher}' holds no modules.json. Give a folder that sentence-transformers has saved, "
            "a name on the hub, or package:NAME/inner/path."
        )
    loader: Any = SentenceTransformer if config.kind == "embeddings" else CrossEncoder
    try:
        with quiet():
            model = loader(path, model_kwargs={"dtype": "auto" if torch.cuda.is_available() else torch.float32})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The teacher '{config.teacher}' could not be loaded: {first_line(error)}") from error
    classes = " ".join(getattr(model.config, "architectures", None) or [])
    scores = "ForSequenceClassification" in classes
    if config.kind == "embeddings" and scores:
        raise UserError(f"The teacher '{config.teacher}' is a cross-encoder ({classes}) and has no vectors; set kind: scores.")
    if config.kind == "scores" and (not scores or model.num_labels != 1):
        raise UserError(
            f"The teacher '{config.teacher}' is no cross-encoder with one output ({classes or 'no transformer'}). "
            "An encoder needs kind: embeddings."
        )
    if config.max_length is not None:
        model.max_seq_length = min(config.max_length, model.max_seq_length or config.max_length)
    return model.eval()
