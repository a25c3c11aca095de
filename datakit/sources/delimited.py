"""CSV and TSV, record by record, with the csv module. A record that cannot be read is said so, and reading goes on."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from datakit.errors import UserError
from datakit.sources.lines import Numbered, broken, lines
from datakit.sources.records import INVALID_CSV, WRONG_NUMBER_OF_FIELDS, Unreadable, shown


@dataclass(frozen=True)
class Dialect:
    """How a delimited file is written."""

    delimiter: str
    quotes: bool
    header: bool


def delimited(file: IO[bytes], limit: int, name: str, dialect: Dialect) -> tuple[list[str], Iterator[Numbered]]:
    """The columns of a CSV or TSV file, and its records. Empty lines are no records.

    A quote that is not closed, or is followed by text, spoils its own line only: reading goes on at the line after it.
    """
    reader = _DelimitedReader(file, limit, name, dialect)
    first = list[tuple[int, list[str] | Unreadable]]()
    while (read := reader.read()) is not None:
        first.append(read)
        if dialect.header or not isinstance(read[1], Unreadable):
            break
    if not first:
        return [], iter(())
    number, fields = first.pop()
    if isinstance(fields, Unreadable):
        if dialect.header:
            raise UserError(f"The header of '{name}' (line {number}) cannot be read: {fields.reason}, {fields.found}")
        return [], _objects([*first, (number, fields)], [])
    if not dialect.header:
        columns = [f"column_{i}" for i in range(1, len(fields) + 1)]
        return columns, _objects(itertools.chain(first, [(number, fields)], reader.records(len(columns))), columns)
    repeated = [column for column in fields if fields.count(column) > 1]
    if repeated:
        raise UserError(f"The header of '{name}' has the column '{repeated[0]}' twice. Rename one of them.")
    return fields, _objects(reader.records(len(fields)), fields)


def _objects(records: Iterable[tuple[int, list[str] | Unreadable]], columns: list[str]) -> Iterator[Numbered]:
    for number, fields in records:
        yield number, fields if isinstance(fields, Unreadable) else dict(zip(columns, fields, strict=True))


class _RecordTooLong(Exception):
    """A quoted field goes on past the allowed size of a record."""


class _DelimitedReader:
    """The csv module's reader over lines that are kept until their record is whole, so that they can be read again."""

    def __init__(self, file: IO[bytes], limit: int, name: str, dialect: Dialect) -> None:
        self._numbered = lines(file, limit, name)
        self._again: deque[tuple[int, bytes | Unreadable]] = deque()
        self._limit = limit
        self._record: list[tuple[int, bytes | Unreadable]] = []
        self._size = 0
        self._damaged = False
        # The module's own limit is for the whole process, and lower than that of a recipe; sizes are checked here.
        csv.field_size_limit(max(csv.field_size_limit(), 1 << 31))
        self._reader = csv.reader(
            self,
            delimiter=dialect.delimiter,
            quoting=csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE,
            strict=True,
        )

    def __iter__(self) -> _DelimitedReader:
        return self

    def __next__(self) -> str:
        """The next line of the record that is being read, for the csv module."""
        number, line = self._again.popleft() if self._again else next(self._numbered)
        self._record.append((number, line))
        if isinstance(line, Unreadable):
            raise _RecordTooLong
        self._size += len(line)
        if self._size > self._limit + 2:
            raise _RecordTooLong
        if b"\0" in line:
            self._damaged = True
        try:
            return line.decode()
        except UnicodeDecodeError:
            self._damaged = True
            return line.decode("utf-8", "replace")

    def records(self, width: int) -> Iterator[tuple[int, list[str] | Unreadable]]:
        """All further records, each of which must have `width` fields."""
        while (record := self.read(width)) is not None:
            yield record

    def read(self, width: int | None = None) -> tuple[int, list[str] | Unreadable] | None:
        """The next record with the number of its first line; None at the end."""
        fields: list[str] = []
        while not fields:
            self._record, self._size, self._damaged = [], 0, False
            try:
                fields = next(self._reader)
            except StopIteration:
                return None
            except csv.Error as error:
                return self._refused(INVALID_CSV, str(error))
            except _RecordTooLong:
                number, line = self._record[0]
                if isinstance(line, Unreadable):
                    return number, line
                return self._refused(INVALID_CSV, f"a quote is not closed within {self._limit:,} bytes (max_record_bytes)")
        if self._damaged:
            data = b"".join(line for _, line in self._record if isinstance(line, bytes))
            return self._record[0][0], broken(data, "", INVALID_CSV)
        if width is not None and len(fields) != width:
            return self._refused(WRONG_NUMBER_OF_FIELDS, f"{len(fields)} fields, and {width} are needed", len(fields), width)
        return self._record[0][0], fields

    def _refused(
        self, reason: str, found: str, value: float | None = None, threshold: float | None = None
    ) -> tuple[int, Unreadable]:
        """Refuses the first line of the record. The others are read again: each may be a record of its own."""
        self._again.extendleft(reversed(self._record[1:]))
        number, line = self._record[0]
        assert isinstance(line, bytes)
        return number, Unreadable(reason, f"{found}: {shown(line)}", line, value, threshold)
