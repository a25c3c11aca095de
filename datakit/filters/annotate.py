"""The work of a filter that also fills columns: shard by shard, as `step.judged` does for those that only say no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.step import Work, count_categories, part_of, split_rejected, write_rows

# The rows of one shard and the step's parameters, to the same rows with columns filled, and the reasons (REASONS) against some.
Annotator = Callable[[pa.Table, Any], tuple[pa.Table, pa.Table]]


@dataclass(frozen=True)
class _Annotated:
    annotator: Annotator
    parameters: Any
    name: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table, said = self.annotator(storage.read_table(shard), self.parameters)
        kept, rejected = split_rejected(table, self.name, said)
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))


def annotated(work: Work, annotator: Annotator) -> None:
    """The work of a filter: `annotator` is a pure function of one shard and the parameters. Rejected rows are filled too."""
    function = _Annotated(annotator, work.step.parameters, work.step.name)
    work.finish("rows", work.map("rows", function, work.shards))


def fill(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """The table with `values` where `column` was null."""
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(column), pc.coalesce(table.column(column), values))
