"""The embed step: a vector for each text of some rows, each text encoded once. It has no rows of its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.assets import Assets
from datakit.encoders import encode
from datakit.encoders.vectors import ID, ROLES, Array, Role, load_array, pack, save_array
from datakit.recipe import Encoder, Model
from datakit.step import Output, Step, Work

VERSION = 1

# Texts of one unit of work: the most that a killed build encodes again.
SLICE = 512

_COLUMNS: Mapping[Role, tuple[str, str]] = {"query": ("query_id", "query"), "document": ("positive_id", "positive")}


class EmbedParameters(Model):
    encoder: Encoder
    slice: int


def embed_step(name: str, encoder: Encoder, inputs: tuple[Step, ...], assets: Assets) -> Step:
    """A step that encodes all queries and positives of the rows of `inputs`. Read its output with `encoders.vectors`."""
    return Step(
        name=name,
        version=VERSION,
        work=work,
        parameters=EmbedParameters(encoder=encoder, slice=SLICE),
        side=inputs,
        assets={"encoder": assets.digest(encoder.model, encoder.revision)},
        packages=encode.PACKAGES,
    )


@dataclass(frozen=True)
class Slice:
    """Some texts of one shard: the rows where they stand."""

    shard: str
    role: Role
    rows: Array


def work(work: Work) -> None:
    parameters: EmbedParameters = work.step.parameters  # type: ignore[assignment]
    embed(work, [file for source in work.side for file in _files(source)], parameters.encoder, parameters.slice)


def _files(source: Output) -> list[str]:
    """The shards of a step, and the files of texts that a step without rows names (negatives/outside.py)."""
    texts = source.report.notes.get("texts")
    return source.shards + [storage.join(source.folder, name) for name in texts] if isinstance(texts, list) else source.shards


def embed(work: Work, shards: Sequence[str], encoder: Encoder, slice_: int) -> None:
    """The work of a step that embeds the queries and positives of some Parquet files, `slice_` texts at a time."""
    work.map("ids", unique_texts, shards)
    slices: list[Slice] = []
    bounds: dict[str, tuple[int, int]] = {}
    for role in ROLES:
        start = len(slices)
        slices.extend(_slices(work, role, shards, slice_))
        bounds[role] = (start, len(slices))
    try:
        results = work.map("vectors", _Encode(encoder), slices, exclusive=True)
    finally:
        encode.load.cache_clear()
        _texts.cache_clear()
    folders = [work.files("vectors", number, "ids.npy") for number in range(len(slices))]
    work.map("index", write_index, [(bounds, folders)])
    work.notes["dimension"] = next((result["dimension"] for result in results), 0)
    for role in ROLES:
        work.notes[role] = sum(result["rows"] for result in results[slice(*bounds[role])])
    work.finish(None)


def unique_texts(shard: str, folder: str) -> dict[str, Any]:
    """Writes, for each role, the ids of a shard's texts and the first row of each, in the order of the rows."""
    table = storage.read_table(shard, columns=[column for columns in _COLUMNS.values() for column in columns])
    for role, (id_column, text_column) in _COLUMNS.items():
        rows = np.flatnonzero(_present(table, id_column, text_column)).astype(np.int32)
        ids = pack(table.column(id_column).take(pa.array(rows)).to_pylist())
        _, first = np.unique(ids, return_index=True)
        first.sort()
        save_array(storage.join(folder, f"{role}-ids.npy"), ids[first])
        save_array(storage.join(folder, f"{role}-rows.npy"), rows[first])
    return {"rows": table.num_rows}


def _present(table: pa.Table, *columns: str) -> Array:
    masks = [pc.is_valid(table.column(column)) for column in columns]
    return np.asarray(functools.reduce(pc.and_, masks).to_numpy())


def _slices(work: Work, role: Role, shards: Sequence[str], size: int) -> list[Slice]:
    """Slices of the texts, each text where it occurs first in the order of the shards. Takes some 40 bytes a text."""
    ids = [load_array(work.files("ids", number, f"{role}-ids.npy")) for number in range(len(shards))]
    if not ids:
        return []
    _, first = np.unique(np.concatenate(ids), return_index=True)
    first.sort()
    ends = np.cumsum([len(each) for each in ids])
    slices: list[Slice] = []
    for number, (shard, end) in enumerate(zip(shards, ends, strict=True)):
        start = end - len(ids[number])
        mine = first[np.searchsorted(first, start) : np.searchsorted(first, end)] - start
        rows = load_array(work.files("ids", number, f"{role}-rows.npy"))[mine]
        slices.extend(Slice(shard, role, rows[begin : begin + size]) for begin in range(0, len(rows), size))
    return slices


@functools.lru_cache(maxsize=1)
def _texts(shard: str, role: Role) -> pa.Table:
    """A shard is read once for all its slices, which come one after the other."""
    return storage.read_table(shard, columns=list(_COLUMNS[role]))


@dataclass(frozen=True)
class _Encode:
    encoder: Encoder

    def __call__(self, unit: Slice, folder: str) -> dict[str, Any]:
        id_column, text_column = _COLUMNS[unit.role]
        table = _texts(unit.shard, unit.role).take(pa.array(unit.rows))
        vectors = encode.encode(self.encoder, unit.role, table.column(text_column).to_pylist())
        save_array(storage.join(folder, "ids.npy"), pack(table.column(id_column).to_pylist()))
        save_array(storage.join(folder, "vectors.npy"), vectors)
        return {"rows": len(vectors), "dimension": vectors.shape[1]}


def write_index(unit: tuple[Mapping[str, tuple[int, int]], Sequence[str]], folder: str) -> dict[str, Any]:
    """Writes where the vector of each id is: its slice and the row in it, by ascending id."""
    bounds, files = unit
    for role, (start, stop) in bounds.items():
        ids = [load_array(file) for file in files[start:stop]]
        together = np.concatenate(ids) if ids else np.zeros(0, ID)
        numbers = np.repeat(np.arange(start, stop, dtype=np.int32), [len(each) for each in ids])
        rows = np.concatenate([np.arange(len(each), dtype=np.int32) for each in ids]) if ids else np.zeros(0, np.int32)
        order = np.argsort(together, kind="stable")
        save_array(storage.join(folder, f"{role}-ids.npy"), together[order])
        save_array(storage.join(folder, f"{role}-places.npy"), np.stack([numbers, rows], axis=1)[order])
    storage.write_json(storage.join(folder, "slices.json"), bounds)
    return {}
