"""report.html: the build at a glance, in one file that asks nothing of a network.

Texts come from anywhere. The template escapes all of them; the rows of the browser travel as JSON in which no "<" is left, and
are put on the page as text. A content security policy allows the one script of this page and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from datakit.opened import Build
from datakit.publish import diversity, evaluation_sets, figures, mixture
from datakit.publish.manifest import StepEntry
from datakit.publish.reasons import in_words, number
from datakit.step import Counts

# Longer texts are cut, so that the report of any build stays below about 2 MB.
QUERY_CHARACTERS = 400
TEXT_CHARACTERS = 600
NEGATIVE_CHARACTERS = 240
MOST_NEGATIVES = 10
MOST_ROWS = 300
ROWS_BYTES = 1_300_000
MOST_CATEGORY_CARDS = 24
MOST_TABLE_LINES = 20


@dataclass(frozen=True)
class Stage:
    """A step, or some of one kind, in the funnel. `after` rows are in the build when it is done."""

    name: str
    steps: int
    before: int
    after: int
    counts: Counts

    @property
    def dropped(self) -> int:
        return sum(self.counts.rejected.values()) + self.counts.not_sampled


@dataclass(frozen=True)
class Rejection:
    """A reason with its rows by step and category, and examples."""

    reason: str
    meaning: str
    rows: int
    steps: dict[str, int]
    categories: dict[str, int]
    examples: list[dict[str, Any]]


def render(build: Build) -> str:
    """The report of a build, a whole HTML page."""
    folder = resources.files("datakit.publish")
    style, script, template = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(thousands="{:,}".format, percent=percent, short=short, number=number)
    manifest = build.manifest
    totals, names = manifest.totals, list(manifest.categories)
    names.sort(key=lambda name: (-manifest.categories[name].kept, name))
    return environment.from_string(template).render(
        manifest=manifest,
        totals=totals,
        rejected_share=totals.rejected / max(1, totals.created),
        stages=stages(manifest.steps),
        names=names,
        most_made=max((entry.created for entry in manifest.categories.values()), default=0),
        most_cards=MOST_CATEGORY_CARDS,
        lengths=figures.lengths(build),
        evaluation_sets=evaluation_sets,
        diversity=manifest.diversity,
        heading=diversity.heading(manifest.diversity) if manifest.diversity else "",
        heads=diversity.HEADS,
        varied=diversity.lines,
        most_lines=MOST_TABLE_LINES,
        mix=mixture.noted(manifest.steps),
        mixture=mixture,
        rejections=rejections(build),
        rows=embedded(browser_rows(build)),
        recipe=Path(build.path, "recipe.yaml").read_text(encoding="utf-8"),
        style=Markup(style),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def stages(steps: list[StepEntry]) -> list[Stage]:
    """The funnel. Steps that make rows come first, those of one kind together; the others follow as they ran."""
    groups: dict[str, list[StepEntry]] = {}
    for step in steps:
        if step.carries_rows:
            entry = step.counts.rows_in == 0
            groups.setdefault(step.name.split("-")[0] if entry else step.name, []).append(step)
    result: list[Stage] = []
    for name, members in groups.items():
        counts, before = Counts(), result[-1].after if result else 0
        for step in members:
            counts = counts.plus(step.counts)
        after = before + counts.created - sum(counts.rejected.values()) - counts.not_sampled
        result.append(Stage(name, len(members), before, after, counts))
    return result


def rejections(build: Build) -> list[Rejection]:
    """All reasons, the most frequent first."""
    steps: dict[str, dict[str, int]] = {}
    categories: dict[str, dict[str, int]] = {}
    for step in build.manifest.steps:
        for reason, rows in step.counts.rejected.items():
            steps.setdefault(reason, {})[step.name] = rows
    for name, entry in build.manifest.categories.items():
        for reason, rows in entry.rejected.items():
            categories.setdefault(reason, {})[name] = rows
    examples = figures.rejected_examples(build) if steps else {}
    result = [
        Rejection(
            reason,
            in_words(reason),
            sum(of.values()),
            of,
            dict(sorted(categories.get(reason, {}).items(), key=lambda item: (-item[1], item[0]))),
            examples.get(reason, []),
        )
        for reason, of in steps.items()
    ]
    return sorted(result, key=lambda item: (-item.rows, item.reason))


def browser_rows(build: Build) -> list[dict[str, Any]]:
    """The rows of the browser, cut to what fits; only what is there, so that the page stays small."""
    result, size = list[dict[str, Any]](), 0
    for row in figures.sample(build, MOST_ROWS):
        shown = _browser_row(row)
        size += len(json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace"))
        if size > ROWS_BYTES:
            break
        result.append(shown)
    return result


def _browser_row(row: dict[str, Any]) -> dict[str, Any]:
    negatives = [
        {
            "text": short(item["text"], NEGATIVE_CHARACTERS),
            "miner": item["miner"],
            "score": _rounded(item["score"]),
            "difficulty": _rounded(item["difficulty"]),
        }
        for item in (row["negatives"] or [])
    ]
    negatives.sort(key=lambda item: -(item["difficulty"] or 0.0))
    provenance = {
        key: short(", ".join(value) if isinstance(value, list) else value, 200)
        for key, value in (row["provenance"] or {}).items()
        if value
    }
    facts = {
        "language": " / ".join(dict.fromkeys(code for code in (row["language"], row["positive_language"]) if code)),
        "source": short(row["source"], 120),
        "quality": _rounded(row["quality"]),
        "score": _rounded(row["score"]),
        "label": short(row["label"], 120),
        "instruction": short(row["instruction"], 240),
    }
    return {
        "id": row["row_id"],
        "part": row["part"],
        "category": row["category"],
        "query": short(row["query"], QUERY_CHARACTERS),
        "positive": short(row["positive"], TEXT_CHARACTERS),
        "negatives": negatives[:MOST_NEGATIVES],
        "more_negatives": max(0, len(negatives) - MOST_NEGATIVES),
        "facts": {key: value for key, value in facts.items() if value not in (None, "")},
        "provenance": provenance,
    }


def embedded(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def short(text: str | None, most: int = TEXT_CHARACTERS) -> str:
    """A text cut at `most` characters, with the length of the whole."""
    if not text:
        return ""
    return text if len(text) <= most else f"{text[:most].rstrip()} … ({len(text):,} characters)"


def percent(part: float, whole: float = 1.0) -> str:
    """A share for a person, with a no-break space: "12 %", "0.4 %", and never 100 % or 0 % where it is not."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 10:
        return f"{share:.1f}\u00a0%" if share >= 0.05 else "<\u00a00.1\u00a0%"
    if 99.5 <= share < 100:
        return f"{math.floor(share * 10) / 10:.1f}\u00a0%"
    return f"{share:.0f}\u00a0%"


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
