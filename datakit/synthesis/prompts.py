"""Prompts: Jinja files with a head that names them and gives worked examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, ValidationError

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import Model
from datakit.schema import digest
from datakit.synthesis.engines import Conversation, Message
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona

# The prompts of datakit by the names that a recipe may give.
BUNDLED = {"questions": "questions-v1.jinja", "questions-small": "questions-small-v1.jinja"}
BLOCKS = ("system", "user")


class Example(Model):
    """A worked example: what one register asks about a passage, by form."""

    register_: str = Field(alias="register")
    passage: str
    queries: dict[str, str]


class Head(Model):
    """What stands between the two lines of dashes at the top of a prompt file.

    `forms` are the kinds of question, by name, as the prompt may describe them; each request draws as many as it asks for.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: int = Field(ge=1)
    forms: dict[str, str] = Field(min_length=1)
    examples: list[Example] = Field([], description="Turns that go before the passage.")


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `blocks` render its parts."""

    path: str
    digest: str
    head: Head
    blocks: Mapping[str, Callable[[Mapping[str, Any]], str]]

    @property
    def label(self) -> str:
        """name@version, as the provenance of a row gives it."""
        return f"{self.head.name}@{self.head.version}"

    @property
    def example_queries(self) -> list[str]:
        """All queries of all examples: an answer that repeats one has copied it."""
        return [query for example in self.head.examples for query in example.queries.values()]

    def conversation(self, passage: Passage, persona: Persona, queries: int, seed: int, structured: str) -> Conversation:
        """The messages that ask for `queries` questions of `persona` about `passage`.

        An example of the persona's register goes before, as a turn that the model has had: small models follow it better than
        any instruction.
        """
        forms = self.forms(queries, seed, passage.id, persona.name)
        facts = {
            "persona": {**persona.model_dump(by_alias=True)},
            "queries": queries,
            "forms": [self.head.forms[name] for name in forms],
            "structured": structured,
            "language": passage.language or "",
        }
        messages = [Message("system", self._render("system", facts))]
        for example in self.head.examples:
            if example.register_ == persona.register_:
                asked = {**facts, "passage": example.passage, "title": ""}
                answer = written([example.queries[name] for name in forms], structured)
                messages += [Message("user", self._render("user", asked)), Message("assistant", answer)]
        asked = {**facts, "passage": passage.text, "title": passage.title or ""}
        messages.append(Message("user", self._render("user", asked)))
        return Conversation(tuple(messages), queries)

    def forms(self, queries: int, seed: int, passage_id: str, persona: str) -> list[str]:
        """The names of the forms for one request: each form once before any comes again, in the order of the file."""
        names = list(self.head.forms)
        drawn = sorted(names, key=lambda name: digest("form", str(seed), passage_id, persona, name))
        counts = [queries // len(names) + (drawn.index(name) < queries % len(names)) for name in names]
        return [name for name, count in zip(names, counts, strict=True) for _ in range(count)]

    def _render(self, block: str, facts: Mapping[str, Any]) -> str:
        try:
            return self.blocks[block](facts).strip()
        except TemplateError as error:
            raise UserError(
                f"{self.path}: the block '{block}' cannot be filled in: {error}. It may use: persona (name, description, "
                "expertise, register, style), passage, title, language, queries, forms, structured."
            ) from error


def written(queries: Sequence[str], structured: str) -> str:
    """Queries as a model should write them."""
    if structured == "json_schema":
        return json.dumps({"queries": list(queries)}, ensure_ascii=False)
    return "\n".join(f"{number}. {query}" for number, query in enumerate(queries, start=1))


def schema(queries: int) -> dict[str, Any]:
    """The JSON schema of an answer."""
    items = {"type": "array", "items": {"type": "string"}, "minItems": queries, "maxItems": queries}
    return {"type": "object", "properties": {"queries": items}, "required": ["queries"], "additionalProperties": False}


def load(name: str | None) -> Prompt:
    """The prompt of datakit of that name (default: "questions"), or the one in a file. Raises UserError for what is no prompt."""
    name = name or "questions"
    path = str(resources.files(__package__) / "prompts" / BUNDLED[name]) if name in BUNDLED else name
    try:
        source = storage.read_bytes(path).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"The prompt '{path}' does not exist. Give the path of a Jinja file, or one of: {', '.join(BUNDLED)}."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    head, body = _head(source, path)
    environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    try:
        template = environment.from_string(body)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line + source[: len(source) - len(body)].count(chr(10))}" if line else path
        raise UserError(f"{where}: this is not a valid Jinja template: {error}.") from error
    missing = [name for name in BLOCKS if name not in template.blocks]
    if missing:
        raise UserError(f"{path}: the block '{missing[0]}' is missing. A prompt has the blocks: {', '.join(BLOCKS)}.")

    def block(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda facts: "".join(template.blocks[name](template.new_context(dict(facts))))

    return Prompt(path, storage.bytes_digest(source.encode()), head, {name: block(name) for name in BLOCKS})


def _head(source: str, path: str) -> tuple[Head, str]:
    """The head of a prompt file, and what follows it."""
    parts = source.split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        raise UserError(f"{path}:1: a prompt begins with a head between two lines of '---': name, version, forms, examples.")
    try:
        head = Head.model_validate(yaml.safe_load(parts[1]) or {})
    except yaml.YAMLError as error:
        raise UserError(f"{path}: the head is not valid YAML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: the head is wrong at '{place}': {first['msg']}.") from error
    for example in head.examples:
        if missing := [name for name in head.forms if name not in example.queries]:
            raise UserError(f"{path}: the example for '{example.register_}' has no query of the form '{missing[0]}'.")
    return head, parts[2]
