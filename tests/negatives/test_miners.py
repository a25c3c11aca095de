"""All miners: what they find is what looking at everything finds, whatever the pieces, workers and order of rows; and quotas."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from corpora import WORDS, random_records, record, split
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stepping import read, run_step
from test_screen import ENCODER, vector, vectors_step

from datakit import storage
from datakit.assets import Assets
from datakit.negatives import adversarial, entities, quota
from datakit.negatives import corpus as corpus_module
from datakit.negatives.adversarial_prompts import COPIED_FROM_PAIR, Pair, load
from datakit.negatives.mine import mine_step
from datakit.negatives.outside import outside_step
from datakit.negatives.postings import Best, Excluded, nearest
from datakit.negatives.relabel import relabel_step
from datakit.negatives.screen import screen_step
from datakit.recipe import AdversarialMiner, Columns, FilesSource, Negatives, OpenAIEngine
from datakit.registry import Category
from datakit.schema import text_id
from datakit.sources.read import documents_step
from datakit.step import Output

ALL: list[dict[str, Any]] = [
    {"type": "bm25", "depth": 12},
    {"type": "dense", "encoder": "e", "depth": 12},
    {"type": "entities", "depth": 12, "max_share": 0.5, "min_shared": 0.1, "max_overlap": 0.9},
    {"type": "other_cluster", "encoder": "e", "depth": 12},
    {"type": "random"},
]


def mined(records: list[dict[str, Any]], cache: Path, workers: int = 1, shards: int = 2, **options: Any) -> Output:
    negatives = Negatives.model_validate({"miners": ALL, "per_query": 8, **options})
    vectors = vectors_step([row["query"] for row in records], [row["positive"] for row in records])
    return run_step(mine_step(negatives, split(records, shards), {"e": [vectors]}), str(cache), workers)


def by_row(output: Output) -> list[dict[str, Any]]:
    return sorted(read(output.shards).to_pylist(), key=lambda row: row["row_id"])


@pytest.mark.parametrize("corpus", ["category", "mixture"])
def test_no_miner_depends_on_workers_shards_pieces_or_the_order_of_rows(tmp_path, monkeypatch, corpus):
    records = random_records(21)
    plain = mined(records, tmp_path / "plain", corpus=corpus)
    workers = mined(records, tmp_path / "workers", 2, corpus=corpus)
    random.Random(1).shuffle(records)
    monkeypatch.setattr(corpus_module, "PIECE", 20)
    pieces = mined(records, tmp_path / "pieces", shards=5, corpus=corpus)
    assert len(list(Path(pieces.folder).glob("bm25-index/*"))) > len(list(Path(plain.folder).glob("bm25-index/*")))
    digests = [[storage.file_digest(path) for path in output.shards] for output in (plain, workers)]
    assert digests[0] == digests[1]
    assert by_row(plain) == by_row(pieces)
    assert plain.report.notes == pieces.report.notes
    found = {item["miner"] for row in by_row(plain) for item in row["negatives"]}
    assert found >= {miner["type"] for miner in ALL} - {"random"}


def test_dense_finds_the_nearest_texts_and_says_their_cosines(tmp_path):
    records = random_records(22)
    output = mined(records, tmp_path, miners=[ALL[1]], per_query=5)
    checked = 0
    for row in by_row(output):
        found = [item for item in row["negatives"] if item["miner"] == "dense"]
        cosines = [float(vector(row["query"]).astype(float) @ vector(item["text"]).astype(float)) for item in found]
        assert [item["score"] for item in found] == pytest.approx(cosines, abs=1e-6)
        assert cosines == sorted(cosines, reverse=True)
        own = {other["positive"] for other in records if other["query"] == row["query"]}
        pool = {other["positive"] for other in records if other["category"] == row["category"]} - own
        pool -= {other["positive"] for other in records if other["document_id"] == row["document_id"]}
        better = [
            text for text in pool if float(vector(row["query"]).astype(float) @ vector(text).astype(float)) > cosines[-1] + 1e-6
        ]
        # Texts that differ from a positive, or from one that was taken, in case only are no candidates.
        assert len({text.lower().strip("!") for text in better}) <= len(found) + len(own) + 1 + len(row["negatives"])
        checked += len(found)
    assert checked > 200


@pytest.mark.parametrize("search", ["auto", "exact"])
def test_dense_finds_the_same_beside_a_miner_that_makes_clusters(tmp_path, search):
    records = random_records(29)
    found = {}
    for name, miners in {
        "alone": [{"search": search}],
        "beside": [{"search": search}, ALL[3]],
        "clusters": [{"search": "clusters"}],
    }.items():
        dense = {**ALL[1], **miners[0], "probes": 1}
        output = mined(records, tmp_path, miners=[dense, *miners[1:]], quota={"dense": 1})
        found[name] = [[item for item in row["negatives"] if item["miner"] == "dense"] for row in by_row(output)]
    assert found["alone"] == found["beside"] != found["clusters"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_nearest_vectors_are_those_of_a_full_comparison_for_any_pieces(size, queries, piece, k, seed):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(size, 4)).astype(np.float32)
    vectors[draw.integers(size, size=size // 3)] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = vectors[draw.integers(size, size=queries)]
    barred = np.sort(draw.integers(size, size=queries))
    excluded = Excluded(barred, np.arange(queries + 1))
    best = Best.nothing(queries, k)
    order = draw.permutation(size)
    for start in range(0, size, piece):
        some = order[start : start + piece]
        nearest(asked @ vectors[some].T, asked, vectors[some], some, np.arange(queries), excluded, best)
    found, scores = best.ranked()
    for row in range(queries):
        exact = [sum(float(a) * float(b) for a, b in zip(asked[row], other, strict=True)) for other in vectors]
        expected = sorted((-score, place) for place, score in enumerate(exact) if place != barred[row])[:k]
        assert found[row][: len(expected)].tolist() == [place for _, place in expected]
        assert scores[row][: len(expected)].tolist() == [-score for score, _ in expected]
        assert (found[row][len(expected) :] == -1).all()


def test_entities_share_a_name_and_not_the_intent():
    corpus = [
        "Polycythemia Vera is treated by phlebotomy and aspirin.",
        "Signs of Polycythemia Vera are headaches and itching.",
        "Signs of gout are pain and swelling.",
        "Treatment of gout with colchicine.",
        "Weather in May.",
        "Somebody once had polycythemia, which is said here late in a long text " + "and then goes on " * 9 + "vera",
    ]
    index = entities.index(pl.Series(corpus), 0.5)
    excluded = Excluded(np.array([0]), np.array([0, 1]))
    found, scores = index.top(pl.Series(["how is polycythemia vera treated"]), pl.Series(corpus[:1]), 6, (0.5, 0.5), excluded)
    assert found[0][0] == 1
    assert 2 not in found[0]
    assert 3 not in found[0]
    assert (scores[0][found[0] >= 0] > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_entities_in_pieces_are_those_of_one_index(seed, piece):
    draw = random.Random(seed)
    texts = pl.Series([" ".join(draw.choices(WORDS, k=6)) for _ in range(30)])
    queries = pl.Series([" ".join(draw.choices(WORDS, k=4)) for _ in range(5)])
    barred = Excluded.nothing(5)
    found = [entities.index(texts, 0.3, size).top(queries, texts[:5], 8, (0.1, 0.9), barred) for size in (None, piece)]
    assert (found[0][0] == found[1][0]).all()
    assert (found[0][1] == found[1][1]).all()


FRAMES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", "c"])), max_size=60)


@settings(max_examples=150, deadline=None)
@given(FRAMES, st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any))
def test_a_beginning_holds_of_each_miner_what_the_quota_says_or_all_that_it_has(candidates, numbers):
    weight = dict(zip("abc", map(float, numbers), strict=True))
    frame = pl.DataFrame(candidates, schema={"row": pl.Int64, "miner": pl.String}, orient="row").with_row_index("n")
    mixed = quota.mixed(frame, weight)
    assert mixed.sort("n").equals(frame)
    per_query = int(sum(numbers))
    for (row,), some in mixed.group_by("row"):
        beginning = some.head(per_query).get_column("miner").to_list()
        has = {name: candidates.count((row, name)) for name in weight}
        lacking = sum(max(0, int(weight[name]) - has[name]) for name in weight)
        for name, number in weight.items():
            assert beginning.count(name) >= min(int(number), has[name])
            assert beginning.count(name) <= int(number) + lacking
        assert len(beginning) == min(per_query, len(some))
        for name in weight:
            order = some.filter(pl.col("miner") == name).get_column("n").to_list()
            assert order == sorted(order)


@pytest.mark.parametrize(
    ("weight", "per_query", "wanted"),
    [({"a": 3.0, "b": 8.0}, 55, {"a": 15, "b": 40}), ({"a": 0.1, "b": 0.2, "c": 0.7}, 10, {"a": 1, "b": 2, "c": 7})],
)
def test_what_a_miner_lacks_is_its_whole_share(weight, per_query, wanted):
    nothing = pl.DataFrame(schema={"row": pl.Int64, "miner": pl.String})
    assert quota.shortfalls(nothing, 1, weight, per_query) == wanted


def test_what_a_miner_lacks_others_give_and_it_is_counted(tmp_path):
    records = random_records(23)
    output = mined(records, tmp_path, miners=[ALL[0], ALL[2]], quota={"bm25": 2, "entities": 6})
    notes = output.report.notes["categories"]
    assert all(each["short"]["entities"] > 0 for each in notes.values())
    assert all(set(each["negatives"]) <= {"bm25", "entities", "source"} for each in notes.values())


def test_random_texts_come_only_where_they_are_asked_for_and_last(tmp_path):
    records = random_records(24)
    output = mined(records, tmp_path, miners=[{"type": "bm25", "depth": 2}, {"type": "random"}])
    for row in by_row(output):
        names = [item["miner"] for item in row["negatives"] if item["miner"] != "source"]
        assert names == sorted(names)
        assert all(item["difficulty"] == 0 and item["score"] is None for item in row["negatives"] if item["miner"] == "random")


def test_a_window_of_ranks_leaves_out_the_first_ones(tmp_path):
    records = random_records(25)
    whole = mined(records, tmp_path / "whole", miners=[{"type": "bm25", "depth": 8}], per_query=8)
    window = mined(records, tmp_path / "window", miners=[{"type": "bm25", "ranks": [4, 8]}], per_query=8)
    scored = [[item for item in row["negatives"] if item["miner"] == "bm25"] for row in by_row(whole)]
    late = [[item for item in row["negatives"] if item["miner"] == "bm25"] for row in by_row(window)]
    assert sum(map(len, late)) > 100
    for all_of_them, some in zip(scored, late, strict=True):
        highest = max((item["difficulty"] for item in all_of_them), default=0)
        assert all(item["difficulty"] < highest for item in some)


def mined_outside(
    train: list[dict[str, Any]],
    held: list[dict[str, Any]],
    texts: list[str],
    folder: Path,
    miner: dict[str, Any],
    validation: float,
) -> Output:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = FilesSource(type="files", path=str(path), columns=Columns(document="text"))  # type: ignore[arg-type]
    entry = Category(key="corpus", family="recipe", task="retrieval", description="")
    documents = documents_step("corpus", "corpus", entry, source, "en", 1000, Assets(str(folder)), 0)
    outside = outside_step("corpus-texts", (documents,))
    negatives = Negatives.model_validate(
        {"miners": [miner], "corpus": {"sources": [{"type": "files", "path": str(path), "columns": {"document": "text"}}]}}
    )
    rows = [*train, *held]
    vectors = vectors_step([row["query"] for row in rows], [*(row["positive"] for row in rows), *texts])
    step = mine_step(negatives, split(train, validation=held), {"e": [vectors]}, outside, validation=validation)
    return run_step(step, str(folder / "cache"))


def test_outside_texts_belong_to_one_part_and_never_say_what_a_row_of_the_other_says(tmp_path):
    train, held = random_records(26), random_records(27, words=4)
    classes = [f"w{n} w{n + 1} class" for n in range(20)]
    for rows in (train, held):
        rows += [record("c", f"w{n} of {len(rows)}", text, label=text) for n, text in enumerate(classes)]
    texts = [f"w{n % 30} w{n * 7 % 30} outside {n}" for n in range(300)] + classes
    texts += [row[side] for rows in (train, held) for row in rows[:20] for side in ("query", "positive")]
    output = mined_outside(train, held, texts, tmp_path, ALL[0], 0.3)
    seen = {}
    for part, others in (("train", held), ("validation", train)):
        items = [item for row in read(output.part(part)).to_pylist() for item in row["negatives"] if item["miner"] == "bm25"]
        seen[part] = {item["text"] for item in items}
        assert len(seen[part]) > 20
        assert seen[part] <= set(texts)
        said = {row[side].lower().strip("!") for row in others for side in ("query", "positive")}
        assert not {text.lower().strip("!") for text in seen[part]} & said
    assert not seen["train"] & seen["validation"]


@pytest.mark.parametrize("miner", [ALL[1], ALL[3]], ids=["dense", "other_cluster"])
def test_a_part_that_gets_no_outside_text_has_no_negatives(tmp_path, miner):
    train, held = random_records(26), random_records(27)
    output = mined_outside(train, held, [f"w{n} w{n + 1} out" for n in range(29)], tmp_path, miner, 0.0)
    mined = {
        part: [item for row in read(output.part(part)).to_pylist() for item in row["negatives"]]
        for part in ("train", "validation")
    }
    assert {item["miner"] for item in mined["train"]} == {"source", miner["type"]}
    assert {item["miner"] for item in mined["validation"]} == {"source"}


PAIR = Pair(query="what do bees eat", positive="They eat honey.")


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        ("Bees make wax.", "Bees make wax.", None),
        ("Negative: Bees make wax.", "Bees make wax.", None),
        ('{"negative": "Bees make wax."}', "Bees make wax.", None),
        ("They eat honey.", "", COPIED_FROM_PAIR),
        ("What do bees eat?", "", COPIED_FROM_PAIR),
        ("", "", "empty_answer"),
        ("<|im_start|>system You are", "", "leaked"),
    ],
)
def test_answers_of_the_adversary_hold_one_text_or_a_reason(answer, text, reason):
    found = load("passages", False).text_in(answer, PAIR, 0, cut=False)
    assert (found.text, found.reason) == (text, reason)


def test_another_query_is_kept_with_the_text_that_answers_it():
    prompt = load("queries", True)
    found = prompt.text_in("Query: what do birds eat\nPositive: Seeds.", PAIR, 0, cut=False)
    assert (found.query, found.text, found.reason) == ("what do birds eat", "Seeds.", None)
    assert prompt.text_in("Query: What do bees eat\nPositive: Seeds.", PAIR, 0, cut=False).reason == COPIED_FROM_PAIR
    assert prompt.conversation(PAIR, 0, 0, "lines") != prompt.conversation(PAIR, 0, 1, "json_schema")


@pytest.mark.parametrize("kind", ["passages", "queries"])
@pytest.mark.parametrize("small", [False, True])
def test_each_request_about_a_pair_asks_for_something_else(kind, small):
    asked = [load(kind, small).conversation(PAIR, number, 0, "lines") for number in range(5)]
    assert len({each.messages[-1].content for each in asked}) == 5


@pytest.mark.parametrize("turned", [False, True])
def test_of_equal_pairs_with_two_instructions_the_first_is_asked_about_in_any_order(tmp_path, turned):
    records = [record("a", "q", "p", row_id=each, instruction=each) for each in "bac"]
    (step,) = split(records[::-1] if turned else records, 1)
    miner = AdversarialMiner(type="adversarial", engine="e")
    parameters = adversarial.Writing(miner=miner, engine=OpenAIEngine(type="openai", model="m"), seed=1)
    sent = adversarial._Pairs(parameters, 1)(run_step(step, str(tmp_path)).shards[0], str(tmp_path))
    adversarial._together(([str(tmp_path / "pairs.parquet")], [sent["sent"]], 0), str(tmp_path / "together"))
    pairs = storage.read_table(str(tmp_path / "together" / "pairs.parquet")).to_pylist()
    assert [pair["instruction"] for pair in pairs] == ["a"]


def test_what_decides_which_texts_are_equal_is_in_the_keys_of_the_steps(tmp_path):
    negatives = Negatives.model_validate(
        {"miners": [ALL[0]], "screen": {"encoder": "e", "relabel": {"type": "cross_encoder", "model": str(tmp_path)}}}
    )
    rows, assets = split(random_records(26)), Assets(str(tmp_path))
    mining = mine_step(negatives, rows)
    screening = screen_step(negatives, ENCODER, (mining,), (vectors_step([], []),))
    for step in (mining, screening, relabel_step(negatives, None, (screening,), assets)):
        assert {"polars", "python"} <= set(step.packages)
    assert "polars" in outside_step("corpus-texts", ()).packages


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"miners": [{"type": "bm25"}, {"type": "bm25"}]}, "two miners 'bm25'"),
        ({"miners": [{"type": "bm25"}], "quota": {"dense": 3}}, "quota names 'dense'"),
        ({"miners": [{"type": "bm25"}], "quota": {"bm25": 0}}, "quota gives nothing"),
        ({"miners": [{"type": "bm25", "ranks": [5, 2]}]}, "the first rank"),
        ({"miners": [{"type": "bm25", "ranks": [1, 2], "depth": 3}]}, "leave 'depth' out"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe, said):
    with pytest.raises(ValidationError, match=said):
        Negatives.model_validate(recipe)


def test_ids_of_mined_texts_are_those_of_their_texts(tmp_path):
    items = [item for row in by_row(mined([*random_records(28), record("a", "q", "p")], tmp_path)) for item in row["negatives"]]
    assert len(items) > 300
    assert all(item["id"] == text_id(item["text"]) for item in items)
