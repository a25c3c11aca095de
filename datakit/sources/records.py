"""From a raw record (a dict of columns) to the fields of a row, as the recipe maps them."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datakit.recipe import Column, Columns, Constant, Template, used
from datakit.sources.paths import Record, look_up

# Why a record does not become a row. The first group are records that could be read, but lack something.
EMPTY_FIELD = "empty_field"
# The others cannot be read; they count towards `max_bad_fraction`.
INVALID_UTF8 = "invalid_utf8"
NUL_BYTES = "nul_bytes"
INVALID_JSON = "invalid_json"
INVALID_CSV = "invalid_csv"
NOT_AN_OBJECT = "not_an_object"
WRONG_NUMBER_OF_FIELDS = "wrong_number_of_fields"
RECORD_TOO_LONG = "record_too_long"
NOT_TEXT = "not_text"
NOT_A_NUMBER = "not_a_number"
NOT_A_LIST = "not_a_list"
UNEQUAL_LISTS = "unequal_lists"

READABLE = frozenset({EMPTY_FIELD})
SHOWN = 200


@dataclass(eq=False)
class Unreadable(Exception):
    """What stands in the place of a record that cannot be read. `identity` are the bytes that tell it from others."""

    reason: str
    found: str
    identity: bytes = b""
    value: float | None = None
    threshold: float | None = None


@dataclass(slots=True)
class Mapped:
    """The fields of one record, and what was said against it. A field that could not be made is None."""

    values: tuple[Any, ...]
    refusal: Unreadable | None = None


class ClassName(str):
    """The name of a class. Where a recipe gives a number for it, that is compared with the class's number."""

    number: int

    def __new__(cls, name: str, number: int) -> ClassName:
        self = super().__new__(cls, name)
        self.number = number
        return self


def shown(data: bytes | str, limit: int = SHOWN) -> str:
    """The beginning of some data as one printable line."""
    text = data[: limit + 1].decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data[: limit + 1]
    cut = "..." if len(data) > limit else ""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit]) + cut


def rendered(value: Any) -> str | None:
    """A scalar as text: true, 5 (also for 5.0), 2.5, 2024-01-31. Null and NaN are None.

    Raises Unreadable for bytes that are no UTF-8, and for lists and objects.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int | decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Unreadable(INVALID_UTF8, f"byte {error.start + 1} of {shown(value)}") from None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise Unreadable(NOT_TEXT, f"a {'list' if isinstance(value, list) else type(value).__name__}: {shown(str(value))}")


Getter = Callable[[Record], str | None]


def getter(column: Column) -> Getter:
    """The function that takes the text of a column from a record. None stands for null or empty."""
    if isinstance(column, Constant):
        constant = rendered(column.constant)
        return lambda record: constant
    if isinstance(column, Template):
        parts = column.parts()
        return lambda record: _filled(parts, record)

    def get(record: Record) -> str | None:
        value = look_up(record, column)
        if type(value) is not str:
            value = _rendered(value, column)
        return value if value and not value.isspace() else None

    return get


def _rendered(value: Any, column: str) -> str | None:
    try:
        return rendered(value)
    except Unreadable as error:
        raise Unreadable(error.reason, f"column '{column}' has {error.found}") from None


def _filled(parts: list[tuple[str, str]], record: Record) -> str | None:
    text = []
    for literal, name in parts:
        text.append(literal)
        if name:
            value = _rendered(look_up(record, name), name)
            if not value or value.isspace():
                return None
            text.append(value)
    return "".join(text)


PAIR = ("query", "positive", "negatives", "document_id", "score", "label", "language", "positive_language")


@dataclass(frozen=True)
class PairMapper:
    """Maps a record to the fields PAIR. Negatives are a list of texts or None."""

    columns: Columns
    language: str | None
    _texts: dict[str, Getter] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("query", "positive", "document_id", "label", "language", "positive_language"):
            column = getattr(self.columns, name)
            if column is not None:
                self._texts[name] = getter(column)

    def __call__(self, record: Record) -> Mapped:
        texts: dict[str, Any] = {}
        refusal = None
        for name, get in self._texts.items():
            try:
                texts[name] = value = get(record)
            except Unreadable as error:
                refusal = refusal or error
                continue
            if value is None and refusal is None and name in ("query", "positive", "label"):
                refusal = _empty(name, getattr(self.columns, name))
        score = None
        if self.columns.score is not None:
            score = _number(self.columns.score, record)
            if score is None:
                refusal = refusal or Unreadable(NOT_A_NUMBER, f"score: {_seen(self.columns.score, record)}")
        negatives = None
        if self.columns.negative is not None:
            try:
                negatives = _negatives(self.columns.negative, record)
            except Unreadable as error:
                refusal = refusal or error
        get_text = texts.get
        language = get_text("language") or self.language
        values = (
            get_text("query"), get_text("positive"), negatives, get_text("document_id"), score, get_text("label"),
            language, get_text("positive_language") or language,
        )  # fmt: skip
        return Mapped(values, refusal)


PASSAGE = ("document_id", "language", "title", "domain", "text")


@dataclass(frozen=True)
class PassageMapper:
    """Maps a record to the fields PASSAGE, for synthesis."""

    columns: Columns
    language: str | None
    _texts: dict[str, Getter] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("document_id", "language", "title", "domain", "document"):
            column = getattr(self.columns, name)
            if column is not None:
                self._texts[name] = getter(column)

    def __call__(self, record: Record) -> Mapped:
        texts: dict[str, str | None] = {}
        refusal = None
        for name, get in self._texts.items():
            try:
                texts[name] = get(record)
            except Unreadable as error:
                refusal = refusal or error
        if texts.get("document") is None and refusal is None:
            assert self.columns.document is not None
            refusal = _empty("document", self.columns.document)
        language = texts.get("language") or self.language
        values = (texts.get("document_id"), language, texts.get("title"), texts.get("domain"), texts.get("document"))
        return Mapped(values, refusal)


def _empty(name: str, column: Column) -> Unreadable:
    names = " or ".join(f"'{column_name}'" for column_name in used(column))
    return Unreadable(EMPTY_FIELD, f"{name}: nothing in column {names}")


def _seen(column: Column, record: Record) -> str:
    return ", ".join(f"column '{name}' has {shown(repr(look_up(record, name)))}" for name in used(column)) or "a constant"


def _number(column: Column, record: Record) -> float | None:
    try:
        value = look_up(record, column) if isinstance(column, str) else getter(column)(record)
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, Unreadable):
        return None
    return number if math.isfinite(number) else None


def _negatives(columns: Column | list[Column], record: Record) -> list[str] | None:
    texts = []
    for column in columns if isinstance(columns, list) else [columns]:
        value = look_up(record, column) if isinstance(column, str) else getter(column)(record)
        for item in value if isinstance(value, list) else [value]:
            text = _rendered(item, str(column))
            if text and not text.isspace():
                texts.append(text)
    return texts or None
