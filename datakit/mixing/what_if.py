"""What a mixture would give, without building: counts and weights as a table, and shares over the temperature as a plot.

Rows to draw from are counted in the cache, where all steps before the mixture are done; else a finished build has noted them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datakit import storage
from datakit.errors import UserError
from datakit.measured import latest
from datakit.mixing import draw
from datakit.mixing.draw import Stratum
from datakit.mixing.feedback import factors
from datakit.mixing.planned import MixParameters, notes, planned, quota_members, strata
from datakit.mixing.weights import allocate
from datakit.opened import Build
from datakit.pipeline import entry, plan
from datakit.publish import mixture as shown
from datakit.recipe import Mixture, Recipe
from datakit.registry import load as load_registry
from datakit.schema import Evaluation
from datakit.step import is_cached, load

TEMPERATURES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0)
COLUMNS = (1.0, 2.0, 3.0, 5.0, 10.0, 100.0)
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Counted:
    """Training rows to draw from, by category and language, and where they were counted."""

    rows: dict[str, dict[str, int]]
    where: str

    @property
    def available(self) -> dict[str, int]:
        return {name: sum(languages.values()) for name, languages in sorted(self.rows.items())}


@dataclass(frozen=True)
class WhatIf:
    """`notes` are those that the step `mix` would write. `over` has the share of each category at each of TEMPERATURES."""

    name: str
    mixture: Mixture
    where: str
    notes: dict[str, Any]
    over: dict[str, list[float]]
    uncounted: list[str]


def what_if(recipe: Recipe, changes: Mapping[str, Any], feedback: Evaluation | None = None, build: Build | None = None) -> WhatIf:
    """What the mixture of a recipe gives with `changes` of its section `mixture`.

    Counts are those of `build` where one is given. Raises UserError where nothing was counted yet, or the mixture cannot be.
    """
    changed = _changed(recipe.mixture, changes)
    registry = load_registry(recipe.registries)
    members = quota_members(changed, {name: entry(name, category, registry) for name, category in recipe.categories.items()})
    parameters = MixParameters(
        mixture=changed, seed=recipe.seed, shard_rows=recipe.shard_rows, members=tuple(map(tuple, members)), feedback=feedback
    )
    counted = _of_build(build) if build is not None else _of_cache(recipe) or _of_latest(recipe)
    counted = Counted({name: rows for name, rows in counted.rows.items() if name in recipe.categories}, counted.where)
    available = counted.available
    if not sum(available.values()):
        raise UserError(f"{counted.where} has no training row of a category of this recipe. Build the recipe first.")
    allocation = planned(parameters, available)
    wanted: dict[Stratum, int] = strata(changed, allocation, available, counted.rows)[0]
    moved = None if feedback is None else factors(feedback, changed.feedback)
    over: dict[str, list[float]] = {name: [] for name in available}
    for temperature in TEMPERATURES:
        at = allocate(available, changed.model_copy(update={"temperature": temperature}), members, moved)
        for name, rows in at.rows.items():
            over[name].append(rows / at.total if at.total else 0.0)
    return WhatIf(
        recipe.name,
        changed,
        counted.where,
        notes(parameters, available, allocation, counted.rows, wanted),
        over,
        [name for name in recipe.categories if name not in available],
    )


def _changed(mixture: Mixture, changes: Mapping[str, Any]) -> Mixture:
    try:
        return Mixture.model_validate({**mixture.model_dump(), **changes})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'mixture'}: {each['msg']}" for each in error.errors())
        raise UserError(f"The mixture cannot be so: {said}.") from error


def _of_cache(recipe: Recipe) -> Counted | None:
    """Counts the rows that the recipe's mixture would be given, if they are in the cache."""
    before = plan(recipe).steps[-1].inputs
    if not all(is_cached(step, recipe.cache) for step in before):
        return None
    counts: Counter[Stratum] = Counter()
    for step in before:
        for shard in load(step, recipe.cache).part("train"):
            table = storage.read_table(shard, columns=["category", "language", "positive_language"])
            counts.update(draw.strata(table, by_language=True))
    rows: dict[str, dict[str, int]] = {}
    for (category, language), count in sorted(counts.items()):
        rows.setdefault(category, {})[language] = count
    return Counted(rows, "The cache")


def _of_latest(recipe: Recipe) -> Counted:
    build = latest(recipe)
    if build is None:
        raise UserError(
            f"Nothing was counted yet: the steps of '{recipe.name}' before its mixture are not in the cache, and no build of it "
            "is published. Run `datakit build` with this recipe once, or give another build with --build."
        )
    return _of_build(build)


def _of_build(build: Build) -> Counted:
    found = shown.noted(build.manifest.steps)
    if not found:
        raise UserError(f"The build '{build.path}' has no counts by category and language. Build it again with this datakit.")
    rows = {
        name: {language: counts["available"] for language, counts in each["languages"].items()}
        for name, each in found["categories"].items()
    }
    return Counted(rows, f"The build {build.version}")


# -------------------------------------------------------------------------------------------------------- how it is shown


def table(found: WhatIf) -> RenderableType:
    """Counts, weights and, for each category, its share at some temperatures."""
    parts: list[RenderableType] = [
        Text(f"{found.name}: {found.notes['total']:,} of {found.notes['requested']:,} rows that were asked for", style="bold"),
        Text(f"{setting(found.mixture)}. Counted in: {found.where[0].lower()}{found.where[1:]}.", style="dim"),
        _table("category", shown.HEADS, shown.lines(found.notes)),
    ]
    if "feedback" in found.notes:
        parts += [
            Text(shown.feedback_heading(found.notes)),
            _table("category", shown.FEEDBACK_HEADS, shown.feedback_lines(found.notes)),
        ]
    spoken = shown.languages(found.notes)
    if len(spoken) > 1:
        parts.append(_table("language", ("available", "rows"), spoken))
    heads = [f"T={temperature:g}" for temperature in COLUMNS]
    most = max((max(shares) for shares in found.over.values()), default=0.0)
    over = [
        (name, [*(f"{100 * shares[TEMPERATURES.index(each)]:.1f} %" for each in COLUMNS), _spark(shares, most)])
        for name, shares in found.over.items()
    ]
    parts.append(Text("Share of the rows over T, with limits and quotas", style="bold"))
    parts.append(_table("category", [*heads, f"T = {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g}"], over))
    if found.uncounted:
        parts.append(Text(f"Not counted, since no row of them was there: {', '.join(found.uncounted)}."))
    return Group(*parts)


def _table(first: str, heads: Sequence[str], lines: shown.Lines) -> Table:
    result = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    result.add_column(first, overflow="fold")
    for head in heads:
        result.add_column(head, justify="left" if head in ("why", "held by", "history") else "right")
    for name, cells in lines:
        result.add_row(name, *cells)
    return result


def setting(mixture: Mixture) -> str:
    said = [f"temperature {mixture.temperature:g}"]
    if mixture.language_temperature is not None:
        said.append(f"language temperature {mixture.language_temperature:g}")
    said.append(f"at most {mixture.max_epochs:g} epoch{'' if mixture.max_epochs == 1 else 's'}")
    said.append(f"shortfall {mixture.shortfall}" + (f" up to {mixture.repeat_epochs:g}" if mixture.shortfall == "repeat" else ""))
    return ", ".join(said).capitalize()


def _spark(shares: list[float], most: float) -> str:
    return "".join(_BARS[min(len(_BARS) - 1, int(len(_BARS) * share / most))] if most else _BARS[0] for share in shares)
