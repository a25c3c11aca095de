"""Toxic text, by the engine that the recipe names. Each side of a row is held against the threshold of each label.

Of several labels above their thresholds, the one that is furthest above is told: (score - threshold) / (1 - threshold).

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
from datakit.errors import UserError
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
    scores = np.stack([toxicity_embedded.score(series(table, side)) for side in _SIDES], axis=1)
    return judge(scores[:, :, None], parameters)


def judge(scores: Array, parameters: ToxicityFilter) -> pa.Table:
    """Reasons from the scores of query and positive for each label of `thresholds(parameters)`: (n, 2, labels)."""
    wanted = thresholds(parameters)
    labels, bounds = list(wanted), np.array(list(wanted.values()))
    rows = len(scores)
    verdicts = Verdicts(rows)
    excess = (scores - bounds) / np.maximum(1 - bounds, 1e-9)
    width = len(_SIDES) * len(labels)
    most = excess.reshape(rows, width).argmax(axis=1)
    side, label = np.divmod(most, len(labels))
    value = scores.reshape(rows, width)[np.arange(rows), most]
    detail: list[str | None] = [f"{labels[which]}, {_SIDES[where]}" for which, where in zip(label, side, strict=True)]
    verdicts.add(value > bounds[label], TOXIC, value=value, threshold=bounds[label], detail=detail)
    return verdicts.table()


def thresholds(parameters: ToxicityFilter) -> dict[str, float]:
    """The threshold of each label that counts, under the names of Detoxify's `predict`, in their order."""
    given = parameters.thresholds
    if given is None:
        return {toxicity_detoxify.TOXIC_CLASS: parameters.threshold}
    return dict(sorted((toxicity_detoxify.NAMES.get(label, label), bound) for label, bound in given.items()))


def check(parameters: ToxicityFilter) -> None:
    """Refuses labels that the engine does not know."""
    if parameters.engine == "detoxify":
        toxicity_detoxify.check(parameters)
        if parameters.thresholds is None:
            return
        known = toxicity_detoxify.read(str(parameters.checkpoint)).classes
    else:
        known = [toxicity_detoxify.TOXIC_CLASS]
    for label in parameters.thresholds or {}:
        if toxicity_detoxify.NAMES.get(label, label) not in known:
            whose = f"the checkpoint '{parameters.checkpoint}'" if parameters.engine == "detoxify" else "the embedded engine"
            raise UserError(
                f"The toxicity filter's thresholds name '{label}', which {whose} does not score. Its labels: {', '.join(known)}."
            )


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
        labels = list(thresholds(self.parameters))
        scored = toxicity_detoxify.score(distinct, self.parameters, labels)
        place = {text: number for number, text in enumerate(distinct)}
        scores = np.stack([scored[[place[text] for text in side]] for side in texts], axis=1)
        save_array(storage.join(folder, "scores.npy"), scores.reshape(table.num_rows, -1))
        return {"rows": table.num_rows}


@dataclass(frozen=True)
class _Judged:
    parameters: Any
    name: str

    def __call__(self, unit: tuple[str, Sequence[str]], folder: str) -> dict[str, Any]:
        shard, files = unit
        table = storage.read_table(shard)
        labels = len(thresholds(self.parameters))
        scores = np.concatenate([np.zeros((0, len(_SIDES) * labels)), *(load_array(file) for file in files)])
        said = judge(scores.reshape(len(scores), len(_SIDES), labels), self.parameters)
        kept, rejected = split_rejected(table, self.name, said)
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
