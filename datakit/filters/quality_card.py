"""What is known of a quality model: its errors on held-out rows, as figures, as a picture, and as the card beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datakit.filters.sides import Array

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Point:
    """At a threshold of quality: how many of the rejected are poor, how many of the poor are rejected, how many good ones too."""

    threshold: float
    precision: float
    recall: float
    good_rejected: float


@dataclass(frozen=True)
class Tested:
    """A model on rows that it has not seen. `ways` are the shares rejected at `threshold`, by where the label came from."""

    name: str
    good: int
    poor: int
    auc: float
    points: list[Point]
    threshold: float
    ways: dict[str, tuple[int, float]]


def tested(name: str, quality: Array, poor: Array, origin: Array, threshold: float) -> Tested:
    ways = {
        str(way): (int((origin == way).sum()), float((quality[origin == way] < threshold).mean()))
        for way in sorted(set(origin.tolist()))
    }
    points = [_point(quality, poor, each) for each in sorted({*THRESHOLDS, threshold})]
    return Tested(name, int((~poor).sum()), int(poor.sum()), auc(quality, poor), points, threshold, ways)


def _point(quality: Array, poor: Array, threshold: float) -> Point:
    low = quality < threshold
    right, good = int((low & poor).sum()), low[~poor]
    return Point(
        threshold,
        right / max(int(low.sum()), 1),
        right / max(int(poor.sum()), 1),
        float(good.mean()) if len(good) else 0.0,
    )


def auc(quality: Array, poor: Array) -> float:
    """The chance that a poor row is scored below a good one; ties count half."""
    if not poor.any() or poor.all():
        return float("nan")
    _, place, counts = np.unique(quality, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    good = int((~poor).sum())
    return float((ranks[~poor].sum() - good * (good + 1) / 2) / (good * int(poor.sum())))


def table(result: Tested) -> str:
    """The curve as a Markdown table."""
    lines = ["| threshold | precision | recall | good rows rejected |", "|---|---|---|---|"]
    lines += [
        f"| {each.threshold:g}{' (default)' if each.threshold == result.threshold else ''} "
        f"| {each.precision:.3f} | {each.recall:.3f} | {each.good_rejected:.2%} |"
        for each in result.points
    ]
    return "\n".join(lines)


def ways(result: Tested) -> str:
    lines = [f"| rows | how many | rejected at {result.threshold:g} |", "|---|---|---|"]
    lines += [f"| {way} | {count:,} | {share:.1%} |" for way, (count, share) in result.ways.items()]
    return "\n".join(lines)


def svg(results: Sequence[Tested]) -> str:
    """Precision over recall, one line for each test."""
    width, height, left, top, size = 420, 340, 50, 20, 280
    colours = ("#1b6ca8", "#c2571a", "#3d8b40")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in range(0, 11, 2):
        x, y = left + size * tick / 10, top + size * (1 - tick / 10)
        parts.append(f'<path d="M{left} {y:g}H{left + size}M{x:g} {top}V{top + size}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:g}" text-anchor="end">{tick / 10:g}</text>')
        parts.append(f'<text x="{x:g}" y="{top + size + 16}" text-anchor="middle">{tick / 10:g}</text>')
    for number, result in enumerate(results):
        colour = colours[number % len(colours)]
        spots = [(left + size * each.recall, top + size * (1 - each.precision)) for each in result.points if each.recall]
        line = "".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(spots))
        parts.append(f'<path d="{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="{left + 10}" y="{top + size - 12 - 14 * number}" fill="{colour}">{result.name}</text>')
    parts.append(f'<text x="{left + size / 2:g}" y="{height - 6}" text-anchor="middle">recall of poor rows</text>')
    middle = top + size / 2
    parts.append(f'<text x="14" y="{middle:g}" text-anchor="middle" transform="rotate(-90 14 {middle:g})">precision</text></svg>')
    return "\n".join(parts) + "\n"


_CARD = """\
---
tags: [fasttext, text-classification, data-quality]
license: other
---

# A quality classifier

It says how likely a pair of query and positive is good training data for an embedding model: 0 to 1, the column `quality`. It is
a fastText model of tokens that `datakit/filters/quality_features.py` describes; `model.ftz` has {megabytes:.2f} MB. In a recipe:

```yaml
filters:
  - {{type: quality_model, model: FOLDER, threshold: {threshold:g}}}
```

Made by

    {command}

## What it learnt from

{trained}

Licence of the texts: {licence}. No text is in the model: its tokens are short words, endings of words, facts about a text, and
pairs and triples of these.

## Errors on rows that it has not seen

A row is rejected below the threshold. Precision is the share of poor rows among the rejected, recall that of the rejected among
the poor. Precision holds for as many good and poor rows as stand here; where poor ones are rarer, it is lower.

![curve](curve.svg)
"""


def card(results: Sequence[Tested], trained: str, command: str, licence: str, size: int) -> str:
    """README.md of the model's folder."""
    first = _CARD.format(megabytes=size / 1e6, threshold=results[0].threshold, command=command, trained=trained, licence=licence)
    parts = [
        f"\n### {each.name[0].upper()}{each.name[1:]}\n\n{each.good:,} good and {each.poor:,} poor rows; AUC {each.auc:.3f}.\n\n"
        f"{table(each)}\n\n{ways(each)}\n"
        for each in results
    ]
    return first + "".join(parts)


def shown(result: Tested) -> str:
    """The curve for the command line."""
    lines = [f"{result.name}: {result.good:,} good, {result.poor:,} poor, AUC {result.auc:.3f}"]
    lines += ["  threshold  precision  recall  good rejected"]
    lines += [
        f"  {each.threshold:>9g}  {each.precision:>9.3f}  {each.recall:>6.3f}  {each.good_rejected:>13.2%}"
        for each in result.points
    ]
    return "\n".join(lines)
