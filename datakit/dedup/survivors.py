"""Which of several equal or similar rows survives, and how the others leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datakit import exchange, storage
from datakit.schema import REASONS
from datakit.step import Work, count_categories, part_of, split_rejected, write_rows

# The columns that rank decides by.
RANKED_BY = ["quality", "content_id", "row_id"]


def best_first(table: pa.Table) -> NDArray[np.int64]:
    """The positions of rows from the one that survives before all others to the one that survives last.

    Highest quality first (none is lowest), then lowest content_id, then lowest row_id: no order of rows or shards counts.
    """
    quality = table.column("quality").combine_chunks()
    ranked = table.set_column(
        table.schema.get_field_index("quality"),
        "quality",
        pc.if_else(pc.is_nan(quality), pa.scalar(None, quality.type), quality),
    )
    keys = [("quality", "descending"), ("content_id", "ascending"), ("row_id", "ascending")]
    order: NDArray[np.int64] = pc.sort_indices(ranked, sort_keys=keys).to_numpy().astype(np.int64)
    return order


# A row that leaves: where it stands, and what REASONS needs.
LOSERS = pa.schema([pa.field("shard", pa.int64()), *REASONS])


def write_losers(folder: str, losers: pa.Table, shards: int) -> dict[str, Any]:
    """Sends rows that leave (LOSERS) to their shards; there are `shards` of them. Returns how many go to each."""
    losers = losers.select(LOSERS.names).cast(LOSERS)
    places = losers.column("shard").to_numpy()
    return {"losers": exchange.scatter(storage.join(folder, "losers.parquet"), losers, places, shards)}


def reject_losers(work: Work, phase: str, results: Sequence[dict[str, Any]]) -> None:
    """Ends a step: the rows that the units of `phase` gave to `write_losers` leave, all others stay."""
    paths = [work.files(phase, number, "losers.parquet") for number in range(len(results))]
    reject = _Reject(work.step.name, paths, [result["losers"] for result in results])
    work.finish("rows", work.map("rows", reject, list(enumerate(work.shards))))


@dataclass(frozen=True)
class _Reject:
    step: str
    paths: list[str]
    sizes: list[list[int]]

    def __call__(self, unit: tuple[int, str], folder: str) -> dict[str, Any]:
        number, shard = unit
        table = storage.read_table(shard)
        losers = exchange.gather(self.paths, self.sizes, number)
        said = REASONS.empty_table() if losers is None else losers.select(REASONS.names).cast(REASONS).sort_by("row")
        kept, rejected = split_rejected(table, self.step, said)
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
