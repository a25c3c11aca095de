"""Translations in two text files, line by line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from datakit.errors import UserError
from datakit.recipe import Columns, Constant, FilesSource, ParallelSource
from datakit.sources import files
from datakit.sources.files import DataFile
from datakit.sources.lines import Numbered, broken, lines
from datakit.sources.records import INVALID_UTF8, NUL_BYTES, Unreadable


def find(source: ParallelSource) -> list[DataFile]:
    """The two files. Raises a UserError for one that does not exist."""
    found = []
    for path in source.paths:
        named = FilesSource(type="files", path=path, format="text", columns=Columns(document="text"))
        matches = files.find(named)
        if len(matches) != 1:
            raise UserError(f"'{path}' names {len(matches)} files; one is needed, whose lines stand beside those of the other.")
        found += matches
    return found


def columns(source: ParallelSource) -> Columns:
    """How records are mapped: the languages are those of the files."""
    query, positive = (Constant(constant=language) for language in source.languages)
    return Columns(query="query", positive="positive", language=query, positive_language=positive)


def records(source: ParallelSource, pair: Sequence[DataFile]) -> Iterator[Numbered]:
    """Pairs of lines with their numbers, from 1; a pair is refused where one of its lines is.

    Raises a UserError, at the end of the shorter file, where the numbers of lines differ.
    """
    first, second = pair
    read = itertools.zip_longest(*(_lines(file, source.max_record_bytes) for file in pair))
    for count, (a, b) in enumerate(itertools.islice(read, source.limit)):
        if a is None or b is None:
            there = count + 1 + sum(1 for _ in read)
            longer, shorter = (first, second) if b is None else (second, first)
            raise UserError(
                f"'{longer.path}' has {there:,} lines, and '{shorter.path}' has {count:,}. Parallel files have one line for each "
                "line of the other. Mend them: from some line on they say different things."
            )
        texts = [_text(line) for _, line in (a, b)]
        refused = next((text for text in texts if isinstance(text, Unreadable)), None)
        yield a[0], dict(zip(("query", "positive"), texts, strict=True)) if refused is None else refused


def _lines(file: DataFile, limit: int) -> Iterator[tuple[int, bytes | Unreadable]]:
    with files.reading(file.path), files.opened(file) as stream:
        yield from lines(stream, limit, file.path)


def _text(line: bytes | Unreadable) -> str | Unreadable:
    if isinstance(line, Unreadable):
        return line
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return broken(line, "", INVALID_UTF8)
    return broken(line, "", NUL_BYTES) if "\0" in text else text
