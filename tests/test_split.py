"""The split: nothing that gives a validation row away stands on the other side."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplicated import changed, jaccard, row, sentence, shingle_set, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.errors import BuildError
from datakit.recipe import Split
from datakit.split import check_apart, split_step
from datakit.step import Output


def run(records: list[dict[str, Any]], cache: Path, split: Split, seed: int = 0, shards: int = 1, workers: int = 1) -> Output:
    return run_step(split_step(split, seed, (rows_step(tables(records, shards)),)), str(cache), workers)


def sides(output: Output) -> dict[str, str]:
    return {row_id: part for part in ("train", "validation") for row_id in read(output.part(part)).column("row_id").to_pylist()}


def documents(seed: int, number: int) -> list[dict[str, Any]]:
    """Documents with one to four rows: some share queries, some share positives, some are nearly another."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    texts: list[list[str]] = []
    for document in range(number):
        words = changed(draw, draw.choice(texts), 1) if texts and draw.random() < 0.2 else sentence(draw, 30)
        texts.append(words)
        for passage in range(1 + draw.randrange(4)):
            positive = " ".join(words) if passage == 0 else " ".join(sentence(draw, 25))
            query = draw.choice(made)["query"] if made and draw.random() < 0.1 else " ".join(sentence(draw, 6))
            made.append(row(query, positive, number=len(made), document_id=f"document {document}"))
    return made


HALF = Split(validation=0.5, max_group_fraction=1.0)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_nothing_that_rows_share_crosses_the_split(tmp_path_factory: pytest.TempPathFactory, seed: int, shards: int) -> None:
    records = documents(seed, 40)
    output = run(records, tmp_path_factory.mktemp("split"), HALF)
    side = sides(output)
    assert set(side) == {record["row_id"] for record in records}
    for name in ("document_id", "query_id", "positive_id"):
        seen = defaultdict(set)
        for record in records:
            seen[record[name]].add(side[record["row_id"]])
        assert all(len(parts) == 1 for parts in seen.values()), name
    sets = [shingle_set(record["positive"]) for record in records]
    near = [(i, j) for i in range(len(sets)) for j in range(i) if jaccard(sets[i], sets[j]) >= 0.85]
    assert all(side[records[i]["row_id"]] == side[records[j]["row_id"]] for i, j in near)
    random.Random(seed).shuffle(records)
    assert sides(run(records, tmp_path_factory.mktemp("split"), HALF, shards=shards)) == side


def test_both_sides_come_about_as_asked(tmp_path: Path) -> None:
    records = [row(f"q{i}", f"the positive number {i}", number=i, document_id=f"d{i // 2}") for i in range(4000)]
    output = run(records, tmp_path, Split(validation=0.2), shards=2)
    share = sum(part == "validation" for part in sides(output).values()) / len(records)
    assert abs(share - 0.2) < 0.03
    assert output.report.notes["documents"] == 2000
    assert [shard.rsplit("/", 1)[1] for shard in output.shards] == ["train-000.parquet", "validation-001.parquet"] * 2


def test_rows_that_come_later_move_nobody(tmp_path: Path) -> None:
    records = documents(1, 60)
    before = sides(run(records, tmp_path, HALF))
    draw = random.Random(2)
    more = [
        row(" ".join(sentence(draw, 7)), " ".join(sentence(draw, 40)), number=10_000 + i, document_id=f"new {i}")
        for i in range(200)
    ]
    after = sides(run([*more, *records], tmp_path, HALF))
    assert {row_id: after[row_id] for row_id in before} == before
    assert {"train", "validation"} == {after[record["row_id"]] for record in more}


def test_another_seed_draws_other_sides(tmp_path: Path) -> None:
    records = documents(3, 60)
    assert sides(run(records, tmp_path, HALF, seed=1)) != sides(run(records, tmp_path, HALF, seed=2))


def test_documents_hang_together_over_a_row_that_is_dropped_from_neither(tmp_path: Path) -> None:
    """Two documents that are alike only through a third one, between them, are on one side."""
    words = [f"w{i}" for i in range(40)]
    texts = [words[i : i + 30] for i in range(0, 6, 2)]
    sets = [shingle_set(" ".join(text)) for text in texts]
    assert jaccard(sets[0], sets[2]) < 0.8 <= jaccard(sets[0], sets[1])
    for seed in range(12):
        records = [row(f"q{i}", " ".join(text), number=i) for i, text in enumerate(texts)]
        assert len(set(sides(run(records, tmp_path, HALF, seed=seed)).values())) == 1


def test_a_group_that_is_too_large_is_for_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [row(f"q{i}", f"positive number {i}", number=i, document_id="large" if i < 100 else f"d{i}") for i in range(400)]
    with caplog.at_level(logging.WARNING):
        output = run(records, tmp_path, Split(validation=0.999, max_group_fraction=0.1))
    side = sides(output)
    assert {side[record["row_id"]] for record in records[:100]} == {"train"}
    assert sum(side[record["row_id"]] == "validation" for record in records[100:]) > 290
    assert output.report.notes["forced_to_train"] == {"components": 1, "rows": 100}
    assert output.report.notes["largest_component_rows"] == 100
    assert "max_group_fraction" in caplog.text


def test_small_data_are_split_all_the_same(tmp_path: Path) -> None:
    records = [row(f"q{i}", f"positive number {i // 4}", number=i) for i in range(40)]
    assert set(sides(run(records, tmp_path, Split(validation=0.5))).values()) == {"train", "validation"}


@pytest.mark.parametrize("document", ["query", "label", "none"])
def test_a_label_does_not_tie_its_rows_together(tmp_path: Path, document: str) -> None:
    draw = random.Random(4)
    records = []
    for i in range(300):
        made = row(" ".join(sentence(draw, 9)), f"label {i % 3}", number=i, in_batch_negatives=False)
        made["document_id"] = {"query": made["query_id"], "label": made["positive_id"], "none": None}[document]
        records.append(made)
    again = [record | {"row_id": record["row_id"] + "again"} for record in records]
    side = sides(run(records + again, tmp_path, Split(validation=0.3)))
    assert 0.2 < sum(part == "validation" for part in side.values()) / len(side) < 0.4
    assert all(side[record["row_id"]] == side[record["row_id"] + "again"] for record in records), "equal queries"


def test_without_validation_all_is_for_training(tmp_path: Path) -> None:
    output = run(documents(5, 10), tmp_path, Split(validation=0.0))
    assert set(sides(output).values()) == {"train"}
    assert len(output.part("validation")) == 1, "the file is there, and empty"


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    records = documents(6, 40)
    one = run(records, tmp_path / "one", HALF, shards=2, workers=1)
    two = run(records, tmp_path / "two", HALF, shards=2, workers=2)
    found = [
        {str(path.relative_to(output.folder)): path.read_bytes() for path in sorted(Path(output.folder).rglob("*.*"))}
        for output in (one, two)
    ]
    assert found[0] == found[1]
    assert {name.split("/")[0] for name in found[0]} == {
        "ids",
        "sign",
        "meet",
        "components",
        "send",
        "near",
        "sides",
        "rows",
        "step.json",
    }


def test_no_rows(tmp_path: Path) -> None:
    assert run([], tmp_path, HALF).report.counts.out == 0
    assert run_step(split_step(HALF, 0, (rows_step([]),)), str(tmp_path)).shards == []


def test_an_id_on_both_sides_stops_the_build() -> None:
    check_apart("query", np.array([0, 0, 1, -1, -1]), np.array([True, True, False, True, False]))
    with pytest.raises(BuildError, match="1 values of query_id"):
        check_apart("query", np.array([0, 0, 1]), np.array([True, False, False]))
