"""The passages of a corpus: files are read, long texts are cut, and each passage tells where it stands."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import FilesSource
from datakit.sources import files
from datakit.sources.files import DataFile
from datakit.sources.records import Unreadable, getter
from datakit.synthesis.chunking import passages

log = logging.getLogger(__name__)

# Passages of a row group, and of a unit of encoding: the most that a killed run encodes again.
BLOCK = 512
SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("record", pa.int64()),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Passage:
    """A piece of a text. `record` is the number in a file of records, None in plain text; `line` is where it begins, from 1."""

    file: str
    record: int | None
    line: int
    text: str

    @property
    def place(self) -> str:
        """FILE:LINE in plain text; else FILE, record N, with the line inside its text where that is not the first."""
        if self.record is None:
            return f"{self.file}:{self.line}"
        return f"{self.file}, record {self.record}" + (f", line {self.line}" if self.line > 1 else "")


def cut(text: str, words: int) -> Iterator[tuple[int, str]]:
    """The passages of a text, of at most `words` words, each with the number of its first line."""
    line, start, end = 1, 0, 0
    for passage in passages(text, words // 4, words):
        # Passages are pieces of the text in their order, with nothing but white space between them.
        at = text.index(passage, end)
        line += text.count("\n", start, at)
        start, end = at, at + len(passage)
        yield line, passage


def read(found: Iterable[DataFile], source: FilesSource, column: str, words: int) -> Iterator[Passage]:
    """The passages of files, in order. Records that cannot be read are told in the log. Raises UserError as files.records."""
    refused, first = 0, ""
    for file in found:
        plain = file.format == "text"
        get = getter("text" if plain else column)
        for number, record in files.records(file, source, [] if plain else [column]):
            try:
                if isinstance(record, Unreadable):
                    raise record
                text = get(record)
            except Unreadable as error:
                refused, first = refused + 1, first or f"{file.name}, record {number}: {error.reason}: {error.found}"
                continue
            for line, passage in cut(text or "", words):
                yield Passage(file.name, None if plain else number, line, passage)
    if refused:
        log.warning("%d records cannot be read and are left out. The first: %s", refused, first)


def opened(path: str) -> pq.ParquetFile:
    """The file of passages that `write` made. Raises UserError where it is damaged or gone."""
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"'{path}' is damaged, cut off or not there. Make the index again.") from error


def write(path: str, found: Iterable[Passage]) -> None:
    """Writes passages as Parquet in row groups of BLOCK, without holding more than one."""
    with storage.atomic(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        waiting: list[Passage] = []

        def flush() -> None:
            columns = zip(*map(astuple, waiting), strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
            writer.write_table(pa.table(arrays, schema=SCHEMA), row_group_size=BLOCK)
            waiting.clear()

        for passage in found:
            waiting.append(passage)
            if len(waiting) == BLOCK:
                flush()
        if waiting:
            flush()
