"""Rows that a trained classifier finds poor (`datakit quality train`; in the manner of DataComp-LM, arXiv 2406.11794).

Fills `quality` where it is null with the model's probability that the row is good:

    quality = softmax(W mean(x))_good

over x, the vectors of the row's tokens (quality_features). Class labels are read as labels: what is said is said of the query.
Rows with a graded `score` pass unjudged, and stay without a quality: a pair may be a poor match on purpose.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import pyarrow as pa

from datakit.assets import locate
from datakit.errors import MissingExtra, UserError
from datakit.filters import quality_features
from datakit.filters.annotate import annotated, fill
from datakit.filters.sides import Array, is_graded
from datakit.filters.verdicts import Verdicts
from datakit.recipe import QualityModelFilter
from datakit.step import Work

VERSION = 1

LOW_QUALITY = "low_quality"
REASONS = (LOW_QUALITY,)
MODEL = "model.ftz"
GOOD, POOR = "__label__good", "__label__poor"

# Rows that are scored at once: bounds the memory for their tokens.
_BLOCK = 4_096


def work(work: Work) -> None:
    try:
        annotated(work, annotate)
    finally:
        load.cache_clear()


def annotate(table: pa.Table, parameters: QualityModelFilter) -> tuple[pa.Table, pa.Table]:
    judged = ~is_graded(table)
    quality = np.zeros(table.num_rows)
    quality[judged] = score(table.filter(pa.array(judged)), parameters.model)
    verdicts = Verdicts(table.num_rows)
    verdicts.add(judged & (quality < parameters.threshold), LOW_QUALITY, value=quality, threshold=parameters.threshold)
    values = pa.array(quality.astype(np.float32), pa.float32(), mask=~judged)
    return fill(table, "quality", values), verdicts.table()


def score(table: pa.Table, model: str) -> Array:
    """The quality of each row, float64, 0 to 1. Columns: query, positive, task, label, in_batch_negatives."""
    loaded = load(model)
    scores = np.zeros(table.num_rows)
    for start in range(0, table.num_rows, _BLOCK):
        scores[start : start + _BLOCK] = probabilities(loaded, quality_features.lines(table.slice(start, _BLOCK)))
    return scores


def probabilities(model: Any, lines: list[str]) -> Array:
    """The probability of the label good for each line of features."""
    labels, found = model.predict(lines, k=2)
    # fastText adds a hair to each probability, so that none is nil.
    good = [dict(zip(names, each, strict=True)).get(GOOD, 0.0) for names, each in zip(labels, found, strict=True)]
    return np.clip(np.array(good, dtype=np.float64), 0.0, 1.0)


@functools.lru_cache(maxsize=1)
def load(model: str) -> Any:
    """The fastText model of a folder (or package:NAME/FOLDER) that `datakit quality train` wrote. UserError where it is none."""
    try:
        # fasttext-community and fasttext-predict both install this module; predict is what they share.
        import fasttext
    except ImportError as error:
        raise MissingExtra("The quality model", "fasttext-community", "") from error
    folder = locate(model)
    path = os.path.join(folder, MODEL)
    if not os.path.isfile(path):
        found = "it is a file" if os.path.isfile(folder) else f"'{path}' is not there"
        raise UserError(
            f"The quality model '{model}' should be a folder that `datakit quality train` wrote, with a {MODEL} in it: {found}."
        )
    try:
        loaded = fasttext.load_model(path)
        labels = sorted(loaded.predict("a", k=-1)[0])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The quality model '{path}' is not a fastText model: {error}.") from error
    if labels != [GOOD, POOR]:
        raise UserError(
            f"The quality model '{path}' knows the labels {', '.join(labels) or '(none)'}, and {GOOD} and {POOR} are needed. "
            "Train one with: datakit quality train"
        )
    return loaded
