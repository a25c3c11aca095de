"""Rows that say nearly the same: MinHash and LSH find candidates, the true Jaccard similarity of their shingles decides.

A row is dropped exactly when it is at or above the threshold with a kept row of higher rank that shares a band with it. So every
dropped row names a kept one, and a row that is like a dropped row alone stays: there are no chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit.dedup.candidates import Sent, Texts, find, read_group, warn_of_cuts
from datakit.dedup.scopes import scope
from datakit.dedup.survivors import RANKED_BY, best_first, reject_losers, write_losers
from datakit.recipe import MinHashDedup
from datakit.step import Step, Work

VERSION = 1

NEAR_DUPLICATE = "near_duplicate"


def minhash_step(name: str, dedup: MinHashDedup, inputs: tuple[Step, ...]) -> Step:
    return Step(name, VERSION, _work, dedup, inputs, packages=("python", dedup.engine))


def _work(work: Work) -> None:
    dedup = work.step.parameters
    assert isinstance(dedup, MinHashDedup)
    columns = ["category", "query", "positive", "label", "in_batch_negatives"]
    found = find(work, dedup, DedupTexts(dedup.on, dedup.within), columns, RANKED_BY)
    results = work.map("compare", _Compare(dedup.threshold, len(work.shards)), found.groups)
    work.notes |= found.notes | {"comparisons_cut": sum(result["cut"] for result in results)}
    warn_of_cuts(work.step.name, work.notes["comparisons_cut"])
    reject_losers(work, "compare", results)


@dataclass(frozen=True)
class DedupTexts:
    """What rows are compared by. Where the positive is a label, `positive` means the query, among rows of that label."""

    on: str
    within: str

    def __call__(self, table: pa.Table) -> Texts:
        from datakit.filters.sides import positive_is_label  # all filters come with it

        scopes = np.zeros(table.num_rows, np.uint64)
        if self.within == "category":
            scopes ^= scope(table.column("category"))
        query, positive = table.column("query"), table.column("positive")
        if self.on == "query":
            return Texts([query], scopes)
        if self.on == "pair":
            return Texts([query, positive], scopes)
        is_label = pa.array(positive_is_label(table))
        labels = pc.if_else(is_label, positive, pa.scalar(None, pa.string()))
        return Texts([pc.if_else(is_label, query, positive)], scopes * np.uint64(3) ^ scope(labels))


@dataclass(frozen=True)
class _Compare:
    """Drops the rows of a group that are like a better one."""

    threshold: float
    shards: int

    def __call__(self, sent: Sent, folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import MAX_COMPARISONS, buckets, survivors

        group = read_group(sent)
        order = best_first(group.carried)
        met = buckets(group.keys[:, order])
        kept_as, similarity, cut = survivors(
            met.of, len(met.starts) - 1, group.values, group.bounds[order], self.threshold, MAX_COMPARISONS
        )
        lost = np.flatnonzero(kept_as >= 0)
        row_id = group.carried.column("row_id")
        losers = pa.table(
            {
                "shard": group.shard[order[lost]],
                "row": group.row[order[lost]],
                "reason": pa.array([NEAR_DUPLICATE] * len(lost), pa.string()),
                "value": similarity[lost],
                "threshold": np.full(len(lost), self.threshold),
                "other_id": row_id.take(order[kept_as[lost]]),
                "detail": pa.nulls(len(lost), pa.string()),
            }
        )
        return {"rows": len(order), "cut": int(cut)} | write_losers(folder, losers, self.shards)
