"""Negatives where positives are classes: texts of other classes, drawn without looking at the query."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import polars as pl

OTHER_LABEL = "other_label"


def other_labels(rows: pl.DataFrame, corpus: pl.DataFrame, barred: pl.DataFrame, count: int) -> pl.DataFrame:
    """Up to `count` texts with another label for each row: row, id, miner, score (null), difficulty (0).

    `rows` has row, query_id, positive_id, label; `corpus` has id, folded, label, a label being the text itself where it is null;
    `barred` has (row, folded) of texts that a row may not have. Which ones depends on the query_id alone: from a start that its
    digest gives, the corpus is walked in steps that share no divisor with its size, so that each text is met once.
    """
    ids = corpus.get_column("id").to_list()
    folded = corpus.get_column("folded").to_list()
    labels = corpus.select(pl.coalesce("label", "id")).to_series().to_list()
    own = rows.select(pl.coalesce("label", "positive_id")).to_series().to_list()
    forbidden: dict[int, set[str]] = {}
    for row, text in barred.select("row", "folded").iter_rows():
        forbidden.setdefault(row, set()).add(text)
    found: dict[str, list[object]] = {"row": [], "id": []}
    for row, query_id, label in zip(rows.get_column("row").to_list(), rows.get_column("query_id").to_list(), own, strict=True):
        met = set(forbidden.get(row, ()))
        taken = 0
        for place in walk(query_id or "", len(ids)):
            if labels[place] != label and folded[place] not in met:
                met.add(folded[place])
                found["row"].append(row)
                found["id"].append(ids[place])
                taken += 1
                if taken == count:
                    break
    frame = pl.DataFrame(found, schema={"row": pl.Int64, "id": pl.String})
    return frame.with_columns(miner=pl.lit(OTHER_LABEL), score=pl.lit(None, pl.Float32), difficulty=pl.lit(0.0, pl.Float32))


def walk(query_id: str, size: int) -> Iterator[int]:
    """All numbers below `size`, in an order that the id decides."""
    if size < 2:
        yield from range(size)
        return
    drawn = hashlib.blake2b(query_id.encode(), digest_size=16).digest()
    start, step = int.from_bytes(drawn[:8], "little") % size, 1 + int.from_bytes(drawn[8:], "little") % (size - 1)
    while math.gcd(step, size) != 1:
        step = step % (size - 1) + 1
    for number in range(size):
        yield (start + number * step) % size
