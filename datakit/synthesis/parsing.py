"""What a model wrote, as questions."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

# Reasons for a whole answer; its raw text is the detail.
EMPTY_ANSWER = "empty_answer"
UNPARSABLE_ANSWER = "unparsable_answer"
# Reasons for one question of an answer.
REPEATED_IN_ANSWER = "repeated_in_answer"
COPIED_FROM_PROMPT = "copied_from_prompt"
MORE_THAN_ASKED = "more_than_asked"
CUT_OFF = "cut_off"
NO_WORDS = "no_words"

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```[a-z]*\s*\n(.*?)(?:\n\s*```.*)?\Z", re.DOTALL | re.IGNORECASE)
# "1. x", "1) x", "1: x", "**1.** x", "Question 1: x", "Q1. x", "#1. x"
_NUMBERED = re.compile(r"^\W{0,4}(?:(?:question|query|q)\s*)?(\d{1,2})\**\s*[.):]\**(?:\s+|$)(.*)$", re.IGNORECASE)
_BULLET = re.compile(r"^\s*[-*•–]\s+(.*)$")
_LABEL = re.compile(
    r"^\**(?:keywords?|phrase|question|query|search query|detailed(?: question)?|joined)\**\s*:\**\s+", re.IGNORECASE
)
# Where an object has one of these, its other members are no questions.
_NAMES = ("queries", "questions", "query", "question", "text")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`", "**": "**", "*": "*"}


@dataclass
class Parsed:
    """The questions of an answer, in order, each with the reason against it or None; or the reason against the whole answer."""

    questions: list[tuple[str, str | None]] = field(default_factory=list)
    reason: str | None = None


def parse(text: str, queries: int, *, cut: bool = False, examples: Collection[str] = ()) -> Parsed:
    """The questions in an answer: a numbered list, else a list with bullets, else lines that end in a question mark; or JSON.

    `cut` says that the model ran out of tokens: then the last question, where nothing follows it, is not whole. `examples` are
    the queries that the prompt showed. Lines beside the list (a greeting, an explanation) are no questions, and fewer questions
    than `queries` are no error. Never raises.
    """
    text = _THOUGHT.sub("", text).strip("\ufeff \t")
    if not text.strip():
        return Parsed(reason=EMPTY_ANSWER)
    found = _json(text)
    if found is None:
        found = list(_lines(text))
        # A line break after it says that a question is whole.
        cut = cut and bool(found) and not text.endswith("\n") and _spaced(text).endswith(_spaced(found[-1]))
    else:
        cut = False
    if not found:
        return Parsed(reason=UNPARSABLE_ANSWER)
    shown = {folded(example) for example in examples}
    seen: set[str] = set()
    parsed, accepted = Parsed(), 0
    for number, raw in enumerate(found):
        question = _cleaned(raw)
        letters = folded(question)
        reason = None
        if not letters:
            reason = NO_WORDS
        elif cut and number == len(found) - 1:
            reason = CUT_OFF
        elif letters in seen:
            reason = REPEATED_IN_ANSWER
        elif letters in shown:
            reason = COPIED_FROM_PROMPT
        elif accepted == queries:
            reason = MORE_THAN_ASKED
        seen.add(letters)
        accepted += reason is None
        parsed.questions.append((question, reason))
    return parsed


def _lines(text: str) -> Iterator[str]:
    lines = text.splitlines()
    for pattern in (_NUMBERED, _BULLET):
        items: list[str] = []
        inside = False
        for line in lines:
            match = pattern.match(line)
            if match:
                items.append(match.group(match.lastindex or 0))
            elif inside and line.strip()[:1].islower():
                # A question that was broken over two lines.
                items[-1] = f"{items[-1]} {line.strip()}"
            inside = bool(items) and bool(line.strip())
        if items:
            yield from items
            return
    yield from (line for line in lines if line.rstrip().rstrip("\"'”’)*").endswith(("?", "？", "؟")))


def _json(text: str) -> list[str] | None:
    """The strings of a JSON answer; None where the answer is no JSON."""
    fenced = _FENCE.match(text)
    body = (fenced.group(1) if fenced else text).strip()
    if not body.startswith(("{", "[")):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return list(_strings(value, 0))


def _strings(value: Any, depth: int) -> Iterator[str]:
    """Strings in lists and objects, three levels deep: {"queries": [...]}, [{"query": ...}] and their like."""
    if isinstance(value, str):
        yield value
    elif depth < 3 and isinstance(value, list):
        for item in value:
            yield from _strings(item, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        named = [name for name in value if str(name).casefold() in _NAMES]
        for name in named or value:
            yield from _strings(value[name], depth + 1)


def _spaced(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def _cleaned(text: str) -> str:
    """A question on one line, without the label, quotes and emphasis that a model puts around it."""
    text = _spaced(text)
    text = _LABEL.sub("", text)
    for opening, closing in _QUOTES.items():
        inner = text[len(opening) : -len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and closing not in inner
        ):
            text = inner.strip()
    return text


def folded(text: str) -> str:
    """What two questions have in common that differ only in case, punctuation and spaces."""
    letters = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(letter if letter.isalnum() else " " for letter in letters).split())
