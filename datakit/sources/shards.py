"""From mapped records to shards on disk: ids, Arrow tables, and what was refused. Holds one shard at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from datakit import storage
from datakit.recipe import Model
from datakit.schema import DOCUMENT, EXAMPLE, NEGATIVE, REJECTED, digest
from datakit.sources.lines import too_long
from datakit.sources.records import PAIR, PASSAGE, READABLE, Mapped, Unreadable
from datakit.step import RowWriter

# A shard ends at `shard_rows` rows, or at this many characters, whichever comes first: long documents are bounded too.
SHARD_CHARACTERS = 64 << 20
MINER = "source"
_PLACES = 3


class Facts(Model):
    """What all rows of one source share. `namespace` is what a document id is unique in."""

    category: str
    source: str
    namespace: str
    task: str
    instruction: str
    document_instruction: str
    in_batch_negatives: bool


class Occurrences:
    """How often each of many 64-bit digests came before: 8 bytes for each, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray[Any, np.dtype[np.uint64]]] = []

    def count(self, digests: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """For each digest, how many equal ones came before it, here or in an earlier call."""
        order = np.argsort(digests, kind="stable")
        ordered = digests[order]
        before = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        for run in self._runs:
            before += np.searchsorted(run, ordered, "right") - np.searchsorted(run, ordered)
        self._runs.append(ordered)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last, other = self._runs.pop(), self._runs.pop()
            self._runs.append(np.sort(np.concatenate([other, last]), kind="stable"))
        counts = np.empty_like(before)
        counts[order] = before
        return counts


@dataclass
class _Rows:
    """Rows of one kind that are not written yet; `ids` are given to them later, and all at once."""

    rows: list[tuple[Any, ...]]
    ids: list[str]
    characters: int = 0

    def clear(self) -> None:
        self.rows.clear()
        self.ids.clear()
        self.characters = 0


class ShardWriter:
    """Takes the records of a unit one by one and writes them as shards.

    A row's id is a digest of category, source, file, the mapped record, and its number among the equal records of that file: it
    is unique, also among duplicates, and does not depend on the order of the records.
    """

    def __init__(self, folder: str, facts: Facts, step: str, shard_rows: int, max_record_bytes: int, documents: bool) -> None:
        self._folder, self._facts, self._step, self._documents = folder, facts, step, documents
        self._shard_rows, self._max_record_bytes = shard_rows, max_record_bytes
        self._writer = RowWriter(folder)
        self._kept, self._refused, self._left_out = (_Rows([], []) for _ in range(3))
        self._digests: list[bytes] = []
        self._numbered: list[list[str]] = []
        self._file = ""
        self._seen = Occurrences()
        self._document_files: list[str] = []
        self.records = self._unreadable = self._document_count = 0
        self._places: list[str] = []

    def begin(self, file: str) -> None:
        """The records that follow are those of `file`."""
        self._number()
        self._file, self._seen = file, Occurrences()

    def add(self, number: int, mapped: Mapped, sampled: bool, key: str | None = None) -> None:
        """A record that could be read; `sampled` is false for one that the recipe does not want.

        `key` tells rows apart that other units of the step may make alike.
        """
        values, refusal = mapped.values, mapped.refusal
        oversize = self.oversize(values) if sampled else None
        if oversize is not None:
            self.refuse(number, oversize)
            return
        characters = _characters(values)
        reason = None if refusal is None else refusal.reason
        identity = (values, sampled, reason) if key is None else (values, sampled, reason, key)
        self._digests.append(hashlib.blake2b(orjson.dumps(identity), digest_size=16).digest())
        if not sampled:
            self._put(self._left_out, (), 0)
        elif refusal is not None:
            self._reject(number, refusal, values, characters)
        else:
            self._put(self._kept, values, characters)

    def oversize(self, values: tuple[Any, ...]) -> Unreadable | None:
        """What is said against a record that is too long."""
        if 4 * _characters(values) > self._max_record_bytes:
            data = orjson.dumps(values)
            if len(data) > self._max_record_bytes:
                return too_long(len(data), self._max_record_bytes, data, data)
        return None

    def refuse(self, number: int, unreadable: Unreadable) -> None:
        """A record that could not be read."""
        identity = unreadable.reason.encode() + b"\0" + (unreadable.identity or unreadable.found.encode())
        self._digests.append(hashlib.blake2b(identity, digest_size=16).digest())
        self._reject(number, unreadable, (None,) * len(PASSAGE if self._documents else PAIR), 0)

    def _reject(self, number: int, refusal: Unreadable, values: tuple[Any, ...], characters: int) -> None:
        detail = f"{self._file}:{number}: {refusal.found}"
        if refusal.reason not in READABLE:
            self._unreadable += 1
            if len(self._places) < _PLACES:
                self._places.append(f"{self._file}:{number}: {refusal.reason}, {refusal.found}")
        self._put(self._refused, (*values, refusal.reason, refusal.value, refusal.threshold, detail), characters)

    def _put(self, rows: _Rows, values: tuple[Any, ...], characters: int) -> None:
        self.records += 1
        rows.rows.append(values)
        self._numbered.append(rows.ids)
        rows.characters += characters
        if len(rows.rows) >= self._shard_rows or rows.characters >= SHARD_CHARACTERS:
            self._flush(rows)

    def _number(self) -> None:
        """Gives their ids to the rows that have none yet."""
        if self._digests:
            halves = np.frombuffer(b"".join(self._digests), np.uint64)
            prefix = digest("row", self._facts.category, self._facts.source, self._file)
            counts = self._seen.count(halves[::2].copy()).tolist()
            for ids, record, count in zip(self._numbered, self._digests, counts, strict=True):
                ids.append(digest(prefix, record.hex(), str(count)))
            self._digests.clear()
            self._numbered.clear()

    def _flush(self, rows: _Rows) -> None:
        self._number()
        if not rows.rows:
            return
        if rows is self._left_out:
            self._writer.leave_out(pa.table({"row_id": rows.ids, "category": self._repeated("category", len(rows.ids))}))
        elif rows is self._refused:
            self._writer.reject(self._rejected_table(rows))
        elif self._documents:
            self._write_documents(rows)
        else:
            self._writer.keep("rows", self._pair_table(rows.rows, rows.ids))
        rows.clear()

    def finish(self) -> dict[str, Any]:
        """Writes what is left, and returns the counts for `Work.finish`, with `records`, `unreadable` and the first `places`."""
        for rows in (self._kept, self._refused, self._left_out):
            self._flush(rows)
        created = self.records - self._document_count
        result = self._writer.finish(created={self._facts.category: created} if created else {})
        result |= {"records": self.records, "unreadable": self._unreadable, "places": self._places}
        if self._documents:
            result |= {"rows": self._document_count, "documents": self._document_count, "files": self._document_files}
        return result

    def _write_documents(self, rows: _Rows) -> None:
        own_ids, languages, titles, domains, texts = zip(*rows.rows, strict=True)
        count = len(rows.rows)
        namespace = self._facts.namespace
        columns = {
            "document_id": pa.array(
                [
                    digest("document", namespace, own) if own is not None else digest("document text", namespace, text)
                    for own, text in zip(own_ids, texts, strict=True)
                ]
            ),
            "category": self._repeated("category", count),
            "source": self._repeated("source", count),
            "language": pa.array(languages, pa.string()),
            "title": pa.array(titles, pa.string()),
            "domain": pa.array(domains, pa.string()),
            "text": pa.array(texts, pa.string()),
        }
        name = f"documents-{len(self._document_files):03d}.parquet"
        storage.write_table(storage.join(self._folder, name), pa.table(columns, schema=DOCUMENT))
        self._document_files.append(name)
        self._document_count += count

    def _rejected_table(self, rows: _Rows) -> pa.Table:
        width = len(PASSAGE if self._documents else PAIR)
        pairs = [_as_pair(row[:width]) if self._documents else row[:width] for row in rows.rows]
        reasons, values, thresholds, details = zip(*(row[width:] for row in rows.rows), strict=True)
        count = len(rows.rows)
        said = [
            pa.array(reasons),
            pa.array(values, pa.float64()),
            pa.array(thresholds, pa.float64()),
            pa.nulls(count, pa.string()),
        ]
        table = self._pair_table(pairs, rows.ids)
        columns = [*table.columns, pa.repeat(pa.scalar(self._step), count), *said, pa.array(details, pa.string())]
        return pa.table(columns, schema=REJECTED)

    def _pair_table(self, rows: Sequence[tuple[Any, ...]], ids: list[str]) -> pa.Table:
        count = len(rows)
        mapped = dict(zip(PAIR, zip(*rows, strict=True), strict=True))
        namespace = self._facts.namespace
        columns: dict[str, pa.Array] = {
            "row_id": pa.array(ids, pa.string()),
            "document_id": pa.array(
                [None if own is None else digest("document", namespace, own) for own in mapped["document_id"]], pa.string()
            ),
            "negatives": _negatives(mapped["negatives"]),
            "batch_group": self._repeated("category", count),
        }
        for name in ("query", "positive", "score", "label", "language", "positive_language"):
            columns[name] = pa.array(mapped[name], EXAMPLE.field(name).type)
        for name in ("category", "source", "task", "instruction", "document_instruction", "in_batch_negatives"):
            columns[name] = self._repeated(name, count)
        return pa.table(
            [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in EXAMPLE], schema=EXAMPLE
        )

    def _repeated(self, name: str, count: int) -> pa.Array:
        return pa.repeat(pa.scalar(getattr(self._facts, name), EXAMPLE.field(name).type), count)


def _characters(values: tuple[Any, ...]) -> int:
    count = 0
    for value in values:
        if type(value) is str:
            count += len(value)
        elif type(value) is list:
            count += sum(map(len, value))
    return count


def _as_pair(passage: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields PAIR of a refused passage: its text stands where the positive would."""
    document_id, language, _, _, text = passage
    return (None, text, None, document_id, None, None, language, language)


def _negatives(rows: Sequence[list[str] | None]) -> pa.Array:
    lengths = [0 if row is None else len(row) for row in rows]
    texts = pa.array([text for row in rows if row is not None for text in row], pa.string())
    if not len(texts):
        return pa.nulls(len(rows), EXAMPLE.field("negatives").type)
    given = {"text": texts, "miner": pa.repeat(pa.scalar(MINER), len(texts))}
    values = pa.StructArray.from_arrays(
        [given[field.name] if field.name in given else pa.nulls(len(texts), field.type) for field in NEGATIVE],
        fields=list(NEGATIVE),
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array([row is None for row in rows]))
