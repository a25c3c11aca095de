"""Graded similarity: Spearman's correlation of cosines with the scores of a build's validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Pairs:
    """P pairs of texts, each with its instruction, and their scores [P]."""

    queries: list[tuple[str, str | None]]
    documents: list[tuple[str, str | None]]
    scores: np.ndarray


def load_pairs(files: Sequence[str]) -> Pairs | None:
    """The rows of Parquet files that have a score and both texts; None where there are fewer than two."""
    columns = ["query", "positive", "instruction", "document_instruction", "score"]
    frame = pl.scan_parquet(list(files)).select(columns).filter(pl.col("score").is_not_null()).collect()
    frame = frame.filter((pl.col("query") != "") & (pl.col("positive") != ""))
    if len(frame) < 2:
        return None
    return Pairs(
        queries=list(frame.select("query", "instruction").iter_rows()),
        documents=list(frame.select("positive", "document_instruction").iter_rows()),
        scores=frame["score"].to_numpy(),
    )


def spearman(found: np.ndarray, scores: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays [P]: Pearson's of their ranks, ties at their mean. None where one is constant."""
    first, second = (pl.Series(each).rank("average").to_numpy() - (len(found) + 1) / 2 for each in (found, scores))
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm else None
