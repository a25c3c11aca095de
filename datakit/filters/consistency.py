"""Does the positive mean what the query asks for? The cosine of both, by an encoder, is at or above a threshold.

It is a filter of its own and no option of `round_trip`: it compares a row with itself alone, takes time in proportion to the
rows, and gives one value that is compared with one threshold. Not checked, as there: class labels, and graded pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.encoders.vectors import Array, lookup
from datakit.filters.sides import is_graded, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.recipe import ConsistencyFilter
from datakit.step import Output, Work, count_categories, part_of, split_rejected, write_rows

VERSION = 1

INCONSISTENT = "inconsistent"
REASONS = (INCONSISTENT,)

# Rows whose vectors are in memory at once.
_ROWS = 8_192


def work(work: Work) -> None:
    (vectors,) = work.side
    work.finish("rows", work.map("rows", _Unit(vectors, work.step.parameters, work.step.name), work.shards))


@dataclass(frozen=True)
class _Unit:
    vectors: Output
    parameters: Any
    name: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        kept, rejected = split_rejected(table, self.name, judge(cosines(table, self.vectors), self.parameters))
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))


def cosines(table: pa.Table, vectors: Output) -> Array:
    """The cosine of query and positive of each row: float64, (n,); NaN for rows that are not checked."""
    whole = pc.and_(pc.is_valid(table.column("query")), pc.is_valid(table.column("positive")))
    rows = np.flatnonzero(np.asarray(whole.to_numpy()) & ~positive_is_label(table) & ~is_graded(table))
    result = np.full(table.num_rows, np.nan)
    for start in range(0, len(rows), _ROWS):
        at = rows[start : start + _ROWS]
        ids = table.select(["query_id", "positive_id"]).take(pa.array(at))
        queries = lookup(vectors, "query", ids.column("query_id").to_pylist())
        documents = lookup(vectors, "document", ids.column("positive_id").to_pylist())
        # No matrix product: its last bits would depend on the number of threads.
        result[at] = np.einsum("nd,nd->n", queries, documents)
    return result


def judge(cosine: Array, parameters: ConsistencyFilter) -> pa.Table:
    """Reasons against the rows whose cosine is below the threshold; NaN is a row that was not checked."""
    verdicts = Verdicts(len(cosine))
    verdicts.add(cosine < parameters.threshold, INCONSISTENT, value=cosine, threshold=parameters.threshold)
    return verdicts.table()
