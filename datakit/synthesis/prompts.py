"""Prompts: Jinja files with a head that says what they write, and gives worked examples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, Self

import yaml
from jinja2 import FunctionLoader, StrictUndefined, TemplateError, nodes
from jinja2.meta import find_referenced_templates, find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, ValidationError, field_validator, model_validator

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import Model, Register, Writing
from datakit.schema import digest
from datakit.synthesis.engines import Conversation, Message
from datakit.synthesis.language_names import language_name
from datakit.synthesis.leaks import nonce
from datakit.synthesis.parsing import folded
from datakit.synthesis.passages import Passage, Unit
from datakit.synthesis.personas import Persona
from datakit.synthesis.shares import Form

# The prompts of datakit by the names that a recipe may give. Each has a second file, NAME-small, for small models.
BUNDLED = (
    "questions", "claims", "titles", "summaries", "descriptions", "turns", "paraphrases", "entailments", "graded", "labels",
    "translations", "documents", "brainstorm",
)  # fmt: skip
BLOCKS = ("system", "user")
TASK_BLOCKS = ("tasks_system", "tasks_user")
# A text may hold fewer words of its prompt by chance: of its own sentences, of what it says of a form.
_INSTRUCTION_WORDS, _FORM_WORDS = 4, 6


class Example(Model):
    """A worked example: a passage and what is written for it, by form, or by field where the prompt asks for fields.

    It is shown to personas of its register, in requests for its form; without them in all requests.
    """

    register_: Register | None = Field(None, alias="register")
    form: str | None = None
    language: str = ""
    labels: list[str] = Field([])
    passage: str = ""
    queries: dict[str, str] = Field({})
    fields: dict[str, str] = Field({})


class TaskExample(Model):
    """A worked example of tasks that were thought of for a category."""

    category: str
    tasks: list[str] = Field(min_length=1)


class Head(Model):
    """What stands between the two lines of dashes at the top of a prompt file.

    writes: queries (for a seed, which is the positive), positives (for a seed, which is the query; `negative` among the fields is
    a hard negative), labels (the class of a seed), graded (texts as similar to the seed as their forms say), pairs (query and
    positive, for a task that was thought of before). seed: what is taken from a document; for pairs there is none.
    forms: kinds of text by name, as the prompt may describe them; a request draws as many as it asks for.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: int = Field(ge=1)
    writes: Literal["queries", "positives", "labels", "graded", "pairs"] = "queries"
    seed: Unit = "passage"
    persona: bool = Field(True, description="Without personas each seed is asked about once.")
    count: int | None = Field(None, ge=1, le=10, description="Texts of one request. Default: `queries` of the recipe.")
    needs_languages: bool = Field(False, description="Says that the recipe has to name the languages that are written.")
    tasks: int = Field(10, ge=1, le=50, description="Tasks that are thought of in one request, for pairs.")
    fields: list[Literal["query", "positive", "negative", "score", "label"]] = Field(
        [], description="What one text consists of. Default: a list of plain texts."
    )
    forms: dict[str, Form] = Field(min_length=1)
    examples: list[Example] = Field([], description="Turns that go before the seed.")
    task_examples: list[TaskExample] = Field([], description="Turns that go before a request for tasks.")

    @field_validator("forms", mode="before")
    @classmethod
    def _texts(cls, forms: Any) -> Any:
        if not isinstance(forms, dict):
            return forms
        return {name: {"text": form} if isinstance(form, str) else form for name, form in forms.items()}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = {"pairs": ("query", "positive"), "labels": ("label",)}.get(self.writes, ())
        if missing := [name for name in needed if name not in self.fields]:
            raise ValueError(f"a prompt that writes {self.writes} has '{missing[0]}' among its fields")
        if self.writes == "positives" and self.fields and "positive" not in self.fields:
            raise ValueError("a prompt that writes positives has 'positive' among its fields, or none")
        if self.writes == "queries" and self.fields and "query" not in self.fields:
            raise ValueError("a prompt that writes queries has 'query' among its fields, or none")
        if self.writes == "graded":
            if self.fields:
                raise ValueError("a prompt that writes graded texts has no fields: the score is that of the form")
            if any(form.score is None or not 0 <= form.score <= 1 for form in self.forms.values()):
                raise ValueError("each form of a prompt that writes graded texts has a score from 0 to 1")
        return self

    def asked(self, queries: int) -> int:
        """How many texts a request asks for, where the recipe says `queries`."""
        return self.count or queries


@dataclass(frozen=True)
class Wish:
    """What one request asks for. `forms` has a name for each text; `language` is that of what is written, "" for the seed's."""

    seed: Passage
    persona: Persona | None
    forms: tuple[str, ...]
    language: str = ""
    round: int = 1


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `blocks` render its parts, `instructions` are what it always says, folded; `uses` are its variables."""

    path: str
    digest: str
    head: Head
    blocks: Mapping[str, Callable[[Mapping[str, Any]], str]]
    instructions: tuple[str, ...]
    uses: frozenset[str]

    @property
    def label(self) -> str:
        """name@version, as the provenance of a row gives it."""
        return f"{self.head.name}@{self.head.version}"

    @property
    def example_texts(self) -> list[str]:
        """All that examples show as written: an answer that repeats it has copied it. A label may come again."""
        shown = [task for example in self.head.task_examples for task in example.tasks]
        for example in self.head.examples:
            shown += example.queries.values()
            shown += [text for name, text in example.fields.items() if name not in ("label", "score")]
        return shown

    def conversation(self, wish: Wish, writing: Writing, description: str, seed: int, structured: str) -> Conversation:
        """The messages that ask for what `wish` says, for a category that is described and written so.

        Examples go before, as turns that the model has had: small models follow them better than any instruction.
        """
        head, passage = self.head, wish.seed
        fields = tuple(head.fields)
        facts = self._facts(wish, writing, description, structured)
        messages = [Message("system", self._render("system", facts))]
        register = wish.persona.register_ if wish.persona else None
        for example in head.examples:
            if example.register_ not in (None, register) or (example.form and example.form not in wish.forms):
                continue
            # It is in its own language, and has each form once, whatever is asked for below.
            forms = list(dict.fromkeys(wish.forms))
            asked = {**facts, **_seed(example.passage, "", seed), "queries": len(forms), "forms": self._described(forms)}
            asked["language"] = language_name(example.language) if example.language else ""
            asked["seed_language"] = ""
            if example.labels:
                asked["labels"] = example.labels
            items = [example.fields] if fields else [{"text": example.queries[name]} for name in forms]
            messages += [Message("user", self._render("user", asked)), Message("assistant", written(items, fields, structured))]
        messages.append(Message("user", self._render("user", {**facts, **_seed(passage.text, passage.title or "", seed)})))
        choices = tuple(writing.labels) if fields == ("label",) else ()
        return Conversation(tuple(messages), len(wish.forms), fields, choices)

    def task_conversation(self, wish: Wish, writing: Writing, description: str, structured: str) -> Conversation:
        """The messages that ask for tasks of a category, before anything is written for them."""
        facts = {**self._facts(wish, writing, description, structured), "tasks": self.head.tasks, "round": wish.round}
        messages = [Message("system", self._render("tasks_system", facts))]
        for example in self.head.task_examples:
            asked = {**facts, "category": example.category, "style": "", "positive": ""}
            answer = written([{"text": task} for task in example.tasks], (), structured)
            messages += [Message("user", self._render("tasks_user", asked)), Message("assistant", answer)]
        messages.append(Message("user", self._render("tasks_user", facts)))
        return Conversation(tuple(messages), self.head.tasks)

    def _facts(self, wish: Wish, writing: Writing, description: str, structured: str) -> dict[str, Any]:
        seed_language = wish.seed.language or ""
        return {
            "persona": wish.persona.model_dump(by_alias=True) if wish.persona else None,
            "queries": len(wish.forms),
            "forms": self._described(wish.forms),
            "structured": structured,
            # The name of the language to write in; "" where that goes without saying.
            "language": language_name(wish.language) if wish.language else "",
            "seed_language": seed_language,
            "style": writing.style,
            "positive": writing.positive,
            "labels": writing.labels,
            "category": description,
        }

    def _described(self, forms: Sequence[str]) -> list[str]:
        return [self.head.forms[name].text for name in forms]

    def _render(self, block: str, facts: Mapping[str, Any]) -> str:
        try:
            return self.blocks[block](facts).strip()
        except TemplateError as error:
            raise UserError(
                f"{self.path}: the block '{block}' cannot be filled in: {error}. It may use: persona (name, description, "
                "expertise, register, style), passage, title, fence, language, seed_language, queries, forms, structured, style, "
                "positive, labels, category."
            ) from error


def _seed(text: str, title: str, seed: int) -> dict[str, str]:
    return {"passage": text, "title": title, "fence": nonce(seed, text)}


def written(items: Sequence[Mapping[str, str]], fields: Sequence[str], structured: str) -> str:
    """Items as a model should write them."""
    if structured == "json_schema":
        if not fields:
            return json.dumps({"queries": [item["text"] for item in items]}, ensure_ascii=False)
        objects = [{name: item[name] for name in fields} for item in items]
        return json.dumps(objects[0] if len(objects) == 1 else {"items": objects}, ensure_ascii=False)
    if not fields:
        return "\n".join(f"{number}. {item['text']}" for number, item in enumerate(items, start=1))
    if len(fields) == len(items) == 1:
        return items[0][fields[0]]
    return "\n\n".join("\n".join(f"{name.capitalize()}: {item[name]}" for name in fields) for item in items)


def ending(conversation: Conversation) -> re.Pattern[str]:
    """Where a plain answer has all that was asked for: after the line with the last number, or the last field; or any line."""
    count, fields = conversation.queries, conversation.fields
    if not fields:
        return re.compile(rf"^\W*{count}\s*[.):].*\S.*\n", re.MULTILINE)
    if len(fields) == count == 1:
        return re.compile(r"[^:\s][ \t]*\n")
    return re.compile(rf"(?:^\W*{fields[-1]}\W*:.*\S.*\n(?:.*\n)*?){{{count}}}", re.MULTILINE | re.IGNORECASE)


def schema(conversation: Conversation) -> dict[str, Any]:
    """The JSON schema of an answer."""
    queries, fields, choices = conversation.queries, conversation.fields, conversation.choices
    text: dict[str, Any] = {"type": "string"}
    if fields:
        values = {"score": {"type": "number"}, "label": {"type": "string", "enum": list(choices)} if choices else text}
        properties = {name: values.get(name, text) for name in fields}
        one = {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}
        if queries == 1:
            return one
        text = one
    name = "items" if fields else "queries"
    listed = {"type": "array", "items": text, "minItems": queries, "maxItems": queries}
    return {"type": "object", "properties": {name: listed}, "required": [name], "additionalProperties": False}


def bundled(name: str) -> str:
    """The path of a prompt of datakit, the one that small models need included."""
    return str(resources.files(__package__) / "prompts" / f"{name}.jinja")


def load(name: str, small: bool = False) -> Prompt:
    """The prompt of datakit of that name, for small models or others, or the one in a file. Raises UserError for what is none."""
    if name in BUNDLED:
        path = bundled(f"{name}-small" if small else name)
    elif small:
        raise UserError(
            f"synthesis.small_model chooses among the prompts of datakit, and '{name}' is a file. Leave small_model out: a file "
            "is used as it is."
        )
    else:
        path = name
    try:
        source = storage.read_bytes(path).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"The prompt '{path}' does not exist. Give the path of a Jinja file, or one of: {', '.join(BUNDLED)}."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    head, body = _head(source, path)
    environment = SandboxedEnvironment(
        loader=FunctionLoader(_shared), undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    try:
        template = environment.from_string(body)
        tree = environment.parse(body)
        parts = [_shared(part) or "" for part in find_referenced_templates(tree) if part]
        trees = [tree, *map(environment.parse, parts)]
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line + source[: len(source) - len(body)].count(chr(10))}" if line else path
        raise UserError(f"{where}: this is not a valid Jinja template: {error}.") from error
    blocks = (*BLOCKS, *(TASK_BLOCKS if head.writes == "pairs" else ()))
    if missing := [name for name in blocks if name not in template.blocks]:
        raise UserError(f"{path}: the block '{missing[0]}' is missing. It has to have the blocks: {', '.join(blocks)}.")

    def block(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda facts: "".join(template.blocks[name](template.new_context(dict(facts))))

    said = [data.data for tree in trees for data in tree.find_all(nodes.TemplateData)]
    found = _sentences(said, _INSTRUCTION_WORDS) | _sentences([form.text for form in head.forms.values()], _FORM_WORDS)
    instructions = tuple(sorted(found))
    all_bytes = storage.bytes_digest(source.encode())
    if parts:
        all_bytes = digest("prompt", all_bytes, *parts)
    uses = frozenset(name for tree in trees for name in find_undeclared_variables(tree))
    return Prompt(path, all_bytes, head, {name: block(name) for name in blocks}, instructions, uses)


def _sentences(texts: Sequence[str], words: int) -> set[str]:
    """The sentences that have so many words or more, folded."""
    sentences = {folded(sentence) for text in texts for sentence in re.split(r"[.!?:\n]", text)}
    return {sentence for sentence in sentences if len(sentence.split()) >= words}


def _shared(name: str) -> str | None:
    """What prompts may include or import: the files of datakit that begin with "_", and no others."""
    file = resources.files(__package__) / "prompts" / name
    return file.read_text(encoding="utf-8") if name.startswith("_") and "/" not in name and file.is_file() else None


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
        wanted, has = (head.fields, example.fields) if head.fields else (list(head.forms), example.queries)
        if missing := [name for name in wanted if name not in has]:
            who = f" for '{example.register_}'" if example.register_ else ""
            what = "field" if head.fields else "query of the form"
            raise UserError(f"{path}: the example{who} has no {what} '{missing[0]}'.")
    return head, parts[2]
