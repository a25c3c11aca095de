"""Formats and compressions: what is written is what is read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import COMPRESS, documents, files, output, rows

from datakit.errors import UserError
from datakit.sources.files import find, records

# Any text that a file can hold: no lone surrogates. NUL bytes are refused, in raw files.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
RECORDS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


def as_jsonl(pairs: list[tuple[str, str]]) -> bytes:
    return b"".join(json.dumps({"question": q, "answer": a}).encode() + b"\n" for q, a in pairs)


def as_json(pairs: list[tuple[str, str]]) -> bytes:
    return json.dumps([{"question": q, "answer": a} for q, a in pairs], ensure_ascii=False).encode()


def as_json_data(pairs: list[tuple[str, str]]) -> bytes:
    return json.dumps({"version": 1, "data": json.loads(as_json(pairs))}).encode()


def as_csv(pairs: list[tuple[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("question", "answer"), *pairs])
    return text.getvalue().encode()


def as_parquet(pairs: list[tuple[str, str]]) -> bytes:
    file = io.BytesIO()
    table = pa.table({"question": [q for q, _ in pairs], "other": [1] * len(pairs), "answer": [a for _, a in pairs]})
    pq.write_table(table, file, row_group_size=3)
    return file.getvalue()


FORMATS = {
    "pairs.jsonl": as_jsonl,
    "pairs.json": as_json,
    "data.json": as_json_data,
    "pairs.csv": as_csv,
    "pairs.tsv": lambda pairs: as_csv(pairs, "\t"),
}


def raw(path: Path, **options: Any) -> list[Any]:
    source = files(path, **options)
    (file,) = find(source)
    return [record for _, record in records(file, source, ["question", "answer"])]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pairs=RECORDS)
def test_every_text_survives_every_format_and_compression(
    tmp_path: Path, name: str, suffix: str, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](FORMATS[name](pairs)))
    assert [(record["question"], record["answer"]) for record in raw(path)] == pairs


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pairs=RECORDS)
def test_every_text_survives_parquet(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path / "pairs.parquet"
    path.write_bytes(as_parquet(pairs))
    assert [(record["question"], record["answer"]) for record in raw(path)] == pairs


def test_rows_have_what_the_category_and_the_source_say(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    (row,) = rows(output(files(path), tmp_path / "cache", language="de"))
    told = {name: value for name, value in row.items() if value is not None}
    assert len(told.pop("row_id")) == 32
    assert told == {
        "category": "c", "task": "retrieval", "source": "pairs.jsonl", "language": "de", "positive_language": "de",
        "instruction": "Find", "document_instruction": "Doc", "query": "q", "positive": "a", "in_batch_negatives": True,
        "batch_group": "c",
    }  # fmt: skip


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_the_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfquestion,answer\r\nq,"one\r\ntwo"\r\n\r\nr,b\r\n')
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\r\n\r\n')
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf[{"question": "q", "answer": "a"}]')
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert raw(tmp_path / "a.csv") == [{"question": "q", "answer": "one\r\ntwo"}, {"question": "r", "answer": "b"}]
    assert raw(tmp_path / "b.jsonl") == [{"question": "q", "answer": "a"}]
    assert raw(tmp_path / "c.json") == [{"question": "q", "answer": "a"}]
    result = output(files(tmp_path / "d.txt", {"document": "text"}), tmp_path / "cache", documents=True)
    assert [document["text"] for document in documents(result)] == ["hello"]


def test_utf_16_is_named_and_not_read_as_garbage(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes("question,answer\nq,a\n".encode("utf-16"))
        with pytest.raises(UserError, match=rf"{name}' is UTF-16, and UTF-8 is needed"):
            raw(tmp_path / name)


def test_a_file_without_header_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,a,0.5\nr,b,1\n")
    columns = {"query": "column_1", "positive": "column_2", "score": "column_3"}
    found = rows(output(files(tmp_path / "a.csv", columns, header=False), tmp_path / "cache"))
    assert [(row["query"], row["positive"], row["score"]) for row in found] == [("q", "a", 0.5), ("r", "b", 1.0)]


def test_delimiter_and_quotes_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question;answer\n"q;1";a\n')
    (tmp_path / "a.tsv").write_text('question\tanswer\n"what" is it\t"quoted\n')
    assert raw(tmp_path / "a.csv", delimiter=";") == [{"question": "q;1", "answer": "a"}]
    assert raw(tmp_path / "a.tsv", quotes=False) == [{"question": '"what" is it', "answer": '"quoted'}]


def test_globs_are_sorted_and_relative_names_do_not_tell_where_they_lie(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a/one.jsonl", "a/deep/three.jsonl", "a/other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"question": "q", "answer": "a"}\n')
    assert [file.name for file in find(files(tmp_path / "**/*.jsonl"))] == ["a/deep/three.jsonl", "a/one.jsonl", "b/two.jsonl"]
    assert [file.name for file in find(files([tmp_path / "b/two.jsonl", tmp_path / "a/*.jsonl"]))] == [
        "b/two.jsonl",
        "a/one.jsonl",
    ]
    twice = find(files([tmp_path / "a/*.jsonl", tmp_path / "a/one.jsonl"]))
    assert [file.name for file in twice] == ["one.jsonl"]
    urls = find(files(f"file://{tmp_path}/a/*.jsonl"))
    assert [(file.name, file.path) for file in urls] == [("one.jsonl", str(tmp_path / "a/one.jsonl"))]


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    (tmp_path / "data[1].jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert [file.name for file in find(files(tmp_path / "data[1].jsonl"))] == ["data[1].jsonl"]


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    pairs = [("q", "a"), ("r", "b")]
    memory.pipe("/sources-test/x.jsonl.gz", COMPRESS[".gz"](as_jsonl(pairs)))
    memory.pipe("/sources-test/y.parquet", as_parquet(pairs))
    found = rows(output(files("memory://sources-test/*.*"), tmp_path / "cache"))
    assert [(row["query"], row["positive"]) for row in found] == pairs * 2
    assert len({row["row_id"] for row in found}) == 4


def test_a_text_file_is_one_document_titled_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "A guide.md").write_text("First.\n\nSecond.\n")
    (tmp_path / "notes.v2.txt.gz").write_bytes(COMPRESS[".gz"]("Gründe".encode()))
    source = files(tmp_path / "*", {"document": "text", "title": "title"})
    result = output(source, tmp_path / "cache", documents=True, language="en")
    found = documents(result)
    assert [(item["title"], item["text"]) for item in found] == [("A guide", "First.\n\nSecond.\n"), ("notes.v2", "Gründe")]
    assert result.report.notes == {"documents": 2, "files": ["documents/00000/documents-000.parquet"]}
    assert result.report.counts.out == result.report.counts.created == 0
    assert {item["language"] for item in found} == {"en"}
    assert len({item["document_id"] for item in found}) == 2


def test_limit_reads_the_first_records_over_all_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"question": "{name}{i}", "answer": "x"}}\n' for i in range(3)))
    result = output(files(tmp_path / "*.jsonl", limit=5), tmp_path / "cache")
    assert [row["query"] for row in rows(result)] == ["a0", "a1", "a2", "b0", "b1"]
    assert result.report.counts.created == 5
