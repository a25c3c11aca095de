"""Which vectors are alike, and which of them survive, against the plain way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.dedup import cosine, nearby
from datakit.dedup.cosine import alike, pairs, survivors


def vectors(seed: int, count: int, dimension: int = 5) -> np.ndarray[Any, Any]:
    """Few directions with little noise, so that many are alike, some of them to the bit."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(max(1, count // 4), dimension))
    made = centres[draw.integers(0, len(centres), count)] + draw.choice([0, 0.1, 0.3], (count, 1)) * draw.normal(
        size=(count, dimension)
    )
    result: np.ndarray[Any, Any] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return result


def plain(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """All similarities, in float64."""
    wide = [part.astype(np.float64) for part in parts]
    wide = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in wide]
    return np.minimum.reduce([np.minimum(part @ part.T, 1.0) for part in wide])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.95]), st.integers(1, 2), st.integers(1, 70))
def test_pairs_and_survivors_are_the_plain_ones_for_any_block(
    seed: int, count: int, threshold: float, parts: int, block: int
) -> None:
    given_ = [vectors(seed + part, count) for part in range(parts)]
    similarity = plain(given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosine, "BLOCK", block)
        i, j, values = pairs(given_, threshold)
        kept_as, highest = survivors(given_, threshold)
    wanted = np.argwhere(np.triu(similarity >= threshold, 1))
    assert np.array_equal(np.stack((i, j), axis=1), wanted)
    assert np.allclose(values, similarity[i, j], atol=1e-12, rtol=0)
    kept: list[int] = []
    for number in range(count):
        best = max(kept, key=lambda other: (highest_of(similarity[number, other]), -other), default=None)
        if best is not None and similarity[number, best] >= threshold:
            # Vectors that are equal but for their last bits may change places as the nearest.
            assert abs(similarity[number, kept_as[number]] - similarity[number, best]) < 1e-12
            assert kept_as[number] in kept
            assert highest[number] == pytest.approx(similarity[number, best], abs=1e-12)
        else:
            assert kept_as[number] == -1
            kept.append(number)


def highest_of(value: float) -> float:
    return round(value, 12)


def test_a_pair_just_at_the_threshold_is_decided_in_float64() -> None:
    draw = np.random.default_rng(1)
    left, right = vectors(3, 300, 384), vectors(3, 300, 384)
    exact = plain([left])
    for i, j in draw.integers(0, 300, (50, 2)):
        (value,) = cosine.cosines(left, right, np.array([i]), np.array([j]))
        assert value == pytest.approx(exact[i, j], abs=1e-13)
        one, other = [left[i : i + 1]], [right[j : j + 1]]
        assert [len(a) for a, _ in alike(one, other, value)] == [1]
        assert [len(a) for a, _ in alike(one, other, np.nextafter(value, 2))] == [0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=12))
def test_tiles_hold_every_pair_of_a_scope_that_is_not_large_just_once(sizes: list[int]) -> None:
    scope = np.repeat(np.arange(len(sizes)), sizes)
    met = np.zeros((len(scope), len(scope)), int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearby, "TILE", 8)
        patch.setattr(nearby, "EXACT", 30)
        for tile in nearby.tiles(sizes):
            assert tile.left_end - tile.left <= 8
            met[tile.left : tile.left_end, tile.right : tile.right_end] += 1
    small = np.array(sizes, int)[scope] <= 30 if sizes else np.empty(0, bool)
    wanted = np.triu((scope[:, None] == scope) & small[:, None])
    assert (np.triu(met)[wanted] == 1).all()
    assert not met[~small].any()


def test_nearest_clusters_do_not_depend_on_how_many_are_asked_for_or_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = vectors(5, 400, 16)
    centres = nearby.centres_of([points], 400, 1)
    assert len(centres) == 20
    every = nearby.nearest([points], centres, 50)
    assert (np.sort(every, axis=1) == np.arange(20)).all()
    monkeypatch.setattr(nearby, "_ASSIGNED", 7)
    assert np.array_equal(nearby.nearest([points], centres, 3), every[:, :3])
