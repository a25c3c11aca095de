"""Collecting what a filter has to say: at most one reason a row, the first that was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from datakit.schema import REASONS

Array = np.ndarray[Any, np.dtype[Any]]


class Verdicts:
    """The reasons against the rows of one shard. A row that already has one keeps it, so reasons come in order of weight."""

    def __init__(self, rows: int) -> None:
        self._free = np.ones(rows, bool)
        self._parts: list[pa.Table] = []

    def add(
        self,
        against: Array,
        reason: str,
        *,
        value: Array | float | None = None,
        threshold: Array | float | None = None,
        detail: list[str | None] | None = None,
    ) -> None:
        """Says `reason` against the rows of the mask `against`. Arrays and lists are for all rows of the shard."""
        rows = np.flatnonzero(against & self._free)
        self._free[rows] = False
        columns = {
            "row": pa.array(rows, pa.int64()),
            "reason": pa.array([reason] * len(rows), pa.string()),
            "value": _numbers(value, rows),
            "threshold": _numbers(threshold, rows),
            "other_id": pa.nulls(len(rows), pa.string()),
            "detail": pa.array([None if detail is None else detail[row] for row in rows], pa.string()),
        }
        self._parts.append(pa.table(columns, schema=REASONS))

    def table(self) -> pa.Table:
        """All reasons (REASONS), in the order of the rows."""
        return pa.concat_tables([REASONS.empty_table(), *self._parts]).sort_by("row").combine_chunks()


def _numbers(values: Array | float | None, rows: Array) -> pa.Array:
    if isinstance(values, np.ndarray):
        return pa.array(values[rows].astype(np.float64), pa.float64())
    return pa.array([values] * len(rows), pa.float64())
