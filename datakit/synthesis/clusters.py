"""Clusters of vectors, and draws that are spread over them: the same for any number of threads.

A vector of length 1 is kept as whole numbers of 1/2048 (int16). Products of two of them, and all sums on the way, stay below
2^24: they are exact in float32, so that the order in which a matrix product adds them changes no bit.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from datakit.schema import digest
from datakit.synthesis.allocation import allocate

Array = np.ndarray[Any, np.dtype[Any]]

SCALE = 2048
# Centres are fitted to so many vectors at most.
SAMPLE = 100_000
ITERATIONS = 12
# Each new centre of k-means++ is the best of so many draws (Arthur and Vassilvitskii 2007, section 7).
TRIALS = 4
MOST_CLUSTERS = 1024
# A passage as similar as this to one that was drawn waits until no other is left.
NEAR = 0.95
_BLOCK = 4096
# Draws from a cluster that are compared with each other, and how many passages are looked at for each.
_TOGETHER, _LOOKED_AT = 256, 64


class Clusters(NamedTuple):
    """The cluster of each vector, and how similar it is to its centre, in whole numbers of 1/2048^2."""

    labels: Array
    similarity: Array


def whole(vectors: Array) -> Array:
    """Vectors of length 1 as whole numbers: int16, (n, d)."""
    return np.rint(vectors * np.float32(SCALE)).astype(np.int16)


def default_number(count: int, candidates: int) -> int:
    """How many clusters, where nobody says it: one for each draw, as far as they have four passages, and 1,024 at most."""
    return max(1, min(count, MOST_CLUSTERS, candidates // 4))


def fit(vectors: Array, number: int, seed: int, rank: Array) -> Clusters:
    """Spherical k-means with k-means++ (Dhillon and Modha 2001). `vectors` are those of `whole`.

    Above 100,000 vectors the centres are those of the 100,000 with the lowest `rank`. There are fewer clusters than `number`
    where fewer vectors differ.
    """
    sample = vectors if len(vectors) <= SAMPLE else vectors[np.sort(np.argsort(rank, kind="stable")[:SAMPLE])]
    return Clusters(*_nearest(vectors, centres_of(sample, number, seed)))


def centres_of(sample: Array, number: int, seed: int) -> Array:
    """The centres of `sample` (what `whole` gave), `number` of them at most: whole numbers, float32 (k, d).

    A product of a vector and a centre is exact in float32, as that of two vectors is.
    """
    points = sample.astype(np.float32)
    centres = _seeded(points, number, seed)
    labels = np.zeros(0, np.int64)
    for _ in range(ITERATIONS):
        before, labels = labels, _nearest(points, centres)[0]
        if len(before) and (before == labels).all():
            break
        order = np.argsort(labels, kind="stable")
        members, starts = np.unique(labels[order], return_index=True)
        for centre, rows in zip(members, np.split(order, starts[1:]), strict=True):
            # Whole numbers far below 2^53: exact. A cluster that lost all of its members keeps its centre.
            total = points[rows].sum(axis=0, dtype=np.float64)
            length = np.sqrt((total * total).sum())
            if length:
                centres[centre] = np.rint(total / length * SCALE)
    return centres


def _nearest(vectors: Array, centres: Array) -> tuple[Array, Array]:
    labels = np.empty(len(vectors), np.int64)
    similarity = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        products = vectors[block].astype(np.float32) @ centres.T
        labels[block] = products.argmax(axis=1)
        similarity[block] = products.max(axis=1)
    return labels, similarity


def _seeded(points: Array, number: int, seed: int) -> Array:
    """The first centres: each is drawn with a chance that grows with its squared distance from those before it."""
    squares = (points * points).sum(axis=1).astype(np.int64)
    picked = [_drawn(seed, 0, 0, len(points))]
    nearest = _distances(points, squares, picked)[:, 0]
    while len(picked) < min(number, len(points)):
        heap = np.cumsum(nearest)
        if not heap[-1]:
            break
        tries = [_drawn(seed, len(picked), trial, int(heap[-1])) for trial in range(TRIALS)]
        candidates = np.searchsorted(heap, tries, side="right").tolist()
        left = np.minimum(nearest[:, None], _distances(points, squares, candidates))
        best = int(left.sum(axis=0).argmin())
        picked.append(candidates[best])
        nearest = left[:, best]
    return points[picked].copy()


def _distances(points: Array, squares: Array, others: list[int]) -> Array:
    products = (points @ points[others].T).astype(np.int64)
    result: Array = np.maximum(squares[:, None] + squares[others] - 2 * products, 0)
    return result


def _drawn(seed: int, number: int, trial: int, below: int) -> int:
    return int(digest("centre", str(seed), str(number), str(trial)), 16) % below


def spread(vectors: Array, found: Clusters, rank: Array, rows: Array, count: int) -> Array:
    """`count` of `rows`, the same number from each cluster as far as it has them; within a cluster from near its centre to far.

    Each stretch of a cluster, by similarity to the centre, gives the row of the lowest `rank`; near copies of a row that was
    drawn come last.
    """
    labels = found.labels[rows]
    order = np.lexsort((rank[rows], -found.similarity[rows], labels))
    members, starts = np.unique(labels[order], return_index=True)
    parts = np.split(rows[order], starts[1:]) if len(members) else []
    counts = allocate(count, [Fraction(1)] * len(parts), [len(part) for part in parts], [0] * len(parts))
    picked = [_from_stretches(vectors, rank, part, wanted) for part, wanted in zip(parts, counts, strict=True) if wanted]
    return np.concatenate([*picked, np.zeros(0, np.int64)]).astype(np.int64)


def _from_stretches(vectors: Array, rank: Array, part: Array, count: int) -> Array:
    if count == len(part):
        return part
    pieces = -(-count // _TOGETHER)
    ends = [count * piece // pieces for piece in range(pieces + 1)]
    # The rows are parted as the draws are, so that no piece has fewer rows than draws.
    bounds = [len(part) * end // count for end in ends]
    return np.concatenate(
        [_apart(vectors, rank, part[bounds[piece] : bounds[piece + 1]], ends[piece + 1] - ends[piece]) for piece in range(pieces)]
    )


def _apart(vectors: Array, rank: Array, part: Array, count: int) -> Array:
    """`count` rows of a part that is sorted by similarity to its centre, with no near copies as long as there are others."""
    stretch = np.arange(len(part)) * count // len(part)
    by_rank = np.lexsort((rank[part], stretch))
    turn = np.empty(len(part), np.int64)
    turn[by_rank] = np.arange(len(part)) - np.searchsorted(stretch, stretch[by_rank])
    ordered = part[np.lexsort((stretch, turn))]
    looked_at = vectors[ordered[: _LOOKED_AT * count]].astype(np.float32)
    open_ = np.ones(len(looked_at), bool)
    taken = np.zeros(len(ordered), bool)
    for _ in range(count):
        each = int(open_.argmax())
        if not open_[each]:
            break
        taken[each] = True
        open_ &= looked_at @ looked_at[each] < NEAR * SCALE * SCALE
        open_[each] = False
    rest = np.flatnonzero(~taken)[: count - int(taken.sum())]
    taken[rest] = True
    return ordered[taken]
