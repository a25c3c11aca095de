"""Batches against the rules read out loud: who is drawn, who is whose negative, what ranks get, and that nothing else decides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toys import MakeBuild, row

from datakit.opened import Build
from datakit.schema import EXAMPLE, text_id
from trainer.batch import Batch, Draw, Known, Mined, drawn, target_difficulty
from trainer.config import Curriculum, ModelConfig, Stage
from trainer.data import TrainingRows, plan
from trainer.model import Encoder, load_encoder

FIXTURES_ARE_SHARED = [HealthCheck.function_scoped_fixture]
GRADED = {"similarity": {}}


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base))


def opened(build: Build, folder: Path, seed: int = 0, loss: dict[str, Any] | None = None, **data: Any) -> TrainingRows:
    value = {"name": "only", "data": {"batch_size": 4, **data}, "loss": loss or {}, "training": {"steps": 1}}
    return TrainingRows(build, str(folder), Stage.model_validate(value), seed)


def epoch_of(rows: TrainingRows, encoder: Encoder, epoch: int = 0, progress: float = 0.0) -> list[Batch]:
    return [rows.batch(epoch, number, encoder, progress) for number in range(rows.batches_per_epoch)]


def same(one: Batch, two: Batch) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(Batch))


def own_texts(batch: Batch, number: int) -> list[str]:
    return [batch.documents[place].text for place in batch.own[number] if place >= 0]


Record = dict[str, Any]


def mined(text: str | None, difficulty: float | None = None, known: bool = True) -> Record:
    key = text_id(text) if text and known else None
    return {"id": key, "text": text, "miner": "bm25", "score": 1.0, "difficulty": difficulty}


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """Rows of few different texts, so that queries share positives and negatives are positives of others."""
    texts = st.sampled_from([f"d{number}" for number in range(6)])
    difficulty = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    found = []
    for number in range(draw(st.integers(1, 12))):
        known = draw(st.booleans())
        value = row(draw(st.sampled_from(["q0", "q1", "q2", "q3"])), draw(texts), category=draw(st.sampled_from("ab")))
        if not known:
            value |= {"query_id": None, "positive_id": None}
        negatives = [mined(text, draw(difficulty), known) for text in draw(st.lists(texts, max_size=3, unique=True))]
        found.append(
            {
                **value,
                "row_id": str(number),
                "negatives": negatives or draw(st.sampled_from([None, []])),
                "batch_group": draw(st.sampled_from([None, "g"])),
                "in_batch_negatives": draw(st.sampled_from([True, True, None, False])),
                "document_instruction": draw(st.sampled_from([None, None, "other"])),
                "score": draw(st.sampled_from([None, None, None, 0.25, 1.0])),
            }
        )
    return found


def positives_of(train: Sequence[Record]) -> dict[str, set[str]]:
    """Of each query; a graded pair may be alike or not."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in train:
        if each["score"] is None:
            found[each["query"]].add(each["positive"])
    return found


def distance(negative: Record, target: float | None) -> float:
    if target is None:
        return 0.0
    return float("inf") if negative["difficulty"] is None else abs(negative["difficulty"] - target)


def check(batch: Batch, train: Sequence[Record], encoder: Encoder, most: int, target: float | None) -> None:
    """The rules of one batch, as double loops over its texts."""
    positives = positives_of(train)
    whole = [train[int(row_id)] for row_id in batch.row_ids]
    graded = batch.scores is not None
    assert {each["score"] is not None for each in whole} <= {graded}
    assert {each["batch_group"] or each["category"] for each in whole} <= {batch.group}
    if graded:
        np.testing.assert_array_equal(batch.scores, np.array([each["score"] for each in whole], np.float32))
    assert len(set(batch.documents)) == len(batch.documents)
    assert batch.own.shape == (len(whole), 0 if graded else most)
    used = {*batch.positive.tolist(), *batch.own.ravel().tolist()} - {-1}
    assert used == set(range(len(batch.documents)))
    difficulties = []
    for i, each in enumerate(whole):
        assert batch.queries[i] == encoder.query_text(each["query"], None)
        own = {encoder.document_text(one["text"], each["document_instruction"]): one for one in each["negatives"] or []}
        assert batch.documents[batch.positive[i]] == encoder.document_text(each["positive"], each["document_instruction"])
        usable = [one for one in own.values() if one["text"] not in positives[each["query"]]]
        chosen = [own[batch.documents[place]] for place in batch.own[i] if place >= 0]
        assert all(one in usable for one in chosen)
        assert len({one["text"] for one in chosen}) == len(chosen) == (0 if graded else min(most, len(usable)))
        nearest = sorted(distance(one, target) for one in usable)[: len(chosen)]
        assert sorted(distance(one, target) for one in chosen) == pytest.approx(nearest)
        difficulties += [one["difficulty"] for one in chosen if one["difficulty"] is not None]
        mine = {batch.documents[place] for place in batch.own[i] if place >= 0}
        for j, document in enumerate(batch.documents):
            reachable = each["in_batch_negatives"] is not False or document in mine
            expected = j == batch.positive[i] or (reachable and document.text not in positives[each["query"]])
            assert batch.candidates[i, j] == expected, (each, document)
        for k, other in enumerate(whole):
            shared = positives[each["query"]] & positives[other["query"]]
            assert batch.equal_queries[i, k] == (each["query"] == other["query"] or bool(shared))
    assert batch.difficulty == (pytest.approx(np.mean(difficulties)) if difficulties else None)


@given(
    train=records(),
    graded=st.booleans(),
    most=st.integers(0, 3),
    target=st.none() | st.sampled_from([0.0, 0.3, 1.0]),
    batch_size=st.integers(2, 5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURES_ARE_SHARED)
def test_any_rows_make_batches_by_the_rules(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder, train: list[Record], graded: bool, most: int, target: float | None,
    batch_size: int,
) -> None:  # fmt: skip
    usable = [each for each in train if graded or each["score"] is None]
    if not usable:
        return
    curriculum = None if target is None or not most else {"start": target, "end": target}
    data = {"batch_size": batch_size, "negatives": most, "curriculum": curriculum}
    rows = opened(make_build(train, []), tmp_path, 0, GRADED if graded else None, **data)
    batches = epoch_of(rows, encoder)
    assert Counter(row_id for batch in batches for row_id in batch.row_ids) == Counter(each["row_id"] for each in usable)
    sizes = defaultdict(list)
    for whole in batches:
        sizes[whole.group, whole.scores is None].append(len(whole.row_ids))
        check(whole, train, encoder, most, target)
    for each in sizes.values():
        assert max(each) <= batch_size
        assert max(each) - min(each) <= 1


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5), batch=st.integers(2, 20), seed=st.integers(0, 9))
def test_batches_of_a_group_are_equal_in_size_up_to_one_row(sizes: list[int], batch: int, seed: int) -> None:
    found = defaultdict(list)
    for group, start, stop in plan(sizes, batch, seed, 0):
        found[group].append(stop - start)
    assert all(max(each) - min(each) <= 1 for each in found.values())


@given(
    asked=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.9])),
        min_size=1, max_size=6,
    ),
    seed=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURES_ARE_SHARED)
def test_a_batch_depends_on_what_is_asked_for_and_not_on_what_was_asked_before(
    toy_build: Build, tmp_path: Path, encoder: Encoder, asked: list[tuple[int, int, float]], seed: int
) -> None:
    def answers(rows: TrainingRows, order: list[int]) -> dict[int, Batch]:
        found = {}
        for place in order:
            epoch, number, progress = asked[place]
            found[place] = rows.batch(epoch, number, encoder, progress)
        return found

    settings = {"batch_size": 16, "curriculum": {}}
    rows, places = opened(toy_build, tmp_path, seed, **settings), list(range(len(asked)))
    first = answers(rows, places)
    for again in (answers(rows, places[::-1]), answers(opened(toy_build, tmp_path, seed, **settings), places[::-1])):
        assert all(same(first[place], again[place]) for place in places)


def test_another_seed_or_epoch_is_another_order_and_another_draw(toy_build: Build, tmp_path: Path, encoder: Encoder) -> None:
    orders, draws = set(), set()
    for seed in range(3):
        rows = opened(toy_build, tmp_path, seed, batch_size=16)
        for epoch in range(3):
            batches = epoch_of(rows, encoder, epoch)
            orders.add(tuple(row_id for batch in batches for row_id in batch.row_ids))
            own = {row_id: tuple(own_texts(batch, each)) for batch in batches for each, row_id in enumerate(batch.row_ids)}
            draws.add(tuple(sorted(own.items())))
    assert (len(orders), len(draws)) == (9, 9)


def nothing_known(rows: int) -> Known:
    return Known(np.arange(rows), np.zeros(0, np.int64), np.zeros(0, np.uint64))


DIFFICULTIES = st.lists(st.none() | st.floats(0, 1, width=32), max_size=6)


@given(
    lists=st.lists(st.none() | DIFFICULTIES, min_size=1, max_size=4),
    target=st.none() | st.floats(0, 1),
    most=st.integers(0, 4),
    seed=st.integers(0, 99),
)
@example(lists=[[None, 0.1, None, 0.9]], target=0.9, most=3, seed=0)
def test_drawn_are_those_nearest_to_the_target_then_by_luck_and_those_without_difficulty_last(
    lists: list[list[float | None] | None], target: float | None, most: int, seed: int
) -> None:
    column = pa.array(
        [each if each is None else [mined(f"{number}", value) for number, value in enumerate(each)] for each in lists],
        EXAMPLE.field("negatives").type,
    )
    luck = np.random.default_rng(seed).random((len(lists), 6))
    everything = Mined(column, nothing_known(len(lists)))
    found = drawn(everything, Draw(most, target, luck))
    got = [(int(everything.row[each]), int(everything.place[each])) for each in found]
    expected = []
    for number, each in enumerate(lists):
        order = sorted(
            range(len(each or [])), key=lambda place: (distance({"difficulty": each[place]}, target), luck[number, place])
        )
        expected += [(number, place) for place in sorted(order[:most])]
    assert got == expected


@given(
    start=st.floats(0, 1), end=st.floats(0, 1), until=st.floats(0.01, 1), progress=st.floats(0, 1), step=st.floats(0, 1)
)  # fmt: skip
def test_the_target_moves_evenly_and_stays_at_the_end(
    start: float, end: float, until: float, progress: float, step: float
) -> None:
    def target(at: float) -> float:
        found = target_difficulty(Curriculum(start=start, end=end, until=until), at)
        assert found is not None
        return found

    assert target(0.0) == start
    assert target(until) == pytest.approx(end)
    assert target(until + (1 - until) * progress) == pytest.approx(end)
    # Equal parts of the way are equal steps of difficulty.
    before, after = progress * step * until, progress * until
    assert target(after) - target(before) == pytest.approx((end - start) * (after - before) / until, abs=1e-9)
    assert target_difficulty(None, progress) is None


def test_harder_negatives_are_drawn_as_the_stage_goes_on(make_build: MakeBuild, tmp_path: Path, encoder: Encoder) -> None:
    values = [each / 10 for each in range(11)]
    negatives = [mined(f"n{value}", value) for value in values] + [mined("unknown")]
    rows = opened(
        make_build([{**row("q", "p"), "negatives": negatives}], []), tmp_path,
        negatives=2, curriculum={"start": 0.2, "end": 1.0, "until": 0.5},
    )  # fmt: skip
    for progress in np.linspace(0, 1, 11):
        target = 0.2 + 0.8 * min(1.0, progress / 0.5)
        for epoch in range(3):
            (batch,) = epoch_of(rows, encoder, epoch, progress)
            found = sorted(abs(float(text[1:]) - target) for text in own_texts(batch, 0))
            assert found == pytest.approx(sorted(abs(value - target) for value in values)[:2])
    everything = opened(rows.build, tmp_path, negatives=12, curriculum={})
    assert "unknown" in own_texts(epoch_of(everything, encoder)[0], 0)


def test_graded_rows_are_in_batches_of_their_own_without_mined_negatives_and_make_no_positive(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder
) -> None:
    train = [row(f"q{number}", f"p{number}", negatives=["n1", "n2"], score=number / 8) for number in range(8)]
    train += [row("q1", f"d{number}", negatives=["p1", "d0"]) for number in range(6)]
    batches = epoch_of(opened(make_build(train, []), tmp_path, 0, GRADED, negatives=2), encoder)
    graded = [batch for batch in batches if batch.scores is not None]
    assert [len(batch.row_ids) for batch in graded] == [4, 4]
    assert {query.text: score for batch in graded for query, score in zip(batch.queries, batch.scores, strict=True)} == {
        f"q{number}": number / 8 for number in range(8)
    }
    for batch in graded:
        assert sorted(document.text for document in batch.documents) == sorted(f"p{each.text[1:]}" for each in batch.queries)
        assert (batch.own.shape, batch.difficulty) == ((4, 0), None)
    for batch in batches:
        if batch.scores is None:
            # p1 stands beside q1 in a graded row only; d0 is a positive of q1.
            assert [own_texts(batch, each) for each in range(len(batch.row_ids))] == [["p1"]] * len(batch.row_ids)


def test_a_mined_negative_that_is_a_positive_of_the_query_in_any_row_is_never_drawn(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder
) -> None:
    train = [
        row("q1", "p1", negatives=["p1", "p2", "p3", "p4", "n1"]),
        row("q1", "p2", category="elsewhere"),
        {**row("q1", "p3", category="elsewhere"), "positive_id": None, "query_id": None},
        row("q2", "p4"),
    ]
    rows = opened(make_build(train, []), tmp_path, negatives=5)
    for epoch in range(5):
        (found,) = (
            sorted(own_texts(batch, each))
            for batch in epoch_of(rows, encoder, epoch)
            for each, row_id in enumerate(batch.row_ids)
            if row_id == train[0]["row_id"]
        )
        assert found == ["n1", "p4"]


@pytest.mark.parametrize("absent", [mined(""), mined(None), {**mined(None), "id": text_id("lost")}, None], ids=str)
def test_a_negative_without_a_text_is_none(
    make_build: MakeBuild, tmp_path: Path, encoder: Encoder, absent: Record | None
) -> None:
    train = [{**row("q", "p"), "negatives": [absent, mined("n")]}, row("q2", "p2")]
    (batch,) = epoch_of(opened(make_build(train, []), tmp_path, negatives=2), encoder)
    assert sorted(own_texts(batch, each) for each in range(2)) == [[], ["n"]]
    assert sorted(document.text for document in batch.documents) == ["n", "p", "p2"]
