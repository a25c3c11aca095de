"""Retrieval sets as BEIR lays them out: folders, and data sets as the Hub holds them."""

from __future__ import annotations

import gzip
import json
import logging
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import output, rejected, rows, step

from datakit.errors import UserError
from datakit.recipe import BeirSource
from datakit.sources import buckets

CORPUS = [
    {"_id": "d1", "title": "Sun", "text": "The sun is a star."},
    {"_id": "d2", "title": "", "text": "The moon is no star."},
    {"_id": "d3", "title": "Mars", "text": "Mars is a planet."},
    {"_id": "d4", "title": "", "text": ""},
    {"_id": "d5", "title": "Never judged", "text": "Nobody asks for it."},
]
QUERIES = [{"_id": "q1", "text": "what is the sun"}, {"_id": "q2", "text": "what is mars"}, {"_id": "q3", "text": "unasked"}]
JUDGEMENTS = [
    ("q1", "d1", 2), ("q1", "d2", 0), ("q1", "d3", 1), ("q2", "d3", 1), ("q2", "d9", 1), ("q9", "d1", 1), ("q2", "d4", 1), ("q2", "d8", 0),
]  # fmt: skip


def beir(folder: Path, judgements: list[tuple[str, str, Any]] = JUDGEMENTS, suffix: str = "") -> Path:
    (folder / "qrels").mkdir(parents=True)
    write = (lambda path, text: path.write_bytes(gzip.compress(text.encode()))) if suffix else Path.write_text
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        write(folder / f"{name}.jsonl{suffix}", "".join(json.dumps(record) + "\n" for record in records))
    table = "".join(f"{query}\t{document}\t{score}\n" for query, document, score in judgements)
    write(folder / "qrels" / f"train.tsv{suffix}", "query-id\tcorpus-id\tscore\n" + table)
    return folder


def hub(folder: Path, ids: str = "_id") -> Path:
    tables = {
        "corpus": [{ids: record["_id"], **{key: record[key] for key in ("title", "text")}} for record in CORPUS],
        "queries": [{ids: record["_id"], "text": record["text"]} for record in QUERIES],
        "default": [{"query-id": query, "corpus-id": document, "score": score} for query, document, score in JUDGEMENTS],
    }
    readme = ["---", "configs:"]
    for name, records in tables.items():
        split = "train" if name == "default" else name
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(records), folder / name / f"{split}.parquet")
        readme += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*readme, "---"]))
    return folder


def source(path: Path, **options: Any) -> BeirSource:
    return BeirSource.model_validate({"type": "beir", "path": str(path), "max_bad_fraction": 1, **options})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.mark.parametrize("kind", ["folder", "folder.gz", "hub", "hub-id"])
def test_judgements_meet_their_texts(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "astronomy"
    path = hub(folder, "id" if kind == "hub-id" else "_id") if "hub" in kind else beir(folder, suffix=kind.removeprefix("folder"))
    result = output(source(path), tmp_path / "cache", language="en")
    found = {(row["query"], row["positive"], tuple(n["text"] for n in row["negatives"] or [])) for row in rows(result)}
    assert found == {
        ("what is the sun", "Sun\nThe sun is a star.", ("The moon is no star.",)),
        ("what is the sun", "Mars\nMars is a planet.", ("The moon is no star.",)),
        ("what is mars", "Mars\nMars is a planet.", ()),
    }
    assert {(row["source"], row["language"], row["positive_language"]) for row in rows(result)} == {
        ("astronomy/train", "en", "en")
    }
    assert len({row["document_id"] for row in rows(result)}) == 2
    assert sorted((row["query"], row["reason"], row["detail"].partition(": ")[2]) for row in rejected(result) if row["query"]) == [
        ("what is mars", "empty_field", "positive: nothing in column 'positive'"),
        ("what is mars", "unknown_id", "'d8' is judged, and is not in the corpus"),
        ("what is mars", "unknown_id", "'d9' is judged, and is not in the corpus"),
    ]  # fmt: skip
    assert [row["detail"].partition(": ")[2] for row in rejected(result) if not row["query"]] == [
        "'q9' is judged, and is not in the queries"
    ]
    counts = result.report.counts
    assert (counts.created, counts.out, counts.not_sampled) == (8, 3, 1)


def test_the_least_score_of_a_positive_is_chosen(tmp_path: Path) -> None:
    result = output(source(beir(tmp_path / "x"), min_score=2), tmp_path / "cache")
    assert [(row["positive"], [n["text"] for n in row["negatives"]]) for row in rows(result)] == [
        ("Sun\nThe sun is a star.", ["The moon is no star.", "Mars\nMars is a planet."])
    ]


def test_what_cannot_be_read_is_refused_and_counted(tmp_path: Path) -> None:
    path = beir(tmp_path / "x", [("q1", "d1", 1), ("q1", "d2", "much"), ("", "d1", 1)])
    with (path / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d6", "text": \n{"title": "no id", "text": "t"}\n')
    result = output(source(path), tmp_path / "cache")
    assert len(rows(result)) == 1
    assert result.report.counts.rejected == {"empty_field": 1, "invalid_json": 1, "not_a_number": 1, "unknown_id": 1}
    assert result.report.counts.created == 5
    with pytest.raises(UserError, match=r"3 of 13 records of 'x/train' cannot be read .*corpus.jsonl:6: invalid_json"):
        output(source(path, max_bad_fraction=0.05), tmp_path / "cache")


def test_an_id_that_comes_again_with_another_text_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = beir(tmp_path / "x", [("q1", "d1", 1)])
    with (path / "corpus.jsonl").open("a") as file:
        for text in ("Another sun.", "A third."):
            file.write(json.dumps({"_id": "d1", "text": text}) + "\n")
    with caplog.at_level(logging.WARNING, logger="datakit"):
        result = output(source(path), tmp_path / "cache")
    assert [row["positive"] for row in rows(result)] == ["Sun\nThe sun is a star."]
    assert result.report.notes["repeated_ids"] == {"corpus": 2, "queries": 0}
    assert "2 judged ids of the corpus come again" in caplog.text


def test_a_large_set_gives_what_a_join_in_memory_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PIECE_ROWS", 50)
    monkeypatch.setattr(buckets, "UNIT_CHARACTERS", 2000)
    draw = random.Random(4)
    corpus = {f"d{i}": f"document number {i}" for i in range(400)}
    queries = {f"q{i}": f"query number {i}" for i in range(60)}
    judged = sorted({(f"q{draw.randrange(62)}", f"d{draw.randrange(405)}") for _ in range(300)})
    scored = [(query, document, draw.choice([0, 1, 1])) for query, document in judged]
    folder = tmp_path / "x"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps({"_id": own_id, "text": text}) + "\n" for own_id, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(draw.sample(lines, len(lines))))
    table = "".join(f"{query}\t{document}\t{score}\n" for query, document, score in scored)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + table)
    result = output(source(folder), tmp_path / "cache")
    wanted, unknown = [], 0
    for query, document, score in scored:
        if query not in queries or document not in corpus:
            unknown += 1
        elif score:
            against = {corpus[other] for asked, other, low in scored if asked == query and not low and other in corpus}
            wanted.append((queries[query], corpus[document], against))
    found = [(row["query"], row["positive"], {n["text"] for n in row["negatives"] or []}) for row in rows(result)]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    assert unknown > 0
    assert result.report.counts.rejected == {"unknown_id": unknown}
    assert len(result.shards) > 3


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    path = beir(tmp_path / "x")
    with pytest.raises(UserError, match=r"has no 'qrels/dev.tsv', which a BEIR folder needs .*Its judgements are: train.tsv"):
        step(source(path, split="dev"), tmp_path)
    (path / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no 'corpus.jsonl'"):
        step(source(path), tmp_path)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = beir(tmp_path / "x")
    (path / "qrels" / "train.tsv").write_text("query\tcorpus-id\tscore\nq1\td1\t1\n")
    with pytest.raises(UserError, match=r"train.tsv' has no column 'query-id'; its columns are: 'query', 'corpus-id', 'score'"):
        output(source(path), tmp_path / "cache")
    with pytest.raises(UserError, match=r"hub' has no column '_id'; its columns are: 'key', 'title', 'text'"):
        output(source(hub(tmp_path / "hub", "key")), tmp_path / "cache")


def test_a_limit_counts_judgements(tmp_path: Path) -> None:
    for path in (beir(tmp_path / "x"), hub(tmp_path / "y")):
        result = output(source(path, limit=3), tmp_path / "cache")
        assert (result.report.counts.created, len(rows(result))) == (3, 2)


def test_the_key_follows_the_files(tmp_path: Path) -> None:
    path = beir(tmp_path / "x")
    before = step(source(path), tmp_path).key
    assert step(source(path), tmp_path).key == before
    with (path / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q4", "text": "new"}\n')
    assert step(source(path), tmp_path).key != before
