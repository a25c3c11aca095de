"""Negatives as a frame with one row each, and as the list column of an example."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from datakit.schema import EXAMPLE, NEGATIVE

SOURCE = "source"

# `row` is the position of the example in its table, `place` that of the negative in its list.
SCHEMA = {
    "row": pl.Int64,
    "place": pl.Int64,
    "id": pl.String,
    "text": pl.String,
    "miner": pl.String,
    "score": pl.Float32,
    "difficulty": pl.Float32,
}


def exploded(table: pa.Table) -> pl.DataFrame:
    """The negatives of the rows of a table, in order (SCHEMA)."""
    column = pa.chunked_array(table.column("negatives"), pa.list_(NEGATIVE))
    lists = pl.DataFrame({"row": pl.int_range(table.num_rows, eager=True), "negatives": pl.Series(column)})
    flat = lists.explode("negatives").drop_nulls("negatives").unnest("negatives")
    place = pl.int_range(pl.len()).over("row").alias("place")
    return flat.with_columns(place).select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]


def with_negatives(table: pa.Table, negatives: pl.DataFrame) -> pa.Table:
    """The table with these negatives (SCHEMA, `place` aside) in place of its own; those of one row stay in their order."""
    ordered = negatives.sort("row", maintain_order=True)
    starts = np.zeros(table.num_rows + 1, np.int32)
    np.cumsum(np.bincount(ordered.get_column("row").to_numpy(), minlength=table.num_rows), out=starts[1:])
    fields = [NEGATIVE.field(number) for number in range(NEGATIVE.num_fields)]
    values = [_array(ordered.get_column(field.name), field.type) for field in fields]
    lists = pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(values, fields=fields))
    return table.set_column(EXAMPLE.names.index("negatives"), EXAMPLE.field("negatives"), lists)


def _array(series: pl.Series, kind: pa.DataType) -> pa.Array:
    array = series.rechunk().to_arrow()
    return array.cast(kind)
