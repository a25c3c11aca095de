"""Which records a recipe wants, by the values of their columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datakit.recipe import Range, Scalar
from datakit.sources.paths import Record, look_up
from datakit.sources.records import ClassName, Unreadable, rendered


@dataclass(frozen=True)
class Where:
    """Whether a record has the wanted values. Text is compared as text, numbers as numbers, also where a file has only text."""

    wanted: Mapping[str, Scalar | list[Scalar] | Range]

    def __call__(self, record: Record) -> bool:
        return all(matches(look_up(record, name), wanted) for name, wanted in self.wanted.items())


def matches(value: Any, wanted: Scalar | list[Scalar] | Range) -> bool:
    """Whether a value is the wanted one, one of a list, or within a range."""
    if isinstance(wanted, list):
        return any(matches(value, item) for item in wanted)
    if isinstance(wanted, bool):
        return value is wanted or (isinstance(value, str) and value.strip().lower() == str(wanted).lower())
    if isinstance(wanted, str):
        try:
            return rendered(value) == wanted
        except Unreadable:
            return False
    number = _number(value)
    if isinstance(wanted, Range):
        least = -math.inf if wanted.at_least is None else wanted.at_least
        most = math.inf if wanted.at_most is None else wanted.at_most
        return least <= number <= most
    return number == wanted


def _number(value: Any) -> float:
    """NaN, which is in no range and equals nothing, where the value is no number."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, ClassName):
        return value.number
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
