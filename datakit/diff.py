"""What changed between two builds: the recipe, models and packages, the counts of the steps, and the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from datakit.opened import Build
from datakit.publish.manifest import Manifest

ABSENT = "absent"
KEPT = ("train", "validation")
# So many rows are compared at a time; above that, one sixteenth of the ids after the other.
ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Change:
    """A key whose value differs; None where one side does not have it, or has null there."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """What changed from the build `a` to the build `b`.

    `transitions` counts the rows that are in either build, matched by content_id: category, state in a, state in b, rows. A
    state is "train", "validation", "rejected: REASON", "not sampled" or "absent".
    """

    a: str
    b: str
    recipe: list[Change]
    models: list[Change]
    packages: list[Change]
    steps: list[Change]
    transitions: pl.DataFrame

    @property
    def rows(self) -> pl.DataFrame:
        """Kept rows by category and part: only in a, only in b, in both (in the part that b has them in)."""
        kept_before, kept_after = pl.col("before").is_in(KEPT), pl.col("after").is_in(KEPT)
        frame = self.transitions.filter(kept_before | kept_after)
        part = pl.when(kept_after).then(pl.col("after")).otherwise(pl.col("before")).alias("part")

        def count(condition: pl.Expr, name: str) -> pl.Expr:
            return pl.col("rows").filter(condition).sum().alias(name)

        sums = frame.with_columns(part).group_by("category", "part").agg(
            count(kept_before & ~kept_after, "only_a"),
            count(~kept_before & kept_after, "only_b"),
            count(kept_before & kept_after, "both"),
        )  # fmt: skip
        return sums.sort("category", "part")

    @property
    def moved(self) -> pl.DataFrame:
        """Rows that are known to both builds and changed their state: to another part, kept to rejected, and back."""
        known = (pl.col("before") != ABSENT) & (pl.col("after") != ABSENT)
        frame = self.transitions.filter(known & (pl.col("before") != pl.col("after")))
        return frame.sort("category", "before", "after")

    @property
    def same(self) -> bool:
        return self.a == self.b

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(f"{self.a} -> {self.b}")]
        if self.same:
            return Group(*parts, Text("The same version: nothing differs."))
        for title, changes in (("Recipe", self.recipe), ("Models", self.models), ("Packages", self.packages)):
            parts += [Text(), _changes(title, changes)]
        parts += [Text(), _changes("Rows after each step", self.steps)]
        parts += [Text(), _frame("Kept rows", self.rows, {"only_a": "only in the first", "only_b": "only in the second"})]
        parts += [Text(), _frame("Rows that moved", self.moved, {"before": "in the first", "after": "in the second"})]
        return Group(*parts)

    def __str__(self) -> str:
        console = Console(width=120, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _changes(title: str, changes: list[Change]) -> RenderableType:
    if not changes:
        return Text(f"{title}: the same.")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "first", "second"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        table.add_row(Text(change.key), Text(_value(change.before)), Text(_value(change.after)))
    return table


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + " …"


def _frame(title: str, frame: pl.DataFrame, headings: Mapping[str, str]) -> RenderableType:
    if not frame.height:
        return Text(f"{title}: none.")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, kind in frame.schema.items():
        table.add_column(headings.get(name, name), justify="right" if kind.is_numeric() else "left", overflow="fold")
    for line in frame.iter_rows():
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in line))
    return table


def diff(a: Build, b: Build) -> Difference:
    """What changed from `a` to `b`. Rows are matched by content_id; those without one (unreadable records) by row_id."""
    return Difference(
        a=f"{a.name} {a.version}",
        b=f"{b.name} {b.version}",
        recipe=changes(a.manifest.recipe, b.manifest.recipe),
        models=_model_changes(a.manifest, b.manifest),
        packages=changes(a.manifest.packages, b.manifest.packages),
        steps=changes(_after_steps(a.manifest), _after_steps(b.manifest)),
        transitions=transitions(a, b),
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The keys at any depth whose values differ. An item of a list goes by its `name` or `type` where those tell items apart."""
    flat_before, flat_after = _flat("", before), _flat("", after)
    keys = list(dict.fromkeys([*flat_before, *flat_after]))
    return [Change(key, flat_before.get(key), flat_after.get(key)) for key in keys if flat_before.get(key) != flat_after.get(key)]


def _flat(place: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        inner = {f"{place}.{key}" if place else str(key): item for key, item in value.items()}
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        inner = {f"{place}[{name}]": item for name, item in zip(_names(value), value, strict=True)}
    else:
        return {place: value}
    return {key: item for inner_place, inner_value in inner.items() for key, item in _flat(inner_place, inner_value).items()}


def _names(items: list[Mapping[str, Any]]) -> list[str]:
    for key in ("name", "type"):
        names = [str(item.get(key)) for item in items]
        if all(item.get(key) for item in items) and len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(items))]


def _model_changes(a: Manifest, b: Manifest) -> list[Change]:
    def said(manifest: Manifest) -> dict[str, str]:
        return {
            place: " ".join(part for part in (model.model, model.revision, model.digest) if part)
            for place, model in manifest.models.items()
        }

    return changes(said(a), said(b))


def _after_steps(manifest: Manifest) -> dict[str, str]:
    result = {}
    for step in manifest.steps:
        if step.carries_rows:
            counts = step.counts
            dropped = [f"{rows:,} {reason}" for reason, rows in counts.rejected.items()]
            dropped += [f"{counts.not_sampled:,} not sampled"] if counts.not_sampled else []
            result[step.name] = f"{counts.out:,}" + (f" (dropped: {', '.join(dropped)})" if dropped else "")
    return result


def transitions(a: Build, b: Build) -> pl.DataFrame:
    """How many contents have which state in each build. The ids are compared in slices, so that memory stays bounded."""
    most = max(build.manifest.totals.kept + build.manifest.totals.rejected for build in (a, b))
    digits = "0123456789abcdef"
    slices = (
        [""] if most <= ROWS_AT_ONCE else list(digits) if most <= 16 * ROWS_AT_ONCE else [x + y for x in digits for y in digits]
    )
    frames = [_transitions(a, b, start) for start in slices]
    return pl.concat(frames).group_by("category", "before", "after").agg(pl.col("rows").sum()).sort("category", "before", "after")


def _transitions(a: Build, b: Build, start: str) -> pl.DataFrame:
    """The transitions of the contents whose id begins with `start`."""
    before, after = (_states(build, start).collect(engine="streaming") for build in (a, b))
    both = before.join(after, on="id", how="full", coalesce=True, suffix="_after")
    left_out_before = _left_out(a, both, "row_id_after")
    left_out_after = _left_out(b, both, "row_id")
    return (
        both.select(
            pl.coalesce("category", "category_after"),
            _state("state", pl.col("row_id_after").is_in(left_out_before)).alias("before"),
            _state("state_after", pl.col("row_id").is_in(left_out_after)).alias("after"),
        )
        .group_by("category", "before", "after")
        .agg(pl.len().cast(pl.Int64).alias("rows"))
    )


def _state(column: str, left_out: pl.Expr) -> pl.Expr:
    """The state without its sorting character. A row that was not sampled may have left rejected duplicates of itself."""
    kept = pl.col(column).str.slice(1).is_in(KEPT)
    state = pl.when(left_out & ~kept.fill_null(False)).then(pl.lit("3not sampled")).otherwise(pl.col(column))
    return state.fill_null(f"4{ABSENT}").str.slice(1)


def _states(build: Build, start: str) -> pl.LazyFrame:
    """One line for each content of a build: the best state that a row with it has. States sort by their first character."""
    frames = [
        build.train.select("content_id", "row_id", "category", pl.lit("0train").alias("state")),
        build.validation.select("content_id", "row_id", "category", pl.lit("1validation").alias("state")),
        build.rejected.select("content_id", "row_id", "category", (pl.lit("2rejected: ") + pl.col("reason")).alias("state")),
    ]
    key = pl.coalesce("content_id", "row_id").alias("id")
    rows = pl.concat(frames).with_columns(key).filter(pl.col("id").str.starts_with(start))
    # One string, so that the row_id is that of the best state.
    best = (
        pl.concat_str("state", "row_id", separator="\n").min().str.split_exact("\n", 1).struct.rename_fields(["state", "row_id"])
    )
    return rows.group_by("id").agg(pl.col("category").min(), best.alias("best")).unnest("best")


def _left_out(build: Build, both: pl.DataFrame, column: str) -> pl.Series:
    """Those of the row_ids in `column` that the build did not sample."""
    wanted = both.lazy().select(pl.col(column).alias("row_id")).drop_nulls()
    return (
        build.not_sampled.select("row_id").join(wanted, on="row_id", how="semi").collect(engine="streaming").get_column("row_id")
    )
