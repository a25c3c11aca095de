"""What of rows is compared by its vectors: each text, or pair of texts, once (a node), numbered, with its vectors in that order.

Nodes are numbered by their scopes and ids: neither the order of rows nor how they lie in shards changes a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datakit import exchange, storage
from datakit.dedup.scopes import scope
from datakit.encoders.vectors import ID, ROLES, dimension, load_array, lookup, pack, save_array
from datakit.step import Output, Work

# Nodes whose vectors lie in one file: 25 MiB of 384 dimensions.
VECTORS = 16_384

_COLUMNS = ["category", "query", "positive", "query_id", "positive_id", "label", "in_batch_negatives"]
# The ids of the one text or the two, as whole numbers; the second one is 0 where there is none.
_IDS = ["first_high", "first_low", "second_high", "second_low"]


@dataclass(frozen=True)
class Nodes:
    """count: how many there are. scopes: (first node, nodes) of each scope, in the order of the nodes.

    parts: texts that are compared, 1 or 2. path, rows, ids, roles: files with the scope of each node (its number), how many rows
    it has, its ids, and the role of the first.
    placed, sizes: which row of each shard has which node, for `exchange.gather`.
    """

    count: int
    parts: int
    scopes: list[tuple[int, int]]
    path: str
    rows: str
    ids: str
    roles: str
    placed: str
    sizes: list[int]


@dataclass(frozen=True)
class Places:
    """Where the vectors of nodes lie: for each range of `size` nodes, a file for each part."""

    files: list[list[str]]
    size: int


def number_nodes(work: Work, on: str, within: str) -> tuple[Nodes, int]:
    """The nodes of the rows of `work.shards`, and how many rows have none, since a text is missing."""
    said = work.map("texts", _Texts(on, within), work.shards)
    files = [work.files("texts", number, "texts.parquet") for number in range(len(said))]
    (found,) = work.map("nodes", _number, [files])
    path = {name: work.files("nodes", 0, f"{name}.npy") for name in ("scopes", "rows", "ids", "roles")}
    nodes = Nodes(
        count=int(found["count"]),
        parts=2 if on == "pair" else 1,
        scopes=[(int(start), int(size)) for start, size in found["scopes"]],
        path=path["scopes"],
        rows=path["rows"],
        ids=path["ids"],
        roles=path["roles"],
        placed=work.files("nodes", 0, "placed.parquet"),
        sizes=found["sizes"],
    )
    return nodes, sum(int(result["without_text"]) for result in said)


@dataclass(frozen=True)
class _Texts:
    """What each row is compared by. Rows whose positive is a label are compared by their queries, among rows of that label, where
    the positive counts: labels that mean nearly the same are still two labels."""

    on: str
    within: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        from datakit.filters.sides import positive_is_label  # all filters come with it

        table = storage.read_table(shard, _COLUMNS)
        scopes = np.zeros(table.num_rows, np.uint64)
        if self.within == "category":
            scopes ^= scope(table.column("category"))
        is_label = positive_is_label(table)
        if self.on != "query":
            labels = pc.if_else(pa.array(is_label), table.column("positive"), pa.scalar(None, pa.string()))
            scopes = scopes * np.uint64(3) ^ scope(labels)
        sides = {"query": ["query"], "positive": ["positive"], "pair": ["query", "positive"]}[self.on]
        by_query = is_label if self.on == "positive" else np.full(table.num_rows, self.on != "positive")
        there = np.ones(table.num_rows, bool)
        for side in sides:
            length = pc.fill_null(pc.utf8_length(table.column(side)), 0).to_numpy()
            there &= (length > 0) & table.column(f"{side}_id").is_valid().to_numpy()
        if self.on == "positive":
            asked = pc.fill_null(pc.utf8_length(table.column("query")), 0).to_numpy()
            there &= ~is_label | ((asked > 0) & table.column("query_id").is_valid().to_numpy())
        rows = np.flatnonzero(there)
        first = pc.if_else(pa.array(by_query), table.column("query_id"), table.column("positive_id")).take(rows)
        ids = [_as_numbers(first), _as_numbers(table.column("positive_id").take(rows)) if self.on == "pair" else None]
        columns: dict[str, Any] = {"row": rows, "scope": scopes[rows], "role": (~by_query[rows]).astype(np.uint8)}
        for number, name in enumerate(_IDS):
            side_ids = ids[number // 2]
            columns[name] = np.zeros(len(rows), np.uint64) if side_ids is None else side_ids[:, number % 2]
        storage.write_table(storage.join(folder, "texts.parquet"), pa.table(columns))
        return {"rows": table.num_rows, "without_text": table.num_rows - len(rows)}


def _as_numbers(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """uint64 (n, 2); it sorts as the ids do."""
    return np.frombuffer(pack(ids.to_pylist()).tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)


def _as_ids(numbers: NDArray[np.uint64]) -> NDArray[Any]:
    return np.frombuffer(numbers.astype(">u8").tobytes(), ID)


def _number(files: list[str], folder: str) -> dict[str, Any]:
    """Numbers the nodes of all rows. Takes some 60 bytes for each row."""
    texts = [storage.read_table(file) for file in files]
    sizes = [table.num_rows for table in texts]
    joined = {
        name: np.concatenate([*(table.column(name).to_numpy() for table in texts), np.empty(0, np.uint64)]).astype(np.uint64)
        for name in ["scope", *_IDS]
    }
    order = np.lexsort([joined[name] for name in reversed(["scope", *_IDS])])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for values in joined.values():
        new[1:] |= values[order[1:]] != values[order[:-1]]
    node = np.empty(len(order), np.int64)
    node[order] = np.cumsum(new) - 1
    first = order[new]
    scopes, starts, counts, rows = _runs(joined["scope"][first], node)
    roles = np.concatenate([*(table.column("role").to_numpy() for table in texts), np.empty(0, np.uint8)]).astype(np.uint8)
    save_array(storage.join(folder, "scopes.npy"), scopes)
    save_array(storage.join(folder, "rows.npy"), rows)
    save_array(storage.join(folder, "ids.npy"), np.stack([joined[name][first] for name in _IDS], axis=1))
    save_array(storage.join(folder, "roles.npy"), roles[first])
    row = np.concatenate([*(table.column("row").to_numpy() for table in texts), np.empty(0, np.int64)]).astype(np.int64)
    shards = np.repeat(np.arange(len(sizes)), sizes)
    placed = exchange.scatter(storage.join(folder, "placed.parquet"), pa.table({"node": node, "row": row}), shards, len(sizes))
    return {"count": len(first), "scopes": np.stack((starts, counts), axis=1).tolist(), "sizes": placed}


def _runs(
    scopes: NDArray[np.uint64], node: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The number of each node's scope, the first node and the size of each scope, and how many rows each node has."""
    _, starts, number, counts = np.unique(scopes, return_index=True, return_inverse=True, return_counts=True)
    return number.astype(np.int64), starts, counts, np.bincount(node, minlength=len(scopes)).astype(np.int64)


def write_vectors(work: Work, nodes: Nodes, embedded: Output) -> Places:
    """Writes the vectors of all nodes in their order, from those of an embed step."""
    ranges = [(first, min(first + VECTORS, nodes.count)) for first in range(0, nodes.count, VECTORS)]
    work.map("vectors", _Vectors(nodes, embedded), ranges)
    names = [f"{part}.npy" for part in range(nodes.parts)]
    return Places([[work.files("vectors", number, name) for name in names] for number in range(len(ranges))], VECTORS)


@dataclass(frozen=True)
class _Vectors:
    nodes: Nodes
    embedded: Output

    def __call__(self, unit: tuple[int, int], folder: str) -> dict[str, Any]:
        here = slice(*unit)
        ids, roles = load_array(self.nodes.ids)[here], np.asarray(load_array(self.nodes.roles)[here])
        for part in range(self.nodes.parts):
            wanted = _as_ids(ids[:, 2 * part : 2 * part + 2])
            vectors = np.zeros((len(wanted), dimension(self.embedded)), np.float32)
            for number, role in enumerate(ROLES):
                mine = np.flatnonzero(roles == number if part == 0 else np.full(len(roles), role == "document"))
                vectors[mine] = lookup(self.embedded, role, wanted[mine])
            save_array(storage.join(folder, f"{part}.npy"), vectors)
        return {"rows": len(ids)}


def read_vectors(places: Places, nodes: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """The vectors of some nodes, in their order: an array (n, d) for each part."""
    blocks = nodes // places.size
    found: list[NDArray[np.float32]] = []
    for part in range(len(places.files[0])):
        pieces = {block: load_array(places.files[block][part]) for block in np.unique(blocks).tolist()}
        width = next(iter(pieces.values())).shape[1] if pieces else 0
        vectors = np.empty((len(nodes), width), np.float32)
        for block, piece in pieces.items():
            mine = np.flatnonzero(blocks == block)
            vectors[mine] = piece[nodes[mine] - block * places.size]
        found.append(vectors)
    return found
