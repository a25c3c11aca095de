"""Data sets of Hugging Face, from local folders: no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import documents, output, rows, step

from datakit.errors import UserError
from datakit.recipe import HuggingFaceSource

RECORDS = [{"q": f"q{i}", "a": f"a{i}", "kind": i % 2, "no": [f"n{i}"]} for i in range(5)]
COLUMNS = {"query": "q", "positive": "a", "negative": "no"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def source(path: Path | str, **options: Any) -> HuggingFaceSource:
    return HuggingFaceSource.model_validate({"type": "huggingface", "path": str(path), "columns": COLUMNS, **options})


def folder(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / kind
    path.mkdir()
    if kind == "jsonl":
        (path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        (path / "test.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path / "train-00000.parquet")
        pq.write_table(pa.Table.from_pylist(RECORDS[:1]), path / "test-00000.parquet")
    elif kind == "saved":
        datasets.Dataset.from_list(RECORDS).save_to_disk(path)
    else:
        saved = {"train": datasets.Dataset.from_list(RECORDS), "test": datasets.Dataset.from_list(RECORDS[:1])}
        datasets.DatasetDict(saved).save_to_disk(path)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "saved-splits"])
def test_a_local_folder_gives_the_rows_of_its_split(tmp_path: Path, kind: str, streaming: bool) -> None:
    path = folder(tmp_path, kind)
    found = rows(output(source(path, streaming=streaming), tmp_path / "cache"))
    assert [(row["query"], row["positive"], row["negatives"][0]["text"]) for row in found] == [
        (record["q"], record["a"], record["no"][0]) for record in RECORDS
    ]
    assert {row["source"] for row in found} == {f"{kind}/train"}
    assert len({row["row_id"] for row in found}) == 5
    if kind != "saved":
        assert len(rows(output(source(path, split="test", streaming=streaming), tmp_path / "cache"))) == 1


def test_limit_where_and_documents(tmp_path: Path) -> None:
    path = folder(tmp_path, "saved")
    result = output(source(path, limit=4, where={"kind": 1}), tmp_path / "cache")
    assert [row["query"] for row in rows(result)] == ["q1", "q3"]
    assert result.report.counts.not_sampled == 2
    texts = output(source(path, columns={"document": "a", "title": "q"}), tmp_path / "cache", documents=True)
    assert [(item["title"], item["text"]) for item in documents(texts)] == [(record["q"], record["a"]) for record in RECORDS]


def test_class_labels_are_read_as_their_names(tmp_path: Path) -> None:
    features = datasets.Features({"q": datasets.Value("string"), "kind": datasets.ClassLabel(names=["even", "odd"])})
    datasets.Dataset.from_dict({"q": ["a", "b", "c"], "kind": [0, 1, None]}, features=features).save_to_disk(tmp_path / "x")
    columns = {"query": "q", "positive": "kind", "label": "kind"}
    result = output(source(tmp_path / "x", columns=columns), tmp_path / "cache")
    assert [(row["positive"], row["label"]) for row in rows(result)] == [("even", "even"), ("odd", "odd")]
    assert result.report.counts.rejected == {"empty_field": 1}


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    saved, plain = folder(tmp_path, "saved-splits"), folder(tmp_path, "jsonl")
    with pytest.raises(UserError, match=r"'no/such-set', a name on the Hub \(no such folder is here\), cannot be read"):
        output(source("no/such-set"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"has no split 'dev'; it has: train, test"):
        output(source(saved, split="dev"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"a local folder, cannot be read \(split 'dev'\): Unknown split"):
        output(source(plain, split="dev"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"has no column 'question'; its columns are: 'q', 'a', 'kind', 'no'\."):
        output(source(plain, columns={"query": "question", "positive": "a"}), tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a local folder, cannot be read"):
        output(source(tmp_path / "empty"), tmp_path / "cache")


def test_a_damaged_file_in_a_folder_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = folder(tmp_path, "parquet")
    data = (path / "train-00000.parquet").read_bytes()
    (path / "train-00000.parquet").write_bytes(data[: len(data) // 2])
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"cannot be read"):
            output(source(path, streaming=streaming), tmp_path / "cache")


def test_the_key_follows_the_contents_of_a_local_folder(tmp_path: Path) -> None:
    path = folder(tmp_path, "jsonl")
    before = step(source(path), tmp_path).key
    assert step(source(path), tmp_path).key == before
    (path / "train.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    assert step(source(path), tmp_path).key != before
