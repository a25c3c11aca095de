"""What a model is asked for an adversarial negative, and what its answer holds."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml
from jinja2 import Environment, StrictUndefined
from pydantic import Field

from datakit.recipe import Model
from datakit.schema import digest
from datakit.synthesis.engines import Conversation, Message
from datakit.synthesis.leaks import leaks, nonce
from datakit.synthesis.parsing import Parsed, folded, parse
from datakit.synthesis.prompts import written

Kind = Literal["passages", "queries"]

# Against one answer, beside the reasons of the parser.
COPIED_FROM_PAIR = "copied_from_pair"
LEAKED = "leaked"

# The field that is the negative.
_NEGATIVE: Mapping[Kind, str] = {"passages": "negative", "queries": "positive"}


class Pair(Model):
    """What is asked about."""

    query: str
    positive: str
    instruction: str = ""


class Example(Model):
    """A worked example: a pair, and what is written for it."""

    query: str
    positive: str
    fields: dict[str, str]


class Head(Model):
    """What stands between the two lines of dashes at the top of a prompt file. `ways` to go wrong are taken in turn."""

    name: str
    version: int
    fields: list[str] = Field(min_length=1)
    ways: list[str] = Field(min_length=1)
    examples: list[Example]


@dataclass(frozen=True)
class Text:
    """A negative that was written, and with `queries` the query that it answers; or the reason against it."""

    text: str = ""
    query: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `blocks` render its parts, "system" and "user"."""

    kind: Kind
    digest: str
    head: Head
    blocks: Mapping[str, Callable[[Mapping[str, Any]], str]]

    @property
    def label(self) -> str:
        """name@version."""
        return f"{self.head.name}@{self.head.version}"

    def conversation(self, pair: Pair, number: int, seed: int, structured: str) -> Conversation:
        """The messages that ask for the text with that number, from 0. Examples go before, as turns that the model has had."""
        fields = tuple(self.head.fields)
        messages = [Message("system", self.blocks["system"]({}))]
        for example in self.head.examples:
            shown = Pair(query=example.query, positive=example.positive)
            answer = written([example.fields], fields, structured)
            messages += [self._question(shown, number, seed, structured), Message("assistant", answer)]
        return Conversation((*messages, self._question(pair, number, seed, structured)), 1, fields)

    def _question(self, pair: Pair, number: int, seed: int, structured: str) -> Message:
        way = self.head.ways[number % len(self.head.ways)]
        facts = {**pair.model_dump(), "way": way, "fence": fence(pair, seed), "structured": structured}
        return Message("user", self.blocks["user"](facts))

    def text_in(self, answer: str, pair: Pair, seed: int, *, cut: bool) -> Text:
        """What an answer holds. A text that repeats the pair, or an example, or what only the prompt says, is none."""
        shown = [text for example in self.head.examples for text in example.fields.values()]
        found: Parsed = parse(answer, 1, self.head.fields, cut=cut, examples=shown)
        if found.reason is not None:
            return Text(reason=found.reason)
        item = found.items[0]
        if item.reason is not None:
            return Text(reason=item.reason)
        text = item.texts[_NEGATIVE[self.kind]]
        query = item.texts["query"] if self.kind == "queries" else None
        if leaks(text, fence(pair, seed), ()):
            return Text(reason=LEAKED)
        if folded(text) in (folded(pair.query), folded(pair.positive)) or (query and folded(query) == folded(pair.query)):
            return Text(reason=COPIED_FROM_PAIR)
        return Text(text, query)


def fence(pair: Pair, seed: int) -> str:
    return nonce(seed, json.dumps([pair.query, pair.positive]))


@functools.cache
def load(kind: Kind, small: bool) -> Prompt:
    """The prompt that writes passages or queries, for small models or others."""
    name = f"adversarial-{kind}{'-small' if small else ''}.jinja"
    source = (resources.files(__package__) / "prompts" / name).read_text(encoding="utf-8")
    _, head, body = source.split("---\n", 2)
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(body)

    def block(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda facts: "".join(template.blocks[name](template.new_context(dict(facts)))).strip()

    blocks = {name: block(name) for name in ("system", "user")}
    return Prompt(kind, digest("adversarial", source), Head.model_validate(yaml.safe_load(head)), blocks)
