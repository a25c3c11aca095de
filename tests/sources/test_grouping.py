"""Groups and inference sets: records that become rows together."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import output, rejected, rows, shaped, step
from stepping import run_step

from datakit import storage
from datakit.recipe import HuggingFaceSource
from datakit.sources import buckets
from datakit.sources.grouping import CONTRADICTS, ENTAILS, group, nli
from datakit.step import Output

GROUP = {"type": "group", "by": "key", "text": "text"}


def write(folder: Path, records: list[dict[str, Any]], parts: int = 1) -> Path:
    folder.mkdir(parents=True)
    for part in range(parts):
        lines = [json.dumps(record) + "\n" for record in records[part::parts]]
        (folder / f"part-{part}.jsonl").write_text("".join(lines))
    return folder / "*.jsonl"


def grouped(path: Path, cache: Path, shape: dict[str, Any] = GROUP, **options: Any) -> Output:
    seed, workers = options.pop("seed", 0), options.pop("workers", 1)
    source = shaped(path, shape, **options)
    return output(source, cache, workers, seed=seed)


def pairs(output: Output) -> list[tuple[str, str]]:
    return [(row["query"], row["positive"]) for row in rows(output)]


# --------------------------------------------------------------------------------------------------------------------- groups


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.integers(0, 3))
def test_a_group_is_a_ring_of_its_texts(texts: list[str], seed: int) -> None:
    made = list(group("key", [(text, None) for text in texts], str(seed)))
    found = [(record["query"], record["positive"]) for record, sampled in made if sampled]
    distinct = sorted(set(texts))
    assert len(made) == len(texts)
    if len(distinct) > 2:
        assert sorted(query for query, _ in found) == sorted(positive for _, positive in found) == distinct
        reached, place = [], found[0][0]
        for _ in found:
            reached.append(place)
            place = dict(found)[place]
        assert sorted(reached) == distinct
    else:
        assert len(found) == len(distinct) - 1
    assert all(query != positive for query, positive in found)


def test_texts_of_one_key_meet_whatever_file_they_lie_in(tmp_path: Path) -> None:
    records = [{"key": f"k{i % 40}", "text": f"text {i % 40} {i // 40}"} for i in range(120)]
    records += [
        {"key": "alone", "text": "t"},
        {"key": "k0", "text": "text 0 0"},
        {"key": "", "text": "t"},
        {"key": "k1", "text": None},
    ]
    result = grouped(write(tmp_path / "data", records, 3), tmp_path / "cache")
    assert all(query.split()[1] == positive.split()[1] for query, positive in pairs(result))
    assert Counter(query for query, _ in pairs(result)) == Counter(f"text {i % 40} {i // 40}" for i in range(120))
    counts = result.report.counts
    assert (counts.created, counts.out, counts.not_sampled, counts.rejected) == (124, 120, 2, {"empty_field": 2})
    assert len({row["row_id"] for row in rows(result)}) == 120
    assert sorted(row["detail"].split(":", 2)[2] for row in rejected(result)) == [
        " positive: nothing in column 'text'", " query: nothing in column 'key'",
    ]  # fmt: skip


def test_the_order_of_records_and_files_changes_no_row_and_no_id(tmp_path: Path) -> None:
    records = [{"key": f"k{i % 7}", "text": f"t{i}"} for i in range(60)]
    shuffled = random.Random(1).sample(records, len(records))
    first = grouped(write(tmp_path / "a", records, 1), tmp_path / "cache-a", name="same")
    second = grouped(write(tmp_path / "b", shuffled, 4), tmp_path / "cache-b", name="same")
    assert {(row["row_id"], row["query"], row["positive"]) for row in rows(first)} == {
        (row["row_id"], row["query"], row["positive"]) for row in rows(second)
    }
    other_seed = grouped(write(tmp_path / "c", records), tmp_path / "cache-c", seed=1)
    assert set(pairs(first)) != set(pairs(other_seed))


def test_equal_pairs_of_different_groups_have_ids_of_their_own(tmp_path: Path) -> None:
    records = [{"key": f"k{i // 2}", "text": "ab"[i % 2]} for i in range(40)]
    result = grouped(write(tmp_path / "data", records), tmp_path / "cache")
    assert len(rows(result)) == len({row["row_id"] for row in rows(result)}) == 20


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    records = [{"key": f"k{i % 50}", "text": f"text number {i}"} for i in range(400)]
    made = step(shaped(write(tmp_path / "data", records, 4), GROUP), tmp_path)
    first = run_step(made, str(tmp_path))
    digests = [storage.file_digest(shard) for shard in first.shards]
    for file in [*Path(first.folder, "rows").rglob("*.*"), Path(first.folder, "step.json")]:
        file.unlink()
    again = run_step(made, str(tmp_path))
    assert [storage.file_digest(shard) for shard in again.shards] == digests


def test_pieces_and_buckets_bound_what_a_unit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"key": f"k{i % 100}", "text": f"text number {i}"} for i in range(1000)]
    whole = grouped(write(tmp_path / "data", records), tmp_path / "cache")
    monkeypatch.setattr(buckets, "PIECE_ROWS", 64)
    monkeypatch.setattr(buckets, "UNIT_CHARACTERS", 500)
    small = grouped(tmp_path / "data" / "*.jsonl", tmp_path / "cache-small")
    assert len(list(Path(small.folder, "scatter", "00000").glob("sent-*"))) == 16
    assert len(whole.shards) == 1
    assert len(small.shards) > 40
    assert rows(small) == rows(whole)


def test_records_too_long_are_refused_before_they_are_sent(tmp_path: Path) -> None:
    records = [{"key": "k", "text": "x" * size} for size in (10, 20, 5000)]
    result = grouped(write(tmp_path / "data", records), tmp_path / "cache", max_record_bytes=1000, max_bad_fraction=1)
    assert result.report.counts.rejected == {"record_too_long": 1}
    assert len(rows(result)) == 1


def test_unpacked_lists_can_be_grouped(tmp_path: Path) -> None:
    records = [{"id": i, "set": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(3)]
    reshape = [{"type": "unpack", "columns": ["set"]}, {"type": "group", "by": "id", "text": "set"}]
    result = output(shaped(write(tmp_path / "data", records), *reshape), tmp_path / "cache")
    assert len(rows(result)) == 9
    assert all(query[1] == positive[1] for query, positive in pairs(result))


# ------------------------------------------------------------------------------------------------------------------------ nli

NLI_RECORDS = [
    ("p", "follows", 0), ("p", "against", 2), ("p", "perhaps", 1), ("p", "also follows", 0), ("p", "against", 2), ("p", "follows", 2),
    ("q", "against", 2), ("r", "follows", 0), ("s", "", 0), ("t", "x", None),
]  # fmt: skip
LABELS = ["entailment", "neutral", "contradiction"]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([ENTAILS, CONTRADICTS, None])), min_size=1))
def test_each_hypothesis_that_follows_is_a_row(members: list[tuple[str, str | None]]) -> None:
    made = list(nli("premise", members))
    kept = [record for record, sampled in made if sampled]
    assert len(made) == len(members)
    assert [record["positive"] for record in kept] == [text for text, kind in members if kind == ENTAILS]
    against = {text for text, kind in members if kind == CONTRADICTS} - {text for text, kind in members if kind == ENTAILS}
    assert all(sorted(record["negative"]) == sorted(against) for record in kept)


@pytest.mark.parametrize(
    ("label", "shape"),
    [
        (lambda number: number, {"entailment": 0, "contradiction": 2}),
        (lambda number: None if number is None else str(number), {"entailment": 0, "contradiction": 2}),
        (lambda number: None if number is None else LABELS[number], {}),
    ],
)
def test_inference_sets_become_triples(tmp_path: Path, label: Any, shape: dict[str, Any]) -> None:
    records = [{"premise": p, "hypothesis": h, "label": label(number)} for p, h, number in NLI_RECORDS]
    check_triples(grouped(write(tmp_path / "data", records, 2), tmp_path / "cache", {"type": "nli", **shape}))


@pytest.mark.parametrize("shape", [{}, {"entailment": 0, "contradiction": 2}])
def test_class_labels_match_by_name_and_by_number(tmp_path: Path, shape: dict[str, Any]) -> None:
    columns = dict(zip(("premise", "hypothesis", "label"), map(list, zip(*NLI_RECORDS, strict=True)), strict=True))
    columns["label"] = [-1 if number is None else number for number in columns["label"]]
    text = datasets.Value("string")
    features = datasets.Features({"premise": text, "hypothesis": text, "label": datasets.ClassLabel(names=LABELS)})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "data")
    source = HuggingFaceSource.model_validate(
        {"type": "huggingface", "path": str(tmp_path / "data"), "reshape": [{"type": "nli", **shape}]}
    )
    check_triples(output(source, tmp_path / "cache"))


def check_triples(result: Output) -> None:
    found = {(row["query"], row["positive"], tuple(sorted(n["text"] for n in row["negatives"] or []))) for row in rows(result)}
    assert found == {("p", "follows", ("against",)), ("p", "also follows", ("against",)), ("r", "follows", ())}
    counts = result.report.counts
    assert (counts.created, counts.not_sampled, counts.rejected) == (10, 5, {"empty_field": 2})
