"""What a model wrote, as texts: the items of a list, or the fields that were asked for."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Reasons for a whole answer; its raw text is the detail.
EMPTY_ANSWER = "empty_answer"
UNPARSABLE_ANSWER = "unparsable_answer"
REQUEST_REFUSED = "request_refused"
# Reasons for one item of an answer.
REPEATED_IN_ANSWER = "repeated_in_answer"
COPIED_FROM_PROMPT = "copied_from_prompt"
MORE_THAN_ASKED = "more_than_asked"
CUT_OFF = "cut_off"
NO_WORDS = "no_words"
MISSING_FIELD = "missing_field"
BAD_SCORE = "bad_score"

# What a field is called in an answer: first as prompts call it, then as models do.
FIELDS = {
    "query": ("query", "user query", "question", "premise", "anchor", "sentence 1"),
    "positive": (
        "positive", "positive document", "document", "passage", "answer", "entailment", "entailed", "paraphrase", "translation",
        "summary", "sentence 2", "true",
    ),
    "negative": (
        "negative", "hard negative document", "hard negative", "negative document", "contradiction", "contradicted", "false",
    ),
    "score": ("score", "similarity", "degree"),
    "label": ("label", "class", "category"),
}  # fmt: skip
# The one field of the items of a list.
TEXT = "text"

# The opening tag is often the end of the prompt, and not part of the answer.
_THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```[a-z]*\s*\n(.*?)(?:\n\s*```.*)?\Z", re.DOTALL | re.IGNORECASE)
# "1. x", "1) x", "1: x", "**1.** x", "Question 1: x", "Q1. x", "#1. x"
_NUMBERED = re.compile(r"^\W{0,4}(?:(?:question|query|q|sentence|task)\s*)?(\d{1,2})\**\s*[.):]\**(?:\s+|$)(.*)$", re.IGNORECASE)
_BULLET = re.compile(r"^\s*[-*•–]\s+(.*)$")
_LABEL = re.compile(
    r"^\**(?:keywords?|phrase|question|query|search query|detailed(?: question)?|joined)\**\s*:\**\s+", re.IGNORECASE
)
# Where an object has one of these, its other members are no items of a list.
_NAMES = ("queries", "questions", "query", "question", "text")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`", "**": "**", "*": "*"}
# JSON at the beginning, or below one line that announces it.
_JSON = re.compile(r"(?:[^\n{\[]*:\s*\n\s*(?:```[a-z]*\s*)?)?(?=[{\[])", re.IGNORECASE)
_PROGRAM = re.compile(r"\s*```[\w+#.-]*[ \t]*\n(.*?)\n?[ \t]*(?:```\s*)?\Z", re.DOTALL)
_NUMBER = re.compile(r"^\W*(\d+(?:[.,]\d+)?)\s*(%|/\s*(\d+))?")


@dataclass(frozen=True)
class Item:
    """One of the texts that were asked for, by field, and the reason against it or None. `number` is its place, from 1."""

    number: int
    texts: dict[str, str]
    reason: str | None = None


@dataclass
class Parsed:
    """What an answer holds, in order; or the reason against the whole answer."""

    items: list[Item] = field(default_factory=list)
    reason: str | None = None


def parse(text: str, count: int, fields: Sequence[str] = (), *, cut: bool = False, examples: Collection[str] = ()) -> Parsed:
    """What is in an answer to a request for `count` items.

    Without `fields`: a numbered list, else a list with bullets, else lines that end in a question mark. With `fields` (keys of
    FIELDS): lines such as "Positive: ...", and for a single item of a single field also the bare text. Both also as JSON. `cut`
    says that the model ran out of tokens: then the last item, where nothing follows it, is not whole. `examples` are what the
    prompt showed. Lines beside (a greeting, an explanation) are nothing, and fewer items than `count` are no error. Never raises.
    """
    text = without_thought(text).strip("\ufeff \t")
    if not text.strip():
        return Parsed(reason=EMPTY_ANSWER)
    found = _json(text, fields, count)
    if found is None:
        found = list(_labelled(text, fields, count) if fields else _lines(text))
        if not found and len(fields) == count == 1 and (bare := _bare(text)):
            found = [Item(1, {fields[0]: bare})]
        # A line break after it says that an item is whole.
        last = next(reversed(found[-1].texts.values()), "") if found else ""
        cut = cut and bool(found) and not text.endswith("\n") and _spaced(text).endswith(_spaced(last))
    else:
        cut = False
    if not found:
        return Parsed(reason=UNPARSABLE_ANSWER)
    return Parsed(_judged(found, count, fields or (TEXT,), cut, {folded(example) for example in examples}))


def _judged(found: list[Item], count: int, fields: Sequence[str], cut: bool, shown: Collection[str]) -> list[Item]:
    """The items, cleaned, each with what is said against it."""
    seen: set[str] = set()
    judged: list[Item] = []
    accepted = 0
    for place, raw in enumerate(found):
        texts = {name: _cleaned(value) for name, value in raw.texts.items()}
        letters = [folded(texts.get(name, "")) for name in fields if name != "score"]
        whole = " | ".join(letters)
        reason = None
        if cut and place == len(found) - 1:
            reason = CUT_OFF if any(letters) else NO_WORDS
        elif any(name not in texts for name in fields):
            reason = MISSING_FIELD
        elif not all(letters):
            reason = NO_WORDS
        elif "score" in fields and score(texts["score"]) is None:
            reason = BAD_SCORE
        elif whole in seen:
            reason = REPEATED_IN_ANSWER
        elif any(each in shown for each in letters):
            reason = COPIED_FROM_PROMPT
        elif accepted == count:
            reason = MORE_THAN_ASKED
        seen.add(whole)
        accepted += reason is None
        judged.append(replace(raw, texts=texts, reason=reason))
    return judged


def _lines(text: str) -> Iterator[Item]:
    """The items of a list. They have the numbers that stand before them where these ascend, else their places."""
    lines = text.splitlines()
    for pattern in (_NUMBERED, _BULLET):
        items: list[str] = []
        numbers: list[int] = []
        inside = False
        for line in lines:
            match = pattern.match(line)
            if match:
                items.append(match.group(match.lastindex or 0))
                numbers.append(int(match.group(1)) if pattern is _NUMBERED else len(items))
            elif inside and line.strip()[:1].islower():
                # A text that was broken over two lines.
                items[-1] = f"{items[-1]} {line.strip()}"
            inside = bool(items) and bool(line.strip())
        if items:
            ascending = all(left < right for left, right in zip([0, *numbers], numbers, strict=False))
            for place, item in enumerate(items):
                yield Item(numbers[place] if ascending else place + 1, {TEXT: item})
            return
    asking = [line for line in lines if line.rstrip().rstrip("\"'”’)*").endswith(("?", "？", "؟"))]
    yield from (Item(number, {TEXT: line}) for number, line in enumerate(asking, start=1))


def _labelled(text: str, fields: Sequence[str], count: int) -> Iterator[Item]:
    """Items of lines that begin with the name of a field. A value goes on until an empty line or the next name.

    Where one item is asked for, empty lines before the next name are of the value, and those of a program do not end it.
    """
    names = {name: key for key in fields for name in FIELDS[key]}
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    label = re.compile(rf"^[\s\d.)#>*•_-]*({either})(?:\s*\d+)?\s*[*_]*\s*[:：][*_]*\s*(.*)$", re.IGNORECASE)
    texts: dict[str, str] = {}
    number, current, before = 1, "", ""
    program = False
    later: list[str] = []
    for line in text.splitlines():
        fence = line.strip().startswith("```")
        if not program and (match := label.match(line)):
            current = names[match.group(1).casefold()]
            # What stands right above a name may be a line that announces it.
            while later and (later[-1].rstrip().endswith((":", "：")) or not any(map(str.isalnum, later[-1]))):
                later.pop()
            if later and count == 1 and current not in texts:
                texts[before] = "\n".join([texts[before], *later])
            later = []
            if current in texts:
                yield Item(number, texts)
                number, texts = number + 1, {}
            texts[current] = match.group(2)
            program = match.group(2).startswith("```")
        elif current and (line.strip() or program):
            program = program or (fence and not texts[current])
            texts[current] = f"{texts[current]}\n{line.rstrip()}".lstrip("\n")
            if program and fence and "\n" in texts[current]:
                program, before, current = False, current, ""
        elif current and texts[current]:
            before, current = current, ""
        elif before:
            later.append(line)
    if texts:
        yield Item(number, texts)


def _bare(text: str) -> str:
    """The first paragraph of an answer that is nothing but the text, without a line before it that announces it."""
    lines = text.strip().splitlines()
    if len(lines) > 1 and lines[0].rstrip().endswith(":"):
        lines = lines[1:]
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            break
    return "\n".join(paragraph)


def _json(text: str, fields: Sequence[str], count: int) -> list[Item] | None:
    """The items of a JSON answer, also below a line that announces it; None where the answer is no JSON."""
    fenced = _FENCE.match(text)
    body = (fenced.group(1) if fenced else text).strip()
    begins = _JSON.match(body)
    if begins is None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(body[begins.end() :])
    except (ValueError, RecursionError):
        return None
    if not fields and isinstance(value, dict) and len(value) == count and all(isinstance(each, str) for each in value.values()):
        value = list(value.values())  # under the names of their forms
    found: Iterator[dict[str, str]] = _objects(value, fields, 0) if fields else ({TEXT: each} for each in _strings(value, 0))
    items = [Item(number, texts) for number, texts in enumerate(found, start=1)]
    return items or None


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


def _objects(value: Any, fields: Sequence[str], depth: int) -> Iterator[dict[str, str]]:
    """Objects that have one of the fields, three levels deep."""
    if isinstance(value, dict):
        keys = {str(name).casefold().replace("_", " "): each for name, each in value.items()}
        texts = {}
        for key in fields:
            for name in FIELDS[key]:
                if isinstance(each := keys.get(name), str | int | float) and not isinstance(each, bool):
                    texts[key] = str(each)
                    break
        if texts:
            yield texts
            return
    if depth < 3 and isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _objects(each, fields, depth + 1)


def without_thought(text: str) -> str:
    """An answer without what the model thought before it; nothing of one that thinks still."""
    return _THOUGHT.sub("", text)


def spoken(text: str) -> str:
    """An answer without what the model thought before it, and without a code fence around it."""
    text = without_thought(text).strip("\ufeff \t\r\n")
    fenced = _FENCE.match(text)
    return fenced.group(1).strip() if fenced else text


def score(text: str) -> float | None:
    """A score in [0, 1] as models write it: 0.8, 80 %, 4/5; None for what is none."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    number = float(match.group(1).replace(",", "."))
    if match.group(2) == "%":
        number /= 100
    elif match.group(3):
        number /= int(match.group(3)) or 1
    return number if 0 <= number <= 1 else None


def chosen(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer names: the answer is it, or holds it and no other; None where it names none or several."""
    said = folded(text)
    for label in labels:
        if folded(label) == said:
            return label
    named = [label for label in labels if _holds(said, folded(label))]
    # "very positive" holds "positive", and means itself.
    longest = [label for label in named if not any(_holds(folded(other), folded(label)) for other in named if other != label)]
    return longest[0] if len(longest) == 1 else None


def _holds(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def _spaced(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def _cleaned(text: str) -> str:
    """A text on one line, without the label, quotes and emphasis that a model puts around it. A program keeps its lines."""
    if program := _PROGRAM.match(text):
        return program.group(1).strip("\n")
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
    """What two texts have in common that differ only in case, punctuation and spaces."""
    letters = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(letter if letter.isalnum() else " " for letter in letters).split())
