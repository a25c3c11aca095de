"""Counts of rows by category: exact totals, limits, redistribution."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.mixing.weights import allocate, probabilities

COUNTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.one_of(st.integers(0, 30), st.integers(0, 10_000_000)), max_size=12
)
TEMPERATURES = st.sampled_from([0.05, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0, 1e6])
EPOCHS = st.sampled_from([0.1, 0.3, 1.0, 1.5, 4.0])
SPECIFICATION = st.fixed_dictionaries(
    {
        "counts": COUNTS,
        "temperature": TEMPERATURES,
        "total": st.one_of(st.none(), st.integers(1, 200), st.integers(1, 50_000_000)),
        "caps": st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 5000), max_size=4),
        "max_epochs": EPOCHS,
    }
)


def check_sums_and_limits(specification):
    counts, caps, epochs = specification["counts"], specification["caps"], specification["max_epochs"]
    allocation = allocate(**specification)
    for name, rows in allocation.rows.items():
        assert 0 <= rows <= round(counts[name] * epochs * 10) / 10
        assert rows <= caps.get(name, math.inf)
    possible = sum(allocation.limits.values())
    assert allocation.total == min(allocation.requested, possible)
    assert allocation.requested == (specification["total"] or allocation.requested)
    assert (allocation.shortfall > 0) == (allocation.requested > possible)


@settings(max_examples=200, deadline=None)
@given(SPECIFICATION)
def test_rows_sum_to_the_total_and_no_limit_is_passed(specification):
    check_sums_and_limits(specification)


def test_3000_random_specifications_have_no_wrong_sum():
    for seed in range(3000):
        draw = random.Random(seed)
        names = [f"c{number}" for number in range(draw.randint(0, 25))]
        check_sums_and_limits(
            {
                "counts": {name: draw.choice([0, 1, draw.randint(0, 100), draw.randint(0, 10**7)]) for name in names},
                "temperature": draw.choice([0.01, 0.5, 1.0, 2.0, 7.0, 1e6]),
                "total": draw.choice([None, 1, draw.randint(1, 1000), draw.randint(1, 10**8)]),
                "caps": {name: draw.randint(0, 1000) for name in names if draw.random() < 0.2},
                "max_epochs": draw.choice([0.1, 0.3, 1.0, 1.5, 4.0]),
            }
        )


@settings(max_examples=150, deadline=None)
@given(SPECIFICATION)
def test_open_categories_keep_their_proportions_and_closed_ones_are_at_their_limit(specification):
    allocation = allocate(**specification)
    counts = specification["counts"]
    p = probabilities(counts, specification["temperature"])
    still_open = [name for name in counts if allocation.rows[name] < allocation.limits[name]]
    for one in still_open:
        for other in counts:
            # What `one` has, for its weight, is no less than what any category has, up to the row that rounding gives.
            if p[one] and p[other]:
                assert (allocation.rows[other] - 1) / p[other] <= (allocation.rows[one] + 1) / p[one] * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(SPECIFICATION, st.randoms(use_true_random=False))
def test_the_order_of_categories_changes_nothing(specification, random):
    names = list(specification["counts"])
    random.shuffle(names)
    shuffled = {**specification, "counts": {name: specification["counts"][name] for name in names}}
    assert allocate(**shuffled).rows == allocate(**specification).rows


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(1, 10_000))
def test_temperature_one_is_proportional(counts, total):
    whole = sum(counts.values())
    allocation = allocate(counts, 1.0, total)
    if total <= whole:
        for name, rows in allocation.rows.items():
            assert abs(rows - total * counts[name] / whole) < 1


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1000, 10_000_000), min_size=1, max_size=12))
def test_a_large_temperature_is_uniform(counts):
    rows = allocate(counts, 1e9, 1000).rows.values()
    assert sum(rows) == 1000
    assert max(rows) - min(rows) <= 1


def test_probabilities_are_the_powers_of_the_counts():
    p = probabilities({"a": 900, "b": 100, "c": 0}, 2.0)
    assert p == pytest.approx({"a": 30 / 40, "b": 10 / 40, "c": 0.0})


def test_what_a_cap_leaves_goes_to_the_others_in_their_proportions():
    allocation = allocate({"a": 6000, "b": 3000, "c": 1000}, 1.0, 1000, {"a": 100})
    assert allocation.rows == {"a": 100, "b": 675, "c": 225}


def test_without_a_total_one_epoch_takes_all_rows_under_the_caps():
    allocation = allocate({"a": 100, "b": 7, "c": 50}, 3.0, None, {"a": 60})
    assert allocation.rows == {"a": 60, "b": 7, "c": 50}


def test_without_a_total_more_epochs_repeat_small_categories_in_place_of_large_ones():
    allocation = allocate({"a": 10_000, "b": 100}, 2.0, None, {}, 3.0)
    assert allocation.rows == {"a": 9_800, "b": 300}


def test_epochs_are_taken_as_they_were_written():
    assert allocate({"a": 10}, max_epochs=0.3).rows == {"a": 3}


def test_equal_remainders_go_to_the_larger_category_then_to_the_first_name():
    assert allocate({"b": 10, "a": 10, "c": 10}, 1.0, 4).rows == {"b": 1, "a": 2, "c": 1}
    assert allocate({"a": 15, "b": 5}, 1.0, 2).rows == {"a": 2, "b": 0}


def test_nothing_gives_nothing():
    assert allocate({}, 2.0, 5).rows == {}
    assert allocate({"a": 0}, 2.0, 5).shortfall == 5
