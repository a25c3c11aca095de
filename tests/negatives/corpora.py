"""Rows to mine in tests: small categories with siblings, shared documents, and texts that differ in case only."""

from __future__ import annotations

import random
from typing import Any

from stepping import rows_step

from datakit.schema import content_id, digest, rows, text_id
from datakit.step import Step

WORDS = [f"w{number}" for number in range(30)]


def record(category: str, query: str, positive: str, **fields: Any) -> dict[str, Any]:
    return {
        "row_id": digest("row", category, query, positive),
        "content_id": content_id(category, query, positive),
        "query_id": text_id(query),
        "positive_id": text_id(positive),
        "document_id": text_id(positive),
        "category": category,
        "query": query,
        "positive": positive,
        "in_batch_negatives": True,
        **fields,
    }


def given(*texts: str) -> list[dict[str, Any]]:
    """Negatives as the data had them."""
    return [{"id": text_id(text), "text": text, "miner": "source"} for text in texts]


def random_records(seed: int, count: int = 120, words: int = 6) -> list[dict[str, Any]]:
    """Rows of two categories. Queries, positives and documents repeat; some positives differ from others in case only."""
    draw = random.Random(seed)
    positives = [" ".join(draw.choices(WORDS, k=draw.randint(2, words))) for _ in range(count // 2)]
    positives += [text.upper() + "!" for text in positives[:8]]
    queries = [" ".join(draw.choices(WORDS, k=3)) for _ in range(count // 2)] + positives[:4]
    records = {}
    for _ in range(count):
        positive = draw.choice(positives)
        fields: dict[str, Any] = {"document_id": digest(str(positives.index(positive) % 20))}
        if draw.random() < 0.2:
            fields["negatives"] = given(*draw.sample(positives, 2))
        row = record(draw.choice(["a", "b"]), draw.choice(queries), positive, **fields)
        records[row["row_id"]] = row
    return list(records.values())


def split(records: list[dict[str, Any]], shards: int = 2, validation: list[dict[str, Any]] | None = None) -> tuple[Step, ...]:
    """The rows as the split step gives them: `records` for training, in so many shards."""
    train = rows_step([rows(records[number::shards]) for number in range(shards)], "train")
    return (train, rows_step([rows(validation)], "validation")) if validation else (train,)
