"""The Arrow schema of an example: the one contract that datakit and trainer share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

NEGATIVE = pa.struct(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("miner", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("difficulty", pa.float32()),
    ]
)

PROVENANCE = pa.struct(
    [
        pa.field("persona", pa.string()),
        pa.field("model", pa.string()),
        pa.field("template", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("parents", pa.list_(pa.string())),
    ]
)

# What one column means stands in README.md ("The example row").
EXAMPLE = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("content_id", pa.string()),
        pa.field("query_id", pa.string()),
        pa.field("positive_id", pa.string()),
        pa.field("document_id", pa.string()),
        pa.field("category", pa.string(), nullable=False),
        pa.field("task", pa.string()),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
        pa.field("positive_language", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("document_instruction", pa.string()),
        pa.field("query", pa.string()),
        pa.field("positive", pa.string()),
        pa.field("negatives", pa.list_(NEGATIVE)),
        pa.field("score", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("in_batch_negatives", pa.bool_()),
        pa.field("batch_group", pa.string()),
        pa.field("quality", pa.float32()),
        pa.field("provenance", PROVENANCE),
    ],
    metadata={"datakit.schema": str(SCHEMA_VERSION)},
)

# What a filter returns: one record for each row that it does not let pass. `row` is the position in the shard it was given.
REASONS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("other_id", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

# A rejected row is published whole, with what was said against it.
REJECTED = pa.schema(
    [*EXAMPLE, pa.field("step", pa.string(), nullable=False), *list(REASONS)[1:]],
    metadata={"datakit.schema": str(SCHEMA_VERSION)},
)

# What a judge said of a row: a score from 1 to 5, null where its answer had none. `kept` says whether the row passed that judge.
JUDGED = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("positive", pa.string()),
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)

# A document is what synthesis reads: a passage, before anybody has asked a question about it.
DOCUMENT = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
        pa.field("title", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("text", pa.string(), nullable=False),
    ]
)


def digest(*parts: str, size: int = 16) -> str:
    """Hex BLAKE2b of the parts, `size` bytes long. Parts are length-prefixed, so that ("ab", "c") differs from ("a", "bc")."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def text_id(text: str) -> str:
    """The id of a text: equal texts share it, wherever they stand (query_id, positive_id, negatives.id)."""
    return digest("text", text)


def content_id(category: str, query: str, positive: str) -> str:
    """128-bit hex digest of what a row says. The texts are taken as they are: `normalise` has made them NFC."""
    return digest("content", category, query, positive)


def rows(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table in the EXAMPLE schema; columns that a record lacks are null. For sources, synthesis and tests."""
    return pa.Table.from_pylist([dict(record) for record in records], schema=EXAMPLE)


def reasons(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table in the REASONS schema from records with at least `row` and `reason`."""
    return pa.Table.from_pylist([dict(record) for record in records], schema=REASONS)


def rejected_rows(table: pa.Table, step: str, said: pa.Table) -> pa.Table:
    """The rows of `table` that `said` (REASONS) names, in the REJECTED schema."""
    picked = table.take(said.column("row")) if said.num_rows else table.slice(0, 0)
    columns = [picked.column(name) for name in EXAMPLE.names]
    columns.append(pa.array([step] * said.num_rows, pa.string()))
    columns.extend(said.column(name) for name in REASONS.names[1:])
    return pa.table(columns, schema=REJECTED)


class CategoryScore(BaseModel):
    """How a model does on one category; `history` holds older scores, oldest first. Higher is better."""

    model_config = ConfigDict(extra="forbid")

    score: float
    rows: int = Field(ge=0)
    history: list[float] = []


class Evaluation(BaseModel):
    """evaluation.json: what an evaluation writes and `datakit build --feedback` reads."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=1, alias="schema")
    model: str
    build: str
    metric: str
    categories: dict[str, CategoryScore]
