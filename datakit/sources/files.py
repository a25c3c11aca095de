"""Files: which ones a source names, and their records."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal
from urllib.parse import urlsplit

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import FilesSource
from datakit.sources.delimited import Dialect, delimited
from datakit.sources.lines import BOM, Numbered, broken, json_lines, json_type, skipped
from datakit.sources.paths import check_columns, column_of, names_in, names_of, there
from datakit.sources.records import INVALID_UTF8, NOT_AN_OBJECT, Unreadable, shown

Format = Literal["parquet", "jsonl", "json", "csv", "tsv", "text"]
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}
_BUFFER = 1 << 20
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 2048
_PEEK = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFile:
    """A file to read. `name` is relative: it stands in ids and reports, and never tells where on a machine the file lies."""

    path: str
    name: str
    format: Format
    compression: str | None
    size: int | None


def find(source: FilesSource) -> list[DataFile]:
    """The files of a source: patterns as given, the matches of each sorted, no file twice.

    Raises a UserError for a path that does not exist, a pattern without a match, and a file whose format is not known.
    """
    found: list[tuple[str, str, str, int | None]] = []
    seen: set[str] = set()
    for pattern in source.path if isinstance(source.path, list) else [source.path]:
        fs, inner = storage.filesystem(pattern)
        local = isinstance(fs, LocalFileSystem)
        protocol = "file" if local else str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])
        try:
            matches = _matches(fs, os.path.normpath(inner) if local else inner, pattern)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"'{pattern}' cannot be opened: {error}.") from error
        for base, path, size in matches:
            full = path if local else fs.unstrip_protocol(path)
            if full in seen:
                log.info("%s is named twice; it is read once", full)
            else:
                seen.add(full)
                found.append((protocol, base, full, size))
    return [_data_file(source, full, name, size) for (_, _, full, size), name in zip(found, _names(found), strict=True)]


def _matches(fs: fsspec.AbstractFileSystem, inner: str, pattern: str) -> list[tuple[str, str, int | None]]:
    """The folder before the first wildcard, the path and the size of each file."""
    if not fsspec.core.has_magic(inner) or fs.exists(inner):
        if fs.isdir(inner):
            raise UserError(
                f"'{pattern}' is a folder, and files are needed. Name them with a pattern, as in '{pattern}/*.jsonl'."
            )
        if not fs.exists(inner):
            raise UserError(f"'{pattern}' does not exist{_looked_in(fs, pattern)}.")
        return [(inner.rpartition("/")[0], inner, fs.info(inner).get("size"))]
    parts = inner.split("/")
    base = "/".join(itertools.takewhile(lambda part: not fsspec.core.has_magic(part), parts))
    infos = fs.glob(inner, detail=True)
    files = sorted((path, info.get("size")) for path, info in infos.items() if info.get("type") != "directory")
    if not files:
        raise UserError(f"No file matches '{pattern}'{_looked_in(fs, pattern)}.")
    return [(base, path, size) for path, size in files]


def _looked_in(fs: fsspec.AbstractFileSystem, pattern: str) -> str:
    """Where a relative path begins; a person may take it for relative to the recipe."""
    relative = isinstance(fs, LocalFileSystem) and "://" not in pattern and not os.path.isabs(os.path.expanduser(pattern))
    return f" in '{os.getcwd()}', where the command runs" if relative else ""


def _names(found: Sequence[tuple[str, str, str, int | None]]) -> list[str]:
    """Names relative to the folder that all patterns of one file system share."""
    protocols = {protocol for protocol, _, _, _ in found}
    shared = {}
    for protocol in protocols:
        bases = [base.split("/") for kind, base, _, _ in found if kind == protocol]
        shared[protocol] = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*bases, strict=False)))
    names = []
    for protocol, _, full, _ in found:
        inner = full if protocol == "file" else storage.filesystem(full)[1]
        name = "/".join(inner.split("/")[shared[protocol] :])
        names.append(name if len(protocols) == 1 else f"{protocol}:{name}")
    return names


def _data_file(source: FilesSource, full: str, name: str, size: int | None) -> DataFile:
    plain = urlsplit(full).path if full.startswith(("http://", "https://")) else full
    stem, suffix = os.path.splitext(plain)
    compression = COMPRESSIONS.get(suffix.lower())
    if compression:
        stem, suffix = os.path.splitext(stem)
    kind = source.format or FORMATS.get(suffix.lower())
    if kind is None:
        raise UserError(
            f"The format of '{full}' is not known by its name. Give the source 'format:' with one of "
            "parquet, jsonl, json, csv, tsv, text."
        )
    if kind == "parquet" and compression:
        raise UserError(f"'{full}' is a compressed Parquet file, which cannot be read in pieces. Decompress it first.")
    return DataFile(full, name, kind, compression, size)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a sentence that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist any more.") from error
    except PermissionError as error:
        raise UserError(f"'{path}' cannot be opened: permission denied.") from error
    except Exception as error:
        if "://" in path or isinstance(error, OSError | pa.ArrowException | EOFError):
            raise UserError(f"'{path}' is damaged, cut off or not what its name says: {_sentence(error)}.") from error
        raise


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return shown(text.splitlines()[0]).rstrip(".")


@contextmanager
def opened(file: DataFile) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, as a stream."""
    with ExitStack() as stack:
        fs, inner = storage.filesystem(file.path)
        if isinstance(fs, LocalFileSystem):
            raw: Any = stack.enter_context(open(inner, "rb", buffering=_BUFFER))
        else:
            raw = io.BufferedReader(stack.enter_context(fs.open(inner, "rb")), _BUFFER)
        if file.compression:
            if not raw.peek(1):
                raise UserError(f"'{file.path}' is damaged, cut off or not what its name says: it is empty.")
            # Arrow's stream, unlike zstandard's, tells a file that was cut off from one that ends.
            raw = io.BufferedReader(stack.enter_context(pa.CompressedInputStream(raw, file.compression)), _BUFFER)
        yield raw


def records(file: DataFile, source: FilesSource, wanted: Sequence[str], count: int | None = None) -> Iterator[Numbered]:
    """The first `count` records of a file (default: all) with their numbers: lines, or the position in JSON and Parquet, from 1.

    Raises a UserError for a file that cannot be read to its end, or that lacks a wanted column.
    """
    with reading(file.path):
        if file.format == "parquet":
            yield from itertools.islice(_parquet(file, wanted), count)
            return
        with opened(file) as stream:
            if file.format in ("csv", "tsv"):
                delimiter = source.delimiter or ("," if file.format == "csv" else "\t")
                dialect = Dialect(delimiter, source.quotes, source.header)
                columns, rows = delimited(stream, source.max_record_bytes, file.path, dialect)
                if columns:
                    check_columns(wanted, columns, file.path)
                yield from itertools.islice(rows, count)
            elif file.format == "text":
                check_columns(wanted, ["title", "text"], file.path)
                yield 1, _text(stream, file, source.max_record_bytes)
            else:
                read = json_lines(stream, source.max_record_bytes, file.path) if file.format == "jsonl" else _json(stream, file)
                yield from checked(itertools.islice(read, count), wanted, file.path)


def checked(read: Iterator[Numbered], wanted: Sequence[str], name: str) -> Iterator[Numbered]:
    """The records as they come. Raises a UserError for a wanted column that none of the first 10,000 has."""
    missing, absent, seen = list(wanted), set[str](), dict[str, None]()
    for count, (number, record) in enumerate(read, start=1):
        if not isinstance(record, Unreadable):
            seen.update(dict.fromkeys(names_of(record)))
            known = {column: there(record, column) for column in missing}
            missing = [column for column in missing if not known[column]]
            absent.update(column for column in missing if known[column] is False)
        yield number, record
        if not missing:
            yield from read
            return
        if count >= _PEEK:
            break
    check_columns([column for column in missing if column in absent], seen, name)
    yield from read


def _text(stream: IO[bytes], file: DataFile, limit: int) -> dict[str, Any] | Unreadable:
    data = stream.read(limit + 1)
    if len(data) > limit:
        return skipped(data, limit, iter(lambda: stream.read(_BUFFER), b""))
    data = data.removeprefix(BOM)
    title = os.path.basename(file.name)
    while os.path.splitext(title)[1].lower() in {*COMPRESSIONS, *FORMATS}:
        title = os.path.splitext(title)[0]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return broken(data, "", INVALID_UTF8)
    return broken(data, "", INVALID_UTF8) if "\0" in text else {"title": title, "text": text}


def _json(stream: IO[bytes], file: DataFile) -> Iterator[Numbered]:
    try:
        value = orjson.loads(stream.read().removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        raise UserError(
            f"'{file.path}' is no JSON: {error.msg}, line {error.lineno}, column {error.colno}. "
            "If it has one object in each line, give the source 'format: jsonl'."
        ) from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(repr, list(value)[:20]))}" if isinstance(value, dict) else ""
        raise UserError(
            f"'{file.path}' holds a JSON {json_type(value)}{keys}. "
            "An array of objects is needed, or an object whose 'data' is such an array."
        )
    for number, record in enumerate(value, start=1):
        if isinstance(record, dict):
            yield number, record
        else:
            line = orjson.dumps(record)
            yield number, Unreadable(NOT_AN_OBJECT, f"a JSON {json_type(record)}: {shown(line)}", line)


def _parquet(file: DataFile, wanted: Sequence[str]) -> Iterator[Numbered]:
    with ExitStack() as stack:
        fs, inner = storage.filesystem(file.path)
        where = inner if isinstance(fs, LocalFileSystem) else stack.enter_context(fs.open(inner, "rb"))
        # Without `pre_buffer`, and with a buffer, a column is read page by page and not as a whole.
        parquet = stack.enter_context(pq.ParquetFile(where, buffer_size=_BUFFER, pre_buffer=False))
        check_columns(wanted, names_in(parquet.schema_arrow), file.path)
        columns = list(dict.fromkeys(column_of(name, parquet.schema_arrow.names) for name in wanted))
        number = 0
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            rows = max(16, min(_BATCH_ROWS, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
                for record in batch_records(batch):
                    number += 1
                    yield number, record


def batch_records(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a batch. A string that is no UTF-8 is given as bytes, which the mapping refuses."""
    names = batch.schema.names
    for values in zip(*(_values(column) for column in batch.columns), strict=True):
        yield dict(zip(names, values, strict=True))


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if pa.types.is_string(scalar.type) or pa.types.is_large_string(scalar.type):
            return scalar.cast(pa.large_binary()).as_py()
        return b"\xff"
