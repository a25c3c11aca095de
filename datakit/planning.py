"""What a build would do, before anything runs."""

from __future__ import annotations

from rich.table import Table

from datakit.pipeline import plan
from datakit.recipe import Recipe
from datakit.step import is_cached, load
from datakit.synthesis.synthesise import planned


def planned_table(recipe: Recipe) -> Table:
    """A table of the steps: cached or to run; rows where they are known; LLM requests and about how many tokens."""
    table = Table(title=f"{recipe.name}: what a build would do", title_justify="left")
    for heading in ("step", "state", "rows", "LLM requests", "about tokens"):
        table.add_column(heading, justify="left" if heading in ("step", "state") else "right")
    for step in plan(recipe).steps:
        cached = is_cached(step, recipe.cache)
        rows = f"{load(step, recipe.cache).report.counts.out:,}" if cached else ""
        requests = tokens = ""
        if step.name.startswith("synthesise-") and not cached:
            estimate = planned(step, recipe.cache)
            requests = "known after the documents are read" if estimate is None else f"{estimate['requests']:,}"
            tokens = "" if estimate is None else f"{estimate['tokens']:,}"
        table.add_row(step.name, "cached" if cached else "to run", rows, requests, tokens)
    return table
