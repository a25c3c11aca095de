"""One batch out of some rows: their texts, the mined negatives that are drawn, and who is whose negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit.schema import text_id
from trainer.config import Curriculum
from trainer.model import Encoder, Prompted


@dataclass(frozen=True)
class Batch:
    """B rows that are trained on together, N different documents among their positives and drawn negatives, K drawn a row."""

    row_ids: list[str]
    group: str
    queries: list[Prompted]  # B
    documents: list[Prompted]  # N
    positive: np.ndarray  # [B] the document of each row
    candidates: np.ndarray  # [B, N] which documents stand in a row's denominator
    own: np.ndarray  # [B, K] the row's mined negatives among the documents, -1 where it has no more
    equal_queries: np.ndarray  # [B, B] queries that are equal, or have a positive in common
    in_batch: np.ndarray  # [B] bool: rows with in-batch negatives
    scores: np.ndarray | None  # [B] of graded rows, which have no mined negatives
    difficulty: float | None  # the mean of the drawn negatives that have one
    objective: str = ""  # of the stage, where it has some


class Draw(NamedTuple):
    """Which mined negatives of a row are taken: those nearest in difficulty to `target`, where there is one, and then by luck."""

    most: int
    target: float | None
    luck: np.ndarray  # [B, M] a number for each place in the longest list of negatives


class Known(NamedTuple):
    """The positives, anywhere in the training rows, of the U different queries of a batch: P pairs."""

    query: np.ndarray  # [B] which query a row has
    owner: np.ndarray  # [P] a query ...
    positive: np.ndarray  # [P] ... and the key of one of its positives

    def hold(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Whether each of n documents (keys) is a positive of the query (0 to U - 1) beside it."""
        return np.isin(pairs(queries, documents), pairs(self.owner, self.positive))

    def matrix(self, documents: np.ndarray) -> np.ndarray:
        """[B, N]: which of N documents (keys) are positives of each row's query."""
        different, place = np.unique(documents, return_inverse=True)
        seen = np.isin(self.positive, different)
        table = np.zeros((self._queries, len(different)), bool)
        table[self.owner[seen], np.searchsorted(different, self.positive[seen])] = True
        return np.asarray(table[self.query][:, place])

    def equal_queries(self) -> np.ndarray:
        """[B, B]: rows whose queries are equal, or have a positive in common, in the batch or elsewhere."""
        _, place, counts = np.unique(self.positive, return_inverse=True, return_counts=True)
        # Most positives belong to one query: only the others take part in the product.
        number = np.cumsum(counts > 1) - 1
        shared = counts[place] > 1
        table = np.zeros((self._queries, int((counts > 1).sum())), np.float32)
        table[self.owner[shared], number[place[shared]]] = 1
        common = table @ table.T > 0
        np.fill_diagonal(common, True)
        return np.asarray(common[self.query][:, self.query])

    @property
    def _queries(self) -> int:
        return int(self.query.max(initial=-1)) + 1


def pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One number [n] for each pair; equal pairs have equal ones, and others differ as good as surely, when `second` is hashed."""
    return np.asarray(first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + second)


def keys(ids: Any, texts: Any) -> np.ndarray:
    """A 64-bit number for each id, equal where ids are equal; an id that is absent is taken from its text."""
    column = pl.Series("id", pl.from_arrow(ids), dtype=pl.String)
    if column.null_count():
        known = zip(column.to_list(), texts.to_pylist(), strict=True)
        column = pl.Series("id", [text_id(text or "") if key is None else key for key, text in known], dtype=pl.String)
    return np.asarray(column.hash(seed=0).to_numpy())


def target_difficulty(curriculum: Curriculum | None, progress: float) -> float | None:
    """Which difficulty the curriculum wants when a part `progress` of the stage is done: it moves evenly, then stays."""
    if curriculum is None:
        return None
    return curriculum.start + (curriculum.end - curriculum.start) * min(1.0, progress / curriculum.until)


def make_batch(rows: pa.Table, group: str, graded: bool, known: Known, draw: Draw, encoder: Encoder) -> Batch:
    """The batch of some rows of one group. `known` and `draw` are in their order."""
    columns = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    mined = Mined(columns["negatives"], known)
    chosen = drawn(mined, draw)
    documents: dict[Prompted, int] = {}
    instructions = columns["document_instruction"].to_pylist()

    def place(texts: list[str], owners: list[int]) -> np.ndarray:
        prompted = [encoder.document_text(text, instructions[row]) for text, row in zip(texts, owners, strict=True)]
        return np.array([documents.setdefault(each, len(documents)) for each in prompted], np.int64)

    positive = place(columns["positive"].to_pylist(), list(range(rows.num_rows)))
    negative = place(mined.texts.take(pa.array(chosen)).to_pylist(), mined.row[chosen].tolist())
    own = np.full((rows.num_rows, draw.most), -1, np.int64)
    own[mined.row[chosen], ranks(mined.row[chosen])] = negative
    named = np.empty(len(documents), np.uint64)
    named[positive], named[negative] = keys(columns["positive_id"], columns["positive"]), mined.keys[chosen]
    positives = known.matrix(named)
    positives[np.arange(len(positive)), positive] = True
    in_batch = np.asarray(pc.fill_null(columns["in_batch_negatives"], True).to_numpy(zero_copy_only=False), bool)
    hard = mined.difficulty[chosen]
    hard = hard[~np.isnan(hard)]
    queries = zip(columns["query"].to_pylist(), columns["instruction"].to_pylist(), strict=True)
    return Batch(
        row_ids=columns["row_id"].to_pylist(),
        group=group,
        queries=[encoder.query_text(text, instruction) for text, instruction in queries],
        documents=list(documents),
        positive=positive,
        candidates=candidates(positive, own, in_batch, positives),
        own=own,
        equal_queries=known.equal_queries(),
        in_batch=in_batch,
        scores=columns["score"].to_numpy(zero_copy_only=False).astype(np.float32) if graded else None,
        difficulty=float(hard.mean()) if len(hard) else None,
    )


class Mined:
    """The mined negatives of some rows, one after another: m of them."""

    def __init__(self, lists: pa.ListArray, known: Known) -> None:
        flat = lists.flatten()
        self.texts = pc.struct_field(flat, "text")
        self.keys = keys(pc.struct_field(flat, "id"), self.texts)  # [m]
        self.row = pc.list_parent_indices(lists).to_numpy().astype(np.int64)  # [m]
        self.place = ranks(self.row)  # [m] in the list of the row
        self.difficulty = pc.struct_field(flat, "difficulty").to_numpy(zero_copy_only=False).astype(np.float64)  # [m] or NaN
        lengths = pc.fill_null(pc.utf8_length(self.texts), 0).to_numpy(zero_copy_only=False)
        # What is known as a positive of the query is no negative, whatever a miner said.
        self.usable = (lengths > 0) & ~known.hold(known.query[self.row], self.keys)  # [m]


def ranks(rows: np.ndarray) -> np.ndarray:
    """The place of each element among those of its row; rows ascend."""
    return np.asarray(np.arange(len(rows)) - np.searchsorted(rows, rows))


def drawn(mined: Mined, draw: Draw) -> np.ndarray:
    """Which of the mined negatives are taken, ascending. One without a difficulty is further from any target than all others."""
    places = np.flatnonzero(mined.usable)
    row = mined.row[places]
    far = np.zeros(len(places)) if draw.target is None else np.abs(mined.difficulty[places] - draw.target)
    order = np.lexsort((draw.luck[row, mined.place[places]], np.nan_to_num(far, nan=np.inf), row))
    return np.sort(places[order][ranks(row) < draw.most])


def candidates(positive: np.ndarray, own: np.ndarray, in_batch: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Which documents [B, N] stand in the denominator of each row.

    A row with in-batch negatives has all documents of the batch, another one only its own. What is a positive of the row's query
    (`positives` [B, N]) is no negative. The row's own positive [B] always stands there.
    """
    allowed = np.repeat(in_batch[:, None], positives.shape[1], axis=1)
    row, slot = np.nonzero(own >= 0)
    allowed[row, own[row, slot]] = True
    allowed &= ~positives
    allowed[np.arange(len(positive)), positive] = True
    return allowed
