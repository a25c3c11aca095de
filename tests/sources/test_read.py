"""Mapping, ids, shards and resumption: what all sources share."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import documents, files, output, rejected, rows, step
from stepping import run_step

from datakit import storage
from datakit.errors import UserError
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET, line
from datakit.recipe import Columns, FilesSource, HuggingFaceSource, PythonDocsSource
from datakit.registry import Category
from datakit.schema import EXAMPLE
from datakit.sources import read as reading_module
from datakit.sources import shards
from datakit.sources.origins import check_origins, origin
from datakit.sources.records import PairMapper, rendered, shown
from datakit.sources.shards import Occurrences
from datakit.sources.stream import needed
from datakit.sources.wanted import Where
from datakit.step import run

CLASSES = Category(key="k", family="f", description="", task="classification", in_batch_negatives=False)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def mapped(columns: dict[str, Any], record: dict[str, Any], language: str | None = None) -> tuple[Any, ...]:
    return PairMapper(Columns.model_validate(columns), language)(record).values


# ------------------------------------------------------------------------------------------------------------------ mapping


def test_columns_constants_and_templates_are_mapped() -> None:
    columns = {
        "query": {"template": "{title}\n{text} {{{n}}}"}, "positive": "answer", "negative": ["bad", {"constant": "no"}],
        "document_id": "id", "score": {"constant": 1}, "label": "class", "language": "lang", "positive_language": {"constant": "de"},
    }  # fmt: skip
    record = {
        "title": "T",
        "text": "x",
        "n": 5.0,
        "answer": True,
        "bad": ["b", None, "", 7],
        "id": 12,
        "class": 2.5,
        "lang": "da",
    }
    assert mapped(columns, record) == ("T\nx {5}", "true", ["b", "7", "no"], "12", 1.0, "2.5", "da", "de")
    source = files("x.jsonl", columns, where={"where": 1, "id": 12}, reshape=[{"type": "unpack", "columns": ["list"]}])
    assert needed(source, source.mapping) == [
        "title", "text", "n", "answer", "bad", "id", "class", "lang", "where", "list",
    ]  # fmt: skip


def test_the_language_is_that_of_the_column_else_that_of_the_category() -> None:
    columns = {"query": "q", "positive": "p", "language": "lang"}
    assert mapped(columns, {"q": "a", "p": "b", "lang": None}, "en")[-2:] == ("en", "en")
    assert mapped(columns, {"q": "a", "p": "b", "lang": "fi"}, "en")[-2:] == ("fi", "fi")
    assert mapped({"query": "q", "positive": "p"}, {"q": "a", "p": "b"})[-2:] == (None, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), (None, None), (True, "true"), (3, "3"), (3.0, "3"), (-0.25, "-0.25"), (1e300, "1e+300"), (float("nan"), None),
     (b"caf\xc3\xa9", "café")],
)  # fmt: skip
def test_scalars_are_rendered_as_a_person_would_write_them(value: Any, text: str | None) -> None:
    assert rendered(value) == text


@pytest.mark.parametrize("template", ["{", "a}", "{a}{", "no column", "{}", "{{a}}"])
def test_a_template_that_makes_no_sense_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Columns.model_validate({"query": {"template": template}, "positive": "p"})


def test_a_mapping_of_constants_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of them must come from a column"):
        Columns.model_validate({"query": {"constant": "a"}, "positive": {"constant": "b"}})


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [("a", "a", True), ("a", "b", False), (True, True, True), ("True", True, True), ("false", False, True), (1, True, False),
     (5, 5, True), ("5.0", 5, True), (True, 1, False), (None, "a", False), (None, 0, False), (5, "5", True), (["a"], "a", False)],
)  # fmt: skip
def test_where_compares_values_as_they_are_meant(value: Any, wanted: Any, same: bool) -> None:
    assert Where({"x": wanted})({"x": value}) is same


def test_records_that_are_not_wanted_are_counted_as_not_sampled(tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "answer": "a", "entails": i % 3 == 0} for i in range(9)]
    result = output(files(write(tmp_path / "a.jsonl", records), where={"entails": True}), tmp_path / "cache")
    assert [row["query"] for row in rows(result)] == ["q0", "q3", "q6"]
    assert (result.report.counts.created, result.report.counts.out, result.report.counts.not_sampled) == (9, 3, 6)
    left_out = pq.read_table(result.not_sampled[0])
    assert len({*left_out["row_id"].to_pylist(), *(row["row_id"] for row in rows(result))}) == 9


def test_negatives_of_the_source_are_kept_as_such(tmp_path: Path) -> None:
    records = [
        {"question": "q", "answer": "a", "no": ["x", "y"]},
        {"question": "r", "answer": "b", "no": None},
        {"question": "s", "answer": "c", "no": "z"},
    ]
    columns = {"query": "question", "positive": "answer", "negative": "no"}
    found = rows(output(files(write(tmp_path / "a.jsonl", records), columns), tmp_path / "cache"))
    assert [None if row["negatives"] is None else [item["text"] for item in row["negatives"]] for row in found] == [
        ["x", "y"], None, ["z"],
    ]  # fmt: skip
    assert {item["miner"] for row in found for item in row["negatives"] or []} == {"source"}


def test_classification_rows_have_their_label_and_no_in_batch_negatives(tmp_path: Path) -> None:
    records = [{"text": "play jazz", "label": "music"}, {"text": "rain?", "label": ""}]
    columns = {"query": "text", "positive": {"template": "intent: {label}"}, "label": "label"}
    result = output(files(write(tmp_path / "a.jsonl", records), columns), tmp_path / "cache", entry=CLASSES)
    (row,) = rows(result)
    assert (row["query"], row["positive"], row["label"], row["in_batch_negatives"]) == (
        "play jazz", "intent: music", "music", False,
    )  # fmt: skip
    assert [item["reason"] for item in rejected(result)] == ["empty_field"]


# ---------------------------------------------------------------------------------------------------------------------- ids


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=12))
def test_occurrences_count_like_a_counter(groups: list[list[int]]) -> None:
    occurrences, oracle = Occurrences(), Counter[int]()
    for group in groups:
        counted = occurrences.count(np.array(group, np.uint64)).tolist()
        expected = []
        for number in group:
            expected.append(oracle[number])
            oracle[number] += 1
        assert counted == expected


def identities(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((row["row_id"], row["query"], row["positive"]) for row in found)


def test_row_ids_are_unique_and_do_not_depend_on_the_order_of_the_lines(tmp_path: Path) -> None:
    records = [{"question": f"q{i % 7}", "answer": f"a{i % 3}", "keep": i % 2 == 0, "unused": i} for i in range(200)]
    lines = [json.dumps(record) for record in records] + ["{bad", "{bad", '{"question": "", "answer": "a1", "keep": true}'] * 2
    seen = []
    for shuffled, rows_in_shard in ((False, 1000), (True, 1000), (True, 11)):
        if shuffled:
            random.Random(rows_in_shard).shuffle(lines)
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        source = files(tmp_path / "a.jsonl", where={"keep": True})
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        result = output(source, tmp_path / "cache", shard_rows=rows_in_shard)
        left_out = [id_ for path in result.not_sampled for id_ in pq.read_table(path)["row_id"].to_pylist()]
        refused = [(item["row_id"], item["query"], item["reason"]) for item in rejected(result)]
        ids = [row["row_id"] for row in rows(result)] + left_out + [item[0] for item in refused]
        assert len(set(ids)) == len(ids) == 206
        seen.append((identities(rows(result)), sorted(left_out), sorted(refused, key=str)))
    assert seen[0] == seen[1] == seen[2]


def test_row_ids_do_not_depend_on_the_format_or_on_columns_that_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "1/a").write_text('{"question": "q", "answer": "5", "id": 3}\n')
    (tmp_path / "2/a").write_text("answer,question\n5,q\n")
    one = output(files(tmp_path / "1/a", format="jsonl"), tmp_path / "cache")
    two = output(files(tmp_path / "2/a", format="csv"), tmp_path / "cache")
    assert identities(rows(one)) == identities(rows(two))


def test_equal_records_of_different_files_have_different_ids(tmp_path: Path) -> None:
    for name in ("x/a.jsonl", "y/a.jsonl", "y/b.jsonl"):
        write(tmp_path / name, [{"question": "q", "answer": "a"}] * 3)
    found = rows(output(files(tmp_path / "*/*.jsonl"), tmp_path / "cache"))
    assert len({row["row_id"] for row in found}) == 9


def test_documents_are_told_apart_by_source_and_their_own_id_or_text(tmp_path: Path) -> None:
    records = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}, {"id": None, "text": "three"}]
    write(tmp_path / "a.jsonl", records)
    write(tmp_path / "b.jsonl", records)
    columns = {"document": "text", "document_id": "id"}
    one, two = (documents(output(files(tmp_path / f"{n}.jsonl", columns), tmp_path / "cache", documents=True)) for n in "ab")
    assert len({item["document_id"] for item in one + two}) == 6
    pairs = {"query": "text", "positive": "text", "document_id": "id"}
    found = rows(output(files(tmp_path / "a.jsonl", pairs), tmp_path / "cache"))
    assert [row["document_id"] for row in found[:2]] == [item["document_id"] for item in one[:2]]
    assert found[2]["document_id"] is None


def test_the_line_of_documents_tells_how_many_there_are_and_what_was_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    source = files(tmp_path / "a.jsonl", {"document": "text"})
    report = output(source, tmp_path / "cache", documents=True).report
    assert line(report, 0.14, cached=False) == "read-c: 2 documents, 1 empty_field (0.1 s)"
    assert line(report, 0.14, cached=True) == "read-c: 2 documents, 1 empty_field (cached)"


def test_origins_do_not_tell_where_a_file_lies_and_must_differ_within_a_category() -> None:
    columns = {"query": "q", "positive": "p"}
    assert origin(files("/data/x/a.jsonl", columns)) == "a.jsonl"
    assert origin(files("/data/x/*.jsonl.gz", columns)) == "x/*.jsonl.gz"
    assert origin(files([Path("/d/a.csv"), Path("/d/b.csv")], columns)) == "a.csv,b.csv"
    assert origin(files("/data/a.jsonl", columns, name="mine")) == "mine"
    assert origin(PythonDocsSource(type="python-docs", part="topics")) == "python-docs/topics"
    hub = HuggingFaceSource.model_validate({"type": "huggingface", "path": "org/set", "config": "en", "columns": columns})
    assert origin(hub) == "org/set/en/train"
    with pytest.raises(UserError, match=r"'c' has two sources called 'a\.jsonl'"):
        check_origins("c", [files("/x/a.jsonl", columns), files("/y/a.jsonl", columns)])
    check_origins("c", [files("/x/a.jsonl", columns), files("/y/a.jsonl", columns, name="other")])


# ------------------------------------------------------------------------------------------------------- shards and resumption


def test_shards_end_at_their_rows_or_at_their_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": "a" * 100} for i in range(25)])
    result = output(files(path), tmp_path / "cache", shard_rows=10)
    assert result.report.shard_rows == [10, 10, 5]
    assert [name.rpartition("/")[2] for name in result.report.shards] == [f"rows-00{i}.parquet" for i in range(3)]
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 400)
    short = output(files(path, name="again"), tmp_path / "cache", shard_rows=10)
    assert short.report.shard_rows == [4, 4, 4, 4, 4, 4, 1]
    assert [row["query"] for row in rows(short)] == [row["query"] for row in rows(result)]


def test_small_files_share_a_shard_and_large_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "a"}] * (50 if name == "c" else 1))
    monkeypatch.setattr(reading_module, "UNIT_BYTES", 500)
    result = output(files(tmp_path / "*.jsonl"), tmp_path / "cache")
    assert result.report.shard_rows == [2, 50, 1]


def tree(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilesSource:
    monkeypatch.setattr(reading_module, "UNIT_BYTES", 1)
    for i in range(5):
        write(tmp_path / f"{i}.jsonl", [{"question": f"q{i} {j}", "answer": "" if j == 3 else "a"} for j in range(20)])
    return files(tmp_path / "*.jsonl")


def test_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = many_files(tmp_path, monkeypatch)
    trees = []
    for workers in (1, 2):
        cache, executor = str(tmp_path / f"cache{workers}"), LocalExecutor(workers)
        pairs = step(source, tmp_path, shard_rows=7)
        texts = step(source.model_copy(update={"columns": Columns(document="question")}), tmp_path, documents=True, shard_rows=7)
        trees.append([tree(run(one, cache, executor, QUIET)[0].folder) for one in (pairs, texts)])
        executor.close()
    assert trees[0] == trees[1]
    assert all(len(files_of_step) > 15 for files_of_step in trees[0])


def test_a_reading_that_was_stopped_goes_on_at_the_unit_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = many_files(tmp_path, monkeypatch)
    whole = tree(output(source, tmp_path / "whole", shard_rows=7).folder)
    part = step(source, tmp_path / "part", shard_rows=7)
    run_step(part, str(tmp_path / "part"))
    folder = Path(part.folder(str(tmp_path / "part")))
    (folder / "step.json").unlink()
    (folder / "rows/00003/unit.json").unlink()
    (folder / "rows/00003/rows-001.parquet").write_bytes(b"half")
    untouched = (folder / "rows/00001/rows-000.parquet").stat().st_mtime_ns
    run_step(part, str(tmp_path / "part"))
    assert tree(str(folder)) == whole
    assert (folder / "rows/00001/rows-000.parquet").stat().st_mtime_ns == untouched


def test_the_key_follows_the_bytes_of_the_data_and_not_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"question": "q", "answer": "a"}
    for name, count in (("x", 1), ("y", 1), ("z", 2)):
        write(tmp_path / name / "a.jsonl", [record] * count)
    keys = []
    for name in "xyz":
        monkeypatch.setenv("DATA", str(tmp_path / name))
        keys.append(step(files("${DATA}/a.jsonl"), tmp_path).key)
    assert keys[0] == keys[1] != keys[2]


def test_nothing_that_is_written_tells_where_the_data_lies(tmp_path: Path) -> None:
    (tmp_path / "secret-place").mkdir()
    (tmp_path / "secret-place/a.jsonl").write_text('{"question": "q", "answer": "a"}\n{bad\n{"question": "", "answer": "a"}\n')
    result = output(files(tmp_path / "secret-place/*.jsonl", name="n", max_bad_fraction=0.5), tmp_path / "cache")
    for path in Path(result.folder).rglob("*"):
        if path.is_file():
            assert b"secret-place" not in path.read_bytes()
            if path.suffix == ".parquet":
                assert "secret-place" not in str(storage.read_table(str(path)).to_pylist())


def test_rows_are_in_the_schema(tmp_path: Path) -> None:
    result = output(files(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])), tmp_path / "cache")
    schema = pq.read_schema(result.shards[0])
    assert (schema.names, schema.metadata) == (EXAMPLE.names, EXAMPLE.metadata)


def test_what_was_found_is_shown_on_one_printable_line() -> None:
    assert shown(b"caf\xe9\n\x00\x1b[0m") == "caf\\xe9\\n\\x00\\x1b[0m"
    assert shown("x" * 500) == "x" * 200 + "..."
