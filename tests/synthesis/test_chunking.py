"""Passages: nothing is lost, and they are as long as was asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.synthesis.chunking import _joined, _pieces, passages, word_count

WORD = st.sampled_from(["a", "tree", "Stands", "here", "e.g.", "x" * 70, "木", "日本語を", "ภาษาไทย", "3.14", "(so)", "Dr."])
END = st.sampled_from([". ", "! ", "? ", "。", ".\n", "\n\n", "\r\n \r\n", "… ", ', "'])
TEXT = st.lists(st.tuples(st.lists(WORD, min_size=1, max_size=12), END), max_size=14).map(
    lambda sentences: "".join(" ".join(words) + end for words, end in sentences)
)
BOUNDS = st.tuples(st.integers(1, 20), st.integers(8, 40)).filter(lambda bounds: bounds[0] <= bounds[1])


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXT, st.text(max_size=300)), BOUNDS)
def test_passages_hold_the_whole_text_in_order(text: str, bounds: tuple[int, int]) -> None:
    assert "".join("".join(passages(text, *bounds)).split()) == "".join(text.split())


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXT, st.text(max_size=300)), BOUNDS)
def test_no_passage_is_longer_than_asked(text: str, bounds: tuple[int, int]) -> None:
    assert all(word_count(passage) <= bounds[1] for passage in passages(text, *bounds))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=9), BOUNDS)
def test_no_other_way_to_join_sentences_costs_less(sentences: list[tuple[int, bool]], bounds: tuple[int, int]) -> None:
    """The oracle tries all ways: fewest words missing, then fewest ends inside a paragraph, then most passages."""
    minimum, maximum = bounds[0], max(bounds[1], 12)
    pieces = [((place, place + 1), words, end) for place, (words, end) in enumerate(sentences)]

    def cost(spans: list[tuple[int, int]]) -> tuple[int, int, int]:
        sizes = [sum(words for words, _ in sentences[start:end]) for start, end in spans]
        assert all(size <= maximum for size in sizes)
        return sum(max(0, minimum - size) for size in sizes), sum(not sentences[end - 1][1] for _, end in spans), -len(spans)

    costs = []
    for count in range(len(pieces)):
        for cuts in itertools.combinations(range(1, len(pieces)), count):
            spans = list(itertools.pairwise((0, *cuts, len(pieces))))
            if all(sum(words for words, _ in sentences[start:end]) <= maximum for start, end in spans):
                costs.append(cost(spans))
    assert cost(list(_joined(pieces, minimum, maximum))) == min(costs)


def test_words_are_cut_only_where_a_sentence_is_too_long() -> None:
    sentences = [f"Sentence {number} has exactly eight words in it." for number in range(40)]
    for passage in passages(" ".join(sentences), 20, 50):
        assert passage.startswith("Sentence")
        assert passage.endswith("it.")
    long = " ".join(f"word{number}" for number in range(100))
    assert [passage.split() for passage in passages(long, 10, 40)] == [
        long.split()[:40],
        long.split()[40:80],
        long.split()[80:],
    ]


def test_paragraphs_that_are_long_enough_stay_apart() -> None:
    paragraphs = [" ".join(f"p{number}w{place}" for place in range(30)) + "." for number in range(5)]
    assert passages("\n\n".join(paragraphs), 20, 100) == paragraphs


def test_a_short_paragraph_joins_its_neighbour_and_a_short_text_is_one_passage() -> None:
    body = " ".join(f"w{place}" for place in range(30)) + "."
    assert passages(f"A heading\n\n{body}", 20, 100) == [f"A heading\n\n{body}"]
    assert passages("Too short.", 20, 100) == ["Too short."]
    assert passages(" \n\n ", 20, 100) == []


@pytest.mark.parametrize("text", ["Dr. Smith came. He left.", "See e.g. Fig. 3 of it. Then go.", "By J. R. Tolkien. A book."])
def test_an_abbreviation_ends_no_sentence(text: str) -> None:
    assert len(list(_pieces(text, 8))) == 2


def test_two_characters_of_a_script_without_spaces_are_a_word() -> None:
    assert word_count("日本語の文章です") == 4
    assert word_count("one two, three") == 3
    chinese = "这是一个句子。" * 60
    found = passages(chinese, 20, 40)
    assert all(passage.endswith("。") and 20 <= word_count(passage) <= 40 for passage in found)
    assert "".join(found) == chinese
