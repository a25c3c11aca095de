"""What a judge is asked about a row, and the score in what it answers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from datakit.recipe import JudgeFilter, Model
from datakit.schema import digest
from datakit.synthesis.engines import Conversation, Message
from datakit.synthesis.leaks import nonce
from datakit.synthesis.parsing import spoken

LOWEST, HIGHEST = 1, 5

# What stands behind a text that was cut.
CUT = " […]"

# "4", "Score: 4", "**Score:** 4/5", "4 out of 5". After the word and a sign that ends the score also other words, but no number:
# "Score: 4. It answers the question". Not without the word: "1. The text" begins a list.
_NUMBER = r"[\s*_\"'`(\[]*([1-5](?:[.,]\d+)?)(?:\s*(?:/|out of|of)\s*5)?[\s*_\"'`)\]]*"
_SCORE = re.compile(
    rf"^[\s*_#>\"'`(\[]*(?:(?:score|rating)\b[\s*_\"'`]*[:=]?{_NUMBER}(?:[.,;:–—(-]\D*)?|{_NUMBER}\.?\s*)$", re.IGNORECASE
)


class Pair(Model):
    """What is judged. `label` says that the positive is a class, or stands for one."""

    instruction: str = ""
    query: str
    positive: str
    label: bool = False


class Example(Pair):
    """A worked example: a pair, and its score."""

    score: int


class Head(Model):
    """What stands between the two lines of dashes at the top of a prompt file."""

    name: str
    version: int
    examples: list[Example]


@dataclass(frozen=True)
class Prompt:
    """A prompt file of a judge. `blocks` render its parts, "system" and "user"."""

    digest: str
    head: Head
    blocks: Mapping[str, Callable[[Mapping[str, Any]], str]]

    @property
    def label(self) -> str:
        """name@version."""
        return f"{self.head.name}@{self.head.version}"

    def conversations(self, pairs: Sequence[Pair], seed: int, structured: str) -> list[Conversation]:
        """One conversation for each pair. The examples go before it, as turns that the model has had.

        Both texts stand between lines that carry a digest of them: what they say cannot look like the end of the text.
        """
        before = [Message("system", self.blocks["system"]({}))]
        for example in self.head.examples:
            answer = json.dumps({"score": example.score}) if structured == "json_schema" else f"Score: {example.score}"
            before += [self._question(example, seed, structured), Message("assistant", answer)]
        return [Conversation((*before, self._question(pair, seed, structured)), 1, ("score",)) for pair in pairs]

    def _question(self, pair: Pair, seed: int, structured: str) -> Message:
        facts = pair.model_dump(include=set(Pair.model_fields))
        fence = nonce(seed, json.dumps([pair.query, pair.positive]))
        return Message("user", self.blocks["user"]({**facts, "fence": fence, "structured": structured}))


@functools.cache
def load(filter: JudgeFilter) -> Prompt:
    """The prompt of a criterion, for small models or others."""
    name = f"judge-{filter.criterion}{'-small' if filter.small_model else ''}.jinja"
    source = (resources.files(__package__) / "prompts" / name).read_text(encoding="utf-8")
    _, head, body = source.split("---\n", 2)
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(body)

    def block(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda facts: "".join(template.blocks[name](template.new_context(dict(facts)))).strip()

    blocks = {name: block(name) for name in ("system", "user")}
    return Prompt(digest("judge", source), Head.model_validate(yaml.safe_load(head)), blocks)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and a mark where it has more than `most` characters."""
    return text if len(text) <= most else text[:most].rstrip() + CUT


def score_in(answer: str) -> float | None:
    """The score from 1 to 5 that an answer gives; None where it gives none, or two different ones.

    An answer is a score in its first line, or a JSON object with a `score`; a score in the middle of other words is not looked
    for, since it may be one that the judged text names. Never raises.
    """
    text = spoken(answer)
    if text.startswith("{"):
        return _in_json(text)
    lines = [line for line in text.splitlines() if line.strip()]
    found = [_score(line) for line in lines]
    if not found or found[0] is None:
        return None
    return found[0] if {score for score in found if score is not None} == {found[0]} else None


def _in_json(text: str) -> float | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    score = value.get("score")
    if isinstance(score, str):
        return _score(score)
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return float(score) if LOWEST <= score <= HIGHEST else None


def _score(line: str) -> float | None:
    """The score that a line consists of."""
    match = _SCORE.match(line)
    if match is None:
        return None
    score = float((match.group(1) or match.group(2)).replace(",", "."))
    return score if score <= HIGHEST else None
