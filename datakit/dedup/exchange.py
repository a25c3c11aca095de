"""Files between the phases of a step: Arrow record batches, each of which can be read without the others.

A phase writes one file for each of its units, with a batch for each unit of the next phase that it has rows for; a unit of the
next phase reads its batch from each file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit import storage


class Piece(NamedTuple):
    """One batch of one file."""

    path: str
    batch: int


def write_batches(path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Writes record batches to a file, in order."""
    with storage.atomic(path) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: str, *, batch: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """One batch of a file, or all; all columns, or some. Nothing else of the file is read."""
    fs, inner = storage.filesystem(path)
    with fs.open(inner, "rb") as file:
        reader = pa.ipc.open_file(file)
        if columns is not None:
            fields = [reader.schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
        if batch is None:
            return reader.read_all()
        return pa.Table.from_batches([reader.get_batch(batch)])


def read_pieces(pieces: Sequence[Piece]) -> pa.Table:
    """The rows of one or more batches, in order."""
    return pa.concat_tables([read_batches(piece.path, batch=piece.batch) for piece in pieces])


def split_batches(table: pa.Table, keys: NDArray[np.int64]) -> tuple[list[pa.RecordBatch], list[int]]:
    """One batch for each distinct key, in ascending order, and the keys. Rows of one key stay in their order."""
    order = np.argsort(keys, kind="stable")
    found, counts = np.unique(keys, return_counts=True)
    begins = np.cumsum(counts) - counts
    table = table.take(order).combine_chunks()
    slices = [table.slice(begin, count) for begin, count in zip(begins.tolist(), counts.tolist(), strict=True)]
    return [piece.to_batches()[0] for piece in slices], found.tolist()


def addressed(sources: Sequence[tuple[str, Sequence[int]]], address: int) -> list[Piece]:
    """The batches for one unit of the next phase. `sources` are (file, the address of each of its batches)."""
    return [Piece(path, list(addresses).index(address)) for path, addresses in sources if address in addresses]
