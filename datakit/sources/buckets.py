"""Records on their way to the unit that joins or groups them: in pieces of bounded size, sorted by bucket (datakit/exchange.py).

A bucket is chosen by a digest of a key, so all records of a key meet in one. There are always as many buckets, whatever the size
of the data; small ones share a unit, so that small data do not make many shards. A unit holds one bucket at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import exchange, storage
from datakit.schema import digest
from datakit.step import Work

BUCKETS = 256
PIECE_ROWS = 65_536
PIECE_CHARACTERS = 32 << 20
UNIT_CHARACTERS = 64 << 20


def drawn(*parts: str) -> int:
    """64 bits that the parts decide."""
    return int(digest(*parts, size=8), 16)


def bucket(*key: str) -> int:
    return drawn("bucket", *key) % BUCKETS


class Sender:
    """Takes rows one by one, and writes them as pieces into `folder`."""

    def __init__(self, folder: str, name: str, schema: pa.Schema, buckets: int = BUCKETS) -> None:
        self._folder, self._name, self._schema, self._buckets = folder, name, schema, buckets
        self._rows: list[tuple[Any, ...]] = []
        self._to: list[int] = []
        self._waiting = 0
        self._pieces: list[tuple[str, list[int]]] = []
        self._characters = [0] * buckets

    def send(self, to: int, *row: Any) -> None:
        characters = sum(len(value) for value in row if isinstance(value, str))
        self._rows.append(row)
        self._to.append(to)
        self._waiting += characters
        self._characters[to] += characters
        if len(self._rows) >= PIECE_ROWS or self._waiting >= PIECE_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        columns = [
            pa.array(values, field.type) for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        name = f"{self._name}-{len(self._pieces):05d}.parquet"
        table = pa.table(columns, schema=self._schema)
        sizes = exchange.scatter(storage.join(self._folder, name), table, np.array(self._to), self._buckets)
        self._pieces.append((name, sizes))
        self._rows, self._to, self._waiting = [], [], 0

    def finish(self) -> dict[str, Any]:
        """What `Sent.of` takes."""
        if self._rows:
            self._flush()
        return {"pieces": self._pieces, "characters": self._characters}


@dataclass(frozen=True)
class Sent:
    """What the units of a phase have sent: files, and the rows for each bucket in them."""

    paths: list[str]
    sizes: list[list[int]]
    characters: list[int]

    @classmethod
    def of(cls, work: Work, phase: str, results: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None = None) -> Sent:
        """Of the units of a phase, or of those with these numbers."""
        chosen = range(len(results)) if numbers is None else numbers
        pieces = [(work.files(phase, unit, name), sizes) for unit in chosen for name, sizes in results[unit]["pieces"]]
        characters = np.sum([results[unit]["characters"] for unit in chosen], axis=0).tolist()
        return cls([path for path, _ in pieces], [sizes for _, sizes in pieces], characters)

    def read(self, number: int) -> Iterator[tuple[Any, ...]]:
        """The rows of one bucket, in the order in which they were sent."""
        table = exchange.gather(self.paths, self.sizes, number)
        if table is not None:
            yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def units(sent: Sequence[Sent]) -> list[list[int]]:
    """Neighbouring buckets that together hold at most UNIT_CHARACTERS; a larger one alone."""
    together: list[list[int]] = []
    size = UNIT_CHARACTERS + 1
    for number in range(BUCKETS):
        own = sum(part.characters[number] for part in sent)
        if size + own > UNIT_CHARACTERS:
            together.append([])
            size = 0
        together[-1].append(number)
        size += own
    return together
