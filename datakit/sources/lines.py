"""Lines of bounded size, and JSON lines. A record that cannot be read is said so, and reading goes on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import orjson

from datakit import storage
from datakit.errors import UserError
from datakit.sources.paths import Record
from datakit.sources.records import (
    INVALID_JSON,
    INVALID_UTF8,
    NOT_AN_OBJECT,
    NUL_BYTES,
    RECORD_TOO_LONG,
    SHOWN,
    Unreadable,
    shown,
)

Numbered = tuple[int, Record | Unreadable]
BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SKIP = 1 << 20


def lines(file: IO[bytes], limit: int, name: str) -> Iterator[tuple[int, bytes | Unreadable]]:
    """The lines of a file with their numbers, from 1. A line of more than `limit` bytes is skipped without being held."""
    number = 0
    while line := file.readline(limit + 2):
        number += 1
        if number == 1:
            if line.startswith(WIDE_BOMS):
                raise UserError(f"'{name}' is UTF-16, and UTF-8 is needed. Convert it: iconv -f UTF-16 -t UTF-8 FILE")
            line = line.removeprefix(BOM)
        if len(line) > limit and len(line.rstrip(b"\r\n")) > limit:
            yield number, skipped(line, limit, _rest_of_line(file, line))
        else:
            yield number, line


def skipped(start: bytes, limit: int, rest: Iterable[bytes]) -> Unreadable:
    """Reads over the rest of a record that is too long, without holding it."""
    state, size = hashlib.blake2b(start, digest_size=16), len(start)
    for piece in rest:
        state.update(piece)
        size += len(piece)
    return too_long(size, limit, start[: SHOWN + 1], state.digest())


def _rest_of_line(file: IO[bytes], start: bytes) -> Iterator[bytes]:
    piece = start
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(_SKIP)
        yield piece


def too_long(size: int, limit: int, start: bytes | str, identity: bytes = b"") -> Unreadable:
    """A record of `size` bytes where `limit` are allowed; `start` is its beginning."""
    found = f"{size:,} bytes, and max_record_bytes allows {limit:,}: {shown(start)}"
    return Unreadable(RECORD_TOO_LONG, found, identity, float(size), float(limit))


def json_lines(file: IO[bytes], limit: int, name: str) -> Iterator[Numbered]:
    """One JSON object in each line. Lines of white space are no records."""
    loads = orjson.loads
    for number, line in lines(file, limit, name):
        if isinstance(line, Unreadable):
            yield number, line
            continue
        try:
            record = loads(line)
        except orjson.JSONDecodeError as error:
            if not line.isspace():
                yield number, broken(line, f"{error.msg} at character {error.pos + 1}: {shown(line)}", INVALID_JSON)
            continue
        if type(record) is dict:
            yield number, record
        else:
            yield number, Unreadable(NOT_AN_OBJECT, f"a JSON {json_type(record)}: {shown(line)}", line)


def json_fault(path: str) -> str | None:
    """What is wrong with the first line of a JSON lines file that holds no record, with its place; None where there is none.

    For readers of whole files, whose own errors say neither. Lines are read as a source reads them.
    """
    fs, inner = storage.filesystem(path)
    number = 0
    with fs.open(inner, "rb") as file:
        for number, record in json_lines(file, sys.maxsize >> 1, path):
            if isinstance(record, Unreadable):
                return f"{path}:{number}: this line cannot be read: {record.reason}, {record.found}"
    return None if number else f"'{path}' is empty, and records are needed."


def json_type(value: Any) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return kinds.get(type(value), "object")


def broken(line: bytes, found: str, reason: str) -> Unreadable:
    """What is wrong with a record: bytes that are no UTF-8 or NUL bytes, else `reason`."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        start = max(0, error.start - 40)
        return Unreadable(INVALID_UTF8, f"byte {error.start + 1} of the record: {shown(line[start:])}", line)
    if b"\0" in line:
        position = line.index(b"\0")
        return Unreadable(NUL_BYTES, f"byte {position + 1} of the record: {shown(line[max(0, position - 40) :])}", line)
    return Unreadable(reason, found, line)
