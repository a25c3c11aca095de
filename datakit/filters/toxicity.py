"""Toxic text, by the engine that the recipe names. A row's score is the larger of its query's and its positive's.

The model of `detoxify` runs in this process on fixed slices of a shard, so a killed build scores at most one slice again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import storage
from datakit.encoders.vectors import load_array, save_array
from datakit.filters import toxicity_detoxify, toxicity_embedded
from datakit.filters.sides import Array
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import series
from datakit.recipe import ToxicityFilter
from datakit.step import Work, count_categories, judged, part_of, split_rejected, write_rows

VERSION = 1

TOXIC = "toxic"
REASONS = (TOXIC,)

# Rows of one unit of work with a model.
_SLICE = 256

_SIDES = ("query", "positive")


def work(work: Work) -> None:
    if work.step.parameters.engine == "embedded":  # type: ignore[attr-defined]
        judged(work, judge_embedded)
    else:
        _work_with_model(work)


def judge_embedded(table: pa.Table, parameters: ToxicityFilter) -> pa.Table:
    return judge(np.stack([toxicity_embedded.score(series(table, side)) for side in _SIDES], axis=1), parameters)


def judge(scores: Array, parameters: ToxicityFilter) -> pa.Table:
    """Reasons from the scores of query and positive: (n, 2)."""
    verdicts = Verdicts(len(scores))
    sides: list[str | None] = [_SIDES[side] for side in scores.argmax(axis=1).tolist()]
    value = scores.max(axis=1)
    verdicts.add(value > parameters.threshold, TOXIC, value=value, threshold=parameters.threshold, detail=sides)
    return verdicts.table()


def _work_with_model(work: Work) -> None:
    sizes = [rows for source in work.inputs for rows in source.report.shard_rows]
    slices, numbers = list[tuple[str, int]](), list[list[int]]()
    for shard, rows in zip(work.shards, sizes, strict=True):
        starts = range(0, rows, _SLICE)
        numbers.append(list(range(len(slices), len(slices) + len(starts))))
        slices.extend((shard, start) for start in starts)
    parameters = work.step.parameters
    try:
        work.map("scores", _Score(parameters), slices, exclusive=True)
    finally:
        toxicity_detoxify.load.cache_clear()
    units = [
        (shard, [work.files("scores", number, "scores.npy") for number in mine])
        for shard, mine in zip(work.shards, numbers, strict=True)
    ]
    work.finish("rows", work.map("rows", _Judged(parameters, work.step.name), units))


@dataclass(frozen=True)
class _Score:
    parameters: Any

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, start = unit
        table = storage.read_table(shard, columns=list(_SIDES)).slice(start, _SLICE)
        texts = [series(table, side).to_list() for side in _SIDES]
        distinct = list(dict.fromkeys([*texts[0], *texts[1]]))
        known = dict(zip(distinct, toxicity_detoxify.score(distinct, self.parameters).tolist(), strict=True))
        save_array(storage.join(folder, "scores.npy"), np.array([[known[text] for text in side] for side in texts]).T)
        return {"rows": table.num_rows}


@dataclass(frozen=True)
class _Judged:
    parameters: Any
    name: str

    def __call__(self, unit: tuple[str, Sequence[str]], folder: str) -> dict[str, Any]:
        shard, files = unit
        table = storage.read_table(shard)
        scores = np.concatenate([np.zeros((0, len(_SIDES))), *(load_array(file) for file in files)])
        kept, rejected = split_rejected(table, self.name, judge(scores, self.parameters))
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
