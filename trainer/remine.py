"""Negatives mined anew by the model that is trained, every so many steps, in place of those of the build.

A round is a pure function of the weights: all queries and documents of the training rows are embedded without gradients and
dropout, datakit's dense miner ranks the documents for each query, and datakit's screen drops those that are likely positives. It
lies in `negatives/NNNNNNNN.npy`, by the steps before it, with its digest beside it, and is not mined twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.negatives import dense
from datakit.negatives.corpus import fold
from datakit.negatives.criteria import reasons
from datakit.negatives.finding import difficulty
from datakit.negatives.postings import Excluded
from datakit.negatives.screen import take
from datakit.recipe import DenseMiner, Screen
from datakit.schema import NEGATIVE
from trainer import distributed
from trainer.batch import ranks
from trainer.checkpoint import seal, sealed
from trainer.config import Remine
from trainer.data import TrainingRows, has_score
from trainer.model import Encoder
from trainer.teacher import DOCUMENT, QUERY, item_keys, listed

log = logging.getLogger(__name__)

BLOCK = 8_192  # texts that are embedded, and queries that are mined for, at a time
# Where a negative stands among the rows, -1 for none (as in teacher.listed), and its difficulty.
ENTRY = np.dtype([("place", np.int64), ("difficulty", np.float32)])
NONE = np.array((-1, np.nan), ENTRY)


@dataclass(frozen=True)
class Round:
    """The negatives [rows, most of a row] (ENTRY) that hold from a step on."""

    step: int
    table: np.ndarray

    def negatives(self, rows: TrainingRows, numbers: np.ndarray) -> pa.Array:
        """The lists of the rows with these numbers, as the build's column has them."""
        chosen = self.table[numbers]
        there = chosen["place"] >= 0
        records = rows.texts(chosen["place"][there])
        values = [pa.array([record[name] for record in records], pa.string()) for name in ("id", "text")]
        values += [pa.array([dense.DENSE] * len(records), pa.string()), pa.nulls(len(records), pa.float32())]
        values.append(pa.array(chosen["difficulty"][there], pa.float32()))
        starts = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(values, fields=list(NEGATIVE)))


def renew(step: int, folder: str, encoder: Encoder, rows: TrainingRows) -> dict[str, float]:
    """Sees to it that the rows have the negatives of step `step` (from 0). Returns what a round that begins there has to say."""
    config = rows.data.remine
    if config is None or step < config.every:
        return {}
    begins = step - step % config.every
    if rows.round is not None and rows.round.step == begins:
        return {}
    path = path_of(folder, begins)
    for leftover in Path(os.path.dirname(path)).glob("*.tmp"):
        leftover.unlink(missing_ok=True)  # another process may have done it
    if (told := sealed(path)) is None:
        assert step == begins, "a checkpoint without its negatives is left out"
        log.info("Mining negatives for %d rows with the weights after step %d", len(rows), step)
        before = path_of(folder, begins - config.every)
        if rows.round is None and sealed(before) is not None:
            # A run that was stopped: what the new negatives are compared with.
            rows.round = Round(begins - config.every, np.load(before, mmap_mode="r"))
        table, told = mine(rows, encoder, config)  # by all processes together
        if distributed.rank() == 0:
            with storage.atomic(path) as file:
                np.save(file, table)
            seal(path, told)
        distributed.wait()
    rows.round = Round(begins, np.load(path, mmap_mode="r"))
    return told if step == begins else {}


def lacking(step: int, folder: str, config: Remine | None) -> str | None:
    """What a checkpoint of that step needs and is not there: negatives that its weights cannot mine any more."""
    if config is None or step < config.every or step % config.every == 0:
        return None
    path = path_of(folder, step - step % config.every)
    return None if sealed(path) is not None else f"the negatives that it goes on with, '{path}', are missing or changed"


def path_of(folder: str, step: int) -> str:
    return os.path.join(folder, "negatives", f"{step:08d}.npy")


class Sides(NamedTuple):
    """Different queries or documents: where each stands first, its vector [n, d], and its text without case and punctuation."""

    places: np.ndarray
    vectors: np.ndarray
    folded: pl.Series

    @classmethod
    def of(cls, rows: TrainingRows, encoder: Encoder, places: np.ndarray, prompted: Callable[..., Any]) -> Sides:
        vectors, folded = [np.zeros((0, encoder.dimension), np.float32)], [pl.Series(dtype=pl.String)]
        for start in range(0, len(places), BLOCK):
            some = rows.texts(places[start : start + BLOCK])
            vectors.append(encoder.embed([prompted(each["text"], each["instruction"]) for each in some]))
            folded.append(fold(pl.Series([each["text"] for each in some], dtype=pl.String)))
        return cls(places, np.concatenate(vectors), pl.concat(folded))


def mine(rows: TrainingRows, encoder: Encoder, config: Remine) -> tuple[np.ndarray, dict[str, float]]:
    """The negatives of all rows (ENTRY, [rows, most of a row]), and what is worth telling of them.

    A text with several instructions has the first one. Graded rows have no part in it. In memory are all vectors.
    """
    began = time.monotonic()
    items, places = listed(rows, "embeddings")  # what a teacher has read, so that it knows whatever is mined
    asked = places % (rows.most_negatives + 2) == 0
    links, table = linked(rows, items[asked], items[~asked], places[~asked])
    queries = Sides.of(rows, encoder, places[asked], encoder.query_text)
    documents = Sides.of(rows, encoder, places[~asked], encoder.document_text)
    found = np.full((len(queries.places), table.shape[1]), NONE)
    corpus, barred = dense.in_memory(documents.vectors), not_to_be_found(links, queries, documents)
    for start in range(0, len(found), BLOCK):
        some = pl.col("query").is_between(start, start + BLOCK, "left")
        vectors = queries.vectors[start : start + BLOCK]
        fill(found, start, vectors, documents, corpus, barred.filter(some), links.filter(some), config)
    mined = links.filter("mined")
    row = mined.get_column("row").to_numpy()
    before = (table if rows.round is None else rows.round.table)[row]["place"]
    table[row] = found[mined.get_column("query").to_numpy()]
    after = table[row]
    kept = np.any([before == after["place"][:, [slot]] for slot in range(after.shape[1])], axis=0)
    count = int((after["place"] >= 0).sum())
    return table, {
        "stale": float(1 - kept[before >= 0].mean()) if (before >= 0).any() else 0.0,
        "mined_per_row": count / max(1, len(row)),
        "mined_difficulty": float(np.nansum(after["difficulty"], dtype=np.float64)) / max(1, count),
        "mining_seconds": time.monotonic() - began,
    }


def linked(rows: TrainingRows, asked: np.ndarray, known: np.ndarray, places: np.ndarray) -> tuple[pl.DataFrame, np.ndarray]:
    """The numbers of query and positive of each row, with its document_id, and whether it is mined for; the build's negatives."""
    frames, table = [], np.full((len(rows), rows.most_negatives), NONE)
    for start, whole_block in rows.blocks():
        number = np.flatnonzero(~has_score(whole_block))
        block = whole_block.take(pa.array(number))
        columns = {
            "row": start + number,
            "query": np.searchsorted(asked, item_keys(QUERY, block.column("query"))),
            "positive": np.searchsorted(known, item_keys(DOCUMENT, block.column("positive"))),
            "document_id": pl.from_arrow(block.column("document_id")),
            "mined": pc.fill_null(block.column("in_batch_negatives"), True).to_numpy(zero_copy_only=False),
        }
        frames.append(pl.DataFrame(columns))
        lists = block.column("negatives")
        flat, owner = lists.flatten(), pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        filled = np.flatnonzero(pc.fill_null(pc.utf8_length(pc.struct_field(flat, "text")), 0).to_numpy(zero_copy_only=False))
        at = (start + number[owner[filled]], ranks(owner)[filled])
        text = pc.struct_field(flat, "text").take(pa.array(filled))
        table["place"][at] = places[np.searchsorted(known, item_keys(DOCUMENT, text))]
        table["difficulty"][at] = pc.struct_field(flat, "difficulty").to_numpy(zero_copy_only=False)[filled]
    return pl.concat(frames), table


def not_to_be_found(links: pl.DataFrame, queries: Sides, documents: Sides) -> pl.DataFrame:
    """(query, document), ascending: what says the same as the query or a positive of it, and what is of a positive's document."""
    said = [queries.folded.gather(links.get_column("query")), documents.folded.gather(links.get_column("positive"))]
    barred = pl.concat([links.select("query", folded=each) for each in said]).unique()
    by_text = barred.join(documents.folded.to_frame("folded").with_row_index("document"), on="folded")
    of_document = links.select("document_id", document="positive").unique()
    by_document = links.select("query", "document_id").unique().join(of_document, on="document_id")
    pairs = [each.select(pl.col("query", "document").cast(pl.Int64)) for each in (by_text, by_document)]
    return pl.concat(pairs).unique().sort("query", "document")


def fill(
    found: np.ndarray,
    start: int,
    vectors: np.ndarray,
    documents: Sides,
    corpus: dense.Opened,
    barred: pl.DataFrame,
    links: pl.DataFrame,
    config: Remine,
) -> None:
    """Mines and screens for the queries from number `start` on, and puts what is left into `found`, the nearest first."""
    numbers = np.arange(start, start + len(vectors))
    starts = np.searchsorted(barred.get_column("query").to_numpy(), np.append(numbers, numbers[-1] + 1))
    excluded = Excluded(barred.get_column("document").to_numpy(), starts)
    hits = dense.search(corpus, vectors, DenseMiner(type="dense", encoder="trained", depth=config.depth), excluded)
    name = partial(pl.Expr.cast, dtype=pl.String)
    candidates = hits.select(
        "position", row="number", id=name(pl.col("position")), miner=pl.lit(dense.DENSE), place=pl.col("rank"),
        difficulty=difficulty(pl.col("rank"), len(documents.places)),
    )  # fmt: skip
    known = links.select(row=pl.col("query") - start, positive_id=name(pl.col("positive"))).unique().sort("row", "positive_id")
    asked = pl.DataFrame({"row": numbers - start}).with_columns(query_id=name(pl.col("row")))

    def lookup(role: str, ids: Any) -> np.ndarray:
        return (vectors if role == "query" else documents.vectors)[np.array(ids, np.int64)]

    screen = Screen(encoder="trained", margin=config.margin, paraphrase=None)
    left = candidates.filter(reasons(candidates, asked, known, screen, lookup).is_null())
    left = take(left, config.per_query).with_columns(slot=pl.int_range(pl.len()).over("row"))
    at = (start + left.get_column("row").to_numpy(), left.get_column("slot").to_numpy())
    found["place"][at] = documents.places[left.get_column("position").to_numpy()]
    found["difficulty"][at] = left.get_column("difficulty").to_numpy()
