"""What a run ends with: its numbers as one model, as tables, and as evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from rich.console import Group
from rich.table import Table

from datakit.schema import CategoryScore, Evaluation
from trainer.evaluation.retrieval import METRIC, Result


class Metrics(BaseModel):
    """metrics.json. `before` and `after` hold a result for each dimension, widest first; `beside` one for each other system."""

    name: str
    version: str
    build: str
    metric: str = METRIC
    steps: int
    queries: int
    documents: int
    skipped: int
    before: dict[int, Result]
    after: dict[int, Result]
    beside: dict[str, Result]


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


def tables(metrics: Metrics) -> Group:
    """nDCG@10 by dimension, and by category at the widest one."""
    widest = max(metrics.after)
    head = f"{metrics.metric} on the validation split: {metrics.queries:,} queries against {metrics.documents:,} documents"
    by_dimension = Table(title=head, title_justify="left")
    by_dimension.add_column("")
    for dimension in metrics.after:
        by_dimension.add_column(str(dimension), justify="right")
    for name, results in (("before training", metrics.before), ("after training", metrics.after)):
        by_dimension.add_row(name, *(f"{results[dimension].score:.3f}" for dimension in metrics.after))
    gains = (metrics.after[dimension].score - metrics.before[dimension].score for dimension in metrics.after)
    by_dimension.add_row("gain", *(f"{gain:+.3f}" for gain in gains), end_section=True)
    for name, each in metrics.beside.items():
        by_dimension.add_row(name, f"{each.score:.3f}")
    systems = {"before": metrics.before[widest], "after": metrics.after[widest], **metrics.beside}
    return Group(by_dimension, category_table(systems, f"By category, at {widest} dimensions"))


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
