"""Cosine similarity of many vectors: which pairs are at or above a threshold, and which of those alike survive.

What is compared has one vector, or two that must both be alike: its similarity to another is the lowest cosine among its parts.
A matrix product in float32 finds the pairs that may be at or above the threshold. Where it is too near to the threshold to tell,
a sum in float64 decides, term by term in a fixed order. So the result is the same for any blocks and any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datakit.dedup.compiled import compiled

# The float32 product of two vectors of length 1 is nearer than this to their cosine: 384 terms err by about 1e-6.
MARGIN = 1e-4

# Vectors on each side of a matrix product: 2,048 x 2,048 products take 16 MiB.
BLOCK = 2_048

Parts = Sequence[NDArray[np.float32]]
Numbers = NDArray[np.int64]


@compiled
def cosines(left: NDArray[np.float32], right: NDArray[np.float32], i: Numbers, j: Numbers) -> NDArray[np.float64]:
    """The cosines of left[i[n]] and right[j[n]]: float64, at most 1."""
    result = np.empty(len(i), np.float64)
    for number in range(len(i)):
        a, b = left[i[number]], right[j[number]]
        product, a_square, b_square = 0.0, 0.0, 0.0
        for place in range(len(a)):
            x, y = np.float64(a[place]), np.float64(b[place])
            product += x * y
            a_square += x * x
            b_square += y * y
        length = np.sqrt(a_square * b_square)
        result[number] = min(product / length, 1.0) if length > 0.0 else 0.0
    return result


def similarities(left: Parts, right: Parts, i: Numbers, j: Numbers) -> NDArray[np.float64]:
    """The similarities of left[i[n]] and right[j[n]]: the lowest cosine among the parts."""
    found: NDArray[np.float64] = np.minimum.reduce([cosines(a, b, i, j) for a, b in zip(left, right, strict=True)])
    return found


def alike(
    left: Parts,
    right: Parts,
    threshold: float,
    scopes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    *,
    upper: bool = False,
) -> Iterator[tuple[Numbers, Numbers]]:
    """All pairs (i of left, j of right) at or above the threshold, in bounded blocks. `left` and `right` hold arrays (n, d).

    `scopes` are numbers of the left and of the right vectors: only those of one scope are compared. `upper` asks for i < j alone,
    for left and right that are the same.
    """
    for first in range(0, len(left[0]), BLOCK):
        for other in range(first if upper else 0, len(right[0]), BLOCK):
            lowest: NDArray[np.float32] | None = None
            for a, b in zip(left, right, strict=True):
                products = a[first : first + BLOCK] @ b[other : other + BLOCK].T
                lowest = products if lowest is None else np.minimum(lowest, products, out=lowest)
            assert lowest is not None, "there is at least one part"
            i, j = np.nonzero(lowest >= np.float32(threshold - MARGIN))
            found = lowest[i, j]
            i, j = i + first, j + other
            wanted = np.ones(len(i), bool)
            if upper:
                wanted &= i < j
            if scopes is not None:
                wanted &= scopes[0][i] == scopes[1][j]
            i, j, found = i[wanted], j[wanted], found[wanted]
            doubtful = np.flatnonzero(found < np.float32(threshold + MARGIN))
            enough = np.ones(len(i), bool)
            enough[doubtful] = similarities(left, right, i[doubtful], j[doubtful]) >= threshold
            yield i[enough], j[enough]


def pairs(
    parts: Parts, threshold: float, blocks: Iterator[tuple[Numbers, Numbers]] | None = None
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """All pairs (i, j, similarity) with i < j at or above the threshold, in order.

    `blocks` gives pairs that are alike, where not all are to be compared; a pair may come twice, and either way round.
    """
    found = list(alike(parts, parts, threshold, upper=True) if blocks is None else blocks)
    left = np.concatenate([*(i for i, _ in found), np.empty(0, np.int64)]).astype(np.int64)
    right = np.concatenate([*(j for _, j in found), np.empty(0, np.int64)]).astype(np.int64)
    left, right = np.minimum(left, right), np.maximum(left, right)
    keys = np.unique(left * len(parts[0]) + right)
    left, right = np.divmod(keys, max(1, len(parts[0])))
    apart = left != right
    left, right = left[apart], right[apart]
    return left, right, similarities(parts, parts, left, right)


def survivors(parts: Parts, threshold: float) -> tuple[Numbers, NDArray[np.float64]]:
    """Goes through what is compared from the best to the worst, and drops it when it is like something that was kept.

    Returns for each the kept one that it is most like (the better one among equals), or -1 where it is kept itself; and their
    similarity. All are compared with kept ones alone: there are no chains.
    """
    count = len(parts[0])
    kept_as = np.full(count, -1, np.int64)
    similarity = np.zeros(count, np.float64)
    kept = np.empty(0, np.int64)
    for first in range(0, count, BLOCK):
        block = np.arange(first, min(first + BLOCK, count))
        mine = [part[first : first + BLOCK] for part in parts]
        for start in range(0, len(kept), BLOCK):
            before = kept[start : start + BLOCK]
            others = [part[before] for part in parts]
            for i, j in alike(mine, others, threshold):
                _take_nearest(block[i], before[j], similarities(mine, others, i, j), kept_as, similarity)
        # What is open may be kept, and only what comes earlier drops another.
        open_ = block[kept_as[block] < 0]
        others = [part[open_] for part in parts]
        for i, j in alike(mine, others, threshold):
            earlier = open_[j] < block[i]
            i, j = i[earlier], j[earlier]
            take_in_order(block[i], open_[j], similarities(mine, others, i, j), kept_as, similarity)
        kept = np.concatenate((kept, block[kept_as[block] < 0]))
    return kept_as, similarity


@compiled
def _take_nearest(
    who: Numbers, other: Numbers, alike: NDArray[np.float64], kept_as: Numbers, similarity: NDArray[np.float64]
) -> None:
    for number in range(len(who)):
        current, value = who[number], alike[number]
        if value > similarity[current] or (value == similarity[current] and other[number] < kept_as[current]):
            kept_as[current], similarity[current] = other[number], value


@compiled
def take_in_order(
    who: Numbers, other: Numbers, alike: NDArray[np.float64], kept_as: Numbers, similarity: NDArray[np.float64]
) -> None:
    """Gives each of `who` the kept one of `other` that it is most like, and drops it so; one that was dropped drops no other.

    `who` ascends, and each of `other` is lower than its `who`, so that it is decided.
    """
    for number in range(len(who)):
        current, value = who[number], alike[number]
        if kept_as[other[number]] >= 0:
            continue
        if value > similarity[current] or (value == similarity[current] and other[number] < kept_as[current]):
            kept_as[current], similarity[current] = other[number], value
