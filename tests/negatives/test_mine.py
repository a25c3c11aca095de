"""Mining: what is found is what an exhaustive search with rank-bm25 finds, and never a positive."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from corpora import given, random_records, record, split
from rank_bm25 import BM25Plus
from stepping import read, run_step

from datakit import step, storage
from datakit.executor.local import LocalExecutor
from datakit.negatives.bm25 import tokens
from datakit.negatives.corpus import corpora_of
from datakit.negatives.mine import mine_step
from datakit.progress import QUIET
from datakit.recipe import Bm25Miner, Negatives, Screen
from datakit.schema import text_id
from datakit.step import Output, Step


def miner(depth: int = 10, engine: str = "bm25s") -> Bm25Miner:
    return Bm25Miner(type="bm25", depth=depth, engine=engine)


def mined(inputs: tuple[Step, ...], cache: Path, workers: int = 1, *, per_query: int = 4, **options: Any) -> Output:
    negatives = Negatives(miners=[miner(**options)], per_query=per_query)
    return run_step(mine_step(negatives, inputs), str(cache), workers)


@functools.cache
def words_of(text: str) -> list[str]:
    return tokens(pl.Series([text])).to_list()[0]


@functools.cache
def fold(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def exhaustive(records: list[dict[str, Any]], row: dict[str, Any], depth: int) -> list[tuple[str, float]]:
    """The candidates of a row: texts and scores, best first, by looking at everything."""
    pool = [other for other in records if other["category"] == row["category"]]
    corpus = sorted({other["positive"] for other in pool}, key=text_id)
    barred = {row["query"], *(item["text"] for item in row.get("negatives") or [])}
    barred |= {other["positive"] for other in records if other["query"] == row["query"]}
    barred = {fold(text) for text in barred}
    of_document = {other["positive"] for other in pool if other["document_id"] == row["document_id"]}
    asked = words_of(row["query"])
    scores = BM25Plus([words_of(text) for text in corpus]).get_scores(asked)
    found = [
        (text, score)
        for text, score in zip(corpus, scores, strict=True)
        if fold(text) not in barred and text not in of_document and set(words_of(text)) & set(asked)
    ]
    found = sorted(found, key=lambda item: -item[1])[:depth]
    different: dict[str, tuple[str, float]] = {}
    for text, score in found:
        different.setdefault(fold(text), (text, score))
    return list(different.values())


def check(output: Output, records: list[dict[str, Any]], per_query: int, depth: int) -> int:
    """Compares every row with the exhaustive search. Returns how many negatives were mined."""
    by_id = {row["row_id"]: row for row in records}
    seen = 0
    for row in read(output.shards).to_pylist():
        source = by_id[row["row_id"]]
        known = [other for other in records if other["query"] == row["query"]]
        folded = {fold(other["positive"]) for other in known} | {fold(row["query"])}
        own = [item["text"] for item in source.get("negatives") or []]
        own = [text for text in own if fold(text) not in folded]
        assert [item["text"] for item in row["negatives"] if item["miner"] == "source"] == own
        assert [item["miner"] for item in row["negatives"]][: len(own)] == ["source"] * len(own)
        found = row["negatives"][len(own) :]
        # A source negative that is a positive was dropped, so it bars nothing that the known positives do not bar already.
        expected = exhaustive(records, source, depth)[: max(0, per_query - len(own))]
        assert [item["score"] for item in found] == pytest.approx([score for _, score in expected], rel=1e-5)
        scores = dict(exhaustive(records, source, 10_000))
        for item in found:
            assert item["id"] == text_id(item["text"])
            assert item["score"] == pytest.approx(scores[item["text"]], rel=1e-5)
        difficulties = [item["difficulty"] for item in found]
        assert difficulties == sorted(difficulties, reverse=True)
        assert all(0 < value <= 1 for value in difficulties)
        seen += len(found)
    return seen


@pytest.mark.parametrize(("engine", "seed"), [("bm25s", 1), ("bm25s", 2), ("rank_bm25", 3)])
def test_negatives_are_those_of_an_exhaustive_search(tmp_path, engine, seed):
    records = random_records(seed, count=80)
    output = mined(split(records), tmp_path, engine=engine)
    assert read(output.shards).num_rows == len(records)
    assert check(output, records, per_query=4, depth=10) > len(records)


def bytes_by_row(output: Output) -> list[dict[str, Any]]:
    return sorted(read(output.shards).to_pylist(), key=lambda row: row["row_id"])


def test_rows_in_another_order_and_other_shards_get_the_same_negatives(tmp_path):
    records = random_records(4)
    plain = mined(split(records), tmp_path)
    random.Random(1).shuffle(records)
    permuted = mined(split(records, shards=5), tmp_path)
    assert plain.folder != permuted.folder
    assert bytes_by_row(plain) == bytes_by_row(permuted)
    assert plain.report.notes == permuted.report.notes


def test_workers_change_no_byte(tmp_path):
    records = random_records(5)
    outputs = [mined(split(records, 3), tmp_path / str(workers), workers) for workers in (1, 2)]
    one, other = ([storage.file_digest(path) for path in [*output.shards, f"{output.folder}/step.json"]] for output in outputs)
    assert len(one) == 4
    assert one == other


def test_no_text_crosses_the_split(tmp_path):
    train, held = random_records(6), random_records(7, words=3)
    output = mined(split(train, validation=held), tmp_path)
    for part, records in (("train", train), ("validation", held)):
        positives = {row["positive"] for row in records}
        found = [item for row in read(output.part(part)).to_pylist() for item in row["negatives"] if item["miner"] == "bm25"]
        assert len(found) > 50
        assert all(item["text"] in positives for item in found)


def test_positives_of_an_equal_query_in_another_category_are_no_negatives(tmp_path):
    records = [
        record("a", "red fox", "a red fox"),
        record("a", "fox den", "the red fox den"),
        record("b", "red fox", "the red fox den"),
    ]
    rows = {(row["category"], row["query"]): row for row in read(mined(split(records), tmp_path).shards).to_pylist()}
    assert rows["a", "red fox"]["negatives"] == []
    assert [item["text"] for item in rows["a", "fox den"]["negatives"]] == ["a red fox"]


def test_negatives_of_the_data_come_first_and_are_all_kept(tmp_path):
    own = given("alpha", "beta", "gamma", "The red fox!")
    records = [record("a", "red fox", "the red fox", negatives=own), record("a", "hen", "red hen"), record("a", "x", "red cat")]
    output = mined(split(records), tmp_path, per_query=4)
    row = next(row for row in read(output.shards).to_pylist() if row["query"] == "red fox")
    assert [item["text"] for item in row["negatives"]][:3] == ["alpha", "beta", "gamma"]
    assert [item["miner"] for item in row["negatives"]] == ["source"] * 3 + ["bm25"]
    assert output.report.notes["source_negatives_dropped"] == 1
    few = mined(split(records), tmp_path, per_query=2)
    row = next(row for row in read(few.shards).to_pylist() if row["query"] == "red fox")
    assert [item["text"] for item in row["negatives"]] == ["alpha", "beta", "gamma"]


def test_difficulty_falls_with_the_rank(tmp_path):
    records = [record("a", "x", "y")] + [record("a", f"q{n}", "x " + "z " * n) for n in range(6)]
    row = next(row for row in read(mined(split(records), tmp_path, depth=5).shards).to_pylist() if row["query"] == "x")
    assert [item["difficulty"] for item in row["negatives"]] == pytest.approx(
        [1 - math.log(rank) / math.log(8) for rank in (1, 2, 3, 4)]
    )


def labelled(count: int = 40, labels: int = 6) -> list[dict[str, Any]]:
    return [
        record("intent", f"utterance {n}", f"label_{n % labels}", label=f"label_{n % labels}", in_batch_negatives=False)
        for n in range(count)
    ]


def test_where_positives_are_labels_other_labels_are_the_negatives(tmp_path):
    output = mined(split(labelled()), tmp_path, per_query=3)
    seen = set()
    for row in read(output.shards).to_pylist():
        texts = [item["text"] for item in row["negatives"]]
        assert len(set(texts)) == 3
        assert row["label"] not in texts
        assert {item["miner"] for item in row["negatives"]} == {"other_label"}
        assert {item["score"] for item in row["negatives"]} == {None}
        assert {item["difficulty"] for item in row["negatives"]} == {0.0}
        seen.update(texts)
    assert len(seen) == 6


def test_fewer_other_labels_than_asked_for_give_all_of_them(tmp_path):
    for row in read(mined(split(labelled()), tmp_path, per_query=9).shards).to_pylist():
        assert {item["text"] for item in row["negatives"]} == {f"label_{n}" for n in range(6)} - {row["label"]}


def test_other_labels_depend_on_the_query_alone(tmp_path):
    records = labelled()
    plain = mined(split(records), tmp_path)
    assert bytes_by_row(plain) == bytes_by_row(mined(split(records[::-1], 3), tmp_path))


def test_a_utterance_with_two_labels_gets_neither(tmp_path):
    records = labelled()
    records.append(record("intent", "utterance 0", "label_5", label="label_5", in_batch_negatives=False))
    for row in read(mined(split(records), tmp_path, per_query=9).shards).to_pylist():
        if row["query"] == "utterance 0":
            assert {item["text"] for item in row["negatives"]} == {f"label_{n}" for n in range(1, 5)}


def test_before_a_screen_all_candidates_are_kept_and_their_texts_are_in_the_corpora(tmp_path):
    records = random_records(8)
    negatives = Negatives(miners=[miner(30)], per_query=2, screen=Screen(encoder="any"))
    output = run_step(mine_step(negatives, split(records)), str(tmp_path))
    texts = {id for corpus in corpora_of(output.folder).values() for id in corpus.frame().get_column("id").to_list()}
    found = [item for row in read(output.shards).to_pylist() for item in row["negatives"] if item["miner"] == "bm25"]
    assert len(found) > 8 * len(records)
    assert all(item["text"] is None and item["id"] in texts for item in found)


def test_the_margin_of_a_screen_does_not_change_the_key_of_mining():
    inputs = split(random_records(9, count=4))
    one, other = (
        mine_step(Negatives(miners=[miner()], screen=Screen(encoder="e", margin=margin)), inputs).key for margin in (0.9, 0.95)
    )
    assert one == other


def test_rows_alone_in_their_category_get_no_negatives_and_are_counted(tmp_path):
    output = mined(split([record("a", "q", "p")]), tmp_path)
    assert read(output.shards).to_pylist()[0]["negatives"] == []
    assert output.report.notes["categories"] == {"a": {"rows": 1, "without": 1, "negatives": {}, "short": {"bm25": 4}}}


def test_no_rows_give_no_rows(tmp_path):
    assert mined(split([], 1), tmp_path).report.counts.out == 0


class Interrupted(LocalExecutor):
    """Stops after so many units, as a kill would: what was written stays."""

    def __init__(self, units: int) -> None:
        super().__init__(1)
        self.left = units

    def map(self, function, units, *, exclusive=False):
        for unit in units:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield function(unit)


def test_resume_after_a_stop_gives_identical_bytes(tmp_path):
    inputs = split(random_records(10), 3)
    mining = mine_step(Negatives(miners=[miner()]), inputs)
    whole = run_step(mining, str(tmp_path / "whole"))
    units = len(list(Path(whole.folder).glob("*/*/unit.json")))
    for stop in (2, units // 2, units - 1):
        cache = str(tmp_path / str(stop))
        for needed in inputs:
            run_step(needed, cache)
        with pytest.raises(KeyboardInterrupt):
            step.run(mining, cache, Interrupted(stop), QUIET)
        again = run_step(mining, cache)
        assert [storage.file_digest(path) for path in again.shards] == [storage.file_digest(path) for path in whole.shards]
        assert again.report == whole.report
