"""Which of several equal or similar rows survives, and how the others leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datakit import storage
from datakit.dedup.exchange import Piece, addressed, read_pieces, split_batches, write_batches
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


def write_losers(folder: str, losers: pa.Table) -> dict[str, Any]:
    """Writes rows that leave (LOSERS), a batch for each shard; returns how many and of which shards."""
    losers = losers.select(LOSERS.names).cast(LOSERS)
    batches, shards = split_batches(losers, losers.column("shard").to_numpy())
    write_batches(storage.join(folder, "losers.arrow"), batches, LOSERS)
    return {"losers": losers.num_rows, "shards": shards}


def reject_losers(work: Work, phase: str, results: Sequence[dict[str, Any]]) -> None:
    """Ends a step: the rows that the units of `phase` gave to `write_losers` leave, all others stay."""
    sources = [(work.files(phase, number, "losers.arrow"), result["shards"]) for number, result in enumerate(results)]
    units = [(shard, addressed(sources, number)) for number, shard in enumerate(work.shards)]
    work.finish("rows", work.map("rows", _Reject(work.step.name), units))


@dataclass(frozen=True)
class _Reject:
    step: str

    def __call__(self, unit: tuple[str, list[Piece]], folder: str) -> dict[str, Any]:
        shard, pieces = unit
        table = storage.read_table(shard)
        said = read_pieces(pieces).select(REASONS.names).sort_by("row") if pieces else REASONS.empty_table()
        kept, rejected = split_rejected(table, self.step, said)
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
