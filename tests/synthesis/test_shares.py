"""Shares: what is declared holds over many requests, and what was written is measured."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.errors import UserError
from datakit.recipe import Shares
from datakit.synthesis.prompts import load
from datakit.synthesis.shares import Form, applied, draw_forms, draw_one, got, length_of, merged, weights

FORMS = load("questions").head.forms
LENGTHS, COMPLEXITIES = ("keywords", "phrase", "sentence", "long"), ("simple", "joined")
PARTS = st.lists(st.integers(1, 20), min_size=4, max_size=4)


def shares(length: list[int], joined: int) -> Shares:
    lengths = dict(zip(LENGTHS, [part / sum(length) for part in length], strict=True))
    return Shares.model_validate({"length": lengths, "complexity": {"simple": 1 - joined / 10, "joined": joined / 10}})


def of_kind(counts: dict[str, float], kind: str) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, count in counts.items():
        value = getattr(FORMS[name], kind)
        result[value] = result.get(value, 0.0) + count
    return result


@given(PARTS, st.integers(0, 10))
def test_weights_have_the_declared_shares_of_length_and_of_complexity(length: list[int], joined: int) -> None:
    declared = shares(length, joined)
    found = weights(FORMS, declared, "questions")
    assert sum(found.values()) == pytest.approx(1)
    assert of_kind(found, "length") == pytest.approx(declared.length, abs=1e-3)
    assert of_kind(found, "complexity") == pytest.approx(declared.complexity, abs=1e-3)


@pytest.mark.parametrize(
    ("length", "joined", "queries"), [([1, 1, 2, 1], 2, 4), ([1, 1, 1, 1], 0, 3), ([10, 1, 3, 2], 5, 5), ([1, 9, 9, 1], 10, 3)]
)
def test_what_is_drawn_has_the_declared_shares(length: list[int], joined: int, queries: int) -> None:
    declared = shares(length, joined)
    weighted = weights(FORMS, declared, "questions")
    drawn: Counter[str] = Counter()
    for number in range(1000):
        forms = draw_forms(weighted, queries, 0, str(number), "p")
        assert len(forms) == queries
        assert forms == sorted(forms, key=list(FORMS).index)
        drawn.update(forms)
    total = {name: drawn[name] / (1000 * queries) for name in FORMS}
    assert of_kind(total, "length") == pytest.approx(declared.length, abs=0.03)
    assert of_kind(total, "complexity") == pytest.approx(declared.complexity, abs=0.03)


def test_equal_forms_come_once_each_before_any_comes_again_and_all_are_used_alike() -> None:
    equal = dict.fromkeys("abcde", 0.2)
    assert draw_forms(equal, 5, 0, "x", "p") == list("abcde")
    drawn = [draw_forms(equal, 3, 0, str(number), "p") for number in range(1000)]
    assert all(len(set(forms)) == 3 for forms in drawn)
    counts = Counter(form for forms in drawn for form in forms)
    assert all(540 < count < 660 for count in counts.values())
    assert draw_forms(equal, 3, 0, "7", "p") == drawn[7]
    assert draw_forms({"a": 0.6, "b": 0.4}, 5, 0, "x", "p") == list("aaabb")


def test_one_is_drawn_by_its_weight() -> None:
    counts = Counter(draw_one({"a": 0.7, "b": 0.0, "c": 0.3}, "seed", str(number)) for number in range(2000))
    assert counts.keys() == {"a", "c"}
    assert 1340 < counts["a"] < 1460


def test_shares_that_a_prompt_cannot_give_are_refused_and_defaults_are_not() -> None:
    small, claims = load("questions", small=True).head.forms, load("claims").head.forms
    assert weights(small, Shares(), "questions") == pytest.approx(dict.fromkeys(small, 0.2))
    few = Shares.model_validate({"length": {"keywords": 1}})
    with pytest.raises(UserError, match="the prompt 'questions' cannot give 1 of 'keywords'"):
        weights(small, few, "questions")
    with pytest.raises(UserError, match=r"shares\.length is given, and the forms of the prompt 'claims' name no length"):
        weights(claims, few, "claims")
    plain = weights(claims, Shares(), "claims")
    assert plain["joined"] == pytest.approx(0.2)
    forms = {"a": Form(text="a"), "b": Form(text="b")}
    assert weights(forms, Shares(), "mine") == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    "wrong", [{"length": {"keywords": 0.5}}, {"complexity": {"simple": 1.5, "joined": -0.5}}, {"formality": {"x": 1}}]
)
def test_shares_sum_to_one_and_have_known_names(wrong: dict[str, dict[str, float]]) -> None:
    with pytest.raises(ValueError, match=r"sum to 1|should be 'plain'"):
        Shares.model_validate(wrong)


@pytest.mark.parametrize(
    ("query", "length"),
    [
        ("honey nectar", "keywords"),
        ("honey and wax", "phrase"),
        ("how bees store honey", "phrase"),
        ("where is honey?", "sentence"),
        ("what do bees live on when no flowers bloom", "sentence"),
        ("蜂蜜は何から作られますか？", "sentence"),
        (" ".join(["word"] * 15) + "?", "long"),
    ],
)
def test_the_length_of_a_query_is_measured(query: str, length: str) -> None:
    assert length_of(query) == length


def test_counts_become_shares_beside_what_was_declared() -> None:
    total = merged([{"length": {"long": 1, "phrase": 1}}, {"length": {"long": 2}, "form": {"x": 4}}, {}])
    assert total == {"form": {"x": 4}, "length": {"long": 3, "phrase": 1}}
    found = got(total, Shares())
    assert found == {"length": {"declared": Shares().length, "got": {"long": 0.75, "phrase": 0.25}}}


def test_shares_that_a_prompt_does_not_hold_are_not_told_as_declared() -> None:
    # Messages are never keywords, so that the shares of length which nobody gave do not hold for them.
    turns = load("turns").head.forms
    holding = applied(turns, Shares())
    assert weights(turns, Shares(), "turns") == pytest.approx(
        {"phrase": 0.8 / 3, "question": 0.8 / 3, "story": 0.8 / 3, "joined": 0.2}
    )
    assert got({"length": {"long": 1}, "complexity": {"joined": 1}}, holding) == {
        "length": {"declared": {}, "got": {"long": 1.0}},
        "complexity": {"declared": {"simple": 0.8, "joined": 0.2}, "got": {"joined": 1.0}},
    }
    assert applied(FORMS, Shares()) == Shares()
    declared = Shares(length={"phrase": 0.5, "long": 0.5})
    assert applied(turns, declared).length == declared.length
