"""Canaries: training texts made of an evaluation set's own texts. Each must be caught, or the build stops."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datakit.schema import digest

Kind = Literal["verbatim", "re-cased", "re-punctuated", "embedded"]
KINDS: tuple[Kind, ...] = ("verbatim", "re-cased", "re-punctuated", "embedded")

# Texts of each set that canaries are made of.
TEXTS = 8

_BEFORE = "A reader wrote to us last week, and what she wanted to be told was this:"
_AFTER = "We thought about it for a while, and then looked it up for her."
_MARKS = (" - ", ", ", " / ", "; ")


@dataclass(frozen=True)
class Canary:
    """A training text of a kind, made of the evaluation text with this number."""

    kind: Kind
    text: str
    other: int


def canaries(texts: Sequence[str], numbers: Sequence[int], long_enough: Sequence[bool]) -> list[Canary]:
    """The canaries of one set. `numbers` are those of its texts that have words; short ones are not looked for in others.

    Those texts are taken that have the lowest digests, as far as there are any that are long enough.
    """
    ranked = sorted(range(len(texts)), key=lambda place: (not long_enough[place], digest("canary", texts[place]), place))
    return [
        Canary(kind, changed(kind, texts[place]), numbers[place])
        for place in ranked[:TEXTS]
        for kind in KINDS
        if kind != "embedded" or long_enough[place]
    ]


def changed(kind: Kind, text: str) -> str:
    """The text as a canary of this kind has it."""
    if kind == "re-cased":
        return text.upper() if text != text.upper() else text.lower()
    if kind == "re-punctuated":
        return repunctuated(text)
    if kind == "embedded":
        return f"{_BEFORE} {text}\n{_AFTER}"
    return text


def repunctuated(text: str) -> str:
    """The text with other marks and spaces in the place of its own, and around it."""
    result, between, number = "", False, 0
    for character in text:
        if unicodedata.category(character)[0] in "PZ" or character in "\n\t":
            between = True
            continue
        if between:
            result, number, between = result + _MARKS[number % len(_MARKS)], number + 1, False
        result += character
    return f"“{result} …!”"
