"""What an evaluation does to weights: which way they move, how far, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import UserError
from datakit.mixing.feedback import factors, load_evaluation
from datakit.mixing.weights import allocate, probabilities
from datakit.recipe import Feedback, Mixture
from datakit.schema import CategoryScore, Evaluation


def evaluation(**scores: tuple[float, int] | tuple[float, int, list[float]]) -> Evaluation:
    categories = {name: CategoryScore(score=s[0], rows=s[1], history=s[2] if len(s) > 2 else []) for name, s in scores.items()}
    return Evaluation(model="m", build="b", metric="nDCG@10", categories=categories)


SCORE = st.builds(
    CategoryScore,
    score=st.floats(-1e6, 1e6),
    rows=st.integers(0, 10**7),
    history=st.lists(st.floats(-1e6, 1e6), max_size=6),
)
EVALUATION = st.dictionaries(st.text("abc", min_size=1, max_size=3), SCORE, min_size=1, max_size=8).map(
    lambda categories: Evaluation(model="m", build="b", metric="x", categories=categories)
)
SETTINGS = st.builds(
    Feedback,
    bound=st.floats(1, 16),
    poor=st.floats(0.01, 10),
    plateau=st.floats(0.001, 1),
    window=st.integers(1, 5),
    rows=st.integers(0, 1000),
)


@settings(max_examples=300, deadline=None)
@given(EVALUATION, SETTINGS)
def test_no_factor_is_beyond_its_bound(found, feedback):
    moved = factors(found, feedback)
    assert set(moved) == set(found.categories)
    assert all(1 / feedback.bound <= factor <= feedback.bound for factor in moved.values())


@settings(max_examples=200, deadline=None)
@given(EVALUATION, SETTINGS, st.floats(0.001, 1000))
def test_the_unit_of_the_metric_does_not_matter(found, feedback, unit):
    scaled = {
        name: CategoryScore(score=each.score * unit, rows=each.rows, history=[score * unit for score in each.history])
        for name, each in found.categories.items()
    }
    one, other = factors(found, feedback), factors(found.model_copy(update={"categories": scaled}), feedback)
    assert one == pytest.approx(other, rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5000)), min_size=2, max_size=6),
    st.floats(0.01, 0.3),
)
def test_a_lower_score_never_lowers_the_factor(scores, drop):
    named = {f"c{number}": score for number, score in enumerate(scores)}
    before = factors(evaluation(**named), Feedback())
    named["c0"] = (named["c0"][0] - drop, named["c0"][1])
    if named["c0"][0] >= 0:
        assert factors(evaluation(**named), Feedback())["c0"] >= before["c0"] - 1e-6


def test_poor_categories_rise_flat_ones_fall_and_others_stay():
    moved = factors(
        evaluation(
            poor=(0.2, 5000, [0.1, 0.15]),
            flat=(0.7, 5000, [0.7, 0.7]),
            rising=(0.7, 5000, [0.5, 0.6]),
            falling=(0.7, 5000, [0.9, 0.8]),
            fresh=(0.7, 5000),
        ),
        Feedback(),
    )
    assert moved["poor"] > 1.9
    assert moved["flat"] < 0.52
    assert moved["rising"] == moved["falling"] == moved["fresh"] == 1


def test_a_poor_category_that_no_longer_gains_keeps_its_weight():
    assert factors(evaluation(stuck=(0.1, 10**6, [0.1, 0.1]), good=(0.9, 10**6, [0.5, 0.7])), Feedback())[
        "stuck"
    ] == pytest.approx(1)


def test_a_plateau_is_one_of_the_last_evaluations_and_needs_three():
    feedback = Feedback()
    assert factors(evaluation(a=(0.7, 5000, [0.7])), feedback)["a"] == 1
    assert factors(evaluation(a=(0.7, 5000, [0.1, 0.7, 0.7])), feedback)["a"] < 0.52
    assert factors(evaluation(a=(0.7, 5000, [0.7, 0.7, 0.5, 0.6])), feedback)["a"] == 1


def test_few_rows_give_little_weight():
    def factor(rows: int) -> float:
        return factors(evaluation(poor=(0.1, rows), good=(0.8, 10**6)), Feedback())["poor"]

    found = [factor(rows) for rows in (0, 5, 100, 10_000)]
    assert found == sorted(found)
    assert found[0] == 1
    assert found[1] < 1.05
    assert found[2] == pytest.approx(2**0.5, rel=0.01)
    assert found[3] > 1.95


def test_a_bound_of_one_changes_nothing():
    assert set(factors(evaluation(a=(0.1, 900), b=(0.9, 900, [0.9, 0.9])), Feedback(bound=1)).values()) == {1}


@settings(max_examples=100, deadline=None)
@given(EVALUATION, SETTINGS)
def test_a_share_before_limits_changes_by_the_square_of_the_bound_at_most(found, feedback):
    counts = dict.fromkeys([*found.categories, "unscored"], 1000)
    before, after = probabilities(counts, 1.0), probabilities(counts, 1.0, factors(found, feedback))
    for name in counts:
        assert feedback.bound**-2 * (1 - 1e-9) <= after[name] / before[name] <= feedback.bound**2 * (1 + 1e-9)


def test_a_round_trip_gives_more_rows_of_what_is_poor_until_it_is_poor_no_longer():
    """Rows of a category raise its score, as training would; rounds of evaluation and mixture even the scores out, and settle."""
    counts, mixture = dict.fromkeys("abcd", 50_000), Mixture(total=8000)
    need = {"a": 8000, "b": 2000, "c": 2000, "d": 2000}

    def scores(rows: dict[str, int]) -> dict[str, float]:
        return {name: rows[name] / (rows[name] + need[name]) for name in rows}

    rows = allocate(counts, mixture).rows
    first = scores(rows)
    for _ in range(4):
        moved = factors(evaluation(**{name: (score, 2000) for name, score in scores(rows).items()}), mixture.feedback)
        assert all(0.5 <= factor <= 2 for factor in moved.values())
        raised = allocate(counts, mixture, (), moved).rows
        assert sum(raised.values()) == 8000
        assert raised["a"] > 2000 > raised["b"]
        rows = raised
    last = scores(rows)
    assert last["a"] > first["a"]
    assert max(last.values()) - min(last.values()) < max(first.values()) - min(first.values())


# ------------------------------------------------------------------------------------------------------------ the file


def written(tmp_path, **changes) -> str:
    found = evaluation(a=(0.5, 10)).model_dump(mode="json", by_alias=True) | changes
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(found))
    return str(path)


def test_what_a_trainer_writes_is_read(tmp_path):
    assert load_evaluation(written(tmp_path), ["a", "b"]) == evaluation(a=(0.5, 10))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"categories": {"x": {"score": 1, "rows": 1}, "y": {"score": 1, "rows": 1}}},
            "scores of 'x', 'y', which the recipe does",
        ),
        ({"categories": {}}, "no score of any category"),
        ({"schema": 9}, "the schema 9"),
        ({"categories": {"a": {"score": 1, "rows": -1}}}, "categories.a.rows"),
        ({"categories": {"a": {"rows": 1}}}, "categories.a.score"),
        ({"categories": {"a": {"score": float("nan"), "rows": 1}}}, "no finite number"),
        ({"categories": {"a": {"score": 1, "rows": 1, "history": [float("inf")]}}}, "no finite number"),
    ],
)
def test_a_file_that_is_no_evaluation_of_this_recipe_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        load_evaluation(written(tmp_path, **changes), ["a", "b"])


def test_a_missing_file_and_broken_json_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_evaluation(str(tmp_path / "none.json"), ["a"])
    with pytest.raises(UserError, match="a folder"):
        load_evaluation(str(tmp_path), ["a"])
    (tmp_path / "broken.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="is no evaluation"):
        load_evaluation(str(tmp_path / "broken.json"), ["a"])
