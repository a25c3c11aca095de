"""Rows of a file with all the columns that they came with, and the way back: `datakit filter` gives each row whole.

A row is called FILE:NUMBER (a line, or the position in Parquet and JSON), and so is named in reasons: "duplicate of a.jsonl:17".
Beside each shard of rows lies a file with the records as they were; shards and these files are in the order of the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datakit import storage
from datakit.assets import Assets
from datakit.recipe import FilesSource
from datakit.registry import Category
from datakit.schema import EXAMPLE, NEGATIVE, REASONS, REJECTED
from datakit.sources import files
from datakit.sources.files import DataFile
from datakit.sources.job import Reading
from datakit.sources.origins import origin
from datakit.sources.records import PAIR, Mapped, PairMapper, Unreadable
from datakit.sources.shards import MINER, SHARD_CHARACTERS, Facts
from datakit.step import Output, RowWriter, Step, Work

VERSION = 1

ROW = "\0row_id"


def read_original_step(
    name: str, category: str, entry: Category, source: FilesSource, language: str | None, shard_rows: int, assets: Assets
) -> Step:
    """A step that reads the rows of files, and keeps their records beside them. Nothing is left out, and nothing stops it."""
    facts = Facts(
        category=category,
        source=origin(source),
        namespace=origin(source),
        task=entry.task,
        instruction=entry.instruction,
        document_instruction=entry.document_instruction,
        in_batch_negatives=entry.in_batch_negatives,
    )
    found = files.find(source)
    reading = Reading(source=source, facts=facts, language=language, shard_rows=shard_rows, seed=0)
    digests = {file.name: assets.digest(file.path) for file in found}
    return Step(name, VERSION, _Work(reading, name, found), reading, assets=digests)


@dataclass(frozen=True)
class _Work:
    reading: Reading
    step: str
    found: list[DataFile]

    def __call__(self, work: Work) -> None:
        results = work.map("rows", _Unit(self.reading, self.step), self.found)
        work.notes["unreadable"] = sum(result["unreadable"] for result in results)
        work.finish("rows", results)


@dataclass(frozen=True)
class _Unit:
    """Reads one file."""

    reading: Reading
    step: str

    def __call__(self, file: DataFile, folder: str) -> dict[str, Any]:
        source = self.reading.source
        assert isinstance(source, FilesSource)
        mapper, kinds = PairMapper(source.mapping, self.reading.language), _parquet_types(file)
        writer, created, unreadable = RowWriter(folder), 0, 0
        wanted = list(dict.fromkeys([*source.mapping.used(), *kinds]))
        for number, chunk in enumerate(_chunks(files.records(file, source, wanted), self.reading.shard_rows)):
            ids = [f"{file.name}:{place}" for place, _ in chunk]
            mapped = [Mapped((None,) * len(PAIR), read) if isinstance(read, Unreadable) else mapper(read) for _, read in chunk]
            writer.keep("rows", self._table(ids, mapped, [at for at, each in enumerate(mapped) if each.refusal is None]))
            writer.reject(self._refused(ids, mapped, [at for at, each in enumerate(mapped) if each.refusal is not None]))
            records = [{} if isinstance(read, Unreadable) else read for _, read in chunk]
            table = as_table(records, kinds).append_column(ROW, pa.array(ids, pa.string()))
            storage.write_table(storage.join(folder, original_name(number)), table)
            created += len(chunk)
            unreadable += sum(isinstance(read, Unreadable) for _, read in chunk)
        result = writer.finish(created={self.reading.facts.category: created} if created else {})
        return {**result, "unreadable": unreadable}

    def _table(self, ids: Sequence[str], mapped: Sequence[Mapped], rows: Sequence[int]) -> pa.Table:
        """The rows at some places, in the schema EXAMPLE."""
        count = len(rows)
        fields = dict(zip(PAIR, zip(*(mapped[row].values for row in rows), strict=True), strict=True)) if rows else {}
        facts = self.reading.facts
        columns: dict[str, Any] = {"row_id": [ids[row] for row in rows], "batch_group": [facts.category] * count}
        for name in ("category", "source", "task", "instruction", "document_instruction", "in_batch_negatives"):
            columns[name] = [getattr(facts, name)] * count
        for name in ("query", "positive", "score", "label", "language", "positive_language"):
            columns[name] = fields.get(name, ())
        negatives = pa.list_(NEGATIVE)
        empty = {field.name: None for field in NEGATIVE}
        columns["negatives"] = pa.array(
            [texts and [{**empty, "text": text, "miner": MINER} for text in texts] for texts in fields.get("negatives", ())],
            negatives,
        )
        return pa.table(
            [
                pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
                for field in EXAMPLE
            ],
            schema=EXAMPLE,
        )

    def _refused(self, ids: Sequence[str], mapped: Sequence[Mapped], rows: Sequence[int]) -> pa.Table:
        table = self._table(ids, mapped, rows)
        refusals = [mapped[row].refusal for row in rows]
        said = {
            "reason": [each.reason for each in refusals if each],
            "value": [each.value for each in refusals if each],
            "threshold": [each.threshold for each in refusals if each],
            "other_id": [None] * len(rows),
            "detail": [each.found for each in refusals if each],
        }
        columns = [*table.columns, pa.array([self.step] * len(rows), pa.string())]
        columns += [pa.array(said[field.name], field.type) for field in list(REASONS)[1:]]
        return pa.table(columns, schema=REJECTED)


def _chunks(read: Iterator[tuple[int, Any]], rows: int) -> Iterator[list[tuple[int, Any]]]:
    """The records in parts of so many rows, or so many characters, whichever comes first."""
    chunk, characters = list[tuple[int, Any]](), 0
    for number, record in read:
        chunk.append((number, record))
        if not isinstance(record, Unreadable):
            characters += sum(len(value) for value in record.values() if isinstance(value, str))
        if len(chunk) >= rows or characters >= SHARD_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def original_name(number: int) -> str:
    return f"original-{number:03d}.parquet"


def originals(output: Output) -> list[str]:
    """The file with the records of each shard, in order."""
    paths = []
    for folder, shards in itertools.groupby(output.shards, key=lambda shard: shard.rsplit("/", 1)[0]):
        paths += [storage.join(folder, original_name(number)) for number, _ in enumerate(shards)]
    return paths


def _parquet_types(file: DataFile) -> dict[str, pa.DataType]:
    """The columns of a Parquet file and their types; of other formats none is known before they are read."""
    if file.format != "parquet":
        return {}
    fs, inner = storage.filesystem(file.path)
    with files.reading(file.path), fs.open(inner, "rb") as opened:
        schema = pq.read_schema(opened)
    return {field.name: field.type for field in schema}


def as_table(records: Sequence[dict[str, Any]], kinds: dict[str, pa.DataType]) -> pa.Table:
    """Records as a table of all columns that one of them has; values of several types in one column become JSON."""
    names = list(kinds) or list(dict.fromkeys(name for record in records for name in record))
    arrays = {name: _array([record.get(name) for record in records], kinds.get(name)) for name in names}
    return pa.table(arrays) if arrays else pa.table({"\0": pa.nulls(len(records))}).drop(["\0"])


def _array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        array = pa.array(values, kind)
        # Lists that hold both text and bytes become text that need not be UTF-8 (pyarrow 26).
        array.validate(full=True)
        return array
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return pa.array([None if value is None else as_json(value) for value in values], pa.string())


def as_json(value: Any) -> str:
    """A text as it is, all else as JSON; bytes that are no UTF-8 with backslashes."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    try:
        return orjson.dumps(value, default=str).decode()
    except (TypeError, orjson.JSONEncodeError):
        return str(value)


def common_schema(paths: Sequence[str]) -> pa.Schema:
    """One schema for the records of all shards and the ids of their rows: a column that differs beyond numbers is text."""
    found: dict[str, pa.DataType] = {}
    for path in paths:
        fs, inner = storage.filesystem(path)
        with fs.open(inner, "rb") as file:
            for field in pq.read_schema(file):
                known = found.get(field.name, pa.null())
                try:
                    schemas = [pa.schema([pa.field("x", kind)]) for kind in (known, field.type)]
                    found[field.name] = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
                except pa.ArrowException:
                    found[field.name] = pa.string()
    return pa.schema([pa.field(name, kind) for name, kind in found.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the schema: columns that it lacks are null."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            # A cast of lists of nothing to their own type leaves them broken (pyarrow 26).
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException:
            columns.append(pa.array([None if each is None else as_json(each) for each in column.to_pylist()], field.type))
    return pa.table(columns, schema=schema)
