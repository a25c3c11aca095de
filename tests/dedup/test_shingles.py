"""Shingle sets against Python sets, and signatures against what MinHash promises."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from duplicated import character_set, jaccard, shingle_set
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.dedup import shingles as module
from datakit.dedup.shingles import Shingles, shingles
from datakit.dedup.signatures import RECALL, band_keys, bands_for, signatures

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="aB cßΣς.é_+#漢字かไทย😀ู\u0301 ", max_size=60),
        st.lists(st.sampled_from(["one", "two", "Three", "3.5", "x_y", "C++", "C#"]), max_size=30).map(" ".join),
    ),
    min_size=1,
    max_size=8,
)


def sets_of(found: Shingles) -> list[set[int]]:
    return [set(found.values[found.starts[i] : found.starts[i + 1]].tolist()) for i in range(len(found.starts) - 1)]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 6), st.booleans())
def test_similarities_are_those_of_python_sets(texts: list[str], size: int, words: bool) -> None:
    found = sets_of(shingles(pa.array(texts, pa.string()), words=words, size=size))
    wanted = [shingle_set(text, size) if words else character_set(text, size) for text in texts]
    assert [len(item) for item in found] == [len(item) for item in wanted]
    for i in range(len(texts)):
        for j in range(i):
            if wanted[i] | wanted[j]:
                assert jaccard(found[i], found[j]) == jaccard(wanted[i], wanted[j])


def test_sets_are_sorted_and_hold_each_value_once() -> None:
    found = shingles(pa.array(["b a b a b a b a", "", "c"]), words=True, size=2)
    assert found.sizes.tolist() == [2, 0, 1]
    assert (np.diff(found.values[:2].astype(np.int64)) > 0).all()


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Hello, World!", "hello   world", True),
        ("What is C?", "What is C++?", False),
        ("return a + b", "return a - b", False),
        ("version 1.5", "version 15", False),
        ("Straße", "STRASSE", False),
        ("ΟΔΟΣ", "οδος", True),
        ("I’m here", "I'm here", True),
        ("日本語", "日 本 語", True),
    ],
)
def test_what_counts_as_the_same_word(left: str, right: str, same: bool) -> None:
    one, other = sets_of(shingles(pa.array([left, right]), words=True, size=2))
    assert (one == other) is same


def test_chunks_slices_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [None, "a b c d", "é è ê", "", "x" * 100, "one two three four"] * 5
    whole = shingles(pa.array(texts), words=True, size=2)
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    array = pa.array(["left out", *texts, "left out"])
    chunked = pa.chunked_array([array.slice(1, 7), array.slice(8, 0), array.slice(8, len(texts) - 7)])
    pieces = shingles(chunked, words=True, size=2)
    assert (whole.values.tolist(), whole.starts.tolist()) == (pieces.values.tolist(), pieces.starts.tolist())
    nothing = shingles(pa.chunked_array([], pa.string()), words=True, size=2)
    assert (nothing.values.tolist(), nothing.starts.tolist()) == ([], [0])


@pytest.mark.parametrize("engine", ["rensa", "datasketch"])
@pytest.mark.parametrize(("union", "common"), [(10, 8), (60, 48), (300, 240), (10, 9), (10, 7)])
def test_pairs_at_the_threshold_meet(engine: str, union: int, common: int) -> None:
    """Pairs exactly at the threshold, the hardest there are: at least 0.97 of them share a band."""
    pairs = 300
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, 2**32, (pairs, union), dtype=np.uint64)
    half = (union - common) // 2
    sides = [tokens[:, : common + half], np.concatenate([tokens[:, :common], tokens[:, common + half :]], axis=1)]
    bands = bands_for(common / union, 128)
    left, right = (
        band_keys(
            signatures(np.ascontiguousarray(side).ravel(), np.arange(0, side.size + 1, side.shape[1]), 128, 1, engine),  # type: ignore[arg-type]
            bands,
        )
        for side in sides
    )
    assert (left == right).any(axis=0).mean() >= 0.97


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_the_longest_that_find_enough(threshold: float) -> None:
    bands = bands_for(threshold, 128)
    assert bands.recall >= RECALL
    assert bands.bands * bands.rows <= 128
    longer = bands.rows + 1
    assert longer > 128 or 1 - (1 - threshold**longer) ** (128 // longer) < RECALL


def test_scopes_keep_sets_apart() -> None:
    signed = signatures(np.array([1, 2, 3, 1, 2, 3], np.uint64), np.array([0, 3, 6]), 16, 1, "rensa")
    bands = bands_for(0.8, 16)
    together, apart = band_keys(signed, bands), band_keys(signed, bands, np.array([7, 8], np.uint64))
    assert (together[:, 0] == together[:, 1]).all()
    assert (apart[:, 0] != apart[:, 1]).all()
