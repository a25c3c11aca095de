"""Which vectors are compared: all of a scope with each other, or, in a large scope, those of one cluster and of clusters near it.

Small scopes are packed into tiles, and cut into tiles where they are larger than one: every pair of a scope meets. A scope of
more than EXACT vectors is parted into clusters in the manner of SemDeDup (Abbas et al. 2023, arXiv 2303.09540, section 3). There
two alike vectors on either side of a border never meet; here each is also compared with the members of the `probes` clusters
whose centres are nearest to it, as an inverted file is searched (Jegou et al. 2011, section IV).

This is an index of our own, and neither faiss nor usearch, for one reason: its centres and its choice of clusters are exact whole
numbers (synthesis/clusters.py), so that the pairs it finds do not depend on the order of the rows, on threads or workers. The
graph of an HNSW index depends on the order in which it is filled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datakit.synthesis import clusters

Parts = Sequence[NDArray[np.float32]]

# A scope of so many vectors is searched without clusters: 50,000 take half a minute of one processor.
EXACT = 50_000

TILE = 4_096

# Vectors whose nearest centres are looked up at a time.
_ASSIGNED = 4_096


class Tile(NamedTuple):
    """Two ranges of vectors, [left, left_end) and [right, right_end), that are compared; or the same one twice."""

    left: int
    left_end: int
    right: int
    right_end: int


def tiles(sizes: Sequence[int]) -> Iterator[Tile]:
    """Tiles for scopes of such sizes, whose vectors stand one scope after the other; large ones (see `is_large`) have none.

    A tile may hold several small scopes: only pairs of one scope count.
    """
    start, end = 0, 0
    for size in sizes:
        if end - start + size > TILE:
            if end > start:
                yield Tile(start, end, start, end)
            start = end
        end += size
        if size > TILE:
            if not is_large(size):
                yield from _cut(start, end)
            start = end
    if end > start:
        yield Tile(start, end, start, end)


def _cut(start: int, end: int) -> Iterator[Tile]:
    for left in range(start, end, TILE):
        for right in range(left, end, TILE):
            yield Tile(left, min(left + TILE, end), right, min(right + TILE, end))


def is_large(size: int) -> bool:
    return size > EXACT


def as_whole(parts: Parts) -> NDArray[np.int16]:
    """What clusters are made of: the vector, or the two of a pair as one. Its product is the mean of theirs."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) / np.float32(math.sqrt(len(parts)))
    whole: NDArray[np.int16] = clusters.whole(joined)
    return whole


def centres_of(sample: Parts, size: int, seed: int) -> NDArray[np.float32]:
    """The centres for a scope of `size` vectors, fitted to a sample of it."""
    found: NDArray[np.float32] = clusters.centres_of(as_whole(sample), math.isqrt(size), seed)
    return found


def nearest(parts: Parts, centres: NDArray[np.float32], probes: int) -> NDArray[np.int64]:
    """int64 (n, probes): the clusters whose centres are nearest to each vector, the nearest one first; the lower among equals."""
    count = min(probes, len(centres))
    found = np.empty((len(parts[0]), count), np.int64)
    for first in range(0, len(found), _ASSIGNED):
        # Whole numbers below 2^24, so exact. The number of the cluster breaks ties.
        products = as_whole([part[first : first + _ASSIGNED] for part in parts]).astype(np.float32) @ centres.T
        keys = -products.astype(np.int64) * len(centres) + np.arange(len(centres))
        found[first : first + _ASSIGNED] = np.sort(np.partition(keys, count - 1, axis=1)[:, :count], axis=1) % len(centres)
    return found


def alike_by_clusters(
    parts: Parts, threshold: float, probes: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs at or above the threshold among vectors that are searched by clusters, in memory: the same ones as the step finds.

    The vectors must stand in an order that says nothing of them: centres are fitted to the first ones.
    """
    from datakit.dedup.cosine import alike

    centres = centres_of([part[: clusters.SAMPLE] for part in parts], len(parts[0]), seed)
    near = nearest(parts, centres, probes)
    order = np.argsort(near.ravel(), kind="stable")
    ends = np.searchsorted(near.ravel()[order], np.arange(len(centres) + 1))
    for start, end in itertools.pairwise(ends.tolist()):
        vector, place = np.divmod(order[start:end], near.shape[1])
        home = vector[place == 0]
        left, right = [part[home] for part in parts], [part[vector] for part in parts]
        for i, j in alike(left, right, threshold):
            yield home[i], vector[j]
