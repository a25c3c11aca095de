"""The plot of a mixture over the temperature, as SVG, or as a page with the tables below it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log

from datakit import storage
from datakit.errors import UserError
from datakit.mixing.what_if import TEMPERATURES, WhatIf, setting
from datakit.publish import mixture as shown

MOST_LINES = 12
COLOURS = (
    "#2563a8", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490",
    "#be185d", "#4d7c0f", "#4338ca", "#a16207", "#047857", "#9f1239",
)  # fmt: skip


def check(path: str | None) -> None:
    """Refuses a name that says no format, before anything is calculated."""
    if path is not None and not path.lower().endswith((".svg", ".html")):
        raise UserError(f"'{path}' ends in no known format. Allowed: .svg, .html.")


def write(found: WhatIf, path: str) -> None:
    """Writes the plot over T: .svg, or .html with the table below it."""
    check(path)
    storage.write_bytes(path, (svg(found) if path.lower().endswith(".svg") else html(found)).encode("utf-8", "replace"))


def svg(found: WhatIf) -> str:
    """Share of the rows over T (logarithmic), a line for each of the largest categories; the others are one dashed line."""
    width, height, left, right, top, bottom = 860, 440, 60, 230, 48, 52
    ordered = sorted(found.over, key=lambda name: (-max(found.over[name]), name))
    drawn = {name: found.over[name] for name in ordered[:MOST_LINES]}
    rest = [found.over[name] for name in ordered[MOST_LINES:]]
    if rest:
        drawn[f"{len(rest)} others together"] = [sum(shares) for shares in zip(*rest, strict=True)]
    most = max((max(shares) for shares in drawn.values()), default=0.0) or 1.0
    step = next(each for each in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if most / each <= 6)
    most = step * -(-most // step)

    def at(temperature: float, share: float) -> tuple[float, float]:
        x = left + log(temperature / TEMPERATURES[0]) / log(TEMPERATURES[-1] / TEMPERATURES[0]) * (width - left - right)
        return x, height - bottom - share / most * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="26" font-size="15">{escape(found.name)}: share of {found.notes["total"]:,} rows over T</text>',
    ]
    for number in range(round(most / step) + 1):
        x, y = at(TEMPERATURES[0], number * step)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{100 * number * step:g} %</text>')
    for temperature in (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0):
        x, y = at(temperature, 0)
        parts.append(f'<path d="M{x:.1f} {y:.1f}V{top}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{temperature:g}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">temperature T</text>')
    now = found.mixture.temperature
    if TEMPERATURES[0] <= now <= TEMPERATURES[-1]:
        x, y = at(now, 0)
        parts.append(f'<path d="M{x:.1f} {y:.1f}V{top}" stroke="#222" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 6}" text-anchor="middle">T = {now:g}</text>')
    ends = [(at(TEMPERATURES[-1], shares[-1])[1], name) for name, shares in drawn.items()]
    for y, name in _apart(ends, top):
        place = list(drawn).index(name)
        colour = COLOURS[place] if place < MOST_LINES else "#555"
        points = " ".join(f"{x:.1f},{yy:.1f}" for x, yy in map(at, TEMPERATURES, drawn[name]))
        dash = "" if place < MOST_LINES else ' stroke-dasharray="6 4"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        end_x, end_y = at(TEMPERATURES[-1], drawn[name][-1])
        parts.append(f'<path d="M{end_x:.1f} {end_y:.1f}L{end_x + 14:.1f} {y:.1f}" stroke="{colour}" fill="none"/>')
        label = name if len(name) <= 30 else name[:29] + "…"
        parts.append(f'<text x="{end_x + 18:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def _apart(labels: list[tuple[float, str]], top: float, gap: float = 15.0) -> list[tuple[float, str]]:
    """Labels moved up until no two overlap, from the lowest on."""
    result: list[tuple[float, str]] = []
    for y, name in sorted(labels, key=lambda label: (-label[0], label[1])):
        result.append((min(y, result[-1][0] - gap) if result else y, name))
    lifted = min(0.0, min((y for y, _ in result), default=0.0) - top)
    return [(y - lifted, name) for y, name in result]


def html(found: WhatIf) -> str:
    """The plot, and the tables below it."""
    tables = [_html_table("category", shown.HEADS, shown.lines(found.notes))]
    if "feedback" in found.notes:
        tables.append(f"<h2>Feedback</h2><p>{escape(shown.feedback_heading(found.notes))}")
        tables.append(_html_table("category", shown.FEEDBACK_HEADS, shown.feedback_lines(found.notes)))
    if len(spoken := shown.languages(found.notes)) > 1:
        tables.append("<h2>Languages</h2>" + _html_table("language", ("available", "rows"), spoken))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(found.name)}: mixture</title><style>body{{font:15px "
        "sans-serif;max-width:64em;margin:2em auto;padding:0 1em}svg{width:100%;height:auto}table{border-collapse:collapse}"
        "td,th{text-align:right;padding:.25em .9em;border-bottom:1px solid #ddd}td:first-child,th:first-child,td:last-child,"
        f"th:last-child{{text-align:left}}</style><h1>{escape(found.name)}: what the mixture would give</h1>"
        f"<p>{escape(setting(found.mixture))}. Counted in: {escape(found.where[0].lower() + found.where[1:])}.{svg(found)}"
        f"{''.join(tables)}\n"
    )


def _html_table(first: str, heads: Sequence[str], lines: shown.Lines) -> str:
    head = "".join(f"<th>{escape(each)}" for each in (first, *heads))
    body = "".join(f"<tr><td>{escape(name)}" + "".join(f"<td>{escape(cell)}" for cell in cells) for name, cells in lines)
    return f"<table><tr>{head}{body}</table>"
