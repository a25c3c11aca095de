"""report.html: a run at a glance, in one file that asks nothing of a network and runs no script."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from datakit import storage
from trainer.report import Metrics, by_objective, decisions, progress_of

Steps = list[dict[str, float]]
Line = list[tuple[float, float]]

# A longer run is drawn as means of so many parts, so that the file stays small.
MOST_POINTS = 240
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 500, 210, 58, 14, 22, 24
LETTER = 6.6  # the width of one
COLOURS = ("#2f7fc1", "#cf6a2b", "#3a9a63", "#9a63c4", "#b08f1f", "#c4527f", "#4f9aa5")
STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 14px; }
.curves h3 { margin-bottom: 2px; } .curves svg { display: block; width: 100%; height: auto; }
.curves svg text { fill: var(--quiet); font-size: 12px; } .grid { stroke: var(--line); }
.stage { stroke: var(--quiet); stroke-dasharray: 3 4; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; margin: 0; font-size: .84rem; color: var(--quiet); }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
#results td, #results th:not(:first-child) { text-align: right; } ul { padding-left: 20px; } #results h3 { margin-top: 18px; }
"""
# Title, pattern of the statistics that are drawn together, what stands below it. What no pattern names is drawn alone.
CHARTS = (
    ("Loss", r"loss", ""),
    ("Loss by dimension", r"loss_\d+", "Before the weights of the dimensions."),
    ("Loss by objective", r"loss_[A-Za-z].*", "Before the weights of the objectives."),
    ("Weights of objectives", r"weight_.*", "Raised for those that lag, if lagging is on."),
    ("Dev metric while training", r"dev_\d+", "Does not depend on the temperature."),
    ("Positive first", r"accuracy", "Share of rows whose positive is nearer than all their negatives."),
    ("Similarity", r"(positive|negative)_similarity", "Mean cosine of the query with its positive, with its negatives."),
    ("Temperature", r"temperature", "Lower where the dev metric reached a plateau, if annealing is on."),
    ("Learning rate", r"rate", ""),
    ("Masked", r"masked|false_negatives", "Share of documents left out of denominators; of them by the margin."),
    ("Difficulty of negatives", r"difficulty", "Mean of the mined negatives that were drawn."),
    ("Negatives of a row", r"negatives", ""),
    ("Norm of the gradient", r"gradient_norm", "Before it is cut."),
    ("Focal weight", r"focal_weight", "The mean over the rows."),
    ("Distillation", r"kl", "KL of the teacher's and the student's distribution."),
    ("Graded pairs", r"cosent|mse", ""),
    ("Triangle", r"triangle(_active)?", "The regulariser, and the share of triangles in which it is active."),
    ("Tokens per second", r"tokens_per_second", ""),
    ("Utilization", r"utilization", "FLOPs of the step without repeated passes, over what the GPU's data sheet allows."),
)


def write(folder: str) -> None:
    """Writes `report.html` of the run in `folder` from the `log.jsonl` of its stages, `metrics.json` and `config.yaml`.

    Whatever is not there yet is left out. Equal files give an equal report. Raises storage.failure's errors.
    """
    root = Path(folder)
    config = _config(root / "config.yaml")
    named = [str(stage["name"]) for stage in config.get("stages", [])]
    # A repeated stage has the folders NAME, NAME-2, ...
    logs = {path.parent.name: path for path in sorted(root.glob("*/log.jsonl"))}

    def place(folder: str) -> tuple[int, int, str]:
        stage, _, attempt = folder.rpartition("-")
        if folder not in named and stage in named and attempt.isdigit():
            return named.index(stage), int(attempt), folder
        return named.index(folder) if folder in named else len(named), 1, folder

    names = sorted(logs, key=place)
    stages = {name: steps for name in names if (steps := _steps(logs[name]))}
    metrics = None
    if (root / "metrics.json").is_file():
        metrics = Metrics.model_validate(storage.read_json(str(root / "metrics.json")))
    storage.write_bytes(str(root / "report.html"), page(config, stages, metrics).encode("utf-8", "replace"))


def _config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _steps(path: Path) -> Steps:
    """The lines of a log. The last one of a run that was killed may be cut."""
    found: Steps = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            found.append({name: float(value) for name, value in values.items() if isinstance(value, int | float)})
    return [values for values in found if "step" in values]


def page(config: Mapping[str, Any], stages: Mapping[str, Steps], metrics: Metrics | None) -> str:
    """The whole page."""
    name = str(config.get("name", metrics.name if metrics else "run"))
    done = "finished" if metrics else "not finished"
    lengths = ", ".join(f"{stage} {int(steps[-1]['step']):,} steps" for stage, steps in stages.items())
    parts = []
    if metrics is not None:
        parts.append(results(metrics))
    charts = [chart(title, lines, note, stages) for title, lines, note in drawn(stages)]
    parts.append(f'<section id="curves"><h2>Curves</h2><div class="curves">{"".join(charts)}</div></section>')
    text = escape(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    parts.append(
        f'<section id="config"><h2>Config</h2><details class="card"><summary>The whole config</summary><pre>{text}</pre>'
    )
    parts.append("</details></section>")
    return document(name, "training", f"Training, {done}. {lengths or 'No step is logged yet'}.", parts)


def document(name: str, what: str, lead: str, sections: Sequence[str]) -> str:
    """A page that asks nothing of a network and runs no script. The sections are HTML, all else is text."""
    style = resources.files("datakit.publish").joinpath("report.css").read_text(encoding="utf-8") + STYLE
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(name)}: {escape(what)}</title><style>{style}</style></head>",
        f'<body><header class="top"><h1>{escape(name)}</h1><p class="lead">{escape(lead)}</p></header><main>',
    ]
    return "\n".join([*head, *sections, "</main><footer></footer></body></html>\n"])


def results(metrics: Metrics) -> str:
    """The dev metric by dimension and stage, the gates, and the categories at the widest dimension."""
    dimensions = list(metrics.after)
    rows = [(name, [f"{found[each].score:.4f}" for each in dimensions]) for name, found in progress_of(metrics).items()]
    widest = metrics.after[dimensions[0]].score
    rows.append(("kept of the widest", [f"{metrics.after[each].score / widest:.1%}" if widest else "" for each in dimensions]))
    rows += [(name, [f"{found.score:.4f}"]) for name, found in metrics.beside.items()]
    ends = [metrics.before, *(stage.after for stage in metrics.stages)]
    names = ["before", *(stage.name for stage in metrics.stages)]
    categories = [
        (category, [f"{end[dimensions[0]].categories[category].score:.3f}" for end in ends if dimensions[0] in end])
        for category in metrics.before[dimensions[0]].categories
    ]
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in decisions(metrics))
    return (
        f'<section id="results"><h2>{escape(metrics.metric)} on the validation split</h2>'
        f'<p class="quiet">{metrics.queries:,} queries against {metrics.documents:,} documents, by dimension.</p>'
        + table(["", *map(str, dimensions)], rows)
        + (f"<h3>By objective</h3>{table(*by_objective(metrics))}" if metrics.objectives else "")
        + (f"<h3>Gates</h3><ul>{said}</ul>" if said else "")
        + (f"<details><summary>By category, at {dimensions[0]} dimensions</summary>{table(['', *names], categories)}</details>")
        + "</section>"
    )


def table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(each)}</td>' for each in row)}</tr>" for name, row in rows)
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def drawn(stages: Mapping[str, Steps]) -> list[tuple[str, dict[str, list[Line]], str]]:
    """Title, curves by name, and note of each chart. A curve has a line for each stage; x goes on from stage to stage."""
    present = list(dict.fromkeys(name for steps in stages.values() for values in steps for name in values))
    present = [name for name in present if name not in ("step", "tokens", "rows", "epoch")]
    charts = []
    for title, pattern, note in CHARTS:
        if matching := [name for name in present if re.fullmatch(pattern, name)]:
            charts.append((title, matching, note))
            present = [name for name in present if name not in matching]
    charts += [(name, [name], "") for name in present]
    return [(title, {name: _lines(stages, name) for name in names}, note) for title, names, note in charts]


def _lines(stages: Mapping[str, Steps], name: str) -> list[Line]:
    result, before = [], 0.0
    for steps in stages.values():
        line = [(before + each["step"], each[name]) for each in steps if math.isfinite(each.get(name, math.nan))]
        if line:
            result.append(thinned(line))
        before += steps[-1]["step"]
    return result


def thinned(line: Line) -> Line:
    """The line, or the means of MOST_POINTS parts of it."""
    if len(line) <= MOST_POINTS:
        return line
    edges = [round(number * len(line) / MOST_POINTS) for number in range(MOST_POINTS + 1)]
    parts = [line[start:stop] for start, stop in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers that hold low and high between them; 0 too, where these are all but equal."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low if high - low > 1e-30 else 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= 4.5)
    # A loss of 0 may be a little less by rounding, and needs no line below.
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def grid(marks: Iterable[tuple[float, float]]) -> str:
    """A line across the picture for each (value, y), with the value at its left."""
    return "".join(
        f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value, y in marks
    )


def cut(name: str, width: float) -> str:
    """The name, or as much of it as so many units of the picture hold; nothing where that is hardly a letter."""
    most = int(width / LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}…" if most > 2 else ""


def chart(title: str, curves: Mapping[str, list[Line]], note: str, stages: Mapping[str, Steps]) -> str:
    """One figure: curves over steps, dashed where a stage ends, and the last value of each curve."""
    ends, end = [], 0.0
    for name, steps in stages.items():
        ends.append((end, end + steps[-1]["step"], name))
        end += steps[-1]["step"]
    values = [y for lines in curves.values() for line in lines for _, y in line]
    if not values:
        return ""
    marks = ticks(min(values), max(values))

    def at(x: float, y: float) -> str:
        across = LEFT + x / max(end, 1.0) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - marks[0]) / (marks[-1] - marks[0]) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [grid((mark, float(at(0, mark).split(",")[1])) for mark in marks)]
    taken = math.inf  # from here on the axis has a number
    axis: list[str] = []
    for start, stop, name in reversed(ends):
        left, right = (float(at(each, marks[0]).split(",")[0]) for each in (start, stop))
        edge = f'<path class="stage" d="M{left:.1f} {HEIGHT - BOTTOM}V{TOP}"/>' if start else ""
        label = f'<text x="{left + 3:.1f}" y="{TOP - 8}">{escape(cut(name, right - left))}</text>'
        number = ""
        if right < taken:
            number = f'<text x="{right:.1f}" y="{HEIGHT - 8}" text-anchor="end">{stop:,.0f}</text>'
            taken = right - LETTER * (len(f"{stop:,.0f}") + 1)
        axis.append(edge + label + number)
    parts += axis[::-1]
    legend = []
    for (name, lines), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        for line in lines:
            points = " ".join(at(x, y) for x, y in line)
            # One point alone is no line.
            shape = f'<polyline points="{points}"' if len(line) > 1 else f'<path d="M{points}h.1" stroke-linecap="round"'
            width = 1.8 if len(line) > 1 else 5
            parts.append(f'{shape} fill="none" stroke="{colour}" stroke-width="{width}"/>')
        last = f"{lines[-1][-1][1]:.4g}" if lines else ""
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}: {last}</span>')
    said = escape(f"{title} over {end:,.0f} steps")
    return (
        f'<figure class="card"><h3>{escape(title)}</h3><p class="legend">{"".join(legend)}</p>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
        + (f"<figcaption>{escape(note)}</figcaption>" if note else "")
        + "</figure>"
    )
