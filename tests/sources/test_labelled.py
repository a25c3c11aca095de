"""Labelled texts as pairs: names of classes, or exemplars of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from reading import output, rows, shaped

from datakit.recipe import HuggingFaceSource
from datakit.sources import labelled
from datakit.sources.labelled import walk
from datakit.step import Output

CLASSES = ["cancel order", "track order", "refund", "complaint", "greeting"]
NAMES = {"type": "labels", "text": "text", "label": "label", "documents": "names", "negatives": 3}
EXEMPLARS = NAMES | {"documents": "exemplars"}


def write(folder: Path, records: list[dict[str, Any]], parts: int = 1) -> Path:
    folder.mkdir(parents=True)
    for part in range(parts):
        lines = [json.dumps(record) + "\n" for record in records[part::parts]]
        (folder / f"part-{part}.jsonl").write_text("".join(lines))
    return folder / "*.jsonl"


def texts(count: int, classes: int = 5) -> list[dict[str, Any]]:
    return [{"text": f"{CLASSES[i % classes]}, number {i}", "label": CLASSES[i % classes]} for i in range(count)]


def made(path: Path, cache: Path, shape: dict[str, Any], seed: int = 0, **options: Any) -> Output:
    return output(shaped(path, shape, name="same", **options), cache, seed=seed)


def negatives(row: dict[str, Any]) -> list[str]:
    return [negative["text"] for negative in row["negatives"] or []]


@given(st.integers(0, 60), st.text())
def test_a_walk_meets_each_number_once(size: int, part: str) -> None:
    assert sorted(walk(size, part)) == list(range(size))


# ---------------------------------------------------------------------------------------------------------------------- names


def test_the_positive_is_the_name_of_the_class_and_negatives_are_names_of_others(tmp_path: Path) -> None:
    records = [*texts(50), {"text": "", "label": "refund"}, {"text": "x", "label": None}]
    result = made(write(tmp_path / "data", records, 3), tmp_path / "cache", NAMES | {"names": {"refund": "money back"}})
    named = {name: name for name in CLASSES} | {"refund": "money back"}
    for row in rows(result):
        assert row["query"].startswith(row["label"])
        assert row["positive"] == named[row["label"]]
        assert len(set(negatives(row))) == 3
        assert set(negatives(row)) <= set(named.values()) - {row["positive"]}
    assert Counter(name for row in rows(result) for name in negatives(row)).keys() == set(named.values())
    assert (result.report.counts.created, result.report.counts.rejected) == (52, {"empty_field": 2})


def test_fewer_classes_than_negatives_give_them_all(tmp_path: Path) -> None:
    result = made(write(tmp_path / "data", texts(6, classes=3)), tmp_path / "cache", NAMES | {"negatives": 7})
    assert all(sorted([row["positive"], *negatives(row)]) == sorted(CLASSES[:3]) for row in rows(result))


def test_records_that_are_not_wanted_name_no_class(tmp_path: Path) -> None:
    result = made(write(tmp_path / "data", texts(20)), tmp_path / "cache", NAMES, where={"label": CLASSES[:2]})
    assert {name for row in rows(result) for name in [row["positive"], *negatives(row)]} == set(CLASSES[:2])
    assert (result.report.counts.out, result.report.counts.not_sampled) == (8, 12)


@pytest.mark.parametrize("classes", [True, False])
def test_names_are_given_by_number_for_numbers_and_for_class_labels(tmp_path: Path, classes: bool) -> None:
    kind = datasets.ClassLabel(names=["neg", "pos"]) if classes else datasets.Value("int64")
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    given = {"text": [f"t{i}" for i in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(given, features=features).save_to_disk(tmp_path / "data")
    shape = NAMES | {"names": {0: "negative", 1: "positive"}}
    source = HuggingFaceSource.model_validate({"type": "huggingface", "path": str(tmp_path / "data"), "reshape": [shape]})
    found = rows(output(source, tmp_path / "cache"))
    assert [row["positive"] for row in found] == ["negative", "positive"] * 2
    assert [negatives(row) for row in found] == [["positive"], ["negative"]] * 2
    assert [row["label"] for row in found] == (["neg", "pos"] if classes else ["0", "1"]) * 2


# ------------------------------------------------------------------------------------------------------------------ exemplars


def check_exemplars(result: Output, label_of: dict[str, set[str]], count: int) -> None:
    for row in rows(result):
        assert row["query"] != row["positive"]
        assert row["label"] in label_of[row["query"]] & label_of[row["positive"]]
        assert len(set(negatives(row))) == count
        assert all(row["label"] not in label_of[text] for text in negatives(row))


def test_positives_are_of_the_class_and_negatives_of_others(tmp_path: Path) -> None:
    records = texts(60)
    both = "said of two classes"
    extra = [("alone", "single"), (both, "refund"), (both, "greeting"), (records[0]["text"], records[0]["label"])]
    records += [{"text": text, "label": label} for text, label in extra]
    label_of: dict[str, set[str]] = {}
    for record in records:
        label_of.setdefault(record["text"], set()).add(record["label"])
    result = made(write(tmp_path / "data", records, 3), tmp_path / "cache", EXEMPLARS)
    check_exemplars(result, label_of, 3)
    found = rows(result)
    assert Counter(row["query"] for row in found) == Counter(record["text"] for record in records if record["label"] != "single")
    assert len({row["row_id"] for row in found}) == len(found)
    counts = result.report.counts
    assert (counts.created, counts.out, counts.not_sampled) == (64, 63, 1)
    # One text of each other class comes before a second one of any; the text of two classes may stand in the way.
    varied = [len({min(label_of[text]) for text in negatives(row)}) == 3 for row in found]
    assert sum(varied) > 0.8 * len(varied)


@pytest.mark.parametrize(
    "changed",
    [{"query": {"template": "Find: {query}"}}, {"positive": "label"}, {"negative": ["negative", {"template": "{negative}!"}]}],
)
def test_exemplars_are_taken_as_they_are(changed: dict[str, Any], tmp_path: Path) -> None:
    """Their side of the split was foretold for these texts."""
    columns = {"query": "query", "positive": "positive", "negative": ["negative"], "label": "label"}
    shaped(tmp_path, EXEMPLARS, columns=columns)
    shaped(tmp_path, NAMES, columns=columns | changed)
    with pytest.raises(ValidationError, match="'columns' makes new texts of exemplars"):
        shaped(tmp_path, EXEMPLARS, columns=columns | changed)


def test_large_classes_are_worked_on_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "CHUNK", 50)
    monkeypatch.setattr(labelled, "POOL_TEXTS", 100)
    records = [{"text": f"text {i}", "label": "large" if i % 10 else "small"} for i in range(1000)]
    label_of = {record["text"]: {record["label"]} for record in records}
    result = made(write(tmp_path / "data", records), tmp_path / "cache", EXEMPLARS)
    check_exemplars(result, label_of, 3)
    assert len(rows(result)) == 1000
    pool = {text for row in rows(result) for text in negatives(row)}
    for label in ("large", "small"):
        assert 20 < sum(1 for text in pool if label_of[text] == {label}) < 100
    # About 50 texts a part: the pairs of the large class are rings of such a length.
    after = {row["query"]: row["positive"] for row in rows(result) if row["label"] == "large"}
    ring, place = 0, next(iter(after))
    start = place
    while place != start or not ring:
        place, ring = after[place], ring + 1
    assert 20 < ring < 100


def test_order_and_files_change_no_row_and_the_seed_does(tmp_path: Path) -> None:
    records = texts(80)
    shuffled = random.Random(2).sample(records, len(records))
    for shape in (NAMES, EXEMPLARS):
        kind = shape["documents"]
        first = made(write(tmp_path / f"a-{kind}", records), tmp_path / f"cache-a-{kind}", shape)
        second = made(write(tmp_path / f"b-{kind}", shuffled, 4), tmp_path / f"cache-b-{kind}", shape)
        other = made(tmp_path / f"a-{kind}" / "*.jsonl", tmp_path / f"cache-c-{kind}", shape, seed=1)

        def said(result: Output) -> set[tuple[Any, ...]]:
            return {(row["query"], row["positive"], *negatives(row)) for row in rows(result)}

        assert said(first) == said(second) != said(other)


def test_one_class_alone_gives_rows_without_negatives(tmp_path: Path) -> None:
    result = made(write(tmp_path / "data", texts(5, classes=1)), tmp_path / "cache", EXEMPLARS)
    assert len(rows(result)) == 5
    assert all(row["negatives"] is None for row in rows(result))
