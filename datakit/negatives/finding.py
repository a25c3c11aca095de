"""What miners have in common: each gives, for each query, candidates from a corpus, ranked.

    found = finder.find(rows, corpus, excluded)     # a frame of FOUND

Difficulty of the candidate at rank r (1 is the best) in a corpus of n texts:

    difficulty = 1 - log(r) / log(n + 1)

It is 1 for the best candidate, 1/2 for the one at the square root of n, and near 0 for an average text. It is comparable across
miners, since they rank the same texts for the same query, while scores of BM25 and cosines are on no common scale; and across
corpora and depths, since rank 50 of a hundred texts is nothing, and rank 50 of a million is a near miss. What nobody looked at
(random, other_label) has 0; what a model wrote for this query (adversarial) has 1.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import polars as pl

from datakit.negatives.corpus import Corpus
from datakit.negatives.postings import Array, Excluded

# `number` is the place of the query in `rows`; `rank` is what the difficulty is made of.
FOUND = {"number": pl.Int64, "position": pl.Int64, "score": pl.Float32, "rank": pl.Int64}


class Finder(Protocol):
    """A miner that is ready: what it needs of each corpus is on disk. It is pickled, and used in worker processes."""

    @property
    def name(self) -> str:
        """What its negatives have as `miner`."""
        ...

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        """Candidates for rows (query_id, query, positive_id, positive): FOUND, by number, and the best first."""
        ...


def windowed(documents: Array, scores: Array, window: tuple[int, int], behind: Array | None = None) -> pl.DataFrame:
    """FOUND from positions (n, k), best first, -1 where there are fewer, and scores; only ranks inside the window (from 1).

    `behind` (n) is added to the ranks: texts that were not looked at and count as better.
    """
    first, last = window
    number, rank = np.nonzero(documents[:, :last] >= 0)
    inside = rank >= first - 1
    number, rank = number[inside], rank[inside]
    return pl.DataFrame(
        {
            "number": number.astype(np.int64),
            "position": documents[number, rank],
            "score": scores[number, rank].astype(np.float32),
            "rank": rank + 1 + (behind[number] if behind is not None else 0),
        },
        schema=FOUND,
    )


def difficulty(rank: pl.Expr, size: int | pl.Expr) -> pl.Expr:
    """In [0, 1]; see above."""
    return (1 - rank.cast(pl.Float64).log() / (pl.lit(size) + 1.0).cast(pl.Float64).log()).clip(0, 1).cast(pl.Float32)
