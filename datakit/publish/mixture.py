"""The mixture in tables, for report, card and command line: what the step `mix` noted, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datakit.publish.manifest import StepEntry

HEADS = ("available", "weight", "rows", "share", "epochs", "held by")
FEEDBACK_HEADS = ("score", "rows", "history", "factor", "weight", "rows drawn", "why")

Lines = list[tuple[str, list[str]]]


def noted(steps: Sequence[StepEntry]) -> dict[str, Any]:
    """The notes of the step `mix`; empty where a build has none, or has those of an older datakit."""
    found = [step.notes for step in steps if step.name == "mix"]
    return found[-1] if found and "shortfall" in found[-1] else {}


def lines(notes: Mapping[str, Any]) -> Lines:
    """One line for each category, with cells as in HEADS; what held it is its quota, its limit, or that it ran out."""
    return [
        (
            name,
            [
                f"{each['available']:,}",
                f"{each['probability']:.4f}",
                f"{each['rows']:,}",
                f"{100 * each['share']:.2f} %",
                f"{each['epochs']:.2f}",
                _held(name, each, notes),
            ],
        )
        for name, each in notes["categories"].items()
    ]


def _held(name: str, each: Mapping[str, Any], notes: Mapping[str, Any]) -> str:
    said = [f"quota of {each['quota']}"] if "quota" in each else []
    if name in notes["ran_out"]:
        said.append("repeated" if each["rows"] > each["limit"] else "ran out")
    elif each["rows"] and each["rows"] >= each["limit"]:
        said.append("its limit")
    return ", ".join(said)


def languages(notes: Mapping[str, Any]) -> Lines:
    """One line for each language over all categories; rows drawn are known where `language_temperature` decides them."""
    there: dict[str, list[int]] = {}
    for each in notes["categories"].values():
        for language, counts in each["languages"].items():
            sums = there.setdefault(language, [0, 0])
            sums[0] += counts["available"]
            sums[1] += counts.get("rows", 0)
    ordered = sorted(there.items(), key=lambda item: (-item[1][0], item[0]))
    separate = notes["language_temperature"] is not None
    return [(name, [f"{counts[0]:,}", f"{counts[1]:,}" if separate else "drawn as they come"]) for name, counts in ordered]


def feedback_heading(notes: Mapping[str, Any]) -> str:
    """What the weights were moved by."""
    found = notes["feedback"]
    return (
        f"Weights were moved by an evaluation: {found['metric']} of the model {found['model']}, trained on build "
        f"{found['build']}; mean {found['mean']:.4f}. A factor is between {1 / found['bound']:.4g} and {found['bound']:.4g}: "
        "above 1 where the model is below the mean, below 1 where its score no longer moves, near 1 where few rows were measured."
    )


def feedback_lines(notes: Mapping[str, Any]) -> Lines:
    """One line for each category, with cells as in FEEDBACK_HEADS; those whose weight moved most come first."""
    found = notes["feedback"]["categories"]
    drawn = {name: each["rows"] for name, each in notes["categories"].items()}
    ordered = sorted(found.items(), key=lambda item: (-max(item[1]["factor"], 1 / item[1]["factor"]), item[0]))
    return [
        (
            name,
            [
                f"{each['score']:.4f}" if "score" in each else "none",
                f"{each['rows']:,}" if "rows" in each else "",
                ", ".join(f"{score:.4f}" for score in each.get("history", [])),
                f"{each['factor']:.3f}",
                f"{each['weight_before']:.4f} to {each['weight_after']:.4f}",
                f"{each['rows_before']:,} to {drawn[name]:,}",
                each["why"],
            ],
        )
        for name, each in ordered
    ]
