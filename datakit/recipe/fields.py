"""What all parts of a recipe are made of: paths, secrets, and which fields decide an output."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import core_schema

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set; set it, or write the value here")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


class Path(str):
    """A path or URL in which `${VAR}` was replaced from the environment. It is written to disk as it stood in the recipe."""

    raw: str

    def __new__(cls, raw: str) -> Self:
        self = super().__new__(cls, _expand(raw))
        self.raw = raw
        return self

    @classmethod
    def _of(cls, value: str, raw: str) -> Self:
        self = super().__new__(cls, value)
        self.raw = raw
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers on other machines need not have the variables.
        return (type(self)._of, (str(self), self.raw))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            core_schema.str_schema(min_length=1),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.raw),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": "A path or URL; ${VAR} is taken from the environment."}


_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})*")


def language_code(text: str) -> str:
    """The text, if it has the form of a BCP 47 code. Else a ValueError: it would stand in rows and cards, and match nothing."""
    if not _LANGUAGE.fullmatch(text):
        raise ValueError(f"found '{text}'; allowed: a BCP 47 code, such as en, de or zh-Hant")
    return text


Language = Annotated[str, AfterValidator(language_code)]


class Secret:
    """A secret. It comes from the environment as `${VAR}`, and is never printed, logged, hashed or written."""

    def __init__(self, raw: str) -> None:
        self.raw = raw if _VARIABLE.search(raw) else "**********"
        self._value = _expand(raw)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.raw})"


SecretField = Annotated[
    Any,
    BeforeValidator(lambda value: value if value is None or isinstance(value, Secret) else Secret(str(value))),
    PlainSerializer(lambda value: None if value is None else value.raw),
    WithJsonSchema({"type": ["string", "null"], "description": "A secret, as ${VAR}."}),
]


class Model(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def operational(default: Any = ..., **options: Any) -> Any:
    """A field that says how or where work is done, not what comes out. It is no part of a step's key or a request's digest."""
    return Field(default, json_schema_extra={"decides_output": False}, **options)


def deciding(parameters: BaseModel) -> dict[str, Any]:
    """The parameters that decide an output: all fields of the model, without the operational ones."""
    excluded = {
        name
        for name, info in type(parameters).model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("decides_output") is False
    }
    result: dict[str, Any] = {}
    for name in type(parameters).model_fields:
        if name not in excluded:
            value = getattr(parameters, name)
            result[name] = _deciding_value(value, parameters, name)
    return result


def _deciding_value(value: Any, owner: BaseModel, name: str) -> Any:
    if isinstance(value, BaseModel):
        return deciding(value)
    if isinstance(value, Mapping):
        return {str(key): _deciding_value(item, owner, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_deciding_value(item, owner, name) for item in value]
    if isinstance(value, Path):
        return value.raw
    return value
