"""Conditions, paths into objects, and lists that are unpacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import files, output, rejected, rows

from datakit.errors import UserError
from datakit.recipe import Columns, FilesSource
from datakit.sources.paths import check_columns, look_up, names_in, names_of, there
from datakit.sources.records import ClassName, PairMapper
from datakit.sources.reshape import Shaper
from datakit.sources.wanted import matches

UNPACK = {"type": "unpack", "columns": ["answers.text", "answers.good"]}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# -------------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a": {"b": 1}, "a.b": 2}, "a.b", 2),
        ({"a": {"b": {"c": 3}}}, "a.b.c", 3),
        ({"a.b": {"c": 3}, "a": {"b": {"c": 4}}}, "a.b.c", 3),
        ({"a": [{"b": 1}, {}, {"b": 2}]}, "a.b", [1, None, 2]),
        ({"a": [{"b": [{"c": 1}, {"c": 2}]}, {"b": None}]}, "a.b.c", [[1, 2], None]),
        ({"a": "text"}, "a.b", None),
        ({"a": None}, "a.b", None),
        ({"x": 1}, "a.b", None),
        ({"a": {"real-label": 0.5}}, "a.real-label", 0.5),
    ],
)
def test_a_name_that_is_no_column_is_a_path(record: dict[str, Any], name: str, value: Any) -> None:
    assert look_up(record, name) == value


@pytest.mark.parametrize(
    ("record", "name", "known"),
    [
        ({"a": {"b": None}}, "a.b", True), ({"a": {"x": 1}}, "a.b", False), ({"a": None}, "a.b", None), ({"a": []}, "a.b", None),
        ({"a": [{}, {"b": 1}]}, "a.b", True), ({"a": [{"x": 1}]}, "a.b", False), ({"a": "t"}, "a.b", False), ({}, "a", False),
    ],
)  # fmt: skip
def test_a_path_is_there_not_there_or_open(record: dict[str, Any], name: str, known: bool | None) -> None:
    assert there(record, name) is known


def test_names_of_a_schema_are_those_of_its_records() -> None:
    record = {"a": {"b": 1, "c": [{"d": "x"}]}, "e": ["y"], "f.g": {"h": 1}}
    names = ["a", "a.b", "a.c", "a.c.d", "e", "f.g", "f.g.h"]
    assert names_in(pa.Table.from_pylist([record]).schema) == names
    assert names_of(record) == names


def test_a_missing_path_is_said_with_what_is_beside_it() -> None:
    found = ["a", "a.texts", "a.n", "b"]
    with pytest.raises(
        UserError, match=r"'f' has no column 'a.text'; its columns are: 'a.texts', 'a.n'. Did you mean 'a.texts'\?"
    ):
        check_columns(["a.texts", "a.text"], found, "f")
    with pytest.raises(UserError, match=r"'f' has no column 'c.d'; its columns are: 'a', 'b'."):
        check_columns(["c.d"], found, "f")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_paths_map_columns_negatives_and_conditions(tmp_path: Path, suffix: str) -> None:
    records = [
        {"q": {"text": f"q{i}"}, "a": f"a{i}", "n": [{"text": f"x{i}"}, {"text": f"y{i}"}], "meta": {"votes": i}}
        for i in range(4)
    ]
    columns = {"query": "q.text", "positive": {"template": "{a} ({meta.votes})"}, "negative": "n.text", "score": "meta.votes"}
    source = files(write(tmp_path / f"a.{suffix}", records), columns, where={"meta.votes": {"at_least": 2}})
    result = output(source, tmp_path / "cache")
    assert [(row["query"], row["positive"], [n["text"] for n in row["negatives"]], row["score"]) for row in rows(result)] == [
        (f"q{i}", f"a{i} ({i})", [f"x{i}", f"y{i}"], i) for i in (2, 3)
    ]
    assert result.report.counts.not_sampled == 2
    with pytest.raises(UserError, match=r"a.* has no column 'q.txt'; its columns are: 'q.text'. Did you mean 'q.text'"):
        output(source.model_copy(update={"columns": Columns(query="q.txt", positive="a")}), tmp_path / "cache")


# --------------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [
        (3, [1, 3], True), ("b", ["a", "b"], True), ("c", ["a", "b"], False), (True, ["a", True], True), (None, ["a"], False),
        (4, {"at_least": 4}, True), ("4.5", {"at_least": 4, "at_most": 5}, True), (5.1, {"at_most": 5}, False),
        (None, {"at_most": 5}, False), (True, {"at_most": 5}, False), (float("nan"), {"at_most": 5}, False), ("x", {"at_most": 5}, False),
        (ClassName("entailment", 0), 0, True), (ClassName("entailment", 0), "entailment", True), (ClassName("neutral", 1), 0, False),
        (0, 0, True), ("0", 0, True), (0, "0", True), (ClassName("neutral", 1), {"at_least": 1}, True),
    ],
)  # fmt: skip
def test_a_condition_is_a_value_a_list_or_a_range(value: Any, wanted: Any, same: bool) -> None:
    source = files("x.jsonl", where={"x": wanted})
    assert matches(value, source.where["x"]) is same


# ---------------------------------------------------------------------------------------------------------------- unpacking


def unpacked(tmp_path: Path, keep: str = "all", **options: Any) -> FilesSource:
    records = [
        {"q": "q0", "answers": {"text": ["a", "b", "a"], "good": [1, 0, 1]}},
        {"q": "q1", "answers": {"text": ["c"], "good": [0]}},
        {"q": "q2", "answers": {"text": [], "good": []}},
        {"q": "q3", "answers": {"text": ["d", "e"], "good": [1]}},
        {"q": "q4", "answers": {"text": "f", "good": [1]}},
        {"q": "q5", "answers": None},
    ]
    path = write(tmp_path / "a.jsonl", records)
    reshape = [UNPACK | {"keep": keep}]
    return files(path, {"query": "q", "positive": "answers.text"}, reshape=reshape, max_bad_fraction=1, **options)


def test_each_item_is_a_row_and_what_has_none_is_counted(tmp_path: Path) -> None:
    result = output(unpacked(tmp_path), tmp_path / "cache")
    found = rows(result)
    assert [(row["query"], row["positive"]) for row in found] == [("q0", "a"), ("q0", "b"), ("q0", "a"), ("q1", "c")]
    assert len({row["row_id"] for row in found}) == 4
    counts = result.report.counts
    assert (counts.created, counts.rejected) == (8, {"empty_field": 2, "not_a_list": 1, "unequal_lists": 1})
    details = [row["detail"] for row in rejected(result)]
    assert details == [
        "a.jsonl:3: unpack: nothing in column 'answers.text'",
        "a.jsonl:4: unpack: the lists are of different lengths: 'answers.text' has 2, 'answers.good' has 1",
        "a.jsonl:5: unpack: column 'answers.text' has 'f'",
        "a.jsonl:6: unpack: nothing in column 'answers.text'",
    ]


def test_a_condition_on_a_list_holds_for_its_items(tmp_path: Path) -> None:
    result = output(unpacked(tmp_path, where={"answers.good": 1}), tmp_path / "cache")
    assert [(row["query"], row["positive"]) for row in rows(result)] == [("q0", "a"), ("q0", "a")]
    assert (result.report.counts.created, result.report.counts.not_sampled) == (8, 2)


def test_the_first_item_that_is_wanted_is_kept(tmp_path: Path) -> None:
    result = output(unpacked(tmp_path, "first"), tmp_path / "cache")
    assert [(row["query"], row["positive"]) for row in rows(result)] == [("q0", "a"), ("q1", "c")]
    result = output(unpacked(tmp_path, "first", where={"answers.good": 0}), tmp_path / "cache")
    assert [(row["query"], row["positive"]) for row in rows(result)] == [("q0", "b"), ("q1", "c")]
    result = output(unpacked(tmp_path, "first", where={"answers.good": 1}), tmp_path / "cache")
    assert [(row["query"], row["positive"]) for row in rows(result)] == [("q0", "a")]
    assert (result.report.counts.created, result.report.counts.not_sampled) == (6, 1)


def test_a_limit_counts_records_and_not_what_comes_of_them(tmp_path: Path) -> None:
    result = output(unpacked(tmp_path, limit=2), tmp_path / "cache")
    assert len(rows(result)) == 4
    assert result.report.counts.created == 4


def test_lists_within_objects_of_lists_are_unpacked_one_after_the_other() -> None:
    record = {"qas": [{"q": "q0", "a": [{"t": "x"}, {"t": "y"}]}, {"q": "q1", "a": [{"t": "z"}]}]}
    source = files(
        "x.jsonl", {"query": "qas.q", "positive": "qas.a.t"},
        reshape=[{"type": "unpack", "columns": ["qas"]}, {"type": "unpack", "columns": ["qas.a"]}], where={"qas.a.t": ["x", "z"]},
    )  # fmt: skip
    shaped = list(Shaper(source.where, source.unpacking)(record))
    mapper = PairMapper(source.mapping, None)
    assert [(mapper(item).values[:2], wanted) for item, wanted in shaped] == [
        (("q0", "x"), True), (("q0", "y"), False), (("q1", "z"), True),
    ]  # fmt: skip


def test_ids_of_unpacked_rows_do_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    records = [{"q": f"q{i % 3}", "a": ["x", f"y{i}", "x"]} for i in range(6)]
    found = []
    for name, order in (("one", records), ("two", records[::-1])):
        (tmp_path / name).mkdir()
        source = files(
            write(tmp_path / name / "a.jsonl", order),
            {"query": "q", "positive": "a"},
            reshape=[{"type": "unpack", "columns": ["a"]}],
        )
        found.append(sorted(row["row_id"] for row in rows(output(source, tmp_path / f"cache-{name}"))))
    assert len(set(found[0])) == 18
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"query": "title", "positive": "positive"}, "'columns' names 'title', and after 'group' there are: query, positive"),
        ({"document": "positive"}, "'group' gives pairs, and 'columns' names a document"),
    ],
)
def test_columns_after_grouping_are_those_that_it_gives(columns: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        files("x.jsonl", columns, reshape=[{"type": "group", "by": "key", "text": "text"}])
