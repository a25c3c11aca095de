"""Rows that say the same, letter for letter, but for case, punctuation and white space."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import exchange, storage
from datakit.dedup.survivors import LOSERS, RANKED_BY, best_first, reject_losers, write_losers
from datakit.recipe import ExactDedup
from datakit.step import Step, Work

VERSION = 1

EXACT_DUPLICATE = "exact_duplicate"

PARTITION_ROWS = 500_000

# Punctuation is white space here, so that "1.5" and "15" differ. These characters carry meaning in code, numbers and names
# ("C#", "50%", "R&D", "a*b"): they stay.
_PUNCTUATION = r"[\p{P}\s--#%&*/@\\_]+"


def exact_step(name: str, dedup: ExactDedup, inputs: tuple[Step, ...]) -> Step:
    return Step(name, VERSION, _work, dedup, inputs, packages=("polars", "python"))


def _work(work: Work) -> None:
    dedup = work.step.parameters
    assert isinstance(dedup, ExactDedup)
    rows = sum(rows for source in work.inputs for rows in source.report.shard_rows)
    partitions = max(1, -(-rows // PARTITION_ROWS))
    sent = work.map("keys", _Keys(dedup, partitions), list(enumerate(work.shards)))
    paths = [work.files("keys", number, "keys.parquet") for number in range(len(sent))]
    compare = _Compare(paths, [result["sizes"] for result in sent])
    reject_losers(work, "compare", work.map("compare", compare, range(partitions)))


@dataclass(frozen=True)
class _Keys:
    """Sends each row to the partition of its key."""

    dedup: ExactDedup
    partitions: int

    def __call__(self, unit: tuple[int, str], folder: str) -> dict[str, Any]:
        number, shard = unit
        table = storage.read_table(shard, ["category", "query", "positive", "label", "in_batch_negatives", *RANKED_BY])
        keys = row_keys(table, self.dedup)
        keyed = np.flatnonzero(keys != b"")
        keys = keys[keyed]
        sent = table.select(RANKED_BY).take(keyed)
        sent = sent.append_column("key", pa.array(keys.tolist(), pa.binary()))
        sent = sent.append_column("shard", pa.array(np.full(len(keyed), number)))
        sent = sent.append_column("row", pa.array(keyed, pa.int64()))
        head = np.frombuffer(b"".join(keys.tolist()), "<u8")[::2]
        places = (head % np.uint64(self.partitions)).astype(np.int64)
        sizes = exchange.scatter(storage.join(folder, "keys.parquet"), sent, places, self.partitions)
        return {"rows": table.num_rows, "sizes": sizes}


def row_keys(table: pa.Table, dedup: ExactDedup) -> np.ndarray[Any, Any]:
    """For each row 16 bytes (BLAKE2b) that equal rows share; empty where there is no text to compare.

    A row whose positive is a label is compared on the pair where positives are asked for: many rows share a label.
    """
    from datakit.filters.sides import positive_is_label  # all filters come with it

    category = table.column("category").to_pylist() if dedup.within == "category" else [""] * table.num_rows
    queries, positives = normalised(table.column("query")), normalised(table.column("positive"))
    labelled = positive_is_label(table).tolist()
    keys = []
    for scope, query, positive, is_label in zip(category, queries, positives, labelled, strict=True):
        if dedup.on == "query":
            positive = ""
        elif dedup.on == "positive" and not is_label:
            query = ""
        said = f"{len(scope)} {len(query)} {scope}{query}{positive}"
        keys.append(hashlib.blake2b(said.encode(), digest_size=16).digest() if query or positive else b"")
    return np.array(keys, object)


def normalised(texts: pa.ChunkedArray) -> Iterable[str]:
    """Texts with their case folded, without punctuation, and with single spaces. A text of nothing but punctuation keeps it."""
    folded = pl.Series([(text or "").casefold() for text in texts.to_pylist()], dtype=pl.String)
    bare = folded.str.replace_all(_PUNCTUATION, " ").str.strip_chars(" ")
    spaced = folded.str.replace_all(r"\s+", " ").str.strip_chars(" ")
    return pl.select(pl.when(bare == "").then(spaced).otherwise(bare)).to_series().to_list()


@dataclass(frozen=True)
class _Compare:
    """Keeps the best row of each key of a partition."""

    paths: list[str]
    sizes: list[list[int]]

    def __call__(self, partition: int, folder: str) -> dict[str, Any]:
        table = exchange.gather(self.paths, self.sizes, partition)
        if table is None:
            return write_losers(folder, LOSERS.empty_table(), len(self.paths))
        table = table.take(best_first(table))
        keys = pl.Series(table.column("key").combine_chunks())
        rank = pl.int_range(table.num_rows, eager=True)
        best = pl.DataFrame({"key": keys, "rank": rank}).select(pl.col("rank").min().over("key")).to_series().to_numpy()
        lost = np.flatnonzero(best != rank.to_numpy())
        losers = {name: table.column(name).take(lost) for name in ("shard", "row")}
        losers["reason"] = pa.array([EXACT_DUPLICATE] * len(lost), pa.string())
        losers["other_id"] = table.column("row_id").take(best[lost])
        for name in ("value", "threshold", "detail"):
            losers[name] = pa.nulls(len(lost), LOSERS.field(name).type)
        return {"rows": table.num_rows} | write_losers(folder, pa.table(losers), len(self.paths))
