"""Screening: what is dropped is what a plain reading of the rules drops, and what is kept is what was mined, in order."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import given, random_records, record, split
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from stepping import read, run_step

from datakit import storage
from datakit.encoders.embed import write_index
from datakit.encoders.vectors import pack, save_array
from datakit.errors import BuildError
from datakit.negatives import criteria as module
from datakit.negatives.criteria import REASONS, Vectors, dots
from datakit.negatives.mine import mine_step
from datakit.negatives.screen import screen_step
from datakit.recipe import Bm25Miner, Encoder, Model, Negatives, Screen
from datakit.schema import digest, text_id
from datakit.step import Output, Step, Work

DIMENSION = 6
ENCODER = Encoder(model="none")


@functools.cache
def vector(text: str) -> np.ndarray:
    """A vector for each word, from its digest; a text is the sum of its words. Texts with shared words are alike."""
    words = [np.frombuffer(bytes.fromhex(digest(word, size=DIMENSION)), np.int8) for word in text.lower().strip("!").split()]
    total = np.sum(words, axis=0).astype(np.float64)
    return (total / np.linalg.norm(total)).astype(np.float32)


class Embedded(Model):
    texts: dict[str, list[str]]


def vectors_step(queries: list[str], documents: list[str]) -> Step:
    """A step with vectors of the texts, in the layout of an embed step."""
    texts = {"query": sorted(set(queries)), "document": sorted(set(documents))}

    def work(work: Work) -> None:
        bounds, files = {}, []
        for role, some in texts.items():
            number = len(files)
            bounds[role] = (number, number + 1)
            files.append(work.files("vectors", number, "ids.npy"))
            save_array(files[-1], pack([text_id(text) for text in some]))
            values = np.array([vector(text) for text in some]).reshape(-1, DIMENSION)
            save_array(work.files("vectors", number, "vectors.npy"), values)
        write_index((bounds, files), storage.join(work.folder, "index", "00000"))
        work.notes["dimension"] = DIMENSION
        work.finish(None)

    return Step("embed", 1, work, Embedded(texts=texts))


def screened(
    records: list[dict[str, Any]],
    cache: Path,
    workers: int = 1,
    *,
    shards: int = 2,
    depth: int = 20,
    per_query: int = 4,
    margin: float = 0.95,
    paraphrase: float = 0.98,
) -> tuple[Output, Output]:
    """The outputs of mining and of screening."""
    screen = Screen(encoder="none", margin=margin, paraphrase=paraphrase)
    negatives = Negatives(miners=[Bm25Miner(type="bm25", depth=depth)], per_query=per_query, screen=screen)
    mining = mine_step(negatives, split(records, shards))
    vectors = vectors_step([row["query"] for row in records], [row["positive"] for row in records])
    screening = screen_step(negatives, ENCODER, (mining,), (vectors,))
    return run_step(mining, str(cache)), run_step(screening, str(cache), workers)


def dot(left: str, right: str) -> float:
    return float(vector(left).astype(np.float64) @ vector(right).astype(np.float64))


def plain(
    row: dict[str, Any], positives: set[str], texts: dict[str, str], margin: float, paraphrase: float
) -> list[tuple[dict[str, Any], str | None]]:
    """The reason against each candidate of a row, by the rules as they are written."""
    result = []
    for item in row["negatives"]:
        text = texts[item["id"]]
        reason = None
        if text in positives:
            reason = "equal_to_positive"
        elif item["miner"] == "bm25":
            similarity = dot(row["query"], text)
            limits = [dot(row["query"], p) - abs(dot(row["query"], p)) * (1 - margin) for p in positives]
            if any(dot(text, positive) >= paraphrase for positive in positives):
                reason = "paraphrase"
            elif any(similarity >= limit for limit in limits):
                reason = "above_margin"
        result.append((item, reason))
    return result


@pytest.mark.parametrize(("seed", "margin"), [(1, 0.95), (2, 0.7), (3, 1.0)])
def test_screening_does_what_the_rules_say(tmp_path, monkeypatch, seed, margin):
    monkeypatch.setattr(module, "BLOCK", 150)
    monkeypatch.setattr(module, "_CHUNK", 7)
    records = random_records(seed)
    mined, output = screened(records, tmp_path, margin=margin, paraphrase=0.9)
    texts = {text_id(row["positive"]): row["positive"] for row in records}
    texts |= {item["id"]: item["text"] for row in records for item in row.get("negatives") or []}
    before = {row["row_id"]: row for row in read(mined.shards).to_pylist()}
    reasons: Counter[str | None] = Counter()
    negatives_by_row: Counter[int] = Counter()
    for row in read(output.shards).to_pylist():
        positives = {other["positive"] for other in records if other["query"] == row["query"]}
        said = plain(before[row["row_id"]], positives, texts, margin, 0.9)
        reasons.update(reason for item, reason in said if item["miner"] == "bm25")
        left = [item for item, reason in said if reason is None]
        own = [item for item in left if item["miner"] == "source"]
        others = [item for item in left if item["miner"] != "source"]
        expected = own + others[: max(0, 4 - len(own))]
        assert row["negatives"] == [{**item, "text": texts[item["id"]]} for item in expected]
        assert {**row, "negatives": None} == {**before[row["row_id"]], "negatives": None}
        negatives_by_row[len(expected)] += 1
    assert reasons["above_margin"] > 100
    assert reasons[None] > 100
    assert reasons["paraphrase"] > 0
    check_notes(output.report.notes, reasons, negatives_by_row)


def check_notes(notes: dict[str, Any], reasons: Counter[str | None], negatives_by_row: Counter[int]) -> None:
    assert {reason: notes["miners"]["bm25"][reason] for reason in REASONS} == {reason: reasons[reason] for reason in REASONS}
    assert notes["miners"]["bm25"]["candidates"] == sum(reasons.values())
    assert notes["negatives_by_row"] == {str(number): rows for number, rows in sorted(negatives_by_row.items())}
    rows = sum(negatives_by_row.values())
    fewer = sum(count for number, count in negatives_by_row.items() if number < 4)
    assert notes["rows_with_fewer"] == pytest.approx(fewer / rows, abs=1e-6)
    dropped = sum(count for reason, count in reasons.items() if reason)
    assert notes["false_negative_rate"] == pytest.approx(dropped / sum(reasons.values()), abs=1e-6)
    assert sorted(notes["categories"]) == ["a", "b"]


def test_the_least_similar_positive_of_the_query_decides(tmp_path):
    query = "w1 w2"
    near, far = "w1 w2 w3", max((f"w{n} w1" for n in range(4, 30)), key=lambda text: -dot(query, text))
    between = [
        text for n in range(4, 30) for text in [f"w{n} w2"] if dot(query, far) * 0.95 <= dot(query, text) < dot(query, near) * 0.9
    ]
    assert between
    alone = [record("a", query, near), *(record("a", f"other {n}", text) for n, text in enumerate(between))]
    siblings = [*alone, record("a", query, far)]

    def kept(records: list[dict[str, Any]], name: str) -> set[str]:
        output = screened(records, tmp_path / name, per_query=64, depth=64, paraphrase=1.0)[1]
        row = next(row for row in read(output.shards).to_pylist() if row["query"] == query and row["positive"] == near)
        return {item["text"] for item in row["negatives"]}

    assert kept(alone, "alone") == set(between)
    assert not kept(siblings, "siblings") & set(between)


def test_a_negative_of_the_data_that_answers_the_query_in_another_row_is_dropped():
    """Mining has dropped those already; a step that adds negatives after it has not."""
    import polars as pl

    rows = pl.DataFrame({"row": [0], "query_id": [text_id("q")], "positive_id": [text_id("p")]})
    known = pl.DataFrame({"row": [0, 0], "positive_id": [text_id("p"), text_id("p2")]})
    candidates = pl.DataFrame({"row": [0, 0], "id": [text_id("p2"), text_id("n")], "miner": ["source", "source"]})

    def unread(role: Any, ids: Any) -> Any:
        raise AssertionError("no vector is looked up")

    assert module.reasons(candidates, rows, known, Screen(encoder="e"), unread).to_list() == ["equal_to_positive", None]


@settings(max_examples=100, deadline=None)
@drawn(st.floats(-1, 1), st.floats(0.01, 1))
def test_the_margin_lies_below_the_positive_whatever_its_sign(similarity, margin):
    allowed = similarity - abs(similarity) * (1 - margin)
    assert allowed <= similarity


def test_negatives_of_the_data_and_other_labels_need_no_vectors(tmp_path):
    records = [
        record("intent", f"say w{n}", f"w{n % 4}", label=f"w{n % 4}", in_batch_negatives=False, negatives=given(f"w{n} own"))
        for n in range(12)
    ]
    _, output = screened(records, tmp_path, per_query=3)
    for row in read(output.shards).to_pylist():
        assert [item["miner"] for item in row["negatives"]] == ["source", "other_label", "other_label"]
        assert all(item["text"] for item in row["negatives"])
    assert output.report.notes["false_negative_rate"] == 0.0


def test_a_mined_text_without_a_vector_is_a_defect(tmp_path):
    records = random_records(4, count=20)
    negatives = Negatives(miners=[Bm25Miner(type="bm25")], screen=Screen(encoder="none"))
    vectors = vectors_step([row["query"] for row in records], [row["positive"] for row in records][:3])
    with pytest.raises(BuildError, match="has no vector for the document"):
        run_step(screen_step(negatives, ENCODER, (mine_step(negatives, split(records)),), (vectors,)), str(tmp_path))


def test_no_row_is_dropped_and_nothing_takes_the_place_of_what_was_dropped(tmp_path):
    records = random_records(5)
    _, output = screened(records, tmp_path, margin=0.01)
    assert output.report.counts.out == output.report.counts.rows_in == len(records)
    assert all(item["miner"] in ("source", "bm25") for row in read(output.shards).to_pylist() for item in row["negatives"])
    assert int(output.report.notes["negatives_by_row"]["0"]) > 0


def test_rows_in_another_order_on_other_workers_keep_the_same_negatives(tmp_path):
    records = random_records(6)
    _, one = screened(records, tmp_path / "one")
    random.Random(1).shuffle(records)
    _, other = screened(records, tmp_path / "two", workers=2, shards=3)
    by_id = [sorted(read(output.shards).to_pylist(), key=lambda row: row["row_id"]) for output in (one, other)]
    assert by_id[0] == by_id[1]
    assert one.report.notes == other.report.notes


def test_a_dot_product_does_not_depend_on_what_stands_beside_it():
    draw = np.random.default_rng(1)
    places = {str(number): number for number in range(500)}
    some = Vectors(places, draw.normal(size=(500, 384)).astype(np.float32))
    ids = [str(number) for number in range(500)]
    together = dots(some, some, ids, ids[::-1])
    alone = np.concatenate([dots(some, some, [one], [other]) for one, other in zip(ids, ids[::-1], strict=True)])
    assert (together == alone).all()


def test_no_rows_give_no_rows(tmp_path):
    _, output = screened([], tmp_path, shards=1)
    assert output.report.counts.out == 0
