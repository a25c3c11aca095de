"""`datakit calibrate`: the curve, the proposal, and what is said of too few labels."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit import calibration_curve
from datakit.calibrate import QUANTITIES, Calibration, area, curve, judged, propose, wilson
from datakit.cli import app
from datakit.errors import UserError, run_command_line
from datakit.filters import length, round_trip, toxicity
from datakit.recipe import LengthFilter, RoundTripFilter, ToxicityFilter

Run = Callable[..., tuple[int, str, str]]

VALUES = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({bad for _, bad in rows}) == 2
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run_command_line(lambda: app(["calibrate", *arguments, "--workers", "1"]), "datakit")
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, captured.out, captured.err

    return call


@settings(max_examples=80, deadline=None)
@given(VALUES, st.sampled_from(["toxicity", "consistency", "round_trip", "query_too_short", "query_too_long"]))
def test_each_point_of_the_curve_counts_what_the_filter_rejects_at_its_threshold(rows: list[tuple[int, bool]], name: str) -> None:
    quantity = QUANTITIES[name]
    values = np.array([value for value, _ in rows], float)
    values = values if quantity.whole else values / 13
    bad = np.array([each for _, each in rows])
    points = curve(values, bad, quantity)
    assert len(points) == len(set(values))
    assert [point.rejected for point in points] == sorted({point.rejected for point in points})
    assert points[-1].rejected == len(rows)
    for point in points:
        beyond = values > point.threshold if quantity.high_is_bad else values < point.threshold
        assert (point.rejected, point.rejected_bad) == (beyond.sum(), (beyond & bad).sum())
        if quantity.whole:
            assert point.threshold.is_integer()


def test_the_thresholds_are_those_of_the_real_judges() -> None:
    scores = np.array([0.1, 0.4, 0.6, 0.9])
    bad = np.array([False, False, True, True])
    point = propose(curve(scores, bad, QUANTITIES["toxicity"]), 1.0)
    assert point is not None
    said = toxicity.judge(np.stack([scores, scores * 0], axis=1), ToxicityFilter(type="toxicity", threshold=point.threshold))
    assert said.column("row").to_pylist() == [2, 3]
    ranks = np.array([1, 2, 30, 40])
    point = propose(curve(ranks.astype(float), bad, QUANTITIES["round_trip"]), 1.0)
    assert point is not None
    assert round_trip.judge(ranks, RoundTripFilter(type="round_trip", encoder="e", top_k=int(point.threshold))).column(
        "row"
    ).to_pylist() == [2, 3]
    assert LengthFilter(type="length").query[0] == 2
    assert length.QUERY_TOO_SHORT in QUANTITIES


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(0.05, 1))
def test_the_proposal_has_the_precision_and_no_other_with_it_finds_more(rows: list[tuple[int, bool]], precision: float) -> None:
    values, bad = np.array([value for value, _ in rows], float), np.array([each for _, each in rows])
    points = curve(values, bad, QUANTITIES["toxicity"])
    point = propose(points, precision)
    fit = [each for each in points if each.precision >= precision and each.rejected_bad]
    assert (point is None) == (not fit)
    if point is not None:
        assert point.precision >= precision
        assert point.recall == max(each.recall for each in fit)
    best = propose(points, None)
    assert best is not None
    assert best.f1 == max(each.f1 for each in points)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_the_area_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import roc_auc_score

    values, bad = np.array([value for value, _ in rows], float), np.array([each for _, each in rows])
    assert area(values, bad) == pytest.approx(roc_auc_score(bad, values))


def test_wilsons_interval_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for hits, of in ((0, 5), (5, 5), (47, 50), (123, 128), (1, 1000)):
        expected = binomtest(hits, of).proportion_ci(method="wilson")
        assert wilson(hits, of) == pytest.approx((expected.low, expected.high), abs=1e-6)


def drawn(rows: int, seed: int = 0) -> Calibration:
    random = np.random.default_rng(seed)
    bad = random.random(rows) < 0.4
    values = np.clip(random.normal(np.where(bad, 0.6, 0.4), 0.12), 0, 1)
    return judged("toxicity", QUANTITIES["toxicity"], [str(row) for row in range(rows)], values, bad, 0.95)


def test_few_labels_are_called_too_few_and_many_are_not() -> None:
    few, many = drawn(40), drawn(10_000)
    assert any("Too few labels" in sentence for sentence in calibration_curve.sentences(few))
    said = " ".join(calibration_curve.sentences(many))
    assert "Too few" not in said
    assert many.proposed is not None
    assert many.spread is not None
    assert many.spread[0] <= many.proposed.threshold <= many.spread[1]
    assert many.spread[1] - many.spread[0] < 0.1
    assert all(value is not None and abs(value - 0.95) < 0.03 for value in many.held_out)
    assert drawn(500) == drawn(500)


def test_a_precision_that_no_threshold_has_is_said() -> None:
    found = judged(
        "toxicity", QUANTITIES["toxicity"], ["a", "b", "c"], np.array([0.9, 0.5, 0.1]), np.array([False, True, False]), 0.9
    )
    assert found.proposed is None
    assert any("No threshold reaches the precision 0.9. The best is 0.500" in each for each in calibration_curve.sentences(found))


def test_the_curve_is_written_as_csv_svg_and_html(tmp_path: Path) -> None:
    found = drawn(300)
    for name in ("curve.csv", "curve.svg", "curve.html"):
        calibration_curve.write(found, str(tmp_path / name))
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["rejected"]) for row in rows] == [point.rejected for point in found.curve]
    xml.etree.ElementTree.parse(tmp_path / "curve.svg")
    assert "Calibration of toxicity" in (tmp_path / "curve.html").read_text()
    with pytest.raises(UserError, match=r"\.csv, \.svg, \.html"):
        calibration_curve.write(found, str(tmp_path / "curve.png"))


def labelled(path: Path, number: int = 60) -> str:
    with path.open("w") as file:
        for n in range(number):
            query = " ".join(["word"] * (1 + n % 3)) if n % 2 else " ".join(["word"] * (5 + n % 7))
            mark = {1: "bad", 0: "good"}[n % 2]
            file.write(json.dumps({"query": query, "positive": f"an answer of six words {n}", "label": mark}) + "\n")
    return str(path)


def test_a_filter_is_run_and_a_threshold_that_parts_the_labels_is_found(run: Run, tmp_path: Path) -> None:
    path = labelled(tmp_path / "rows.jsonl")
    code, said, err = run("query_too_short", "--labels", path, "--precision", "1", "-o", "curve.csv")
    assert code == 0, err
    assert "Proposed for precision 1: length.query[0] = 4 (what is below is rejected)." in said
    assert "30 of 30 rejected rows are bad" in said
    assert "Too few labels: 30 good and 30 bad" in said
    assert Path("curve.csv").is_file()
    for name in ("query_too_long", "document_too_long", "document_too_short", "toxicity"):
        assert run(name, "--labels", path)[0] == 0, name
    Path("filters.yaml").write_text("filters: [{type: language, allowed: [en]}]")
    assert run("language", "--labels", path, "--filters", "filters.yaml")[0] == 0


def test_consistency_and_round_trip_are_measured_by_the_embedded_encoder(run: Run, tmp_path: Path) -> None:
    topics = ["heart", "volcano", "guitar", "bread", "glacier", "chess", "election", "kidney"]
    with (tmp_path / "rows.jsonl").open("w") as file:
        for n in range(16):
            topic, other = topics[n % 8], topics[(n + 3) % 8]
            query, mark = f"what is a {topic}", "good"
            if n >= 8:
                query, mark = f"where is a {other}", "bad"
            file.write(json.dumps({"query": query, "positive": f"a text about the {topic}", "label": mark}) + "\n")
    for name in ("consistency", "round_trip"):
        code, said, err = run(name, "--labels", str(tmp_path / "rows.jsonl"))
        assert code == 0, err
        assert "16 rows, 8 of them bad; AUC 1.000" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("weather",), "'weather' cannot be calibrated. Allowed: toxicity"),
        (("quality",), "'quality' has a threshold for each of its rules, and none for all; quality_model has one"),
        (("toxicity", "--label", "mood", "-o", "curve.png"), "'curve.png' ends in no known format"),
        (("toxicity", "--label", "mood"), "no column 'mood' with labels; its columns are: query, positive, label"),
        (("toxicity", "--bad", "awful"), "No row is labelled bad: the column 'label' holds 'good' (30), 'bad' (30)"),
        (("toxicity", "--bad", "bad", "--bad", "good"), "No row is labelled good"),
        (("toxicity", "--precision", "95"), "The precision is 95"),
        (("language",), "needs to know 'allowed'"),
        (("consistency", "--text", "query"), "is about pairs"),
        (("toxicity", "--filters", "filters.yaml"), "no filter of the type 'toxicity'"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(run: Run, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    Path("filters.yaml").write_text("filters: [{type: quality}]")
    code, _, err = run(*arguments, "--labels", labelled(tmp_path / "rows.jsonl"))
    assert code == 2
    assert sentence in err
