"""What a sweep says: a table, how far it goes, sweep.json and sweep.html."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape

from rich.console import Group
from rich.table import Table

from datakit import storage
from trainer import curves
from trainer.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from trainer.studies.sweep import Report, Trial
from trainer.studies.sweep_space import Parameter, Value

SHOWN = 10  # trials on the terminal
FEW = 20  # below so many trials nothing is made of the importance


def write(folder: str, report: Report) -> None:
    """Writes sweep.json and sweep.html. Equal reports give equal files."""
    storage.write_json(os.path.join(folder, "sweep.json"), report.model_dump(mode="json"))
    names = short_names(report.space)
    trials = scatter("Score by trial", report, [(each, by_number(each, report)) for each in report.trials], trial_marks(report))
    parameters = [
        scatter(path, report, [(each, position(parameter, each.values[path])) for each in report.trials], marks(parameter))
        for path, parameter in report.space.items()
    ]
    heads, rows = ["trial", *names.values(), "score", "seconds"], cells(report, report.ranked)
    shares = [(path, [f"{report.importance[path]:.1%}"]) for path in by_importance(report)]
    failed = [(str(each.number), [values(each, names), each.failed or ""]) for each in report.trials if each.failed]
    sections = [
        f'<section id="results"><h2>Trials, best first</h2>{curves.table(heads, [(row[0], row[1:]) for row in rows])}</section>',
        f'<section><h2>Plots</h2><div class="curves">{trials}{"".join(parameters)}</div></section>',
    ]
    if shares:
        sections.append(f"<section><h2>Importance</h2>{curves.table(['parameter', 'share of the variance'], shares)}</section>")
    if failed:
        sections.append(f"<section><h2>Failed trials</h2>{curves.table(['trial', 'values', 'why'], failed)}</section>")
    sections.append(f"<section><h2>Notes</h2><ul>{''.join(f'<li>{escape(each)}</li>' for each in notes(report))}</ul></section>")
    page = curves.document(report.name, "sweep", f"Sweep: {len(report.trials)} trials on build {report.build}.", sections)
    storage.write_bytes(os.path.join(folder, "sweep.html"), page.encode("utf-8", "replace"))


def tables(report: Report) -> Group:
    """The best trials."""
    names = short_names(report.space)
    shown = report.ranked[:SHOWN]
    table = Table(title=f"{report.metric}: the best {len(shown)} of {len(report.trials)} trials", title_justify="left")
    for head in ("trial", *names.values(), "score", "seconds"):
        table.add_column(head, justify="right")
    for row in cells(report, shown):
        table.add_row(*row)
    said = [f"Importance: {', '.join(f'{names[path]} {report.importance[path]:.0%}' for path in by_importance(report))}."]
    said = said if report.importance else []
    said += [f"Trial {each.number} failed ({values(each, names)}). {each.failed}" for each in report.trials if each.failed]
    return Group(table, *(f"- {each}" for each in [*said, *notes(report)]))


def cells(report: Report, trials: Sequence[Trial]) -> list[list[str]]:
    return [
        [str(each.number), *(text(each.values[path]) for path in report.space), f"{each.score:.4f}", f"{each.seconds:,.1f}"]
        for each in trials
    ]


def values(trial: Trial, names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text(trial.values[path])}" for path, name in names.items())


def text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_names(space: Mapping[str, Parameter]) -> dict[str, str]:
    """The last part of each dotted path where no other path ends in it, else all of it."""
    lasts = [path.rpartition(".")[2] for path in space]
    return {
        path: last if lasts.count(last) == 1 else path.removeprefix("stages.") for path, last in zip(space, lasts, strict=True)
    }


def by_importance(report: Report) -> list[str]:
    return sorted(report.importance, key=lambda path: (-report.importance[path], path))


def notes(report: Report) -> list[str]:
    """How far all of it goes."""
    count, scored = len(report.trials), len(report.ranked)
    said = [f"{count} trials, {count - scored} of them failed. Each is one run with the run file's seed."]
    if report.ranked:
        best = report.ranked[0]
        said.append(
            f"The best is trial {best.number}, {report.metric} {best.score:.4f}; best.yaml is the run file with its values."
        )
        said.append(
            f"It was chosen on the rows that it was measured on, among {scored}, so that its score is too high for other rows. "
            "Measure it on a test set, and the second best too, before anything is made of their difference."
        )
    else:
        said.append("No trial has a score, so there is no best.yaml. Search elsewhere, such as at lower learning rates.")
    if report.outside:
        said.append(f"Trial 1 has the run file's own values but for those outside the space: {', '.join(report.outside)}.")
    else:
        said.append("Trial 1 has the run file's own values.")
    if report.importance:
        uncertain = f" With fewer than {FEW} scores, here {scored}, it is uncertain." if scored < FEW else ""
        said.append(f"Importance is a share of the variance of the score (fANOVA), over these trials.{uncertain}")
    return [*said, "The run's gates were left out, and are in best.yaml."] if report.gates else said


def by_number(trial: Trial, report: Report) -> float:
    return (trial.number - 0.5) / len(report.trials)


def trial_marks(report: Report) -> list[tuple[float, str]]:
    ends = [report.trials[0], report.trials[-1]] if len(report.trials) > 1 else report.trials
    return [(by_number(each, report), str(each.number)) for each in ends]


def position(parameter: Parameter, value: Value) -> float:
    """Where a value stands between the extremes, from 0 to 1: in the logarithm where it is drawn so."""
    if parameter.choices is not None:
        return (parameter.choices.index(value) + 0.5) / len(parameter.choices)
    (low, high), own = parameter.bounds, float(value or 0)
    if parameter.log:
        low, high, own = math.log(low), math.log(high), math.log(own)
    return (own - low) / (high - low)


def marks(parameter: Parameter) -> list[tuple[float, str]]:
    """Places and texts along an axis."""
    if parameter.choices is not None:
        return [(position(parameter, each), text(each)) for each in parameter.choices]
    low, high = parameter.bounds
    middle = math.sqrt(low * high) if parameter.log else (low + high) / 2
    return [(share, f"{value:.4g}") for share, value in ((0.0, low), (0.5, middle), (1.0, high))]


def scatter(title: str, report: Report, points: Sequence[tuple[Trial, float]], axis: Sequence[tuple[float, str]]) -> str:
    """One figure: a dot for each trial that has a score, a cross below for each that failed; the best one is larger."""
    scores = [each.score for each in report.ranked if each.score is not None] or [0.0]
    heights = curves.ticks(min(scores), max(scores))

    def across(share: float) -> float:
        return round(LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16), 1)

    def up(score: float) -> float:
        return round(HEIGHT - BOTTOM - 8 - (score - heights[0]) / (heights[-1] - heights[0]) * (HEIGHT - TOP - BOTTOM - 8), 1)

    parts = [curves.grid((mark, up(mark)) for mark in heights)]
    for share, said in axis:
        anchor = "start" if share < 0.05 else "end" if share > 0.95 else "middle"
        short = escape(said if len(said) < 24 else said[:23] + "…")
        parts.append(f'<text x="{across(share)}" y="{HEIGHT - 6}" text-anchor="{anchor}">{short}</text>')
    for trial, share in points:
        x, tip = across(share), f"trial {trial.number}: {values(trial, short_names(report.space))}"
        if trial.score is None:
            shape = f'<path d="M{x - 4} {HEIGHT - BOTTOM - 4}l8 8m0 -8l-8 8" stroke="{curves.COLOURS[1]}" stroke-width="1.6">'
            parts.append(f"{shape}<title>{escape(tip)}: failed</title></path>")
        else:
            best = trial.number == report.ranked[0].number
            colour, radius = (curves.COLOURS[2], 5.5) if best else (curves.COLOURS[0], 3.5)
            dot = f'<circle cx="{x}" cy="{up(trial.score)}" r="{radius}" fill="{colour}" opacity=".8">'
            parts.append(f"{dot}<title>{escape(tip)}: {trial.score:.4f}</title></circle>")
    said = escape(f"{title} against {report.metric}" if title in report.space else title)
    return (
        f'<figure class="card"><h3>{said}</h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
        "<figcaption>Large: the best trial. Crosses: trials that failed.</figcaption></figure>"
    )
