"""A build in one table for the command line: rows in, kept, and rejected by reason, for each category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from datakit.opened import Build

HEADINGS = ("rows in", "rejected", "not sampled", "train", "validation")


def summary(build: Build) -> RenderableType:
    """The table of a build, with its totals; made to be read at 100 columns.

    The reasons of a category stand below its numbers, over the whole width: a column of them would be too narrow to read.
    """
    manifest, totals = build.manifest, build.manifest.totals
    reasons: Counter[str] = Counter()
    lines: list[tuple[str, Mapping[str, int], tuple[int, ...]]] = []
    for name, entry in manifest.categories.items():
        reasons.update(entry.rejected)
        rejected = sum(entry.rejected.values())
        lines.append((name, entry.rejected, (entry.created, rejected, entry.not_sampled, entry.train, entry.validation)))
    whole = (totals.created, totals.rejected, totals.not_sampled, totals.train, totals.validation)
    lines.append(("all", reasons, whole))
    width = max(len(name) for name, *_ in lines)
    heading = " " * width + "".join(f"{title:>{_width(title)}}" for title in HEADINGS)
    parts: list[RenderableType] = [
        Text(f"{manifest.name} {manifest.version}", style="bold"),
        Text(),
        Text(heading, style="dim", no_wrap=True),
    ]
    for place, (name, by_reason, numbers) in enumerate(lines, start=1):
        if place == len(lines):
            parts.append(Text("─" * len(heading), style="dim", no_wrap=True))
        said = "".join(f"{number:>{_width(title)},}" for title, number in zip(HEADINGS, numbers, strict=True))
        parts.append(Text.assemble((f"{name:<{width}}", "bold"), said, no_wrap=True))
        if by_reason:
            parts.append(Padding(Text(_reasons(by_reason), style="dim"), (0, 0, 0, 4)))
    parts.append(Text())
    spent = manifest.spent
    if spent.requests:
        money = "".join(f", {amount:,.2f} {currency}" for currency, amount in spent.money.items())
        tokens = spent.prompt_tokens + spent.completion_tokens
        parts.append(Text(f"Language models: {spent.requests:,} requests, {tokens:,} tokens{money}."))
    parts.append(Text(f"Report: {build.path}/report.html", overflow="fold"))
    return Group(*parts)


def _width(title: str) -> int:
    return max(len(title), 9) + 3


def _reasons(counts: Mapping[str, int]) -> str:
    """Reasons with their rows, the most frequent first: "near_duplicate 34, too_short 12"."""
    lines = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {rows:,}" for reason, rows in lines)
