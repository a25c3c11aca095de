"""Normalisation: one form for all texts, ids that follow from it, and what is refused."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.normalise import normalise_step, normalised
from datakit.schema import EXAMPLE, content_id, rows, text_id
from datakit.step import Output

INVISIBLE = {*range(0x80, 0x85), *range(0x86, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060,
             *range(0x2066, 0x206A), 0xFEFF}  # fmt: skip
SPACES = {0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000}
NEWLINES = {0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029}
# Unassigned characters may be told apart differently by other versions of Unicode.
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cn"])
TEXT = st.text(st.one_of(CHARACTERS, st.sampled_from(" \t\n\r\u00a0\u200b\u0301e\u2028\x85a\x0c")), max_size=40)


def oracle(text: str) -> str:
    """What `normalised` says, character by character."""
    text = "".join("\n" if ord(c) in NEWLINES else c for c in text.replace("\r\n", "\n"))
    text = "".join(" " if ord(c) in SPACES else c for c in text if ord(c) not in INVISIBLE)
    text = "\n".join(line.rstrip(" \t") for line in unicodedata.normalize("NFC", text).split("\n"))
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    body = text.lstrip("\n")
    if body[:1] in (" ", "\t") and "\n" in body:
        text = textwrap.dedent(text.rstrip(" \t\n"))
    return text.strip(" \t\n")


def one(text: str) -> str:
    return str(normalised(pl.Series([text], dtype=pl.String))[0])


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_it_agrees_with_a_character_by_character_oracle_and_changes_nothing_twice(texts: list[str]) -> None:
    once = normalised(pl.Series(texts, dtype=pl.String))
    assert once.to_list() == [oracle(text) for text in texts]
    assert normalised(once).to_list() == once.to_list()
    assert all(unicodedata.is_normalized("NFC", text) for text in once)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "café"),
        ("e\u200b\u0301", "é"),
        ("  a  b \r\nc\t\r\n\r\n\r\n\r\n\r\nd\n", "a  b\nc\n\n\nd"),
        ("    def f():\n        return 1\n\n    x = 2", "def f():\n    return 1\n\nx = 2"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("  first line\nsecond", "first line\nsecond"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("a\u00a0b\u3000c", "a b c"),
        ("soft\u00adhyphen\ufeff", "softhyphen"),
        ("\u202eabc\u202c", "abc"),
        ("page\x0cbreak", "page\nbreak"),
    ],
)
def test_texts_come_into_one_form(text: str, expected: str) -> None:
    assert one(text) == expected


def table(records: list[dict[str, Any]]) -> pa.Table:
    base = {"category": "c", "query": "q", "positive": "p", "in_batch_negatives": True}
    return rows([{"row_id": f"r{i}", **base, **record} for i, record in enumerate(records)])


def normalise(tmp_path: Path, *tables: pa.Table, workers: int = 1) -> Output:
    return run_step(normalise_step((rows_step(list(tables)),)), str(tmp_path), workers)


def test_ids_follow_from_the_texts_in_their_one_form(tmp_path: Path) -> None:
    result = normalise(tmp_path, table([{"query": " cafe\u0301 ", "positive": "x\r\ny"}, {"query": "café", "positive": "x\ny"}]))
    first, second = read(result.shards).to_pylist()
    assert (first["query"], first["positive"]) == ("café", "x\ny")
    assert first["query_id"] == text_id("café")
    assert first["positive_id"] == first["document_id"] == text_id("x\ny")
    assert first["content_id"] == content_id("c", "café", "x\ny")
    assert {**first, "row_id": ""} == {**second, "row_id": ""}
    assert result.report.notes == {"changed": {"query": 1, "positive": 1, "negatives": 0, "negatives_dropped": 0}}
    assert read(result.shards).schema.names == EXAMPLE.names


def test_a_row_belongs_to_its_own_document_else_its_positive_else_its_query(tmp_path: Path) -> None:
    result = normalise(tmp_path, table([{"document_id": "d"}, {}, {"in_batch_negatives": False}, {"in_batch_negatives": None}]))
    assert [row["document_id"] for row in read(result.shards).to_pylist()] == ["d", text_id("p"), text_id("q"), text_id("p")]


def test_control_characters_and_texts_of_nothing_are_refused_as_they_were(tmp_path: Path) -> None:
    records = [
        {"query": "bad\x00query"}, {"positive": "esc\x1b[0m"}, {"query": " \u200b\n"}, {"positive": None}, {"query": "good"},
        {"query": "\x07", "positive": ""}, {"query": "cp1252\x93quote"},
    ]  # fmt: skip
    result = normalise(tmp_path, table(records))
    assert [row["query"] for row in read(result.shards).to_pylist()] == ["good", "cp1252quote"]
    refused = {row["row_id"]: (row["reason"], row["detail"], row["query"]) for row in read(result.rejected).to_pylist()}
    assert refused == {
        "r0": ("control_characters", "query: U+0000 at character 4", "bad\x00query"),
        "r1": ("control_characters", "positive: U+001B at character 4", "q"),
        "r2": ("empty_field", "query: nothing to read in it", " \u200b\n"),
        "r3": ("empty_field", "positive: nothing to read in it", "q"),
        "r5": ("control_characters", "query: U+0007 at character 1", "\x07"),
    }
    assert result.report.counts.rejected == {"control_characters": 3, "empty_field": 2}


def test_negatives_have_ids_and_those_of_nothing_are_dropped_and_counted(tmp_path: Path) -> None:
    def negatives(*texts: str | None) -> list[dict[str, Any]]:
        return [{"text": text, "miner": "source", "score": None, "difficulty": None} for text in texts]

    records = [
        {"negatives": negatives("a ", "\u200b", "b\x00", "cafe\u0301")}, {"negatives": None}, {"negatives": []},
        {"query": "\x00", "negatives": negatives("gone with its row")}, {"negatives": negatives("c", None)},
    ]  # fmt: skip
    result = normalise(tmp_path, table(records))
    found = [row["negatives"] for row in read(result.shards).to_pylist()]
    assert [None if items is None else [(item["id"], item["text"], item["miner"]) for item in items] for items in found] == [
        [(text_id("a"), "a", "source"), (text_id("café"), "café", "source")], None, [], [(text_id("c"), "c", "source")],
    ]  # fmt: skip
    assert result.report.notes["changed"]["negatives_dropped"] == 3


def test_inputs_come_in_order_and_workers_change_no_byte(tmp_path: Path) -> None:
    tables = [table([{"query": f"{i} {j}\u00a0x"} for j in range(5)]) for i in range(3)]
    trees = []
    for workers in (1, 2):
        cache = tmp_path / str(workers)
        result = normalise(cache, *tables, workers=workers)
        assert [row["query"] for row in read(result.shards).to_pylist()] == [f"{i} {j} x" for i in range(3) for j in range(5)]
        trees.append({str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file()})
    assert trees[0] == trees[1]


def test_an_empty_shard_and_no_input_at_all(tmp_path: Path) -> None:
    assert normalise(tmp_path, EXAMPLE.empty_table()).report.counts.out == 0
    assert normalise(tmp_path).report.counts.out == 0
