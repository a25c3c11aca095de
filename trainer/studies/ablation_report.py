"""What an ablation says: a table, the sentences that it supports and those that it does not, ablation.json and ablation.html."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape

from rich.console import Group
from rich.table import Table

from datakit import storage
from trainer import curves
from trainer.studies.ablation import Difference, Removed, Report, t_quantile

HEADS = ["without", "measure", "full", "without", "difference", "95 %, seeds", "95 %, queries"]
WIDTH, LEFT, RIGHT, ROW = 640, 170, 20, 26


def write(folder: str, report: Report) -> None:
    """Writes ablation.json and ablation.html. Equal reports give equal files."""
    storage.write_json(os.path.join(folder, "ablation.json"), report.model_dump(mode="json"))
    body = [(row[0], row[1:]) for row in rows(report)]
    sections = [
        f'<section id="results"><h2>Differences</h2>{curves.table(HEADS, body)}</section>',
        f"<section><h2>What the figures support</h2>{supported(report, [*sentences(report), *notes(report)])}</section>",
    ]
    lead = f"Ablation: one component removed at a time, seeds {', '.join(map(str, report.seeds))}. Full minus without."
    page = curves.document(report.name, "ablation", lead, sections)
    storage.write_bytes(os.path.join(folder, "ablation.html"), page.encode("utf-8", "replace"))


def supported(report: Report, said: Sequence[str]) -> str:
    """A plot for each measure, and sentences, as HTML."""
    measures = dict.fromkeys(each.measure for removed in report.components for each in removed.differences)
    plots = "".join(forest(name, report) for name in measures)
    return f'<div class="curves">{plots}</div><ul>{"".join(f"<li>{escape(each)}</li>" for each in said)}</ul>'


def tables(report: Report) -> Group:
    table = Table(title="Full minus without: above 0 the component helps", title_justify="left")
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="left" if number < 2 else "right")
    for row in rows(report):
        table.add_row(*row)
    return Group(table, *(f"- {each}" for each in [*sentences(report), *notes(report)]))


def rows(report: Report) -> list[list[str]]:
    return [
        [removed.name, each.measure, _numbers(each.full), _numbers(each.without), f"{each.mean:+.4f}", _interval(each.interval),
         _interval(each.over_queries)]
        for removed in report.components for each in removed.differences
    ]  # fmt: skip


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _interval(found: tuple[float, float] | None) -> str:
    return f"{found[0]:+.4f} to {found[1]:+.4f}" if found else ""


def sentences(report: Report) -> list[str]:
    """What each difference supports, and what it does not."""
    return [verdict(removed, each) for removed in report.components for each in removed.differences]


def verdict(removed: Removed, found: Difference) -> str:
    about = f"{removed.name}, {found.measure}"
    if removed.same:
        return f"{about}: no effect. Without it every seed ends with the same weights: nothing of it was at work here."
    said = f"{found.mean:+.4f}, 95 % interval {_interval(found.interval)}, n = {len(found.full)} seeds"
    if found.supported:
        return f"{about}: supported, it {'helps' if found.mean > 0 else 'harms'} ({said})."
    text = f"{about}: not supported, neither help nor harm: the interval holds 0 ({said})."
    if found.over_queries and (found.over_queries[0] > 0 or found.over_queries[1] < 0):
        text += " Over queries alone it excludes 0: these models differ on them, but other seeds may not."
    return text


def notes(report: Report) -> list[str]:
    """How far all of it goes."""
    seeds, count = len(report.seeds), sum(len(removed.differences) for removed in report.components)
    wide = f"{t_quantile(seeds):.1f} standard errors to each side{', which is wide' if seeds == 2 else ''}"
    said = [
        f"n = {seeds} seeds, of the training alone: base, rows and split are the same. Nothing is said about other data.",
        f"An interval over {seeds} seeds is the mean and {wide}.",
        "The interval over queries is about the queries, for these models; that over seeds is the one that decides here.",
        f"Of {count} intervals of 95 %, about {count / 20:.1f} exclude 0 by chance where no component does anything.",
        "Each component is removed from the full run alone: what two of them do together is not seen. Steps are the run file's.",
    ]
    for removed in report.components:
        said.append(
            f"{removed.name}: {removed.queries:,} queries, {removed.train:,} training rows in build {removed.build}; "
            f"stages of the full run that were not trained again: {', '.join(removed.shared) or 'none'}."
        )
    return [*said, "The run's gates were left out: runs of different length cannot be compared."] if report.gates else said


def forest(measure: str, report: Report) -> str:
    """One figure: for each component the mean difference, its interval over seeds (line) and queries (bar), and the seeds (dots).

    The axis holds the seeds and the intervals over queries; an interval over seeds that is wider ends in an arrow.
    """
    found = [(removed.name, each) for removed in report.components for each in removed.differences if each.measure == measure]
    by_seed = [[one - other for one, other in zip(each.full, each.without, strict=True)] for _, each in found]
    inside = [0.0, *(value for values in by_seed for value in values)]
    inside += [value for _, each in found for value in each.over_queries or ()]
    margin = max(max(inside) - min(inside), 1e-6) / 4
    marks = curves.ticks(min(inside) - margin, max(inside) + margin)
    bottom = 12 + ROW * len(found)

    def at(value: float) -> float:
        share = (value - marks[0]) / (marks[-1] - marks[0])
        return round(LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)

    parts = []
    for mark in marks:
        kind = "stage" if abs(mark) < 1e-12 else "grid"
        parts.append(f'<path class="{kind}" d="M{at(mark)} 6V{bottom}"/>')
        parts.append(f'<text x="{at(mark)}" y="{bottom + 16}" text-anchor="middle">{mark:.4g}</text>')
    for number, ((name, each), values) in enumerate(zip(found, by_seed, strict=True)):
        y, colour = 12 + ROW * number + ROW // 2, curves.COLOURS[0] if each.supported else "var(--quiet)"
        low, high = each.interval
        short = escape(name if len(name) < 24 else name[:23] + "…")
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{short}</text>')
        if each.over_queries:
            left, right = map(at, each.over_queries)
            parts.append(f'<rect x="{left}" y="{y - 5}" width="{right - left:.1f}" height="10" fill="{colour}" opacity=".25"/>')
        parts.append(f'<path d="M{at(low)} {y}H{at(high)}" stroke="{colour}" stroke-width="1.6"/>')
        for end, beyond, way in ((low, low < marks[0], 5), (high, high > marks[-1], -5)):
            shape = f"M{at(end) + way} {y - 5}L{at(end)} {y}l{way} 5" if beyond else f"M{at(end)} {y - 5}v10"
            parts.append(f'<path d="{shape}" stroke="{colour}" stroke-width="1.6" fill="none"/>')
        parts += [f'<circle cx="{at(value)}" cy="{y}" r="2" fill="{colour}"/>' for value in values]
        parts.append(f'<circle cx="{at(each.mean)}" cy="{y}" r="4.5" fill="{colour}"/>')
    return (
        f'<figure class="card"><h3>{escape(measure)}: full minus without</h3>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + 24}" role="img" aria-label="{escape(measure)}">{"".join(parts)}</svg>'
        "<figcaption>Line: 95 % over seeds, with an arrow where it goes on. Bar: over queries. Dots: seeds. Right of 0: it helps."
        "</figcaption></figure>"
    )
