"""Rows for the tests of filters."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from datakit import schema

PROSE = "The heart pumps blood through the body, and the valves keep it from flowing back."


def row(query: str = "How does the heart pump blood?", positive: str = PROSE, **fields: Any) -> dict[str, Any]:
    """One row of the category medical-qa; `fields` are more columns, or others."""
    base = {
        "query_id": schema.text_id(query),
        "positive_id": schema.text_id(positive),
        "category": "medical-qa",
        "task": "question_answering",
        "in_batch_negatives": True,
        "query": query,
        "positive": positive,
    }
    return {**base, **fields}


def table(*records: dict[str, Any]) -> pa.Table:
    return schema.rows([{"row_id": schema.digest(str(number)), **record} for number, record in enumerate(records)])


def said(reasons: pa.Table) -> list[tuple[int, str]]:
    """(row, reason) of each record."""
    return list(zip(reasons.column("row").to_pylist(), reasons.column("reason").to_pylist(), strict=True))
