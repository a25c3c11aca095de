"""Rows that mean the same: the cosine of their vectors, as an embed step has made them, decides.

    texts        shard   -> the ids of what is compared
    nodes        once    -> what is compared, each once and numbered; back to the shards
    vectors      range   -> the vectors of some nodes, in their order
    (large scopes only)
    centres      scope   -> centres of clusters
    assign       range   -> the clusters that each node is compared with
    (then)
    link         tile, or cluster -> nodes that are alike
    components   once    -> nodes that are linked, packed into groups
    send         shard   -> its rows of each group
    compare      group   -> one of those alike is kept, the others leave

A row is dropped exactly when it is at or above the threshold with a kept row of higher rank in its component. Where no scope is
large (nearby.py), a component holds all pairs that are alike, and so this is what all comparisons would give. Rows of the same
texts share the fate of the best of them; a row whose texts are those of a kept row leaves with the similarity 1.

Memory: 64 bytes for each row (`nodes`, `components`); the vectors of VECTORS nodes, of two tiles, of a cluster and those that
visit it, and of GROUP_NODES nodes or one component, whichever is larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import exchange, storage
from datakit.dedup import nearby
from datakit.dedup.candidates import packed
from datakit.dedup.nodes import Nodes, Places, number_nodes, read_vectors, write_vectors
from datakit.dedup.survivors import RANKED_BY, best_first, reject_losers, write_losers
from datakit.encoders.vectors import load_array, save_array
from datakit.recipe import SemanticDedup
from datakit.step import Step, Work
from datakit.synthesis.clusters import SAMPLE

VERSION = 1

SEMANTIC_DUPLICATE = "semantic_duplicate"

GROUP_NODES = 50_000

# Clusters are drawn by a seed of their own: nothing that a person would want to change.
SEED = 1


def semantic_step(name: str, dedup: SemanticDedup, inputs: tuple[Step, ...], vectors: Step) -> Step:
    """`vectors` is an embed step over the texts of `inputs`, or over those of rows that they come from."""
    return Step(name, VERSION, _work, dedup, inputs, side=(vectors,), packages=("numpy", "python"))


def _work(work: Work) -> None:
    dedup = work.step.parameters
    assert isinstance(dedup, SemanticDedup)
    nodes, without = number_nodes(work, dedup.on, dedup.within)
    large = [scope for scope in nodes.scopes if nearby.is_large(scope[1])]
    vectors = write_vectors(work, nodes, work.side[0])
    tiles = list(nearby.tiles([size for _, size in nodes.scopes]))
    found: list[_Tiled | _Cluster] = [_Tiled(tile) for tile in tiles]
    found += _clusters(work, vectors, large, dedup.probes)
    work.map("link", _Link(nodes.path, vectors, dedup.threshold), found)
    links = [work.files("link", number, "links.npy") for number in range(len(found))]
    (placed,) = work.map("components", _Components(nodes, links), [None])
    work.notes |= {
        "without_text": without,
        "distinct": nodes.count,
        "searched_by_clusters": sum(size for _, size in large),
        "alike": placed["linked"],
        "largest_component": placed["largest"],
    }
    groups = int(placed["groups"])
    send = _Send(work.files("components", 0, "groups.npy"), groups, nodes)
    sent = work.map("send", send, list(enumerate(work.shards)))
    paths = [work.files("send", number, "rows.parquet") for number in range(len(sent))]
    compare = _Compare(paths, [result["sizes"] for result in sent], vectors, dedup.threshold)
    reject_losers(work, "compare", work.map("compare", compare, range(groups)))


@dataclass(frozen=True)
class _Tiled:
    """A tile to compare."""

    tile: nearby.Tile


@dataclass(frozen=True)
class _Cluster:
    """A cluster to compare, with those that visit it: the arguments of `exchange.gather`."""

    paths: list[str]
    sizes: list[list[int]]
    number: int


def _clusters(work: Work, vectors: Places, large: list[tuple[int, int]], probes: int) -> list[_Tiled | _Cluster]:
    """The clusters of the large scopes, each (first node, nodes)."""
    work.map("centres", _Centres(vectors), large)
    ranges = [
        (first, min(first + vectors.size, start + size), work.files("centres", number, "centres.npy"))
        for number, (start, size) in enumerate(large)
        for first in range(start, start + size, vectors.size)
    ]
    assigned = work.map("assign", _Assign(vectors, probes), ranges)
    found: list[_Tiled | _Cluster] = []
    for number in range(len(large)):
        centres = work.files("centres", number, "centres.npy")
        mine = [place for place, unit in enumerate(ranges) if unit[2] == centres]
        paths = [work.files("assign", place, "clusters.parquet") for place in mine]
        sizes = [assigned[place]["sizes"] for place in mine]
        found += [_Cluster(paths, sizes, cluster) for cluster in range(len(sizes[0]))]
    return found


@dataclass(frozen=True)
class _Centres:
    vectors: Places

    def __call__(self, scope: tuple[int, int], folder: str) -> dict[str, Any]:
        start, size = scope
        # Nodes of a scope stand by their ids, which are digests: the first ones are a fair sample.
        sample = read_vectors(self.vectors, np.arange(start, start + min(size, SAMPLE)))
        centres = nearby.centres_of(sample, size, SEED)
        save_array(storage.join(folder, "centres.npy"), centres)
        return {"clusters": len(centres)}


@dataclass(frozen=True)
class _Assign:
    vectors: Places
    probes: int

    def __call__(self, unit: tuple[int, int, str], folder: str) -> dict[str, Any]:
        first, end, path = unit
        nodes, centres = np.arange(first, end), load_array(path)
        near = nearby.nearest(read_vectors(self.vectors, nodes), centres, self.probes)
        home = np.zeros(near.shape, bool)
        home[:, 0] = True
        table = pa.table({"node": np.repeat(nodes, near.shape[1]), "home": home.ravel()})
        sizes = exchange.scatter(storage.join(folder, "clusters.parquet"), table, near.ravel(), len(centres))
        return {"rows": len(nodes), "sizes": sizes}


@dataclass(frozen=True)
class _Link:
    """Links the nodes of a tile, or of a cluster, that are alike: each to the lowest of those it hangs together with there."""

    nodes: str
    vectors: Places
    threshold: float

    def __call__(self, unit: _Tiled | _Cluster, folder: str) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits

        from datakit.dedup.cosine import alike
        from datakit.dedup.verify import roots, unite

        scopes, same = None, False
        if isinstance(unit, _Tiled):
            tile = unit.tile
            same = tile.left == tile.right
            left, right = np.arange(tile.left, tile.left_end), np.arange(tile.right, tile.right_end)
            if same:
                scope = load_array(self.nodes)[tile.left : tile.left_end]
                scopes = (scope, scope)
        else:
            table = exchange.gather(unit.paths, unit.sizes, unit.number)
            everybody = np.empty(0, np.int64) if table is None else table.column("node").to_numpy()
            home = np.empty(0, bool) if table is None else table.column("home").to_numpy()
            # Visitors are compared with members, and members with each other.
            left, right = everybody[home], np.concatenate((everybody[home], everybody[~home]))
        members, where = np.unique(np.concatenate((left, right)), return_inverse=True)
        at_left, at_right = where[: len(left)], where[len(left) :]
        parents = np.arange(len(members), dtype=np.int64)
        parts = read_vectors(self.vectors, left)
        others = parts if same else read_vectors(self.vectors, right)
        with threadpool_limits(1):
            for i, j in alike(parts, others, self.threshold, scopes, upper=same):
                unite(parents, at_left[i], at_right[j])
        root = roots(parents)
        linked = np.flatnonzero(root != np.arange(len(root)))
        save_array(storage.join(folder, "links.npy"), np.stack((members[root[linked]], members[linked])))
        return {"rows": len(members)}


@dataclass(frozen=True)
class _Components:
    """The group of each node, -1 where neither another node nor another row is like it."""

    nodes: Nodes
    links: list[str]

    def __call__(self, _: None, folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import roots, unite

        parents = np.arange(self.nodes.count, dtype=np.int64)
        for path in self.links:
            left, right = load_array(path)
            unite(parents, left, right)
        component = roots(parents)
        rows = np.asarray(load_array(self.nodes.rows))
        found = packed(component, rows, np.ones(len(rows), np.int64), GROUP_NODES)
        path = storage.join(folder, "groups.npy")
        save_array(path, np.stack((found.group, component)))
        return {"groups": found.groups, "linked": found.linked, "largest": found.largest}


@dataclass(frozen=True)
class _Send:
    """Sends the rows of a shard that are in a group to it."""

    placed: str
    groups: int
    nodes: Nodes

    def __call__(self, unit: tuple[int, str], folder: str) -> dict[str, Any]:
        number, shard = unit
        mine = exchange.gather([self.nodes.placed], [self.nodes.sizes], number)
        if mine is None or not self.groups:
            return {"sizes": [0] * self.groups}
        node = mine.column("node").to_numpy()
        group, component = (each[node] for each in load_array(self.placed))
        linked = np.flatnonzero(group >= 0)
        rows = mine.column("row").to_numpy()[linked]
        table = storage.read_table(shard, RANKED_BY).take(rows)
        for name, values in (("node", node[linked]), ("component", component[linked]), ("row", rows)):
            table = table.append_column(name, pa.array(values, pa.int64()))
        table = table.append_column("shard", pa.array(np.full(len(rows), number, np.int64)))
        sizes = exchange.scatter(storage.join(folder, "rows.parquet"), table, group[linked], self.groups)
        return {"rows": len(rows), "sizes": sizes}


@dataclass(frozen=True)
class _Compare:
    """Drops the rows of a group that are like a better one."""

    paths: list[str]
    sizes: list[list[int]]
    vectors: Places
    threshold: float

    def __call__(self, group: int, folder: str) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits

        from datakit.dedup.cosine import survivors

        table = exchange.gather(self.paths, self.sizes, group)
        assert table is not None, "a group has rows"
        table = table.take(best_first(table))
        # The best row of a node stands for it: the others have the same texts.
        nodes, first, of_row = np.unique(table.column("node").to_numpy(), return_index=True, return_inverse=True)
        component = table.column("component").to_numpy()[first]
        # From the best node of the first component to the worst one of the last.
        order = np.lexsort((first, component))
        starts = np.flatnonzero(np.diff(component[order], prepend=-1))
        parts = read_vectors(self.vectors, nodes)
        kept_as, similarity = np.full(len(nodes), -1, np.int64), np.zeros(len(nodes))
        with threadpool_limits(1):
            for members in np.split(order, starts[1:]):
                if len(members) == 1:
                    continue
                found, values = survivors([part[members] for part in parts], self.threshold)
                lost = np.flatnonzero(found >= 0)
                kept_as[members[lost]], similarity[members[lost]] = members[found[lost]], values[lost]
        # A row leaves with its node, and then names the row that stands for the kept node; or it has another row's texts.
        instead = np.where(kept_as[of_row] >= 0, first[kept_as[of_row]], first[of_row])
        value = np.where(kept_as[of_row] >= 0, similarity[of_row], 1.0)
        lost = np.flatnonzero(instead != np.arange(table.num_rows))
        losers = pa.table(
            {
                "shard": table.column("shard").take(lost),
                "row": table.column("row").take(lost),
                "reason": pa.array([SEMANTIC_DUPLICATE] * len(lost), pa.string()),
                "value": value[lost],
                "threshold": np.full(len(lost), self.threshold),
                "other_id": table.column("row_id").take(instead[lost]),
                "detail": pa.nulls(len(lost), pa.string()),
            }
        )
        return {"rows": table.num_rows} | write_losers(folder, losers, len(self.paths))
