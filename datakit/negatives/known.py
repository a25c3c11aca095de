"""The known positives of a query: those of all rows that ask the same (equal query_id), in any category or part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from datakit import exchange, storage
from datakit.negatives.corpus import fold
from datakit.step import Work

# Pairs of query and positive that one unit holds in memory.
PARTITION_ROWS = 2_000_000


def siblings(work: Work) -> list[str]:
    """Maps the rows of a step to files with the (query_id, positive_id, folded) of queries that have more than one positive."""
    count = 1 + sum(source.report.counts.out for source in work.inputs) // PARTITION_ROWS
    sent = work.map("pairs", _Pairs(count), work.shards)
    files = [work.files("pairs", number, "pairs.parquet") for number in range(len(sent))]
    rows = [result["sent"] for result in sent]
    work.map("siblings", _siblings, [(files, rows, partition) for partition in range(count)])
    return [work.files("siblings", partition, "siblings.parquet") for partition in range(count)]


def positives(rows: pl.DataFrame, files: Sequence[str]) -> pl.DataFrame:
    """All known positives of each row, its own among them: (row, positive_id), for `rows` with row, query_id, positive_id."""
    found = [rows.select("row", "positive_id")]
    asked = rows.select("row", "query_id")
    for file in files:
        others = pl.DataFrame(storage.read_table(file)).join(asked, on="query_id", how="inner")
        found.append(others.select("row", "positive_id"))
    return pl.concat(found).drop_nulls().unique().sort("row", "positive_id")


def folded_positives(rows: pl.DataFrame, files: Sequence[str]) -> pl.DataFrame:
    """(row, folded) of all known positives of each row but its own: equal for texts that differ in case or punctuation."""
    empty = pl.DataFrame(schema={"row": pl.Int64, "folded": pl.String})
    asked = rows.select("row", "query_id")
    found = [pl.DataFrame(storage.read_table(file)).join(asked, on="query_id").select("row", "folded") for file in files]
    return pl.concat([empty, *found]).unique()


@dataclass(frozen=True)
class _Pairs:
    partitions: int

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, columns=["query_id", "positive_id", "positive"])
        pairs = pl.DataFrame(table).drop_nulls().unique(["query_id", "positive_id"]).sort("query_id", "positive_id")
        pairs = pairs.select("query_id", "positive_id", folded=fold(pairs.get_column("positive")))
        heads = np.array([int(query_id[:8], 16) for query_id in pairs.get_column("query_id")], np.int64)
        path = storage.join(folder, "pairs.parquet")
        return {
            "rows": table.num_rows,
            "sent": exchange.scatter(path, pairs.to_arrow(), heads % self.partitions, self.partitions),
        }


def _siblings(unit: tuple[list[str], list[list[int]], int], folder: str) -> dict[str, Any]:
    table = exchange.gather(*unit)
    columns = dict.fromkeys(("query_id", "positive_id", "folded"), pl.String)
    pairs = pl.DataFrame(table) if table is not None else pl.DataFrame(schema=columns)
    pairs = pairs.unique().filter(pl.len().over("query_id") > 1).sort("query_id", "positive_id")
    storage.write_table(storage.join(folder, "siblings.parquet"), pairs.to_arrow())
    return {"rows": len(pairs)}
