"""What is done with sets that meet in a band: compare them by their true Jaccard similarity, and keep one of those alike.

Sets are numbered 0 .. m - 1. Set i is made of one or more parts, sorted slices: values[bounds[i, 2 p]:bounds[i, 2 p + 1]]. Its
similarity to another set is the lowest Jaccard similarity among their parts, so that a pair of texts is like another only where
both texts are. Buckets hold the sets that share the key of one band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datakit.dedup.compiled import compiled

# No set is compared with more others than this: sets that share bands by the thousand, but are just below the threshold, would
# cost the square of their number. What is left out is counted, and noted in the step's report.
MAX_COMPARISONS = 2_000


@dataclass(frozen=True)
class Buckets:
    """Buckets of at least two sets.

    of: int32 of (sets, bands): the bucket of each set in each band, -1 where it is alone. members: int32, the sets of one bucket
    after the other, in ascending order. starts: int64 of buckets + 1.
    """

    of: NDArray[np.int32]
    members: NDArray[np.int32]
    starts: NDArray[np.int64]


def buckets(keys: NDArray[np.uint64]) -> Buckets:
    """The buckets of band keys of (bands, sets)."""
    bands, sets = keys.shape
    of = np.full((sets, bands), -1, np.int32)
    members, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    number = 0
    for band in range(bands):
        order, begins, counts = shared(keys[band])
        held = np.repeat(np.arange(number, number + len(begins), dtype=np.int32), counts)
        of[order, band] = held
        members.append(order.astype(np.int32))
        sizes.append(counts)
        number += len(begins)
    starts = np.concatenate(([0], np.cumsum(np.concatenate(sizes))))
    return Buckets(of, np.concatenate(members), starts)


def shared(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(members, begins, counts): positions that share their key with others, key by key, each key's in ascending order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(keys) else np.empty(0, np.int64)
    counts = np.diff(begins, append=len(keys))
    kept = np.repeat(counts > 1, counts)
    counts = counts[counts > 1]
    return order[kept], np.cumsum(counts) - counts, counts


@compiled
def _jaccard(values: NDArray[np.uint32], a: int, a_end: int, b: int, b_end: int, threshold: float) -> float:
    """The Jaccard similarity of two sorted slices, or -1 where it is below the threshold; gives up as soon as that is sure."""
    both = (a_end - a) + (b_end - b)
    # |A n B| / |A u B| >= t is |A n B| >= t (|A| + |B|) / (1 + t). The small term is for the rounding of that quotient alone.
    needed = int(np.ceil(threshold * both / (1.0 + threshold) - 1e-6))
    a_spare, b_spare = (a_end - a) - needed, (b_end - b) - needed
    common = 0
    while a_spare >= 0 and b_spare >= 0:
        if a == a_end or b == b_end:
            similarity = common / (both - common) if both else 1.0
            return similarity if similarity >= threshold else -1.0
        if values[a] == values[b]:
            common += 1
            a += 1
            b += 1
        elif values[a] < values[b]:
            a += 1
            a_spare -= 1
        else:
            b += 1
            b_spare -= 1
    return -1.0


@compiled
def _similarity(values: NDArray[np.uint32], bounds: NDArray[np.int64], left: int, right: int, threshold: float) -> float:
    """The similarity of two sets, or -1 where it is below the threshold."""
    lowest = 1.0
    for part in range(0, bounds.shape[1], 2):
        similarity = _jaccard(
            values, bounds[left, part], bounds[left, part + 1], bounds[right, part], bounds[right, part + 1], threshold
        )
        if similarity < 0.0:
            return -1.0
        lowest = min(lowest, similarity)
    return lowest


@compiled
def survivors(
    of: NDArray[np.int32],
    bucket_count: int,
    values: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    threshold: float,
    max_comparisons: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64], int]:
    """Goes through the sets from the best to the worst, and drops a set when it is like one that was kept.

    Returns for each set the kept set that it is most like (the better one among equals), or -1 where it is kept itself; their
    similarity; and how many sets reached `max_comparisons`. A set is compared with kept ones alone: there are no chains, and
    many sets that are all alike cost one comparison each.
    """
    sets, bands = of.shape
    kept_as = np.full(sets, -1, np.int32)
    similarity = np.zeros(sets, np.float64)
    newest = np.full(bucket_count, -1, np.int64)  # the place (set * bands + band) of the set that a bucket kept last
    older = np.full(sets * bands, -1, np.int64)  # from such a place to the one before it
    asked_by = np.full(sets, -1, np.int32)  # the last set that was compared with this one
    cut = 0
    for current in range(sets):
        best, highest, comparisons = -1, 0.0, 0
        for band in range(bands):
            place = newest[of[current, band]] if of[current, band] >= 0 else -1
            while place >= 0 and comparisons < max_comparisons:
                other = place // bands
                place = older[place]
                if asked_by[other] == current:
                    continue
                asked_by[other] = current
                comparisons += 1
                found = _similarity(values, bounds, current, other, threshold)
                if found > highest or (found == highest and found > 0.0 and other < best):
                    best, highest = other, found
        cut += comparisons >= max_comparisons
        if best >= 0:
            kept_as[current], similarity[current] = best, highest
            continue
        for band in range(bands):
            bucket = of[current, band]
            if bucket >= 0:
                older[current * bands + band] = newest[bucket]
                newest[bucket] = current * bands + band
    return kept_as, similarity, cut


@compiled
def root(parents: NDArray[np.int64], node: int) -> int:
    """The representative of a node's component; shortens the way to it."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def unite(parents: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Joins the components of left[i] and right[i]; the lower root stays, so that a root is the lowest node of its component."""
    for number in range(len(left)):
        a, b = root(parents, left[number]), root(parents, right[number])
        if a < b:
            parents[b] = a
        else:
            parents[a] = b


@compiled
def roots(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """The root of each node."""
    result = np.empty_like(parents)
    for node in range(len(parents)):
        result[node] = root(parents, node)
    return result


@compiled
def _share_band_before(of: NDArray[np.int32], left: int, right: int, band: int) -> bool:
    for earlier in range(band):  # noqa: SIM110 - numba compiles no generator expressions
        if of[left, earlier] >= 0 and of[left, earlier] == of[right, earlier]:
            return True
    return False


@compiled
def connected(
    of: NDArray[np.int32],
    members: NDArray[np.int32],
    starts: NDArray[np.int64],
    values: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    threshold: float,
    max_comparisons: int,
) -> tuple[NDArray[np.int64], int]:
    """The lowest set of each set's component, where sets at or above the threshold are connected; and how many were cut short.

    Sets that are connected already are not compared: many sets that are all alike cost about one comparison each.
    """
    parents = np.arange(len(of)).astype(np.int64)
    cut = 0
    for bucket in range(len(starts) - 1):
        first = members[starts[bucket]]
        band = 0
        while of[first, band] != bucket:
            band += 1
        for place in range(starts[bucket] + 1, starts[bucket + 1]):
            if not _share_band_before(of, first, members[place], band):
                _connect(parents, values, bounds, first, members[place], threshold)
        for place in range(starts[bucket] + 1, starts[bucket + 1]):
            current = members[place]
            if root(parents, current) == root(parents, first):
                continue
            comparisons = 0
            for other_place in range(starts[bucket] + 1, starts[bucket + 1]):
                other = members[other_place]
                if root(parents, current) == root(parents, other) or _share_band_before(of, current, other, band):
                    continue
                if comparisons >= max_comparisons:
                    cut += 1
                    break
                comparisons += 1
                _connect(parents, values, bounds, current, other, threshold)
    return roots(parents), cut


@compiled
def _connect(
    parents: NDArray[np.int64], values: NDArray[np.uint32], bounds: NDArray[np.int64], left: int, right: int, threshold: float
) -> None:
    a, b = root(parents, left), root(parents, right)
    if a != b and _similarity(values, bounds, left, right, threshold) >= 0.0:
        parents[max(a, b)] = min(a, b)


@compiled
def similar_pairs(
    of: NDArray[np.int32],
    members: NDArray[np.int32],
    starts: NDArray[np.int64],
    values: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    threshold: float,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """All pairs of sets that share a bucket and are at or above the threshold: (lower, higher, similarity), each pair once."""
    left, right = np.empty(1024, np.int32), np.empty(1024, np.int32)
    similarity = np.empty(1024, np.float64)
    filled = 0
    for bucket in range(len(starts) - 1):
        band = 0
        while of[members[starts[bucket]], band] != bucket:
            band += 1
        for place in range(starts[bucket], starts[bucket + 1]):
            a = members[place]
            for other_place in range(place + 1, starts[bucket + 1]):
                b = members[other_place]
                if _share_band_before(of, a, b, band):
                    continue
                found = _similarity(values, bounds, a, b, threshold)
                if found < 0.0:
                    continue
                if filled == len(left):
                    left = np.concatenate((left, np.empty(filled, np.int32)))
                    right = np.concatenate((right, np.empty(filled, np.int32)))
                    similarity = np.concatenate((similarity, np.empty(filled, np.float64)))
                left[filled], right[filled], similarity[filled] = a, b, found
                filled += 1
    return left[:filled], right[:filled], similarity[:filled]
