"""The dense miners: the nearest texts by an encoder, in the whole corpus (`dense`), or outside the cluster of the positive
(`other_cluster`).

    vectors   piece   -> the vectors of its texts, in their order (the embed step has made them)
    centres   corpus  -> centres of clusters (corpora of more than EXACT texts, or where clusters are asked for)
    assign    piece   -> the cluster of each text

A search multiplies in float32 and computes what may be among the best again in float64, so that the hits of a query depend on
nothing but its own vector and those of the corpus: exact search finds what comparing everything finds, for any pieces.
Clusters are those of dedup/nearby.py: centres and choices of clusters are exact whole numbers.

Memory: the vectors of one piece (32,768 x d x 4 bytes; 50 MB at d = 384); 45,000 at most for centres; searching, `depth` places
for each of 16,384 queries, their vectors, and QUERIES x BLOCK products. Vectors of the corpus are mapped from disk.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from datakit.dedup import nearby
from datakit.encoders.vectors import load_array, lookup_any, save_array
from datakit.negatives.corpus import Corpora, Corpus, Piece
from datakit.negatives.finding import windowed
from datakit.negatives.postings import Array, Best, Excluded, nearest
from datakit.recipe import DenseMiner, OtherClusterMiner
from datakit.step import Output, Work

DENSE = "dense"
OTHER_CLUSTER = "other_cluster"

# A corpus of so many texts is searched whole.
EXACT = nearby.EXACT

QUERIES, BLOCK = 1_024, 8_192

# Centres are drawn by a seed of their own, and fitted to so many texts for each of them.
SEED, OF_CENTRE = 1, 64


@dataclass(frozen=True)
class Placed:
    """The vectors of a corpus on disk: of each piece; and, with clusters, the centres, and the clusters of each piece."""

    vectors: tuple[str, ...]
    firsts: tuple[int, ...]
    centres: str | None = None
    clusters: tuple[str, ...] = ()


Places = dict[tuple[str, str], Placed]


def place(work: Work, corpora: Corpora, vectors: tuple[Output, ...], label: str, *, clusters: str) -> Places:
    """Brings the vectors of all corpora that are not labelled into their order. `clusters` says where clusters are made: "auto"
    where the corpus is large, "exact" nowhere, "clusters" everywhere."""
    searched = {(each.part, each.name): each for each in corpora.values() if not each.labelled}
    units = [(key, piece) for key in sorted(searched) for piece in searched[key].pieces]
    work.map(f"vectors-{label}", _Vectors(vectors), [piece for _, piece in units])
    files = [work.files(f"vectors-{label}", number, "vectors.npy") for number in range(len(units))]
    placed = {}
    for key in sorted(searched):
        mine = [number for number, (owner, _) in enumerate(units) if owner == key]
        placed[key] = Placed(tuple(files[number] for number in mine), tuple(units[number][1].first for number in mine))
    smallest = {"clusters": 0, "auto": EXACT, "exact": math.inf}[clusters]
    clustered = [key for key in sorted(searched) if searched[key].size > smallest]
    work.map(f"centres-{label}", _centres, [placed[key].vectors for key in clustered], exclusive=True)
    jobs = [
        (file, work.files(f"centres-{label}", number, "centres.npy"))
        for number, key in enumerate(clustered)
        for file in placed[key].vectors
    ]
    work.map(f"assign-{label}", _assign, jobs)
    start = 0
    for key in clustered:
        count = len(placed[key].vectors)
        assigned = tuple(work.files(f"assign-{label}", start + number, "clusters.npy") for number in range(count))
        placed[key] = Placed(placed[key].vectors, placed[key].firsts, jobs[start][1], assigned)
        start += count
    return placed


@dataclass(frozen=True)
class _Vectors:
    vectors: tuple[Output, ...]

    def __call__(self, piece: Piece, folder: str) -> dict[str, Any]:
        ids = piece.texts("id").get_column("id").to_list()
        save_array(f"{folder}/vectors.npy", lookup_any(self.vectors, "document", ids))
        return {"rows": piece.size}


def _centres(files: tuple[str, ...], folder: str) -> dict[str, Any]:
    centres = _centres_of([load_array(file) for file in files])
    save_array(f"{folder}/centres.npy", centres)
    return {"clusters": len(centres)}


def _centres_of(parts: Sequence[Array]) -> Array:
    size = sum(len(part) for part in parts)
    # Texts stand by their ids, which are digests: the first ones are a fair sample.
    left, sample = min(size, max(4_096, OF_CENTRE * math.isqrt(size))), []
    for part in parts:
        sample.append(part[:left])
        left -= len(sample[-1])
    return nearby.centres_of([np.concatenate(sample)], size, SEED)


def _assign(unit: tuple[str, str], folder: str) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    vectors, centres = unit
    with threadpool_limits(1):
        found = nearby.nearest([load_array(vectors)], load_array(centres), 1)[:, 0]
    save_array(f"{folder}/clusters.npy", found.astype(np.int32))
    return {"rows": len(found)}


@dataclass(frozen=True)
class DenseFinder:
    """The nearest texts to each query."""

    miner: DenseMiner
    vectors: tuple[Output, ...]
    places: Places
    name: str = DENSE

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        queries = lookup_any(self.vectors, "query", rows.get_column("query_id").to_list())
        return search(_opened(self.places[corpus.part, corpus.name]), queries, self.miner, excluded)


def search(vectors: Opened, queries: Array, miner: DenseMiner, excluded: Excluded) -> pl.DataFrame:
    """The texts of a corpus that are nearest to queries (n, d), all of length 1: FOUND, by number, and the best first.

    There may be clusters that another miner asked for: `search` of the miner alone says whether to go by them.
    """
    size = sum(len(part) for part in vectors.parts)
    best = Best.nothing(len(queries), min(miner.window[1], size))
    whole = miner.search == "exact" or (miner.search == "auto" and size <= EXACT)
    if whole or vectors.centres is None:
        _search_all(vectors, queries, excluded, best)
    else:
        probed = nearby.nearest([queries], vectors.centres, miner.probes)
        _search_clusters(vectors, queries, probed, excluded, best)
    return windowed(*best.ranked(), miner.window)


@dataclass(frozen=True)
class OtherClusterFinder:
    """The texts nearest to each query in the clusters next to that of its positive.

    All texts in the cluster of the positive count as better: their number is added to the rank that makes the difficulty.
    """

    miner: OtherClusterMiner
    vectors: tuple[Output, ...]
    places: Places
    name: str = OTHER_CLUSTER

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        queries = lookup_any(self.vectors, "query", rows.get_column("query_id").to_list())
        positives = lookup_any(self.vectors, "document", rows.get_column("positive_id").to_list())
        vectors = _opened(self.places[corpus.part, corpus.name])
        assert vectors.centres is not None
        near = nearby.nearest([positives], vectors.centres, self.miner.clusters + 1)
        best = Best.nothing(len(rows), min(self.miner.window[1], corpus.size))
        _search_clusters(vectors, queries, near[:, 1:], excluded, best)
        own = np.diff(vectors.bounds)[near[:, 0]]
        return windowed(*best.ranked(), self.miner.window, own)


@dataclass(frozen=True)
class Opened:
    """Vectors of a corpus. Those of cluster c are at positions members[bounds[c] : bounds[c + 1]], ascending."""

    parts: tuple[Array, ...]
    firsts: Array
    centres: Array | None = None
    members: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    bounds: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def at(self, positions: Array) -> Array:
        """The vectors at some positions, which ascend."""
        ends = np.searchsorted(positions, np.append(self.firsts[1:], np.iinfo(np.int64).max))
        starts = np.concatenate(([0], ends[:-1]))
        found = [
            part[positions[start:end] - first]
            for part, first, start, end in zip(self.parts, self.firsts, starts, ends, strict=True)
            if end > start
        ]
        return np.concatenate(found) if len(found) != 1 else found[0]


@functools.lru_cache(maxsize=1)
def _opened(placed: Placed) -> Opened:
    parts = tuple(load_array(file) for file in placed.vectors)
    firsts = np.array(placed.firsts, np.int64)
    if placed.centres is None:
        return Opened(parts, firsts)
    assigned = np.concatenate([load_array(file) for file in placed.clusters])
    return _clustered(parts, firsts, np.asarray(load_array(placed.centres)), assigned)


def in_memory(vectors: Array) -> Opened:
    """A corpus whose vectors (n, d) are at hand, in an order that says nothing of the texts; with clusters where it is large."""
    parts, firsts = (vectors,), np.zeros(1, np.int64)
    if len(vectors) <= EXACT:
        return Opened(parts, firsts)
    centres = _centres_of(parts)
    return _clustered(parts, firsts, centres, nearby.nearest(parts, centres, 1)[:, 0])


def _clustered(parts: tuple[Array, ...], firsts: Array, centres: Array, assigned: Array) -> Opened:
    members = np.argsort(assigned, kind="stable").astype(np.int64)
    bounds = np.searchsorted(assigned[members], np.arange(len(centres) + 1))
    return Opened(parts, firsts, centres, members, bounds)


def _search_all(vectors: Opened, queries: Array, excluded: Excluded, best: Best) -> None:
    numbers = np.arange(len(queries))
    for part, first in zip(vectors.parts, vectors.firsts.tolist(), strict=True):
        for start in range(0, len(part), BLOCK):
            block = np.ascontiguousarray(part[start : start + BLOCK])
            positions = np.arange(first + start, first + start + len(block))
            for some in _cut(numbers):
                _compare(queries[some], block, positions, some, excluded, best)


def _search_clusters(vectors: Opened, queries: Array, probed: Array, excluded: Excluded, best: Best) -> None:
    order = np.argsort(probed.ravel(), kind="stable")
    ends = np.searchsorted(probed.ravel()[order], np.arange(len(vectors.bounds)))
    visitors = order // max(1, probed.shape[1])
    for cluster, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
        positions = vectors.members[vectors.bounds[cluster] : vectors.bounds[cluster + 1]]
        if start == end or not len(positions):
            continue
        members = vectors.at(positions)
        for some in _cut(visitors[start:end]):
            _compare(queries[some], members, positions, some, excluded, best)


def _compare(queries: Array, vectors: Array, positions: Array, rows: Array, excluded: Excluded, best: Best) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        products = queries @ vectors.T
    nearest(products, queries, vectors, positions, rows, excluded, best)


def _cut(numbers: Array) -> Iterator[Array]:
    for start in range(0, len(numbers), QUERIES):
        yield numbers[start : start + QUERIES]
