"""Exchanges: rows go from units that read shards to units that own a destination, through files with one row group for each
destination. A unit that owns a destination reads its row groups alone, so memory is bounded by one destination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from datakit import storage

Array = np.ndarray[Any, np.dtype[Any]]


def scatter(path: str, table: pa.Table, destinations: Array, count: int) -> list[int]:
    """Writes the rows of `table`, sorted by destination (0 to count - 1), one row group for each destination that has rows.

    Rows of one destination keep their order. Returns the number of rows for each destination.
    """
    order = np.argsort(destinations, kind="stable")
    rows: list[int] = np.bincount(destinations, minlength=count).tolist()
    table = table.take(pa.array(order))
    start = 0
    with storage.atomic(path) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for size in rows:
            if size:
                writer.write_table(table.slice(start, size).combine_chunks(), row_group_size=size)
                start += size
    return rows


def gather(paths: Sequence[str], rows: Sequence[Sequence[int]], destination: int) -> pa.Table | None:
    """The rows for one destination from the files that `scatter` wrote, in the order of the files; None where there are none.

    `rows` holds what `scatter` returned for each file.
    """
    tables = [
        read_row_group(path, sum(1 for size in sizes[:destination] if size))
        for path, sizes in zip(paths, rows, strict=True)
        if destination < len(sizes) and sizes[destination]
    ]
    return pa.concat_tables(tables) if tables else None


def row_groups(path: str) -> int:
    """The number of row groups of a Parquet file that have rows."""
    with _parquet(path) as file:
        return int(file.num_row_groups) if file.metadata.num_rows else 0


def read_row_group(path: str, number: int, columns: list[str] | None = None) -> pa.Table:
    with _parquet(path) as file:
        return file.read_row_group(number, columns=columns)


@contextmanager
def _parquet(path: str) -> Iterator[pq.ParquetFile]:
    fs, inner = storage.filesystem(path)
    if isinstance(fs, LocalFileSystem):
        with pq.ParquetFile(inner) as file:
            yield file
    else:
        with fs.open(inner, "rb") as stream, pq.ParquetFile(stream) as file:
            yield file
