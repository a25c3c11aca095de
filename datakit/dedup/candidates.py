"""Which rows may be near duplicates: sets of shingles that share a band of their MinHash signatures, found by exchanges.

    sign         shard   -> shingles and band keys of its texts
    meet         bands   -> who shares a band with whom
    components   once    -> rows that are linked by shared bands, packed into groups
    send         shard   -> its rows of each group
    (then)       group   -> compare (`read_group`, and the kernels of verify.py)

Most rows share no band with any other, and go no further than `meet`. A group holds whole components, so that it can be worked
on without looking at another one. Memory: one shard (`sign`, `send`), PARTITION_KEYS keys and the links among them (`meet`), 32
bytes for each row (`components`), GROUP_BYTES of sets and keys or one component, whichever is larger (groups).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit import exchange, storage
from datakit.dedup.signatures import Bands, band_keys, bands_for, signatures
from datakit.recipe import MinHashDedup
from datakit.step import Work

log = logging.getLogger(__name__)

PARTITION_KEYS = 4_000_000
GROUP_BYTES = 64 << 20
# What a row in a group takes besides its shingles and keys: where it stands, and its ids.
_ROW_BYTES = 150


@dataclass(frozen=True)
class Texts:
    """What of a shard is compared: for each row one text, or two that must both be alike.

    scopes: uint64 for each row; only rows of one scope are compared. included: bool for each row.
    """

    parts: Sequence[pa.ChunkedArray]
    scopes: NDArray[np.uint64] | None = None
    included: NDArray[np.bool_] | None = None


View = Callable[[pa.Table], Texts]


@dataclass(frozen=True)
class Group:
    """The rows of one group. keys: uint64 of (bands, rows). values, bounds: their shingle sets, as verify.py takes them.

    shard and row say where each row stands; `carried` holds the columns that were asked for.
    """

    keys: NDArray[np.uint64]
    values: NDArray[np.uint32]
    bounds: NDArray[np.int64]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    carried: pa.Table


@dataclass(frozen=True)
class Sent:
    """Where a group is to be read from: the arguments of `exchange.gather`."""

    paths: list[str]
    sizes: list[list[int]]
    number: int


@dataclass(frozen=True)
class Candidates:
    """Groups of rows that may be alike, and what there is to say about them."""

    groups: list[Sent]
    notes: dict[str, Any]


def find(work: Work, settings: MinHashDedup, view: View, columns: list[str], carry: list[str]) -> Candidates:
    """Groups of rows of `work.shards` that may be alike. `view` is given `columns` of a shard; `carry` go along to the groups.

    settings.on and settings.within are for `view` to follow.
    """
    shards = work.shards
    bands = bands_for(settings.threshold, settings.permutations)
    signed = work.map("sign", _Sign(settings, bands, view, columns), shards)
    files = [work.files("sign", number, "sets.parquet") for number in range(len(shards))]
    sizes = [int(result["signed"]) for result in signed]
    partitions = _partitions(bands.bands, sum(sizes))
    work.map("meet", _Meet(files), partitions)
    links = [work.files("meet", number, "links.parquet") for number in range(len(partitions))]
    (found,) = work.map("components", _Components(files, links, _ROW_BYTES + 8 * bands.bands), [sizes])
    notes = {
        "bands": bands.bands,
        "rows_in_band": bands.rows,
        "expected_recall_at_threshold": round(bands.recall, 4),
        "without_words": sum(int(result["without_words"]) for result in signed),
        "sharing_a_band": found["linked"],
        "largest_component": found["largest"],
    }
    groups = int(found["groups"])
    if not groups:
        return Candidates([], notes)
    placed = work.files("components", 0, "groups.parquet")
    units = [(number, shard, files[number]) for number, shard in enumerate(shards)]
    sent = work.map("send", _Send(carry, groups, placed, found["sizes"]), units)
    paths = [work.files("send", number, "rows.parquet") for number in range(len(shards))]
    return Candidates([Sent(paths, [result["sizes"] for result in sent], number) for number in range(groups)], notes)


def warn_of_cuts(step: str, cut: int) -> None:
    """Says in the log when rows were not compared with all their candidates."""
    if cut:
        log.warning(
            "%s: %d times a row shared bands with very many others just below the threshold, and was not compared with all "
            "of them. Some of their near duplicates may be left; longer shingles or a lower threshold find them.",
            step,
            cut,
        )


def _partitions(bands: int, rows: int) -> list[list[tuple[int, int, int]]]:
    """The work of `meet`: lists of (band, range, ranges). Large data go by ranges of keys, small ones some bands at a time."""
    if rows == 0:
        return []
    ranges = -(-rows // PARTITION_KEYS)
    parts = [(band, number, ranges) for band in range(bands) for number in range(ranges)]
    at_once = max(1, PARTITION_KEYS // rows)
    return [parts[first : first + at_once] for first in range(0, len(parts), at_once)]


@dataclass(frozen=True)
class _Sign:
    settings: MinHashDedup
    bands: Bands
    view: View
    columns: list[str]

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, self.columns)
        texts = self.view(table)
        signed = sign(texts, self.settings, self.bands)
        storage.write_table(storage.join(folder, "sets.parquet"), signed)
        included = table.num_rows if texts.included is None else int(texts.included.sum())
        return {"rows": table.num_rows, "signed": signed.num_rows, "without_words": included - signed.num_rows}


def sign(texts: Texts, settings: MinHashDedup, bands: Bands) -> pa.Table:
    """The rows that have something to compare: `row`, `size` (shingles), `shingles_N` for each text, `band_N` for each band."""
    from datakit.dedup.shingles import shingles

    words = settings.shingle == "word"
    sets = [shingles(part, words=words, size=settings.shingle_size) for part in texts.parts]
    there = np.logical_and.reduce([part.sizes > 0 for part in sets])
    if texts.included is not None:
        there &= texts.included
    rows = np.flatnonzero(there)
    starts = np.stack([part.starts[:-1][rows] for part in sets], axis=1)
    sizes = np.stack([part.sizes[rows] for part in sets], axis=1)
    columns: dict[str, pa.Array] = {"row": pa.array(rows, pa.int64()), "size": pa.array(sizes.sum(axis=1), pa.int64())}
    tokens = np.empty(int(sizes.sum()), np.uint64)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    for number, part in enumerate(sets):
        values = part.values[_slices(starts[:, number], sizes[:, number])]
        offsets = np.concatenate(([0], np.cumsum(sizes[:, number])))
        columns[f"shingles_{number}"] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
        # The same shingle in the other text of a pair is another token.
        tokens[_slices(ends[:, number] - sizes[:, number], sizes[:, number])] = values | np.uint64(number << 32)
    set_starts = np.concatenate(([0], ends[:, -1]))
    signed = signatures(tokens, set_starts, settings.permutations, settings.seed, settings.engine)
    keys = band_keys(signed, bands, None if texts.scopes is None else texts.scopes[rows])
    return pa.table(columns | {f"band_{band}": pa.array(keys[band]) for band in range(bands.bands)})


def _slices(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions of all slices [starts[i], starts[i] + sizes[i]), one slice after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


@dataclass(frozen=True)
class _Meet:
    """Links each row of a bucket to the first one. Rows are numbered through all shards, without those that were not signed."""

    files: list[str]

    def __call__(self, parts: list[tuple[int, int, int]], folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import shared

        ends: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for band, number, ranges in parts:
            name = f"band_{band}"
            nodes, keys = _in_range(self.files, name, number, ranges)
            members, begins, counts = shared(keys)
            left, right = nodes[np.repeat(members[begins], counts)], nodes[members]
            ends.append((left[left != right], right[left != right]))
        left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
        storage.write_table(storage.join(folder, "links.parquet"), pa.table({"left": left, "right": right}))
        return {"links": len(left)}


def _in_range(files: Sequence[str], name: str, number: int, ranges: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The rows whose keys of a band are in range `number` of `ranges`, and these keys. Holds no others, but those of one file."""
    nodes, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    before = 0
    for file in files:
        read = storage.read_table(file, [name]).column(name).to_numpy()
        mine = np.flatnonzero(read % np.uint64(ranges) == number) if ranges > 1 else np.arange(len(read))
        nodes.append(mine + before)
        keys.append(read[mine])
        before += len(read)
    return np.concatenate(nodes), np.concatenate(keys)


class Packed(NamedTuple):
    """group: int32 of each node, -1 where nothing is compared with it. linked: rows in groups; largest: rows of a component."""

    group: NDArray[np.int32]
    groups: int
    linked: int
    largest: int


def packed(component: NDArray[np.int64], rows: NDArray[np.int64], weights: NDArray[np.int64], limit: int) -> Packed:
    """Packs components (the lowest node of each node's component) of more than one row into groups of about `limit` weight.

    `rows` and `weights` are those of each node.
    """
    members = np.bincount(component, weights=rows, minlength=len(component)).astype(np.int64)
    leaders = np.flatnonzero(members > 1)
    heavy = np.bincount(component, weights=weights, minlength=len(component)).astype(np.int64)[leaders]
    group = np.full(len(component), -1, np.int32)
    group[leaders] = np.unique((np.cumsum(heavy) - heavy) // limit, return_inverse=True)[1]
    groups = int(group.max(initial=-1)) + 1
    return Packed(group[component], groups, int(members[leaders].sum()), int(members[leaders].max(initial=0)))


@dataclass(frozen=True)
class _Components:
    """The group of each signed row, -1 where it shares no band; sent to the shards."""

    files: list[str]
    links: list[str]
    row_bytes: int

    def __call__(self, sizes: list[int], folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import roots, unite

        parents = np.arange(sum(sizes), dtype=np.int64)
        for path in self.links:
            table = storage.read_table(path)
            unite(parents, table.column("left").to_numpy(), table.column("right").to_numpy())
        shingles = [storage.read_table(file, ["size"]).column("size").to_numpy() for file in self.files]
        weights = np.concatenate([*shingles, np.empty(0, np.int64)]) * 4 + self.row_bytes
        found = packed(roots(parents), np.ones(len(parents), np.int64), weights, GROUP_BYTES)
        shards = np.repeat(np.arange(len(sizes)), sizes)
        path = storage.join(folder, "groups.parquet")
        return {
            "sizes": exchange.scatter(path, pa.table({"group": found.group}), shards, len(sizes)),
            "groups": found.groups,
            "linked": found.linked,
            "largest": found.largest,
        }


@dataclass(frozen=True)
class _Send:
    """Sends the rows of a shard that are in a group to it."""

    carry: list[str]
    groups: int
    placed: str
    sizes: list[int]

    def __call__(self, unit: tuple[int, str, str], folder: str) -> dict[str, Any]:
        number, shard, file = unit
        placed = exchange.gather([self.placed], [self.sizes], number)
        group = np.empty(0, np.int32) if placed is None else placed.column("group").to_numpy()
        linked = np.flatnonzero(group >= 0)
        table = storage.read_table(file).take(linked)
        table = table.append_column("shard", pa.array(np.full(len(linked), number)))
        if self.carry:
            carried = storage.read_table(shard, self.carry).take(table.column("row"))
            for name in self.carry:
                table = table.append_column(f"carried_{name}", carried.column(name))
        sizes = exchange.scatter(storage.join(folder, "rows.parquet"), table, group[linked], self.groups)
        return {"rows": len(linked), "sizes": sizes}


def read_group(sent: Sent) -> Group:
    """The rows of a group, in the order of shards and rows."""
    table = exchange.gather(sent.paths, sent.sizes, sent.number)
    assert table is not None, "a group has rows"
    names = table.column_names
    values, bounds, read = [], [], 0
    for name in names:
        if not name.startswith("shingles_"):
            continue
        column = table.column(name).combine_chunks()
        values.append(column.flatten().to_numpy())
        offsets = column.offsets.to_numpy() - column.offsets[0].as_py() + read
        read += len(values[-1])
        bounds += [offsets[:-1], offsets[1:]]
    carried = [name for name in names if name.startswith("carried_")]
    return Group(
        keys=np.stack([table.column(name).to_numpy() for name in names if name.startswith("band_")]),
        values=np.concatenate(values),
        bounds=np.stack(bounds, axis=1),
        shard=table.column("shard").to_numpy(),
        row=table.column("row").to_numpy(),
        carried=table.select(carried).rename_columns([name.removeprefix("carried_") for name in carried]),
    )
