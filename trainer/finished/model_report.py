"""report.html of a model: scores by family and dimension, retention, nearest neighbours, ablation. No network, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from datakit import storage
from datakit.errors import UserError
from datakit.opened import Build
from trainer.base import first_line
from trainer.curves import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, document, grid, table, ticks
from trainer.evaluation.retrieval import Task, encoded, load_task, unit
from trainer.evaluation.scores import FamilyScores, common, rows, writable
from trainer.studies.ablation import Report
from trainer.studies.ablation_report import sentences, supported

Kind = TypeVar("Kind", bound=BaseModel)
QUERIES, DOCUMENTS, NEAREST = 20, 2_000, 5
MOST_CHARACTERS = 400  # of a text that is shown
_STYLE = """
#scores td, #scores th:not(:nth-child(-n+3)), #retention td { text-align: right; }
.neighbours { display: grid; gap: 0 22px; margin-bottom: 14px; }
.neighbours { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.neighbours .asked { grid-column: 1 / -1; } .neighbours ol { margin: 0; padding-left: 22px; font-size: .9rem; }
.neighbours li { padding: 4px 0; } .neighbours li.positive { font-weight: 600; }
.neighbours li.positive::marker { color: var(--keep); }
figure svg { display: block; width: 100%; height: auto; max-width: 760px; }
figure svg text { fill: var(--quiet); font-size: 12px; } figure .grid { stroke: var(--line); }
"""


def write(model: str, scores: str, output: str, ablation: str | None, build: Build | None) -> None:
    """Writes the page `output` about the model of `scores` (results.json of `trainer evaluate`). Equal inputs give equal bytes.

    With a build the model is loaded, for the nearest neighbours of queries of its validation split.
    Raises UserError where a file is missing or another than it is said to be, or the model cannot be loaded.
    """
    output = writable(output)
    found = _read(scores, FamilyScores, "results.json of `trainer evaluate MODEL --sets FILE --output FOLDER`")
    if not found.tasks:
        raise UserError(f"'{scores}' has no task. Evaluate the model on at least one.")
    if not _dimensions(found):
        raise UserError(f"'{scores}': its tasks have no dimension in common. Evaluate the model on all of them at once.")
    parts = [_scores(found), _retention(found)]
    if build is not None:
        parts.append(_neighbours(model, load_task(build, QUERIES, DOCUMENTS), build, _dimensions(found)))
    if ablation is not None:
        found_by = _read(ablation, Report, "the JSON of `trainer ablate`")
        parts.append(f'<section id="ablation"><h2>Ablation</h2>{supported(found_by, sentences(found_by))}</section>')
    storage.write_bytes(output, _page(model, found, parts).encode("utf-8", "replace"))


def _read(path: str, kind: type[Kind], what: str) -> Kind:
    try:
        return kind.model_validate(storage.read_json(path))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is not there. Give {what}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"'{path}' is not {what}: {place}: {first['msg']}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({first_line(error)}). Give {what}.") from error


def _page(model: str, found: FamilyScores, parts: Sequence[str]) -> str:
    other = "" if found.model in (model, f"local/{model}") else f" The scores are those of '{found.model}'."
    tasks = f"{len(found.tasks)} tasks of {len(found.families)} families, by mteb {found.mteb}"
    return document(model, "model", f"{found.width} dimensions; {tasks}.{other}", [f"<style>{_STYLE}</style>", *parts])


def _dimensions(found: FamilyScores) -> list[int]:
    """Those that every task has, widest first."""
    return common([task.scores for task in found.tasks])


def _scores(found: FamilyScores) -> str:
    heads, parts = rows(found, 4)
    lines = [(row[0], row[1:]) for part in parts for row in part]
    return (
        '<section id="scores"><h2>Scores by family</h2><p class="quiet">By dimension; higher is better. Families count alike in '
        f"their mean, however many tasks they have.</p>{table(heads, lines)}</section>"
    )


def _retention(found: FamilyScores) -> str:
    """The score at each dimension over that at the widest one, of each family and of the mean over tasks."""
    dimensions = _dimensions(found)
    whole = {**found.families, "mean of tasks": found.mean_of_tasks}
    kept = {
        name: {each: scores[each] / scores[dimensions[0]] for each in dimensions}
        for name, scores in whole.items()
        if scores[dimensions[0]] > 0  # a correlation may be below 0, and has no share that is kept
    }
    if len(dimensions) < 2 or not kept:
        return ""
    shown = [(name, [f"{shares[each]:.1%}" for each in dimensions]) for name, shares in kept.items()]
    return (
        f'<section id="retention"><h2>Retention</h2><p class="quiet">The share of the score at {dimensions[0]} dimensions that '
        f"is kept with fewer.</p>{_curves(kept, dimensions)}{table(['', *map(str, dimensions)], shown)}</section>"
    )


def _curves(kept: Mapping[str, Mapping[int, float]], dimensions: Sequence[int]) -> str:
    marks = ticks(*(extreme(share for shares in kept.values() for share in shares.values()) for extreme in (min, max)))
    most, least = math.log2(dimensions[0]), math.log2(dimensions[-1])

    def at(dimension: int, share: float) -> tuple[float, float]:
        across = LEFT + (math.log2(dimension) - least) / (most - least) * (WIDTH - LEFT - RIGHT - 20)
        return across, HEIGHT - BOTTOM - (share - marks[0]) / (marks[-1] - marks[0]) * (HEIGHT - TOP - BOTTOM)

    parts, legend = [grid((mark, at(dimensions[-1], mark)[1]) for mark in marks)], []
    parts += [f'<text x="{at(each, 0)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{each}</text>' for each in dimensions]
    for number, (name, shares) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(each, shares[each]) for each in dimensions]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
    return _figure(f"Retention of {len(kept)} scores by dimension", "".join(parts), HEIGHT, "".join(legend))


def _figure(said: str, drawing: str, height: int, legend: str = "") -> str:
    return (
        f'<figure class="card"><p class="legend">{legend}</p><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(said)}">{drawing}</svg></figure>'
    )


def _neighbours(name: str, task: Task, build: Build, dimensions: Sequence[int]) -> str:
    queries, documents = encoded(task, name)
    width = queries.shape[1]
    shown = sorted({width, min(width, *dimensions)}, reverse=True)
    ranked = {each: _ranked(task, unit(queries[:, :each]) @ unit(documents[:, :each]).T) for each in shown}
    cards = []
    for place, (query, _) in enumerate(task.queries):
        relevant = set(task.relevant[place].tolist())
        lists = [f"<div><h3>{each} dimensions</h3>{_nearest(task, ranked[each][place], relevant)}</div>" for each in shown]
        head = f'<p class="label">{escape(task.categories[place])}</p><p class="text query">{escape(_cut(query))}</p>'
        cards.append(f'<article class="card neighbours"><div class="asked">{head}</div>{"".join(lists)}</article>')
    return (
        '<section id="neighbours"><h2>Nearest neighbours</h2><p class="quiet">'
        f"{len(task.queries)} queries of the validation split of build {escape(build.version)}, drawn by digest, against "
        f"{len(task.documents):,} of its documents. Positives are marked; the number is the cosine.</p>{''.join(cards)}</section>"
    )


def _ranked(task: Task, cosines: np.ndarray) -> list[list[tuple[int, float]]]:
    """For each query its documents and their cosines, nearest first; where a query has candidates, these alone."""
    found = []
    for row, candidates in zip(cosines, task.candidates, strict=True):
        among = np.arange(len(row)) if candidates is None else candidates
        order = among[np.argsort(-row[among], kind="stable")]
        found.append([(int(each), float(row[each])) for each in order])
    return found


def _nearest(task: Task, ranked: Sequence[tuple[int, float]], relevant: set[int]) -> str:
    items = []
    for number, cosine in ranked[:NEAREST]:
        marked = ' class="positive"' if number in relevant else ""
        sign = "✓ positive, " if number in relevant else ""
        text = escape(_cut(task.documents[number][0]))
        items.append(f'<li{marked}>{text} <span class="quiet num">({sign}{cosine:.3f})</span></li>')
    first = next((place for place, (number, _) in enumerate(ranked, 1) if number in relevant), None)
    below = f'<p class="quiet small">The first positive is at rank {first:,}.</p>' if first and first > NEAREST else ""
    return f"<ol>{''.join(items)}</ol>{below}"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
