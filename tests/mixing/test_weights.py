"""Counts of rows by category: exact totals, limits, epochs, redistribution, quotas, languages; compared with an oracle."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_oracle import languages_of, rows_of
from pydantic import ValidationError

from datakit.errors import UserError
from datakit.mixing.planned import MixParameters, planned, quota_members, ran_out
from datakit.mixing.weights import allocate, by_language, probabilities, weights
from datakit.recipe import Mixture
from datakit.registry import Category

NAMES = st.text("abcdef", min_size=1, max_size=3)
COUNTS = st.dictionaries(NAMES, st.one_of(st.integers(0, 30), st.integers(0, 10_000_000)), max_size=12)
SPECIFICATION = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.001, 0.05, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0, 1e6]),
        "total": st.one_of(st.none(), st.integers(1, 200), st.integers(1, 50_000_000)),
        "caps": st.dictionaries(NAMES, st.integers(0, 5000), max_size=4),
        "max_epochs": st.sampled_from([0.1, 0.3, 1.0, 1.5, 4.0]),
        "shortfall": st.sampled_from(["renormalise", "repeat", "stop"]),
    }
).map(lambda fields: Mixture(**fields))


def most_of(mixture: Mixture, name: str, count: int) -> int:
    epochs = mixture.repeat_epochs if mixture.shortfall == "repeat" else mixture.max_epochs
    return min(math.floor(count * Fraction(str(epochs))), mixture.caps.get(name, 10**12))


@settings(max_examples=200, deadline=None)
@given(COUNTS, SPECIFICATION)
def test_rows_sum_to_the_total_and_no_limit_is_passed(counts, mixture):
    allocation = allocate(counts, mixture)
    possible = 0
    for name, rows in allocation.rows.items():
        most = most_of(mixture, name, counts[name])
        assert 0 <= rows <= most
        possible += most
    assert allocation.requested == (mixture.total or allocation.requested)
    assert allocation.total == min(allocation.requested, possible)


def random_specification(draw: random.Random) -> tuple[dict[str, int], Mixture, list[list[str]], dict[str, float]]:
    names = [f"c{number}" for number in range(draw.randint(1, 12))]
    counts = {name: draw.choice([0, 1, draw.randint(0, 100), draw.randint(0, 10**6)]) for name in names}
    total = draw.choice([None, 1, draw.randint(1, 1000), draw.randint(1, 10**7)])
    members, quotas, left = [], [], total or 1000
    free = list(names)
    draw.shuffle(free)
    for _ in range(draw.choice([0, 0, 1, 2])):
        pool = [free.pop() for _ in range(min(len(free) - 1, draw.randint(1, 3)))]
        if pool:
            if total is not None and draw.random() < 0.5:
                quota = {"family": "f", "share": draw.choice([0.05, 0.1, 0.25, 1 / 3])}
                left -= math.ceil(total * quota["share"])
            else:
                quota = {"task": "t", "rows": draw.randint(0, max(0, left // 3))}
                left -= quota["rows"]
            if left >= 0:
                members.append(pool)
                quotas.append(quota)
    mixture = Mixture(
        temperature=draw.choice([0.5, 1.0, 1.0, 2.0, 3.0, 1e6]),
        total=total,
        caps={name: draw.randint(0, 1000) for name in names if draw.random() < 0.2},
        max_epochs=draw.choice([0.1, 0.3, 1.0, 1.0, 1.5, 3.0]),
        shortfall=draw.choice(["renormalise", "repeat"]),
        quotas=quotas,
        language_temperature=draw.choice([1.0, 2.0, 1e6]),
    )
    return counts, mixture, members, {name: draw.choice([0.5, 0.8, 1.0, 1.7, 2.0]) for name in names if draw.random() < 0.3}


def test_10000_random_specifications_are_as_the_oracle_says():
    seen = {"repeat": 0, "quota": 0, "short": 0, "languages": 0}
    for seed in range(10_000):
        draw = random.Random(seed)
        counts, mixture, members, factors = random_specification(draw)
        allocation = allocate(counts, mixture, members, factors)
        assert allocation.rows == rows_of(counts, mixture, members, factors), seed
        for quota, pool in zip(mixture.quotas, members, strict=True):
            wanted = quota.rows if quota.rows is not None else math.ceil(Fraction(str(quota.share)) * (mixture.total or 0))
            assert sum(allocation.rows[name] for name in pool) <= wanted, seed
        possible = sum(most_of(mixture, name, count) for name, count in counts.items())
        assert allocation.total <= min(allocation.requested, possible), seed
        if not members:
            assert allocation.total == min(allocation.requested, possible), seed
        name = draw.choice(list(counts))
        if allocation.rows[name]:
            languages = {"en": draw.randint(0, counts[name]), "de": 0}
            languages["de"] = counts[name] - languages["en"]
            split = by_language(allocation.rows[name], languages, mixture)
            assert sum(split.values()) == allocation.rows[name], seed
            assert {key: rows for key, rows in split.items() if rows} == {
                key: rows for key, rows in languages_of(allocation.rows[name], languages, mixture).items() if rows
            }, seed
            seen["languages"] += 1
        seen["repeat"] += any(rows > allocation.limits[name] for name, rows in allocation.rows.items())
        seen["quota"] += bool(members)
        seen["short"] += allocation.shortfall > 0
    assert min(seen.values()) > 300, seen


@settings(max_examples=150, deadline=None)
@given(COUNTS, SPECIFICATION)
def test_open_categories_keep_their_proportions_and_closed_ones_are_at_their_limit(counts, mixture):
    mixture = mixture.model_copy(update={"shortfall": "renormalise"})
    allocation = allocate(counts, mixture)
    p = probabilities(counts, mixture.temperature)
    still_open = [name for name in counts if allocation.rows[name] < allocation.limits[name]]
    for one in still_open:
        for other in counts:
            # What `one` has, for its weight, is no less than what any category has, up to the row that rounding gives.
            if p[one] and p[other]:
                assert (allocation.rows[other] - 1) / p[other] <= (allocation.rows[one] + 1) / p[one] * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(COUNTS, SPECIFICATION, st.randoms(use_true_random=False))
def test_the_order_of_categories_changes_nothing(counts, mixture, draw):
    names = list(counts)
    draw.shuffle(names)
    assert allocate({name: counts[name] for name in names}, mixture).rows == allocate(counts, mixture).rows


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(1, 10_000))
def test_temperature_one_is_proportional(counts, total):
    whole = sum(counts.values())
    allocation = allocate(counts, Mixture(total=total))
    if total <= whole:
        for name, rows in allocation.rows.items():
            assert abs(rows - total * counts[name] / whole) < 1


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, st.integers(1000, 10_000_000), min_size=1, max_size=12))
def test_a_large_temperature_is_uniform(counts):
    rows = allocate(counts, Mixture(temperature=1e9, total=1000)).rows.values()
    assert sum(rows) == 1000
    assert max(rows) - min(rows) <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(NAMES, st.integers(1, 10_000_000), min_size=1, max_size=8),
    st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.5]),
    st.dictionaries(NAMES, st.sampled_from([0.5, 1.25, 2.0]), max_size=4),
)
def test_weights_are_factors_times_powers_of_counts(counts, temperature, factors):
    found = weights(counts, temperature, factors)
    one = max(counts, key=lambda name: counts[name])
    for name, count in counts.items():
        ratio = float(found[name] / found[one])
        wanted = (count / counts[one]) ** (1 / temperature) * factors.get(name, 1) / factors.get(one, 1)
        assert ratio == pytest.approx(wanted, rel=1e-9)


def test_probabilities_are_the_powers_of_the_counts():
    p = probabilities({"a": 900, "b": 100, "c": 0}, 2.0)
    assert p == pytest.approx({"a": 30 / 40, "b": 10 / 40, "c": 0.0})


def test_what_a_cap_leaves_goes_to_the_others_in_their_proportions():
    assert allocate({"a": 6000, "b": 3000, "c": 1000}, Mixture(total=1000, caps={"a": 100})).rows == {
        "a": 100,
        "b": 675,
        "c": 225,
    }


def test_without_a_total_one_epoch_takes_all_rows_under_the_caps():
    allocation = allocate({"a": 100, "b": 7, "c": 50}, Mixture(temperature=3.0, caps={"a": 60}))
    assert allocation.rows == {"a": 60, "b": 7, "c": 50}


def test_without_a_total_more_epochs_repeat_small_categories_in_place_of_large_ones():
    assert allocate({"a": 10_000, "b": 100}, Mixture(temperature=2.0, max_epochs=3.0)).rows == {"a": 9_800, "b": 300}


def test_epochs_are_taken_as_they_were_written():
    assert allocate({"a": 10}, Mixture(max_epochs=0.3)).rows == {"a": 3}


def test_equal_remainders_go_to_the_larger_category_then_to_the_first_name():
    assert allocate({"b": 10, "a": 10, "c": 10}, Mixture(total=4)).rows == {"b": 1, "a": 2, "c": 1}
    assert allocate({"a": 15, "b": 5}, Mixture(total=2)).rows == {"a": 2, "b": 0}


def test_at_a_very_low_temperature_small_categories_give_what_the_largest_cannot():
    counts = {"a": 1000, "b": 10, "c": 10}
    assert allocate(counts, Mixture(temperature=0.005)).rows == counts
    assert allocate(counts, Mixture(temperature=0.005, total=1008)).rows == {"a": 1000, "b": 4, "c": 4}


def test_nothing_gives_nothing():
    assert allocate({}, Mixture(temperature=2.0, total=5)).rows == {}
    assert allocate({"a": 0}, Mixture(temperature=2.0, total=5)).shortfall == 5


# ---------------------------------------------------------------------------------------------------- what runs out


def test_repeat_gives_a_category_its_own_share_and_renormalise_gives_it_to_the_others():
    counts = {"a": 6000, "b": 3000, "c": 100}
    uniform = {"temperature": 1e9, "total": 900}
    assert allocate(counts, Mixture(**uniform)).rows == {"a": 400, "b": 400, "c": 100}
    assert allocate(counts, Mixture(**uniform, shortfall="repeat")).rows == {"a": 300, "b": 300, "c": 300}
    assert allocate(counts, Mixture(**uniform, shortfall="repeat", repeat_epochs=2)).rows == {"a": 350, "b": 350, "c": 200}


def test_repeat_does_not_repeat_a_category_for_what_a_cap_left_while_fresh_rows_are_there():
    # The cap of `a` leaves 400 rows: `c` gets its own third by repeating, and no more of them than that.
    mixture = Mixture(temperature=1e9, total=1500, caps={"a": 100}, shortfall="repeat", repeat_epochs=100)
    assert allocate({"a": 6000, "b": 3000, "c": 100}, mixture).rows == {"a": 100, "b": 900, "c": 500}


def test_repeat_reaches_a_total_that_fresh_rows_do_not_reach():
    allocation = allocate({"a": 100, "b": 50}, Mixture(total=500, shortfall="repeat"))
    assert allocation.total == 500
    assert allocation.rows["a"] <= 400
    assert allocation.rows["b"] <= 200


def test_a_category_runs_out_by_its_rows_and_not_by_its_cap():
    counts = {"a": 1000, "b": 10, "c": 1000}
    mixture = Mixture(temperature=1e9, total=300, caps={"a": 20})
    assert ran_out(mixture, counts, allocate(counts, mixture)) == ["b"]


# ---------------------------------------------------------------------------------------------------------- quotas


def test_a_quota_holds_its_share_whatever_the_temperature():
    counts = {"a": 9000, "b": 900, "x": 5000, "y": 100}
    for temperature in (1.0, 2.0, 1e9):
        mixture = Mixture(temperature=temperature, total=1000, quotas=[{"family": "f", "share": 0.3}])
        rows = allocate(counts, mixture, [["x", "y"]]).rows
        assert rows["x"] + rows["y"] == 300
        assert rows["a"] + rows["b"] == 700


def test_what_a_quota_cannot_fill_goes_to_the_rest_and_never_the_other_way():
    mixture = Mixture(total=1000, quotas=[{"category": "x", "rows": 500}])
    assert allocate({"a": 9000, "x": 100}, mixture, [["x"]]).rows == {"a": 900, "x": 100}
    short = allocate({"a": 100, "x": 9000}, mixture, [["x"]])
    assert short.rows == {"a": 100, "x": 500}
    assert short.shortfall == 400


def test_shares_that_cover_everything_sum_to_the_total():
    third = Mixture(total=1000, quotas=[{"category": name, "share": share} for name, share in (("a", 0.335), ("b", 0.665))])
    assert allocate({"a": 5000, "b": 5000}, third, [["a"], ["b"]]).total == 1000


def test_quotas_that_leave_rows_to_nobody_are_refused():
    mixture = Mixture(total=1000, quotas=[{"category": "a", "rows": 300}])
    with pytest.raises(UserError, match="cover every category and hold 300 rows, and 'total' is 1,000"):
        allocate({"a": 5000}, mixture, [["a"]])


def test_quotas_without_a_total_add_to_the_others():
    assert allocate({"a": 50, "x": 5000}, Mixture(quotas=[{"category": "x", "rows": 30}]), [["x"]]).rows == {"a": 50, "x": 30}


def test_quotas_that_ask_for_too_many_rows_are_not_said_to_be_a_total():
    mixture = Mixture(quotas=[{"category": "x", "rows": 500}], shortfall="stop")
    with pytest.raises(UserError, match=r"^the mixture with its quotas is 9500 rows, .* 9100 training rows .* Lower the quotas,"):
        planned(MixParameters(mixture=mixture, seed=0, shard_rows=10, members=(("x",),)), {"a": 9000, "x": 100})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quotas": [{"category": "a", "share": 0.1}]}, "give 'total' too"),
        (
            {"total": 10, "quotas": [{"category": "a", "share": 0.6}, {"task": "t", "rows": 5}]},
            "ask for 11 rows, and 'total' is 10",
        ),
        ({"quotas": [{"category": "a", "task": "t", "rows": 1}]}, "name exactly one"),
        ({"quotas": [{"category": "a"}]}, "give exactly one"),
        ({"shortfall": "repeat", "max_epochs": 8}, "raise 'repeat_epochs'"),
    ],
)
def test_a_mixture_that_contradicts_itself_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        Mixture(**fields)


def test_quotas_find_their_categories_and_refuse_none_and_two():
    entries = {
        name: Category(key=name, family=family, description="", task=task)
        for name, family, task in (("a", "code", "code_search"), ("b", "code", "retrieval"), ("c", "web", "retrieval"))
    }
    found = quota_members(Mixture(quotas=[{"family": "code", "rows": 1}, {"category": "c", "rows": 1}]), entries)
    assert found == [["a", "b"], ["c"]]
    with pytest.raises(UserError, match=r"quotas.0 \(task bitext\): no category .* there are code_search, retrieval"):
        quota_members(Mixture(quotas=[{"task": "bitext", "rows": 1}]), entries)
    with pytest.raises(UserError, match="'b' is in the quota of family code too"):
        quota_members(Mixture(quotas=[{"family": "code", "rows": 1}, {"task": "retrieval", "rows": 1}]), entries)


# -------------------------------------------------------------------------------------------------------- languages


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["en", "de", "fr", "und", "en>de", "sw"]), st.integers(1, 100_000), min_size=1),
    st.integers(1, 50_000),
    st.sampled_from([1.0, 2.0, 1e9]),
    st.sampled_from([0.3, 1.0, 2.5]),
)
def test_languages_sum_to_the_rows_of_their_category_within_their_epochs(counts, rows, temperature, epochs):
    mixture = Mixture(language_temperature=temperature, max_epochs=epochs)
    rows = min(rows, math.floor(sum(counts.values()) * Fraction(str(epochs))))
    found = by_language(rows, counts, mixture)
    assert sum(found.values()) == rows
    assert all(found[name] <= math.ceil(count * Fraction(str(epochs))) for name, count in counts.items())
    if temperature == 1 and rows <= sum(counts.values()):
        assert all(abs(found[name] - rows * count / sum(counts.values())) <= 1 for name, count in counts.items())
    if temperature == 1e9 and min(counts.values()) * epochs * len(counts) >= rows + len(counts):
        assert max(found.values()) - min(found.values()) <= 1
