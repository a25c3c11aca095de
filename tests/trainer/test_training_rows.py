"""Batches out of a build."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import MakeBuild, row, toy_rows

from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import EXAMPLE
from trainer.batch import Batch, candidates
from trainer.config import ModelConfig, Stage
from trainer.data import TrainingRows, plan
from trainer.evaluation.retrieval import load_task
from trainer.model import Encoder, Prompted, load_encoder


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base, query_prefix="Query ({instruction}): ", document_prefix=""))


def opened(build: Build, folder: Path, seed: int = 0, loss: dict[str, Any] | None = None, **data: Any) -> TrainingRows:
    value = {"name": "only", "data": {"batch_size": 16, **data}, "loss": loss or {}, "training": {"steps": 1}}
    return TrainingRows(build, str(folder), Stage.model_validate(value), seed)


def whole(texts: Iterable[Prompted]) -> list[str]:
    return ["".join(each) for each in texts]


def same(one: Batch, two: Batch) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(Batch))


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    batch=st.integers(2, 20),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_an_epoch_takes_each_place_of_each_group_once(sizes: list[int], batch: int, seed: int, epoch: int) -> None:
    batches = plan(sizes, batch, seed, epoch)
    seen = Counter((group, place) for group, start, stop in batches for place in range(start, stop))
    assert seen == Counter((group, place) for group, size in enumerate(sizes) for place in range(size))
    assert all(0 < stop - start <= batch for _, start, stop in batches)
    # A group is in no more batches than its rows need, so that groups come in proportion.
    assert Counter(group for group, _, _ in batches) == Counter({group: -(-size // batch) for group, size in enumerate(sizes)})
    assert batches == plan(sizes, batch, seed, epoch)


@given(epoch=st.integers(0, 50), number=st.integers(0, 5), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_is_a_function_of_seed_epoch_and_number(
    toy_build: Build, tmp_path: Path, encoder: Encoder, epoch: int, number: int, seed: int
) -> None:
    one = opened(toy_build, tmp_path, seed)
    for before in ((epoch + 1, 0), (epoch, 5 - number)):
        one.batch(*before, encoder, 0.0)
    assert same(one.batch(epoch, number, encoder, 0.0), opened(toy_build, tmp_path, seed).batch(epoch, number, encoder, 0.0))


def test_batches_are_of_one_group_and_an_epoch_holds_every_row_once(toy_build: Build, tmp_path: Path, encoder: Encoder) -> None:
    rows = opened(toy_build, tmp_path)
    batches = [rows.batch(3, number, encoder, 0.0) for number in range(rows.batches_per_epoch)]
    category = dict(toy_build.train.select("row_id", "category").collect().iter_rows())
    for batch in batches:
        assert {category[row_id] for row_id in batch.row_ids} == {batch.group}
    assert sorted(row_id for batch in batches for row_id in batch.row_ids) == sorted(category)
    assert [len(batch.row_ids) for batch in batches if batch.group == "things"] == [16] * 4
    again = [rows.batch(4, number, encoder, 0.0) for number in range(rows.batches_per_epoch)]
    assert [batch.row_ids for batch in batches] != [batch.row_ids for batch in again]


def test_positives_and_negatives_are_where_the_batch_says(toy_build: Build, tmp_path: Path, encoder: Encoder) -> None:
    records = {record["row_id"]: record for record in toy_build.train.collect().to_dicts()}
    batch = opened(toy_build, tmp_path).batch(0, 0, encoder, 0.0)
    assert len(set(batch.documents)) == len(batch.documents)
    for number, row_id in enumerate(batch.row_ids):
        assert batch.queries[number].text == records[row_id]["query"]
        assert batch.documents[batch.positive[number]].text == records[row_id]["positive"]
    texts = {each["text"] for row_id in batch.row_ids for each in records[row_id]["negatives"]}
    positives = {records[row_id]["positive"] for row_id in batch.row_ids}
    assert set(whole(batch.documents)) <= texts | positives
    for number, row_id in enumerate(batch.row_ids):
        own = {batch.documents[place].text for place in batch.own[number] if place >= 0}
        assert own <= {each["text"] for each in records[row_id]["negatives"]}
        assert len(own) == 1


def test_a_row_draws_so_many_negatives_and_others_in_another_epoch(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder
) -> None:
    texts = [f"a {number}" for number in range(8)]
    rows = opened(make_build([row("q", "p", negatives=texts)], []), tmp_path, negatives=3)
    drawn = [tuple(sorted(set(whole(rows.batch(epoch, 0, encoder, 0.0).documents)) - {"p"})) for epoch in range(20)]
    assert all(len(each) == 3 and set(each) <= set(texts) for each in drawn)
    assert len(set(drawn)) > 10
    assert {text for each in drawn for text in each} == set(texts)


def test_equal_queries_and_positives_are_masked_wherever_they_stand(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder
) -> None:
    train = [
        row("q1", "p1", negatives=["n1"]),
        row("q1", "p2", negatives=["p3"]),  # p3 is a positive of q1, in a row that never shares the batch, and is not drawn
        row("q2", "p1", negatives=["p3"]),  # the same positive as q1's
        row("q3", "p4", negatives=["p2"]),
        row("q1", "p3", category="elsewhere"),
    ]
    rows = opened(make_build(train, []), tmp_path)
    (batch,) = (batch for number in range(2) if (batch := rows.batch(0, number, encoder, 0.0)).group == "things")
    allowed = {
        (query.text, positive.text): {document.text for document, kept in zip(batch.documents, line, strict=True) if kept}
        for query, positive, line in zip(
            batch.queries, (batch.documents[place] for place in batch.positive), batch.candidates, strict=True
        )
    }
    everything = {"p1", "p2", "p3", "p4", "n1"}
    assert set(whole(batch.documents)) == everything
    assert allowed == {
        ("q1", "p1"): everything - {"p2", "p3"},
        ("q1", "p2"): everything - {"p1", "p3"},
        ("q2", "p1"): everything,
        ("q3", "p4"): everything,
    }
    places = {query.text: place for place, query in enumerate(batch.queries)}
    equal = batch.equal_queries
    # q2 has a positive in common with q1.
    assert equal[places["q1"], places["q2"]]
    assert not equal[places["q1"], places["q3"]]
    drawn = {query: {batch.documents[each].text for each in batch.own[place] if each >= 0} for query, place in places.items()}
    assert drawn["q2"] == {"p3"}


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [{}, {"similarity": {}}])
def test_a_score_that_is_no_number_is_refused(score: float, loss: dict[str, Any], make_build: MakeBuild, tmp_path: Path) -> None:
    build = make_build([row("q1", "p1", score=0.5), row("q2", "p2", score=score), row("q3", "p3")], [])
    with pytest.raises(BuildError, match=r"the score of row \w+ is no finite number"):
        opened(build, tmp_path, loss=loss)


def test_scores_that_are_no_cosines_are_refused_where_they_are_compared_with_them(make_build: MakeBuild, tmp_path: Path) -> None:
    build = make_build([row("q1", "p1", score=0.0), row("q2", "p2", score=5.0), row("q3", "p3", score=3.0)], [])
    assert len(opened(build, tmp_path, loss={"similarity": {"kind": "cosent"}})) == 3
    with pytest.raises(UserError, match=r"scores such as 0 and 5; .* allowed: -1 to 1"):
        opened(build, tmp_path, loss={"similarity": {"kind": "mse"}})


def test_a_row_without_in_batch_negatives_has_only_its_own(make_build: MakeBuild, tmp_path: Path, encoder: Encoder) -> None:
    train = [
        row("q1", "p1", negatives=["n1"], in_batch_negatives=False),
        row("q2", "p2", negatives=["n2"], in_batch_negatives=False),
        row("q3", "p3", negatives=[], in_batch_negatives=True),
    ]
    batch = opened(make_build(train, []), tmp_path).batch(0, 0, encoder, 0.0)
    for query, line in zip(whole(batch.queries), batch.candidates, strict=True):
        kept = {document for document, each in zip(whole(batch.documents), line, strict=True) if each}
        assert kept == ({"p1", "n1", "p2", "n2", "p3"} if query == "q3" else {query.replace("q", "p"), query.replace("q", "n")})


@given(data=st.data(), rows=st.integers(1, 6), documents=st.integers(1, 8))
def test_candidates_equal_the_rule_read_out_loud(data: st.DataObject, rows: int, documents: int) -> None:
    place = st.integers(0, documents - 1)
    positive = np.array(data.draw(st.lists(place, min_size=rows, max_size=rows)))
    mined = data.draw(st.lists(st.lists(st.integers(-1, documents - 1), min_size=3, max_size=3), min_size=rows, max_size=rows))
    in_batch = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    forbidden = np.array(data.draw(st.lists(st.booleans(), min_size=rows * documents, max_size=rows * documents)))
    forbidden = forbidden.reshape(rows, documents)
    found = candidates(positive, np.array(mined), in_batch, forbidden)
    for i in range(rows):
        for j in range(documents):
            expected = j == positive[i] or ((bool(in_batch[i]) or j in mined[i]) and not forbidden[i, j])
            assert found[i, j] == expected


def test_instructions_stand_before_texts_and_become_prompts(make_build: MakeBuild, tmp_path: Path, encoder: Encoder) -> None:
    train = [
        row("q1", "p1", instruction="find it"),
        row("q2", "p2", instruction="find it"),
        row("q3", "p3", category="others", instruction="name it"),
        row("q4", "p4", category="plain"),
    ]
    rows = opened(make_build(train, []), tmp_path)
    queries = {query for number in range(3) for query in whole(rows.batch(0, number, encoder, 0.0).queries)}
    assert queries == {"Query (find it): q1", "Query (find it): q2", "Query (name it): q3", "q4"}
    assert rows.prompts(encoder) == {
        "things": "Query (find it): ",
        "others": "Query (name it): ",
        "plain": "",
        "query": "Query (find it): ",
        "document": "",
    }


def test_rows_lie_in_a_mapped_file_that_leaves_nothing_behind(toy_build: Build, tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    before = pa.total_allocated_bytes()
    rows = opened(toy_build, folder)
    assert os.listdir(folder) == []
    assert pa.total_allocated_bytes() - before < 20_000
    assert rows.batch(0, 0, encoder, 0.0).queries


def test_graded_and_empty_rows_are_left_out_with_a_line_in_the_log(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    train = [row("q1", "p1"), row("q2", "p2", score=0.3), row("", "p3"), {**row("q4", "p4"), "positive": None}, row("q5", "p5")]
    with caplog.at_level(logging.WARNING):
        rows = opened(make_build(train, []), tmp_path)
    assert len(rows) == 2
    assert sorted(whole(rows.batch(0, 0, encoder, 0.0).queries)) == ["q1", "q5"]
    assert "3 rows are left out" in caplog.text


def test_another_schema_version_is_an_error_with_a_name(make_build: MakeBuild, tmp_path: Path) -> None:
    build = make_build(toy_rows(), toy_rows(), schema=EXAMPLE.with_metadata({"datakit.schema": "7"}))
    with pytest.raises(UserError, match="schema version 7, and this trainer reads version 1"):
        opened(build, tmp_path)
    with pytest.raises(UserError, match="schema version 7"):
        load_task(build)


def test_a_missing_column_and_a_missing_part_are_errors_with_names(make_build: MakeBuild, tmp_path: Path) -> None:
    without = EXAMPLE.remove(EXAMPLE.get_field_index("negatives"))
    with pytest.raises(UserError, match="the column 'negatives' is missing"):
        opened(make_build(toy_rows(), [], schema=without), tmp_path)
    with pytest.raises(UserError, match="has no rows in 'validation'"):
        load_task(make_build(toy_rows(), [], name="other"))


def test_a_truncated_file_is_an_error_with_a_name(toy_build: Build, tmp_path: Path) -> None:
    file = Path(toy_build.files("train")[0])
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"00000\.parquet' cannot be read as Parquet"):
        opened(toy_build, tmp_path)
