"""Reading a YAML file into a pydantic model, so that every error names file:line: key, what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

from datakit import storage
from datakit.errors import UserError

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]
# What ends a line of YAML 1.1, by which PyYAML counts them.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema, as editors read them: `on` and `no` are text, 1e-5 is a number, dates are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class's own attribute, emptied


for _tag_name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


class FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads the same values many times faster; for files that need no sentences about their lines."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_model(path: str, model: type[M]) -> M:
    """The file at `path` as a `model`. Any error is a UserError with one line for each thing that is wrong."""
    try:
        text = storage.read_bytes(path).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"The file '{path}' does not exist.") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a folder; a YAML file is needed here.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    value, lines = parse(text, path)
    if not isinstance(value, dict):
        raise UserError(f"{path}:1: found {_kind(value)}; the file must be a mapping of keys to values.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError("\n".join(sentences(error, model, path, lines))) from error


def parse(text: str, path: str) -> tuple[Any, dict[Place, int]]:
    """The value of a YAML text, and the line (from 1) of every key and item. Refuses tags that make objects, and repeats."""
    lines: dict[Place, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None, lines
        _lines(node, (), lines, path)
        return yaml.load(text, Loader=_Loader), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        variable = mark is not None and "${" in _BREAK.split(text)[mark.line]
        hint = " Put what has a ${VARIABLE} into quotes: between { and } its braces are YAML's." if variable else ""
        raise UserError(f"{where}: this is not valid YAML: {error.problem or error.context}.{hint}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is not valid YAML: {error}.") from error


def _lines(node: yaml.Node, place: Place, lines: dict[Place, int], path: str) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            inner = (*place, key.value)
            if inner in lines and key.value != "<<":
                raise UserError(
                    f"{path}:{line}: {_dotted(inner)}: the name '{key.value}' stands here twice "
                    f"(first in line {lines[inner]}). Rename one of them."
                )
            lines[inner] = line
            _lines(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _lines(item, (*place, number), lines, path)


@dataclass(frozen=True)
class _Problem:
    place: Place
    text: str


def sentences(error: ValidationError, model: type[BaseModel], path: str, lines: dict[Place, int]) -> Iterator[str]:
    """One sentence for each thing that is wrong, in the order of the file."""
    problems: dict[Place, list[str]] = {}
    checked: set[Place] = set()
    errors = error.errors()
    places = [_in_file(item["loc"], lines) for item in errors]
    for item, here in zip(errors, places, strict=True):
        # Of a union the type fits that was looked into; that another one would need a scalar here is beside the point.
        other = item["type"] == "literal_error" or item["type"].endswith("_type")
        if other and isinstance(item["input"], dict | list) and any(each[: len(here)] == here != each for each in places):
            continue
        problem = _problem(item, model, lines)
        found = problems.setdefault(problem.place, [])
        if item["type"] in ("value_error", "assertion_error"):
            # A check of ours says more than the other types that a union tried.
            found.insert(0, problem.text)
            checked.add(problem.place)
        elif problem.text not in found:
            found.append(problem.text)
    for place in sorted(problems, key=lambda place: (_line(place, lines), str(place))):
        name = _dotted(place) or "the file"
        # A value that may be of several types fails once for each of them.
        texts = problems[place][:1] if place in checked else problems[place]
        yield f"{path}:{_line(place, lines)}: {name}: {_joined([text.rstrip('.') for text in texts])}."


def _joined(texts: Sequence[str]) -> str:
    """Several alternatives as one sentence: what was found is said once."""
    head, separator, first = texts[0].partition("; allowed: ")
    if separator and all(text.startswith(head + separator) for text in texts):
        return f"{head}; allowed: {', or '.join([first, *(text.partition(separator)[2] for text in texts[1:])])}"
    return ", or: ".join(texts)


def _problem(item: Any, model: type[BaseModel], lines: dict[Place, int]) -> _Problem:
    place = _in_file(item["loc"], lines)
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        allowed = list(_model_at(model, item["loc"][:-1]).model_fields)
        return _Problem((*place[:-1], key), f"unknown key '{key}'.{_nearest(key, allowed)} Allowed: {', '.join(allowed)}")
    if kind == "missing":
        key = item["loc"][-1]
        return _Problem(place, f"the key '{key}' is missing" if isinstance(key, str) else f"item {key + 1} is missing")
    if kind in ("union_tag_invalid", "literal_error"):
        found = context.get("tag", item["input"])
        allowed = [
            part.strip(" '")
            for part in str(context.get("expected_tags", context.get("expected"))).replace(" or ", ", ").split(",")
        ]
        where = (*place, context["discriminator"].strip("'")) if kind == "union_tag_invalid" else place
        if isinstance(found, dict | list):
            # No word was meant; in the form of other types, so that _joined says once what was found.
            return _Problem(where, f"found {_kind(found)}; allowed: {', '.join(allowed)}")
        return _Problem(where, f"found {_kind(found)}.{_nearest(str(found), allowed)} Allowed: {', '.join(allowed)}")
    if kind == "union_tag_not_found":
        name = context["discriminator"].strip("'")
        return _Problem(place, f"the key '{name}' is missing; it says which kind this is")
    if kind in ("value_error", "assertion_error"):
        text = str(context.get("error", item["msg"]))
        # A check over several parts begins with the place that it is about.
        named = tuple(int(part) if part.isdigit() else part for part in text.partition(" ")[0].split("."))
        if place or named not in lines:
            return _Problem(place, text)
        # With a dot it is no word of the sentence, and need not be said twice.
        return _Problem(named, text.partition(" ")[2] if len(named) > 1 else text)
    if kind in ("too_short", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        bound = f"at least {least}" if kind == "too_short" else f"at most {most}"
        return _Problem(place, f"found {_kind(item['input'])} of {context['actual_length']}; allowed: {bound}")
    if kind == "int_parsing_size":
        return _Problem(place, f"found {_kind(item['input'])}; allowed: a smaller whole number")
    message = item["msg"].removeprefix("Input should be ").replace("dictionary or instance of ", "mapping for ")
    return _Problem(place, f"found {_kind(item['input'])}; allowed: {message[0].lower()}{message[1:]}")


def _in_file(loc: Sequence[str | int], lines: dict[Place, int]) -> Place:
    """A pydantic location without the names of types that unions put into it."""
    place: Place = ()
    for number, part in enumerate(loc):
        if (*place, part) in lines or (number == len(loc) - 1 and not place and part not in ("", "[key]")):
            place = (*place, part)
    return place


def _line(place: Place, lines: dict[Place, int]) -> int:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)


def _nearest(found: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(found, allowed, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value)
    return f"'{text[:60]}…'" if len(text) > 60 else f"'{text}'"


def _model_at(annotation: Any, loc: Sequence[str | int]) -> type[BaseModel]:
    """The model that a location points at; a name in the location may be a field, a key, an index, or the tag of a union."""
    current = list(_models(annotation))
    for part in loc:
        following: list[Any] = []
        for option in current:
            field = option.model_fields.get(str(part)) if isinstance(option, type) and issubclass(option, BaseModel) else None
            if field is not None:
                following.extend(_models(field.annotation))
        tagged = [option for option in current if _tag(option) == part or getattr(option, "__name__", "") == part]
        current = following or tagged or current
    return next(option for option in current if isinstance(option, type) and issubclass(option, BaseModel))


def _tag(model: Any) -> str | None:
    field = model.model_fields.get("type") if isinstance(model, type) and issubclass(model, BaseModel) else None
    values = typing.get_args(field.annotation) if field is not None else ()
    return values[0] if values else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models inside a type: through Optional, unions, lists, dicts and Annotated."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        if issubclass(annotation, RootModel):
            yield from _models(annotation.model_fields["root"].annotation)
            return
        yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a YAML file, so that editors complete and check it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(model).json_schema()}
