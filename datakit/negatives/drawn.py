"""Texts drawn without looking: the miner `random`, which a recipe has to ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from datakit.negatives.corpus import Corpus
from datakit.negatives.finding import FOUND
from datakit.negatives.labels import walk
from datakit.negatives.postings import Excluded


@dataclass(frozen=True)
class RandomFinder:
    """`count` texts for each query, by the digest of its id."""

    count: int
    NAME: ClassVar[str] = "random"

    @property
    def name(self) -> str:
        return self.NAME

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        numbers, positions = list[int](), list[int]()
        for number, query_id in enumerate(rows.get_column("query_id").to_list()):
            barred = set(excluded.documents[excluded.starts[number] : excluded.starts[number + 1]].tolist())
            taken = 0
            for position in walk(query_id or "", corpus.size):
                if position not in barred:
                    numbers.append(number)
                    positions.append(position)
                    taken += 1
                    if taken == self.count:
                        break
        nothing = np.zeros(len(numbers))
        return pl.DataFrame({"number": numbers, "position": positions, "score": nothing, "rank": nothing}).cast(FOUND)  # type: ignore[arg-type]
