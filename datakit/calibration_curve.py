"""How a calibration is shown: lines for a terminal, and the curve as CSV, SVG or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from rich.console import Group, RenderableType
from rich.text import Text

from datakit import storage
from datakit.calibrate import FEW, Calibration, Point, wilson
from datakit.errors import UserError

_LINES = 12
_WIDTH, _HEIGHT, _MARGIN = 560, 400, 56


def shown(found: Calibration) -> RenderableType:
    """The curve at about a dozen thresholds, and the proposal with the counts behind it."""
    heading = f"{'':2}{'threshold':>12}{'rejected':>10}{'of them bad':>13}{'precision':>11}{'recall':>9}{'F1':>8}"
    lines: list[RenderableType] = [Text(heading, style="dim")]
    for point in _some(found):
        mark = "> " if point == found.proposed else "  "
        text = (
            f"{mark}{point.threshold:>12.6g}{point.rejected:>10,}{point.rejected_bad:>13,}{point.precision:>11.3f}"
            f"{point.recall:>9.3f}{point.f1:>8.3f}"
        )
        lines.append(Text(text, style="bold" if point == found.proposed else ""))
    return Group(*lines, Text(), *(Text(sentence) for sentence in sentences(found)))


def sentences(found: Calibration) -> list[str]:
    """What the labels say, with its limits."""
    said = [
        f"{found.good + found.bad:,} rows, {found.bad:,} of them bad; AUC {found.auc:.3f}; without a filter "
        f"{found.bad / (found.good + found.bad):.1%} are bad."
    ]
    if found.unmeasured:
        said.append(f"{found.unmeasured:,} labelled rows have no value: the filter or an earlier step has not measured them.")
    point, key = found.proposed, f"{found.quantity.type}.{found.quantity.key}"
    if point is None:
        best = max(found.curve, key=lambda each: (each.precision, each.rejected))
        said.append(
            f"No threshold reaches the precision {found.wanted_precision:g}. The best is {best.precision:.3f}, at "
            f"{best.threshold:.6g}: {best.rejected_bad:,} of {best.rejected:,} rejected rows are bad."
        )
    else:
        beyond = "above" if found.quantity.high_is_bad else "below"
        low, high = wilson(point.rejected_bad, point.rejected)
        least, most = wilson(point.rejected_bad, point.bad)
        wanted = "best F1" if found.wanted_precision is None else f"precision {found.wanted_precision:g}"
        said.append(f"Proposed for {wanted}: {key} = {point.threshold:.6g} (what is {beyond} is rejected).")
        said.append(
            f"Precision {point.precision:.3f} (95 % interval {low:.3f} to {high:.3f}): {point.rejected_bad:,} of "
            f"{point.rejected:,} rejected rows are bad. Recall {point.recall:.3f} ({least:.3f} to {most:.3f}): of "
            f"{point.bad:,} bad rows."
        )
        if found.spread is not None:
            said.append(
                f"Other labels of this kind would propose {found.spread[0]:.6g} to {found.spread[1]:.6g} (bootstrap, 95 %)."
            )
        halves = [f"{value:.3f}" if value is not None else "none" for value in found.held_out]
        said.append(
            f"Chosen on one half of the rows, its precision on the other half is {halves[0]}, and the other way {halves[1]}."
        )
        if found.wanted_precision is not None and low < found.wanted_precision:
            said.append(
                f"The labels do not rule out that the precision is below {found.wanted_precision:g}; more of them would tell."
            )
    if min(found.good, found.bad) < FEW:
        said.append(
            f"Too few labels: {found.good:,} good and {found.bad:,} bad rows, and at least {FEW} of each are needed before a "
            "threshold means much."
        )
    return said


def _some(found: Calibration) -> Sequence[Point]:
    """Points at even steps of recall, with the proposed one among them."""
    points, picked = found.curve, dict[Point, None]()
    for step in range(1, _LINES + 1):
        wanted = step / _LINES
        picked[min(points, key=lambda point: (abs(point.recall - wanted), point.rejected))] = None
    if found.proposed is not None:
        picked[found.proposed] = None
    return sorted(picked, key=lambda point: point.rejected)


def check(path: str | None) -> None:
    """Refuses a name that says no format, before anything is calculated."""
    if path is not None and not path.lower().endswith((".csv", ".svg", ".html")):
        raise UserError(f"'{path}' ends in no known format. Allowed: .csv, .svg, .html.")


def write(found: Calibration, path: str) -> None:
    """Writes the curve in the format of the file's name."""
    check(path)
    writers = {"csv": as_csv, "svg": as_svg, "html": as_html}
    storage.write_bytes(path, writers[path.rpartition(".")[2].lower()](found).encode())


def as_csv(found: Calibration) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["threshold", "rejected", "rejected_bad", "bad", "precision", "recall", "f1"])
    for point in found.curve:
        counts = (point.threshold, point.rejected, point.rejected_bad, point.bad)
        table.writerow([*counts, f"{point.precision:.6f}", f"{point.recall:.6f}", f"{point.f1:.6f}"])
    return text.getvalue()


def as_svg(found: Calibration) -> str:
    """Precision over recall, with the proposed threshold as a dot."""

    def at(recall: float, precision: float) -> tuple[float, float]:
        return _MARGIN + recall * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - precision * (_HEIGHT - 2 * _MARGIN)

    step = max(1, len(found.curve) // 500)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(point.recall, point.precision) for point in found.curve[::step]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<text x="{_MARGIN}" y="28" font-size="14">{escape(found.name)}: {found.bad:,} of {found.good + found.bad:,} bad</text>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        (x, y0), (x0, y) = at(tick, 0), at(0, tick)
        right, top = at(1, 1)
        parts.append(f'<path d="M{x0} {y:.1f}H{right:.1f}M{x:.1f} {y0}V{top:.1f}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">recall: share of bad rows that are rejected</text>'
    )
    parts.append(
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">precision: bad among the rejected</text>'
    )
    parts.append(f'<polyline points="{path}" fill="none" stroke="#2563a8" stroke-width="2"/>')
    if found.proposed is not None:
        x, y = at(found.proposed.recall, found.proposed.precision)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#c2410c"/>')
        parts.append(f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{found.proposed.threshold:.4g}</text>')
    return "\n".join([*parts, "</svg>"])


def as_html(found: Calibration) -> str:
    rows = "".join(
        f"<tr{' class=proposed' if point == found.proposed else ''}><td>{point.threshold:.6g}<td>{point.rejected:,}"
        f"<td>{point.rejected_bad:,}<td>{point.precision:.3f}<td>{point.recall:.3f}<td>{point.f1:.3f}"
        for point in _some(found)
    )
    said = "".join(f"<p>{escape(sentence)}" for sentence in sentences(found))
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(found.name)}</title><style>body{{font:16px sans-serif;max-width:44em;"
        "margin:2em auto}td,th{text-align:right;padding:.2em 1em}.proposed{font-weight:bold}</style>"
        f"<h1>Calibration of {escape(found.name)}</h1>{said}{as_svg(found)}<table><tr><th>threshold<th>rejected<th>of them bad"
        f"<th>precision<th>recall<th>F1{rows}</table>\n"
    )
