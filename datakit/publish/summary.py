"""A build in one table for the command line: rows in, kept, and rejected by reason, for each category."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datakit.opened import Build


def summary(build: Build) -> RenderableType:
    """The table of a build, with its totals; made to be read at 100 columns."""
    manifest, totals = build.manifest, build.manifest.totals
    table = Table(title=f"{manifest.name} {manifest.version}", title_justify="left", box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("category", footer="all", overflow="fold", min_width=12)
    table.add_column("rows in", footer=f"{totals.created:,}", justify="right", no_wrap=True)
    reasons: Counter[str] = Counter()
    for entry in manifest.categories.values():
        reasons.update(entry.rejected)
    table.add_column("rejected", footer=f"{totals.rejected:,}", justify="right", no_wrap=True)
    table.add_column("by reason", footer=_reasons(reasons), ratio=1, overflow="fold")
    table.add_column("not sampled", footer=f"{totals.not_sampled:,}", justify="right", min_width=7)
    table.add_column("train", footer=f"{totals.train:,}", justify="right", no_wrap=True)
    table.add_column("validation", footer=f"{totals.validation:,}", justify="right", no_wrap=True)
    for name, entry in manifest.categories.items():
        table.add_row(
            Text(name),
            f"{entry.created:,}",
            f"{sum(entry.rejected.values()):,}",
            _reasons(entry.rejected),
            f"{entry.not_sampled:,}",
            f"{entry.train:,}",
            f"{entry.validation:,}",
        )
    parts: list[RenderableType] = [table]
    spent = manifest.spent
    if spent.requests:
        money = "".join(f", {amount:,.2f} {currency}" for currency, amount in spent.money.items())
        tokens = spent.prompt_tokens + spent.completion_tokens
        parts.append(Text(f"Language models: {spent.requests:,} requests, {tokens:,} tokens{money}."))
    parts.append(Text(f"Report: {build.path}/report.html", overflow="fold"))
    return Group(*parts)


def _reasons(counts: dict[str, int]) -> Text:
    """Reasons with their rows, the most frequent first: "near_duplicate 34, too_short 12"."""
    lines = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Text(", ".join(f"{reason} {rows:,}" for reason, rows in lines))
