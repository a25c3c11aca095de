"""What a run ends with: its numbers as one model, as tables, and as evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel
from rich.console import Group
from rich.table import Table

from datakit.schema import CategoryScore, Evaluation
from trainer.evaluation.objectives import Score
from trainer.evaluation.retrieval import METRIC, Result

# Results by dimension. JSON files have their keys in the order of letters.
ByDimension = Annotated[dict[int, Result], AfterValidator(lambda found: dict(sorted(found.items(), reverse=True)))]


class Attempt(BaseModel):
    """One time that a stage was done, and what its gate made of it. Scores are at the widest dimension."""

    learning_rate: float
    before: float
    after: float
    needed: float | None = None  # the gate's min_gain; None where the stage has no gate
    decision: Literal["go on", "repeat", "stop"]


class StageMetrics(BaseModel):
    """A stage that was done: the result at each dimension, widest first, of the weights that the next stage begins with."""

    name: str
    steps: int
    seconds: float | None = None
    after: ByDimension
    attempts: list[Attempt] = []
    trained: list[str] = []  # its objectives
    objectives: dict[str, Score] = {}  # those of the whole run, after the stage
    forgotten: dict[str, float] = {}  # of objectives of earlier stages: their best after one of these, less that after this stage


class Metrics(BaseModel):
    """metrics.json. `before` and `after` hold a result for each dimension, widest first; `beside` one for each other system."""

    name: str
    version: str
    build: str
    metric: str = METRIC
    queries: int
    documents: int
    skipped: int
    before: ByDimension
    stages: list[StageMetrics]
    after: ByDimension  # of the exported model
    beside: dict[str, Result]
    objectives: dict[str, Score] = {}  # before training


def evaluation(model: str, build: str, after: Result, before: Result | None) -> Evaluation:
    """evaluation.json: the score of each category at the widest dimension; before training as its history."""
    return Evaluation(
        model=model,
        build=build,
        metric=METRIC,
        categories={
            name: CategoryScore(score=each.score, rows=each.rows, history=[before.categories[name].score] if before else [])
            for name, each in after.categories.items()
        },
    )


def progress_of(metrics: Metrics) -> dict[str, dict[int, Result]]:
    """The results by dimension, in the order in which they came: before, after each stage, exported where that differs."""
    rows = {"before training": metrics.before, **{f"after {stage.name}": stage.after for stage in metrics.stages}}
    if not metrics.stages or metrics.stages[-1].after != metrics.after:
        rows["exported"] = metrics.after
    return rows


def by_objective(metrics: Metrics) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Heads and rows of the table of objectives: each one's score, and in brackets what was forgotten of it."""
    heads = ["", *(f"{name}, {each.metric}" for name, each in metrics.objectives.items())]
    rows = [("before training", [f"{each.score:.3f}" for each in metrics.objectives.values()])]
    for stage in metrics.stages:
        scores = [
            f"{stage.objectives[name].score:.3f}" + (f" ({-stage.forgotten[name]:+.3f})" if name in stage.forgotten else "")
            for name in metrics.objectives
        ]
        rows.append((f"after {stage.name}", scores))
    return heads, rows


def decisions(metrics: Metrics) -> list[str]:
    """A sentence for each attempt of a stage that has a gate."""
    said = []
    for stage in metrics.stages:
        for number, attempt in enumerate(stage.attempts, 1):
            if attempt.needed is not None:
                said.append(
                    f"{stage.name}, attempt {number} at a learning rate of {attempt.learning_rate:.1e}: {metrics.metric} "
                    f"{attempt.before:.4f} to {attempt.after:.4f} ({attempt.after - attempt.before:+.4f}, "
                    f"needed {attempt.needed:+.4f}): {attempt.decision}."
                )
    return said


def tables(metrics: Metrics) -> Group:
    """nDCG@10 by dimension after each stage, what the gates decided, and the categories at the widest dimension."""
    widest = max(metrics.after)
    head = f"{metrics.metric} on the validation split: {metrics.queries:,} queries against {metrics.documents:,} documents"
    rows = progress_of(metrics)
    by_dimension = dimension_table(rows, head)
    gains = (metrics.after[dimension].score - metrics.before[dimension].score for dimension in metrics.after)
    by_dimension.add_row("gain", *(f"{gain:+.3f}" for gain in gains), end_section=True)
    for name, results in rows.items():
        if all(results[dimension].spearman is not None for dimension in metrics.after):
            by_dimension.add_row(f"{name}, Spearman", *(f"{results[dimension].spearman:.3f}" for dimension in metrics.after))
    for name, each in metrics.beside.items():
        by_dimension.add_row(name, f"{each.score:.3f}")
    shown = []
    if metrics.objectives:
        heads, lines = by_objective(metrics)
        objectives = Table(*heads, title="By objective (against its best after an earlier stage)", title_justify="left")
        for name, values in lines:
            objectives.add_row(name, *values)
        shown.append(objectives)
    systems = {"before": metrics.before[widest], "after": metrics.after[widest], **metrics.beside}
    return Group(by_dimension, *shown, *decisions(metrics), category_table(systems, f"By category, at {widest} dimensions"))


def dimension_table(systems: Mapping[str, Mapping[int, Result]], title: str) -> Table:
    """One row for each system, one column for each dimension."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    dimensions = list(next(iter(systems.values())))
    for dimension in dimensions:
        table.add_column(str(dimension), justify="right")
    for name, results in systems.items():
        table.add_row(name, *(f"{results[dimension].score:.3f}" for dimension in dimensions))
    return table


def category_table(systems: Mapping[str, Result], title: str) -> Table:
    """One row for each category, one column for each system."""
    table = Table(title=title, title_justify="left")
    table.add_column("category")
    table.add_column("queries", justify="right")
    for name in systems:
        table.add_column(name, justify="right")
    first = next(iter(systems.values()))
    for category, found in first.categories.items():
        table.add_row(category, f"{found.rows:,}", *(f"{each.categories[category].score:.3f}" for each in systems.values()))
    table.add_section()
    rows = sum(found.rows for found in first.categories.values())
    table.add_row("all", f"{rows:,}", *(f"{each.score:.3f}" for each in systems.values()))
    return table
