"""The trained quality classifier: corruptions, labels, training, the model that datakit carries, and the commands."""

from __future__ import annotations

import importlib
import json
import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from filter_rows import PROSE, row, said, table
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step
from typer.testing import CliRunner

from datakit import storage
from datakit.assets import Assets
from datakit.cli import app
from datakit.errors import UserError
from datakit.filters import filter_step, quality_card, quality_features, quality_model, quality_rows, quality_train
from datakit.filters.corrupt import CORRUPTIONS, Draw, Pair, varied
from datakit.negatives import mine_files
from datakit.recipe import QualityModelFilter
from datakit.sources import topics

FILTER = QualityModelFilter(type="quality_model")
GOOD = Pair(
    "How does the heart pump blood through the body?", f"{PROSE} It beats about seventy times each minute, day and night."
)
OTHER = Pair("Which tax do farmers pay?", "Farmers pay a levy on land and on what they sell at the end of each year.")


@pytest.fixture(scope="module")
def documentation() -> pa.Table:
    """Sections of Python's own documentation."""
    found = [each for each in topics.pairs(pydoc_data.topics.topics) if len(each["positive"].split()) > 10]
    records = [{**row(each["query"], each["positive"]), "document_id": each["document_id"]} for each in found]
    return quality_rows.as_rows(pl.DataFrame(table(*records).select(quality_rows.ROWS.names)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_spoils_a_good_pair_and_is_drawn_from_its_seed_alone(name: str) -> None:
    spoilt = [CORRUPTIONS[name](GOOD, OTHER, Draw(str(seed))) for seed in range(5)]
    assert all(each != GOOD for each in spoilt)
    assert spoilt == [CORRUPTIONS[name](GOOD, OTHER, Draw(str(seed))) for seed in range(5)]


@settings(deadline=None)
@given(st.builds(Pair, st.text(max_size=40), st.text(max_size=80)), st.integers(0, 99))
def test_corruptions_take_any_text(pair: Pair, seed: int) -> None:
    for corruption in CORRUPTIONS.values():
        assert all(isinstance(each, str) for each in corruption(pair, OTHER, Draw(str(seed))))
    assert all(isinstance(each, str) for each in varied(pair, Draw(str(seed))))


def test_phrases_of_held_out_rows_are_no_phrases_of_others() -> None:
    phrases = list("abcdefg")
    drawn = {side: {Draw(str(seed), side).phrase(phrases) for seed in range(99)} for side in (False, True)}
    assert drawn == {False: set("aceg"), True: set("bdf")}


def test_documents_never_cross_the_split_nor_do_corrupted_copies_and_donors(documentation: pa.Table) -> None:
    labelled = quality_train.corrupted(documentation, 0.3, 5, vary=0.5)
    ids = np.array(labelled.rows.column("document_id").to_pylist())
    assert 0.1 < labelled.held_out.mean() < 0.6
    assert not set(ids[labelled.held_out]) & set(ids[~labelled.held_out])
    positives = np.array(labelled.rows.column("positive").to_pylist(), dtype=object)
    wrong, good = labelled.origin == "wrong_positive", ~labelled.poor
    for side in (labelled.held_out, ~labelled.held_out):
        assert (wrong & side).any()
        assert set(positives[wrong & side]) <= set(positives[good & side])
    rows = labelled.rows.column("row_id").to_pylist()
    sides = dict(zip(np.array(rows)[good], labelled.held_out[good], strict=True))
    assert all(sides[each] == side for each, side in zip(rows, labelled.held_out, strict=True))


def test_class_labels_are_never_spoilt_and_graded_rows_are_left_out() -> None:
    records = [row(f"{GOOD.query} {n}", "body parts", label="body parts", task="classification") for n in range(50)]
    rows = quality_rows.as_rows(pl.DataFrame(table(*records, row(score=0.5)).select(quality_rows.ROWS.names)))
    labelled = quality_train.corrupted(rows, 0.2, 1)
    assert int((~labelled.poor).sum()) == 50
    assert set(labelled.rows.column("positive").to_pylist()) <= {"body parts", *labelled.rows.column("positive").to_pylist()[:50]}
    assert not {"wrong_positive", "truncated_positive", "shuffled_positive"} & set(labelled.origin.tolist())


def test_features_show_what_a_wrong_positive_lacks_and_do_not_depend_on_the_neighbours() -> None:
    rows = table(row(*GOOD), row(GOOD.query, OTHER.positive), row("", ""), row("\n\t\x00", "🙂" * 50))
    lines = quality_features.lines(rows)
    assert [line for number in range(4) for line in quality_features.lines(rows.slice(number, 1))] == lines
    overlaps = [{token for token in line.split() if token.startswith("o")} for line in lines[:2]]
    assert overlaps[0] != overlaps[1]
    assert all("\n" not in line for line in lines)


def test_the_same_rows_give_the_same_bytes(documentation: pa.Table, tmp_path: Path) -> None:
    labelled = quality_train.corrupted(documentation, 0.15, 5)  # Python 3.11.2 has 258 sections, and 200 are the least
    for name in ("a", "b"):
        quality_train.train(labelled, 5).save_model(str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_too_few_rows_are_one_sentence(documentation: pa.Table) -> None:
    with pytest.raises(UserError, match="at least 200 of each"):
        quality_train.train(quality_train.corrupted(documentation.slice(0, 30), 0.2, 5), 5)
    graded = documentation.set_column(
        documentation.schema.get_field_index("score"), "score", pa.array([3.0] * len(documentation))
    )
    with pytest.raises(UserError, match=rf"{len(documentation):,} rows with a graded `score` are left out"):
        quality_train.train(quality_train.corrupted(graded, 0.2, 5), 5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"query": "a", "positive": "b"}\n{"query": "cut', r"rows\.jsonl:2: .*invalid_json"),
        (b'{"query": "caf\xe9", "positive": "b"}\n', r"rows\.jsonl:1: .*invalid_utf8"),
        (b'{"query": "a", "positive": "b"}\n[1, 2]\n', r"rows\.jsonl:2: .*not_an_object"),
        (b"", r"rows\.jsonl' is empty"),
    ],
)
def test_a_broken_line_is_named_with_its_place(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=said):
        quality_rows.frame(str(tmp_path / "rows.jsonl"), "query", "positive")
    with pytest.raises(UserError, match=said):
        mine_files.read(str(tmp_path / "rows.jsonl"), "queries")


def test_a_fasttext_that_cannot_train_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import fasttext

    assert quality_train.trainable() is fasttext
    monkeypatch.delattr(fasttext, "train_supervised")
    with pytest.raises(UserError, match="--force-reinstall --no-deps fasttext-community"):
        quality_train.trainable()


def test_the_model_that_datakit_carries_is_small_has_a_card_and_finds_spoilt_rows() -> None:
    folder = Path(quality_model.__file__).parent / "quality_default"
    assert (folder / quality_model.MODEL).stat().st_size < 1_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "datakit quality train datasets/quality/latest --labels corrupted" in card
    assert "| threshold | precision | recall | good rows rejected |" in card
    assert (folder / "curve.svg").read_text(encoding="utf-8").startswith("<svg")
    rows = [
        row(*GOOD),
        row(GOOD.query, GOOD.positive.replace(" ", " <div>&nbsp;")),
        row(f"{GOOD.query} " + "the body the body " * 6, GOOD.positive),
    ]
    good, *poor = quality_model.score(table(*rows), FILTER.model)
    assert good > FILTER.threshold
    assert max(poor) < good


def test_the_filter_fills_quality_rejects_below_the_threshold_and_leaves_graded_rows_alone() -> None:
    rows = table(
        row(*GOOD), row(*GOOD, quality=0.25), row(*GOOD, score=0.4), row(GOOD.query, GOOD.positive.replace(" ", " <div>&nbsp;"))
    )
    scores = quality_model.score(rows, FILTER.model)
    threshold = float((scores[0] + scores[3]) / 2)
    filled, found = quality_model.annotate(rows, QualityModelFilter(type="quality_model", threshold=threshold))
    assert filled.column("quality").to_pylist() == [pytest.approx(scores[0]), 0.25, None, pytest.approx(scores[3])]
    assert said(found) == [(3, quality_model.LOW_QUALITY)]
    assert found.to_pylist()[0]["value"] == pytest.approx(scores[3])
    assert found.to_pylist()[0]["threshold"] == threshold


def test_blocks_do_not_change_scores_and_hostile_texts_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = ["", " ", "\x00", "\u202eabc", "🙂" * 90, "x" * 100_000, "<b>" * 90, "\ufeff", "a\u0301" * 50, "\u2028", "%s%n"]
    rows = table(*(row(a, b) for a in hostile for b in hostile[:4]), {"category": "c"})
    whole = quality_model.score(rows, FILTER.model)
    assert ((whole >= 0) & (whole <= 1)).all()
    monkeypatch.setattr(quality_model, "_BLOCK", 7)
    np.testing.assert_array_equal(quality_model.score(rows, FILTER.model), whole)


def test_a_step_gives_the_same_bytes_for_one_and_two_workers(tmp_path: Path) -> None:
    tables = [
        table(*(row(f"{GOOD.query} {n}") for n in range(9))),
        table(*(row(f"### {n}", "<b> &amp; <i>" * n) for n in range(9))),
    ]
    bytes_of = []
    for workers in (1, 2):
        step = filter_step(0, FILTER, (rows_step(tables),), None, None, Assets(str(tmp_path)))
        output = run_step(step, str(tmp_path / str(workers)), workers)
        bytes_of.append([Path(path).read_bytes() for path in (*output.shards, *output.rejected)])
        assert output.report.counts.rejected[quality_model.LOW_QUALITY] > 0
        assert read(output.shards).column("quality").null_count == 0
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_what_is_no_model_is_one_sentence_before_anything_runs(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / quality_model.MODEL).write_bytes(content)
    wrong = QualityModelFilter.model_validate({"type": "quality_model", "model": str(tmp_path)})
    with pytest.raises(UserError, match="quality model"):
        filter_step(0, wrong, (), None, None, Assets(str(tmp_path)))


def test_the_card_tells_precision_and_recall_of_a_plain_count() -> None:
    quality, poor = np.array([0.05, 0.15, 0.6, 0.7, 0.9, 0.05]), np.array([True, True, True, False, False, False])
    result = quality_card.tested("rows", quality, poor, np.where(poor, "spoilt", "original").astype(object), 0.1)
    points = {each.threshold: (each.precision, each.recall, each.good_rejected) for each in result.points}
    assert points[0.1] == (0.5, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert points[0.2] == (pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(1 / 3))
    from sklearn.metrics import roc_auc_score

    assert result.auc == pytest.approx(roc_auc_score(poor, -quality))
    assert result.ways == {"original": (3, pytest.approx(1 / 3)), "spoilt": (3, pytest.approx(1 / 3))}
    assert quality_card.svg([result]).count("<circle") == sum(each.recall > 0 for each in result.points)


class JudgedBuild:
    """The frames of a build that a judge scored."""

    path = "build"

    def __init__(self, rows: pa.Table) -> None:
        self.train = pl.DataFrame(rows).lazy()
        self.validation = pl.DataFrame(rows.slice(0, 0)).lazy()
        self.rejected = self.validation
        scores = [float(1 + number % 5) for number in range(rows.num_rows)]
        facts = {name: rows.column(name) for name in ("row_id", "category", "query", "positive")}
        count = rows.num_rows
        self._judged = pl.DataFrame({**facts, "criterion": ["quality"] * count, "score": scores, "kept": [True] * count})

    def judged(self) -> pl.LazyFrame:
        return self._judged.lazy()


def test_labels_of_a_judge_leave_out_what_is_in_between(documentation: pa.Table) -> None:
    build: Any = JudgedBuild(documentation.slice(0, 50))
    rows, poor = quality_rows.judged(build, "quality", 4, 2)
    assert (rows.num_rows, int(poor.sum())) == (40, 20)
    assert rows.column("document_id").to_pylist()[:2] == documentation.column("document_id").to_pylist()[:2]
    with pytest.raises(UserError, match="no rows that a judge scored for relevance"):
        quality_rows.judged(build, "relevance", 4, 2)


def test_train_and_score_as_a_user_does(documentation: pa.Table, tmp_path: Path) -> None:
    runner, source, output = CliRunner(), tmp_path / "pairs.jsonl", tmp_path / "model"
    pairs = documentation.select(["query", "positive"]).to_pylist()
    source.write_text(
        "".join(json.dumps({"question": each["query"], "answer": each["positive"], "n": 1}) + "\n" for each in pairs)
    )
    names = ["--query", "question", "--positive", "answer"]
    done = runner.invoke(app, ["quality", "train", str(source), "--labels", "corrupted", "--output", str(output), *names])
    assert done.exit_code == 0, done.output
    assert "precision" in done.output
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "curve.svg", "model.ftz"]
    scored = tmp_path / "scored.parquet"
    done = runner.invoke(app, ["quality", "score", str(source), "--model", str(output), "--output", str(scored), *names])
    assert done.exit_code == 0, done.output
    found = storage.read_table(str(scored))
    assert found.column_names == ["question", "answer", "n", "quality"]
    assert found.num_rows == len(pairs)
    refused = runner.invoke(app, ["quality", "score", str(source), "--output", str(scored), *names])
    assert "is there already" in str(refused.exception)
    refused = runner.invoke(app, ["quality", "score", str(source), "--output", str(source), "--force", *names])
    assert "ends in .parquet" in str(refused.exception), "its own input is whole"
    assert storage.read_table(str(scored)).equals(found)
    (tmp_path / "pairs-2.jsonl").write_bytes(source.read_bytes())
    refused = runner.invoke(app, ["quality", "score", str(tmp_path / "*.jsonl"), "-o", str(tmp_path / "all.parquet"), *names])
    assert "names 2 files, and one is scored at a time" in str(refused.exception)
    for wrong, sentence in (
        ([str(source), "--labels", "corrupted"], "no column 'query'"),
        ([str(source), "--labels", "judge", *names], "needs a build"),
        ([str(source), "--labels", "guess", *names], "--labels is 'guess'"),
        ([str(tmp_path / "none.parquet"), "--labels", "corrupted"], "is no file"),
    ):
        failed = runner.invoke(app, ["quality", "train", *wrong, "--output", str(output)])
        assert isinstance(failed.exception, UserError)
        assert sentence in str(failed.exception)


def test_importing_datakit_does_not_load_fasttext() -> None:
    import subprocess

    code = "import sys, datakit, datakit.cli; sys.exit('fasttext' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert importlib.util.find_spec("fasttext") is not None
