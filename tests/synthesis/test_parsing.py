"""Parsing: whatever a model writes becomes questions, or a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.synthesis.parsing import (
    BAD_SCORE,
    COPIED_FROM_PROMPT,
    CUT_OFF,
    EMPTY_ANSWER,
    FIELDS,
    MISSING_FIELD,
    MORE_THAN_ASKED,
    NO_WORDS,
    REPEATED_IN_ANSWER,
    TEXT,
    UNPARSABLE_ANSWER,
    chosen,
    folded,
    parse,
    score,
)
from datakit.synthesis.prompts import written

WORDS = st.lists(st.text("abmtyzäßж木", min_size=2, max_size=9), min_size=2, max_size=8).map(" ".join)
QUESTIONS = st.lists(WORDS, min_size=1, max_size=5, unique_by=folded)


def kept(text: str, queries: int = 5, **options: object) -> list[str]:
    return [item.texts[TEXT] for item in parse(text, queries, **options).items if item.reason is None]  # type: ignore[arg-type]


def fields(text: str, *names: str, count: int = 1, **options: object) -> list[tuple[dict[str, str], str | None]]:
    return [(item.texts, item.reason) for item in parse(text, count, names, **options).items]  # type: ignore[arg-type]


@given(QUESTIONS, st.sampled_from(["lines", "json_schema"]))
def test_what_was_asked_for_is_read_back(questions: list[str], structured: str) -> None:
    assert kept(written([{TEXT: question} for question in questions], (), structured)) == questions


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                ["1.", "2)", "- ", "{", "[", '"', "\n", "a?", "queries", ":", "<think>", "```", "Query:", "Positive:", "Score: 1"]
            ),
            max_size=30,
        ).map("".join),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        ).map(json.dumps),
    ),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True),
)
def test_no_answer_raises_and_each_gives_items_or_a_reason(text: str, count: int, cut: bool, names: list[str]) -> None:
    parsed = parse(text, count, names, cut=cut)
    assert (parsed.reason is None) == bool(parsed.items)
    accepted = [item.texts for item in parsed.items if item.reason is None]
    assert len(accepted) <= count
    for texts in accepted:
        assert texts.keys() == set(names or (TEXT,))
        assert all(folded(each) and ("\n" not in each or "```" in text) for name, each in texts.items() if name != "score")


@pytest.mark.parametrize(
    "text",
    [
        "1. what is a\n2. what is b",
        "1) what is a\n2) what is b",
        "Here are two questions:\n\n1. what is a\n2. what is b\n\nI hope this helps!",
        '1. "what is a"\n2. “what is b”',
        "**1.** what is a\n**2.** **what is b**",
        "Question 1: what is a\nQuestion 2: what is b",
        "#1. what is a\n#2. what is b",
        "1. Keywords: what is a\n2. **Phrase:** what is b",
        "- what is a\n- what is b",
        "* what is a\n• what is b",
        '{"queries": ["what is a", "what is b"]}',
        '```json\n{"questions": ["what is a", "what is b"]}\n```',
        '[{"query": "what is a", "persona": "x y"}, {"query": "what is b"}]',
        "<think>1. hm\n2. well</think>\n1. what is a\n2. what is b",
        "1.   what  is\ta \n2. what is b\r\n",
        "1. what\nis a\n2. what is\n   b\n\nthese are both",
        'Here they are:\n```json\n{\n "queries": [\n  "what is a",\n  "what is b"\n ]\n}\n```\nI hope this helps!',
    ],
)
def test_lists_are_read_however_they_are_written(text: str) -> None:
    assert kept(text) == ["what is a", "what is b"]


def test_an_object_of_as_many_texts_as_were_asked_for_holds_them_under_any_name() -> None:
    assert kept('{"keywords": "what is a", "question": "what is b"}', 2) == ["what is a", "what is b"]
    assert kept('{"question": "what is b", "why": "it is asked"}', 1) == ["what is b"]


def test_lines_that_ask_are_questions_where_there_is_no_list() -> None:
    assert kept("Sure.\nWhat is a?\nWhat is b?") == ["What is a?", "What is b?"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY_ANSWER),
        (" \n ", EMPTY_ANSWER),
        ("<think>and so on", EMPTY_ANSWER),
        ("I'm ready to help. What", UNPARSABLE_ANSWER),
        ('{"queries": []}', UNPARSABLE_ANSWER),
        ('{"queries": ["what is', UNPARSABLE_ANSWER),
    ],
)
def test_an_answer_without_questions_gives_the_reason(text: str, reason: str) -> None:
    parsed = parse(text, 3)
    assert (parsed.reason, parsed.items) == (reason, [])


def test_each_question_that_is_none_gives_its_reason() -> None:
    text = "1. how to sort\n2. How to sort?\n3. ...\n4. honey from nectar\n5. what is a heap\n6. what is a list\n7. what is"
    items = parse(text, 3, cut=True, examples=["Honey from nectar"]).items
    assert [item.number for item in items] == [1, 2, 3, 4, 5, 6, 7]
    assert [(item.texts[TEXT], item.reason) for item in items] == [
        ("how to sort", None),
        ("How to sort?", REPEATED_IN_ANSWER),
        ("...", NO_WORDS),
        ("honey from nectar", COPIED_FROM_PROMPT),
        ("what is a heap", None),
        ("what is a list", None),
        ("what is", CUT_OFF),
    ]
    assert parse("1. a b\n2. c d\n3. e f\n4. g h", 3).items[-1].reason == MORE_THAN_ASKED


def test_only_an_answer_without_end_is_cut_off() -> None:
    assert kept("1. a b\n2. c d", cut=True) == ["a b"]
    assert kept("1. a b\n2. c d\n", cut=True) == ["a b", "c d"]
    assert kept("1. a b\n2. c d\n\nThese were the", cut=True) == ["a b", "c d"]
    assert kept("1. a b\n2. c d", cut=False) == ["a b", "c d"]


def test_an_item_has_the_number_that_stands_before_it() -> None:
    assert [item.number for item in parse("1. a b\n3. c d\n4. e f", 4).items] == [1, 3, 4]
    assert [item.number for item in parse("1. a b\n1. c d\n1. e f", 4).items] == [1, 2, 3]
    assert [item.number for item in parse("- a b\n- c d", 4).items] == [1, 2]


FEW = st.lists(st.sampled_from(["ab", "cd", "größe", "木", "e:f"]), min_size=1, max_size=3).map(" ".join)
PAIR = {"query": "bees in winter", "positive": "They live on honey.", "negative": "They visit flowers."}


@given(
    st.lists(st.tuples(FEW, FEW, FEW), min_size=1, max_size=3, unique=True),
    st.sampled_from(["lines", "json_schema"]),
)
def test_fields_that_were_asked_for_are_read_back(texts: list[tuple[str, str, str]], structured: str) -> None:
    items = [dict(zip(PAIR, each, strict=True)) for each in texts]
    found = fields(written(items, tuple(PAIR), structured), *PAIR, count=len(items))
    assert found == [(item, None) for item in items]


@pytest.mark.parametrize(
    "text",
    [
        "Query: bees in winter\nPositive: They live on honey.\nNegative: They visit flowers.",
        "Here is one:\n\n**Query:** bees in winter\n\n**Positive:** They live on honey.\n\n**Negative:** They visit flowers.\n\nDone!",
        "1. Query: bees in winter\n2. Positive: They live on honey.\n3. Negative: They visit flowers.",
        "- user query: bees in winter\n- Positive document: They live\n  on honey.\n- Hard negative document: They visit flowers.",
        "Query:\nbees in winter\nPositive:\nThey live on honey.\nNegative:\nThey visit flowers.",
        '{"user_query": "bees in winter", "positive_document": "They live on honey.", "hard_negative_document": "They visit flowers."}',
        '```json\n[{"query": "bees in winter", "positive": "They live on honey.", "negative": "They visit flowers."}]\n```',
        "```\nQuery: bees in winter\nPositive: They live on honey.\nNegative: They visit flowers.\n\n```",
        '{"items": [{"query": "bees in winter", "positive": "They live on honey.", "negative": "They visit flowers."}]}',
    ],
)
def test_fields_are_read_however_they_are_written(text: str) -> None:
    assert fields(text, *PAIR) == [(PAIR, None)]


def test_a_text_of_several_paragraphs_is_whole_up_to_the_next_name() -> None:
    text = "Positive: One.\n\nTwo.\nThree.\n\nHere is the other:\n\nNegative: Four.\n\nI hope this helps!"
    assert fields(text, "positive", "negative") == [({"positive": "One. Two. Three.", "negative": "Four."}, None)]


def test_a_program_keeps_its_lines_and_loses_its_fence() -> None:
    program = "def f(x):\n    if x:\n        return 1\n\n    return 2"
    text = f"Positive:\n```python\n{program}\n```\n\nNegative: ```js\nlet a = 1\n\nf(a)\n```\nDone!"
    assert fields(text, "positive", "negative") == [({"positive": program, "negative": "let a = 1\n\nf(a)"}, None)]


def test_what_is_wrong_with_fields_is_a_reason() -> None:
    assert fields("Query: a b\nPositive: c d", *PAIR) == [({"query": "a b", "positive": "c d"}, MISSING_FIELD)]
    assert fields("Query: a b\nPositive: c d\nNegative: e", *PAIR, cut=True)[0][1] == CUT_OFF
    assert fields("Positive: a b\nScore: high", "positive", "score")[0][1] == BAD_SCORE
    assert fields("Positive: a b\nScore: 4/5", "positive", "score") == [({"positive": "a b", "score": "4/5"}, None)]
    assert fields("Positive: a b\nNegative: ...", "positive", "negative")[0][1] == NO_WORDS
    assert fields("Positive: A b.\nNegative: c d", "positive", "negative", examples=["a b"])[0][1] == COPIED_FROM_PROMPT
    twice = "Positive: a\nNegative: b\n\nPositive: a\nNegative: b\n\nPositive: c\nNegative: d"
    assert [reason for _, reason in fields(twice, "positive", "negative")] == [None, REPEATED_IN_ANSWER, MORE_THAN_ASKED]
    assert parse("I cannot help.", 1, ("positive", "negative")).reason == UNPARSABLE_ANSWER


@pytest.mark.parametrize(
    "text", ["Bienen machen Honig.", "Here is the translation:\nBienen machen Honig.\n\nI hope that helps.", "Translation: Bienen machen Honig."]
)  # fmt: skip
def test_a_single_text_needs_no_name(text: str) -> None:
    assert fields(text, "positive") == [({"positive": "Bienen machen Honig."}, None)]


def test_scores_are_read_as_models_write_them() -> None:
    assert [score(text) for text in ("0.8", "80 %", "4/5", "0,25 of 1", "1", "5", "none", "3/0")] == [
        0.8,
        0.8,
        0.8,
        0.25,
        1,
        None,
        None,
        None,
    ]


def test_a_class_is_chosen_when_one_and_only_one_is_named() -> None:
    labels = ["positive", "very positive", "negative", "Not Sure"]
    answers = ["Positive.", "the class is negative", "very positive", "not sure", "positive or negative", "blue", "nonpositive"]
    assert [chosen(text, labels) for text in answers] == [
        "positive", "negative", "very positive", "Not Sure", None, None, None,
    ]  # fmt: skip
    assert chosen("either man or woman", ["man", "woman"]) is None, "a word is no part of another"
