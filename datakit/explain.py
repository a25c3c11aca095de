"""One row's whole story: where it came from, what it passed, and why it was dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from datakit.errors import UserError
from datakit.negatives.relabel import TEMPLATE
from datakit.opened import Build
from datakit.publish.manifest import StepEntry
from datakit.publish.reasons import in_words, number

SHORTEST_ID = 6
SHOWN_CHARACTERS = 600
KEPT = ("train", "validation")


@dataclass(frozen=True)
class Other:
    """The row that `other_id` names. `row` is None where its text is not in this build."""

    row_id: str
    fate: str
    row: dict[str, Any] | None


@dataclass(frozen=True)
class Passed:
    """A step on the row's way, and what it has to say about the row."""

    step: str
    said: str


@dataclass(frozen=True)
class Explanation:
    """The story of a row. `fate` is "train", "validation", "rejected" or "not sampled"; `why` is a sentence."""

    row_id: str
    fate: str
    category: str
    why: str
    origin: str
    row: dict[str, Any] | None = None
    step: str | None = None
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    other: Other | None = None
    passed: list[Passed] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [
            Text.assemble((self.row_id, "bold"), f"  {self.category}  ", (self.fate, "green" if self.fate in KEPT else "yellow")),
            Text(self.why),
            Text(),
        ]
        if self.row is not None:
            parts.append(_texts(self.row, with_negatives=True))
        if self.other is not None:
            parts += [Text(), Text.assemble("The other row: ", (self.other.row_id, "bold"), f" ({self.other.fate})")]
            if self.other.row is not None:
                parts.append(_texts(self.other.row, with_negatives=False))
        way = Table.grid(padding=(0, 2))
        way.add_row(Text("origin", style="dim"), Text(self.origin))
        for passed in self.passed:
            way.add_row(Text(passed.step, style="dim"), Text(passed.said))
        parts += [Text(), Text("Its way through the build"), way]
        return Group(*parts)

    def __str__(self) -> str:
        console = Console(width=100, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()

    def _repr_html_(self) -> str:
        from html import escape

        return f'<pre style="white-space: pre-wrap">{escape(str(self))}</pre>'


def _texts(row: dict[str, Any], *, with_negatives: bool) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name in ("query", "positive", "label", "score"):
        if row.get(name) is not None:
            value = row[name]
            grid.add_row(Text(name, style="dim"), Text(_cut(value) if isinstance(value, str) else number(value)))
    if with_negatives:
        for place, item in enumerate(row.get("negatives") or [], start=1):
            said = [str(item["miner"])]
            said += [f"{name} {number(item[name])}" for name in ("score", "difficulty") if item[name] is not None]
            grid.add_row(Text(f"negative {place}", style="dim"), Text(f"{_cut(item['text'], 120)}  [{', '.join(said)}]"))
    return grid


def _cut(text: str | None, most: int = SHOWN_CHARACTERS) -> str:
    text = text or ""
    return text if len(text) <= most else f"{text[:most].rstrip()} … ({len(text):,} characters)"


def explain(build: Build, row_id: str) -> Explanation:
    """The story of the row with this id, or the only one whose id begins so. Raises UserError for none, or more than one."""
    found, part = _find(build, row_id)
    if part == "not_sampled":
        return _not_sampled(build, _row(build, part, found))
    row = _row(build, part, found)
    if part == "rejected":
        return _rejected(build, row)
    return Explanation(
        row_id=found,
        fate=part,
        category=row["category"],
        why=f"Kept: it is in {part}, and nothing was said against it.",
        origin=_origin(row),
        row=row,
        passed=_passed(build, row, part, None),
    )


def _rejected(build: Build, row: dict[str, Any]) -> Explanation:
    why = in_words(row["reason"], row["value"], row["threshold"], row["detail"])
    step, reason = row["step"], row["reason"]
    return Explanation(
        row_id=row["row_id"],
        fate="rejected",
        category=row["category"],
        why=f"Rejected by {step} as {reason}: {why}",
        origin=_origin(row),
        row=row,
        step=step,
        reason=reason,
        value=row["value"],
        threshold=row["threshold"],
        other=_other(build, row["other_id"]) if row["other_id"] else None,
        passed=_passed(build, row, None, step),
    )


def _not_sampled(build: Build, row: dict[str, Any]) -> Explanation:
    step = next((entry for entry in build.manifest.steps if entry.name == row["step"]), None)
    counts = step.categories.get(row["category"]) if step else None
    room = f" It left out {counts.not_sampled:,} rows of this category and took {counts.out:,}." if counts else ""
    return Explanation(
        row_id=row["row_id"],
        fate="not sampled",
        category=row["category"],
        why=f"Not sampled by {row['step']}: nothing was wrong with it.{room} The text of such a row is not published.",
        origin="not recorded",
        step=row["step"],
        passed=_passed(build, row, None, row["step"]),
    )


def _find(build: Build, row_id: str) -> tuple[str, str]:
    """The full id and the part it is in: "train", "validation", "rejected" or "not_sampled"."""
    wanted = row_id.strip().lower()
    if len(wanted) < SHORTEST_ID:
        raise UserError(f"'{row_id}' is too short for a row_id: give at least its first {SHORTEST_ID} characters.")
    found: dict[str, str] = {}
    for part in ("train", "validation", "rejected", "not_sampled"):
        ids = build.frame(part).select("row_id").filter(pl.col("row_id").str.starts_with(wanted)).unique()
        for (name,) in ids.collect(engine="streaming").iter_rows():
            found.setdefault(name, part)
    if wanted in found:
        return wanted, found[wanted]
    if not found:
        raise UserError(
            f"No row of '{build.path}' has the id '{row_id}'. The column row_id of train, validation, rejected and not_sampled "
            "holds the ids that there are."
        )
    if len(found) > 1:
        names = ", ".join(f"{name} ({found[name].replace('_', ' ')})" for name in sorted(found)[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise UserError(f"{len(found)} rows have an id that begins with '{row_id}': {names}{more}. Give more characters.")
    return next(iter(found.items()))


def _row(build: Build, part: str, row_id: str) -> dict[str, Any]:
    return build.frame(part).filter(pl.col("row_id") == row_id).head(1).collect(engine="streaming").row(0, named=True)


def _other(build: Build, other_id: str) -> Other:
    for part, fate in (("train", "kept, in train"), ("validation", "kept, in validation"), ("rejected", "rejected later")):
        rows = build.frame(part).filter(pl.col("row_id") == other_id).head(1).collect(engine="streaming")
        if rows.height:
            row = rows.row(0, named=True)
            return Other(other_id, f"{fate}, by {row['step']} as {row['reason']}" if part == "rejected" else fate, row)
    if build.not_sampled.filter(pl.col("row_id") == other_id).head(1).collect(engine="streaming").height:
        return Other(other_id, "kept then, and not sampled later", None)
    return Other(other_id, "no row of this build; a row of an evaluation set, if the reason is contamination", None)


def _origin(row: dict[str, Any]) -> str:
    """Where a row came from, in a sentence."""
    provenance = row.get("provenance") or {}
    said = f"from {row['source'] or 'a source without a name'}"
    if provenance.get("model"):
        said = f"written by {provenance['model']}"
        said += f" as {provenance['persona']}" if provenance.get("persona") else ""
        said += f" with the template {provenance['template']}" if provenance.get("template") else ""
        said += f", about a document of {row['source']}" if row["source"] else ""
        said += f", request {provenance['request_id']}" if provenance.get("request_id") else ""
    if provenance.get("parents"):
        said += f"; made from {', '.join(provenance['parents'])}"
    return said + (f"; document {row['document_id']}" if row.get("document_id") else "")


def _passed(build: Build, row: dict[str, Any], part: str | None, stopped_at: str | None) -> list[Passed]:
    """The steps that took in rows of this category, from the one that made this row up to the one that stopped it."""
    result, steps = [], build.manifest.steps
    provenance = row.get("provenance") or {}
    if provenance.get("template") == TEMPLATE:
        place = next(number for number, step in enumerate(steps) if step.name == "relabel")
        result.append(Passed("relabel", f"made it of a negative of {provenance['parents'][0]}, which passed the steps before"))
        steps = steps[place + 1 :]
    for step in steps:
        counts = step.categories.get(row["category"])
        if step.name == stopped_at:
            result.append(Passed(step.name, "stopped here"))
            break
        if counts is not None and counts.rows_in:
            said = [text for text in (_about(step, row, part), _dropped(step, row["category"])) if text]
            result.append(Passed(step.name, "; ".join(["passed", *said])))
    return result


def _dropped(step: StepEntry, category: str) -> str:
    counts = step.categories[category]
    parts = [f"rejected {sum(counts.rejected.values()):,}"] if counts.rejected else []
    parts += [f"left out {counts.not_sampled:,}"] if counts.not_sampled else []
    return f"{' and '.join(parts)} of the {counts.rows_in:,} rows of this category" if parts else ""


def _about(step: StepEntry, row: dict[str, Any], part: str | None) -> str:
    """The numbers of the row that a step of this name looks at or makes."""
    name = step.name
    if "quality" in name and row.get("quality") is not None:
        return f"quality {number(row['quality'])}"
    if "language" in name and row.get("language"):
        return f"query {row['language']}, positive {row.get('positive_language') or 'unknown'}"
    if name.startswith("split") and part is not None:
        return f"to {part}"
    negatives = row.get("negatives") or []
    if name.startswith(("mine", "screen")) and negatives:
        miners = ", ".join(
            f"{count} by {miner}" for miner, count in sorted(Counter(str(item["miner"]) for item in negatives).items())
        )
        hardest = max((item["difficulty"] for item in negatives if item["difficulty"] is not None), default=None)
        return f"negatives that it has now: {miners}" + (
            f", the hardest of difficulty {number(hardest)}" if hardest is not None else ""
        )
    return ""
