"""Parsing: whatever a model writes becomes questions, or a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.synthesis.parsing import (
    COPIED_FROM_PROMPT,
    CUT_OFF,
    EMPTY_ANSWER,
    MORE_THAN_ASKED,
    NO_WORDS,
    REPEATED_IN_ANSWER,
    UNPARSABLE_ANSWER,
    folded,
    parse,
)
from datakit.synthesis.prompts import written

WORDS = st.lists(st.from_regex(r"\A[a-zäßж木]{2,9}\Z"), min_size=2, max_size=8).map(" ".join)
QUESTIONS = st.lists(WORDS, min_size=1, max_size=5, unique_by=folded)


def kept(text: str, queries: int = 5, **options: object) -> list[str]:
    return [question for question, reason in parse(text, queries, **options).questions if reason is None]  # type: ignore[arg-type]


@given(QUESTIONS, st.sampled_from(["lines", "json_schema"]))
def test_what_was_asked_for_is_read_back(questions: list[str], structured: str) -> None:
    assert kept(written(questions, structured)) == questions


@settings(max_examples=500)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(["1.", "2)", "- ", "{", "[", '"', "\n", "a?", "queries", ":", "<think>", "```"]), max_size=30
        ).map("".join),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        ).map(json.dumps),
    ),
    st.integers(3, 5),
    st.booleans(),
)
def test_no_answer_raises_and_each_gives_questions_or_a_reason(text: str, queries: int, cut: bool) -> None:
    parsed = parse(text, queries, cut=cut)
    assert (parsed.reason is None) == bool(parsed.questions)
    accepted = [question for question, reason in parsed.questions if reason is None]
    assert len(accepted) <= queries
    assert len({folded(question) for question in accepted}) == len(accepted)
    assert all(folded(question) and "\n" not in question for question in accepted)


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
    ],
)
def test_lists_are_read_however_they_are_written(text: str) -> None:
    assert kept(text) == ["what is a", "what is b"]


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
    assert (parsed.reason, parsed.questions) == (reason, [])


def test_each_question_that_is_none_gives_its_reason() -> None:
    text = "1. how to sort\n2. How to sort?\n3. ...\n4. honey from nectar\n5. what is a heap\n6. what is a list\n7. what is"
    assert parse(text, 3, cut=True, examples=["Honey from nectar"]).questions == [
        ("how to sort", None),
        ("How to sort?", REPEATED_IN_ANSWER),
        ("...", NO_WORDS),
        ("honey from nectar", COPIED_FROM_PROMPT),
        ("what is a heap", None),
        ("what is a list", None),
        ("what is", CUT_OFF),
    ]
    assert parse("1. a b\n2. c d\n3. e f\n4. g h", 3).questions[-1] == ("g h", MORE_THAN_ASKED)


def test_only_an_answer_without_end_is_cut_off() -> None:
    assert kept("1. a b\n2. c d", cut=True) == ["a b"]
    assert kept("1. a b\n2. c d\n", cut=True) == ["a b", "c d"]
    assert kept("1. a b\n2. c d\n\nThese were the", cut=True) == ["a b", "c d"]
    assert kept("1. a b\n2. c d", cut=False) == ["a b", "c d"]
