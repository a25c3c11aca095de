"""The compiled comparisons against plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from duplicated import jaccard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datakit.dedup.verify import Buckets, buckets, connected, roots, similar_pairs, survivors, unite

SETS = st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=14)
THRESHOLDS = st.sampled_from([0.25, 0.5, 2 / 3, 0.75, 0.8, 1.0])
# For each of three bands a key for each set: who meets whom.
KEYS = st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=14, max_size=14)
LIMIT = 1_000


def flat(parts: list[list[set[int]]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sets, each of one or more parts, as verify.py takes them."""
    values: list[int] = []
    bounds = []
    for item in parts:
        ends: list[int] = []
        for part in item:
            ends += [len(values), len(values) + len(part)]
            values += sorted(part)
        bounds.append(ends)
    return np.array(values, np.uint32), np.array(bounds, np.int64)


def met(keys: list[tuple[int, ...]], count: int) -> tuple[Buckets, Any]:
    array = np.array(keys[:count], np.uint64).T
    return buckets(array), lambda i, j: bool((array[:, i] == array[:, j]).any())


@settings(max_examples=200, deadline=None)
@given(SETS, THRESHOLDS, KEYS)
def test_survivors_are_those_of_the_plain_greedy_way(sets: list[set[int]], threshold: float, keys: list[tuple[int, ...]]) -> None:
    values, bounds = flat([[item] for item in sets])
    found, share = met(keys, len(sets))
    kept_as, similarity, cut = survivors(found.of, len(found.starts) - 1, values, bounds, threshold, LIMIT)
    kept: list[int] = []
    for i, item in enumerate(sets):
        like = [(-jaccard(item, sets[k]), k) for k in kept if share(i, k) and jaccard(item, sets[k]) >= threshold]
        if like:
            assert (kept_as[i], similarity[i]) == (min(like)[1], -min(like)[0])
        else:
            assert kept_as[i] == -1
            kept.append(i)
    assert cut == 0


@settings(max_examples=200, deadline=None)
@given(SETS, THRESHOLDS, KEYS)
def test_pairs_and_components_are_those_of_all_comparisons(
    sets: list[set[int]], threshold: float, keys: list[tuple[int, ...]]
) -> None:
    values, bounds = flat([[item] for item in sets])
    found, share = met(keys, len(sets))
    wanted = {
        (i, j): jaccard(sets[i], sets[j])
        for j in range(len(sets))
        for i in range(j)
        if share(i, j) and jaccard(sets[i], sets[j]) >= threshold
    }
    left, right, similarity = similar_pairs(found.of, found.members, found.starts, values, bounds, threshold)
    assert len(left) == len(wanted)
    assert dict(zip(zip(left.tolist(), right.tolist(), strict=True), similarity.tolist(), strict=True)) == wanted
    parents = np.arange(len(sets), dtype=np.int64)
    unite(parents, np.array([i for i, _ in wanted], np.int64), np.array([j for _, j in wanted], np.int64))
    first, cut = connected(found.of, found.members, found.starts, values, bounds, threshold, LIMIT)
    assert first.tolist() == roots(parents).tolist()
    assert cut == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.sets(st.integers(0, 5), min_size=1)), max_size=8), THRESHOLDS
)
def test_pairs_of_texts_are_as_alike_as_their_less_alike_side(pairs: list[tuple[set[int], set[int]]], threshold: float) -> None:
    values, bounds = flat([list(pair) for pair in pairs]) if pairs else (np.empty(0, np.uint32), np.empty((0, 4), np.int64))
    found = buckets(np.zeros((1, len(pairs)), np.uint64))
    left, right, similarity = similar_pairs(found.of, found.members, found.starts, values, bounds, threshold)
    wanted = {}
    for j in range(len(pairs)):
        for i in range(j):
            lowest = min(jaccard(a, b) for a, b in zip(pairs[i], pairs[j], strict=True))
            if lowest >= threshold:
                wanted[i, j] = lowest
    assert dict(zip(zip(left.tolist(), right.tolist(), strict=True), similarity.tolist(), strict=True)) == wanted


def test_what_is_not_compared_is_counted() -> None:
    sets = [{10 * i + j for j in range(10)} for i in range(20)]  # nobody is like anybody
    values, bounds = flat([[item] for item in sets])
    found = buckets(np.zeros((1, 20), np.uint64))
    kept_as, _, cut = survivors(found.of, 1, values, bounds, 0.8, 5)
    assert (kept_as == -1).all()
    assert cut == 15  # those with five others or more before them
    _, cut = connected(found.of, found.members, found.starts, values, bounds, 0.8, 5)
    assert cut == 19
