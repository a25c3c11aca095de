"""What decontamination found of each evaluation set, as card and report show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datakit.publish.manifest import StepEntry

HEADS = ("texts", "met in the rows", "equal", "held", "alike", "in negatives", "canaries caught")

HEADING = (
    "A row whose query or positive says a text of an evaluation set was rejected; a negative that says one was dropped. Counted "
    "are queries and positives that equal such a text, hold it (n-grams of words), or are like it (by meaning), and hits in "
    "negatives. Canaries are training texts made of the set's own: they were planted, and must all be caught. What is said in "
    "other words may go unseen."
)

_LEVELS = ("contaminated_exact", "contaminated_ngram", "contaminated_semantic")


def lines(steps: Sequence[StepEntry]) -> list[tuple[str, list[str]]]:
    """A line for each evaluation set and time that rows were checked against it, with cells for HEADS; none without any."""
    found = []
    for step in steps:
        if step.name.startswith("decontaminate"):
            again = " (after mining)" if step.name != "decontaminate" else ""
            found += [(f"{name}{again}", _cells(told)) for name, told in step.notes["sets"].items()]
    return found


def _cells(told: Mapping[str, Any]) -> list[str]:
    hits = [told["hits"][level] for level in _LEVELS]
    canaries = told["canaries"]
    counts = [told["texts"], told["texts_met"], *(each["query"] + each["positive"] for each in hits)]
    counts.append(sum(each["negative"] for each in hits))
    return [*(f"{count:,}" for count in counts), f"{canaries['rows_caught']:,} of {canaries['rows']:,}"]
