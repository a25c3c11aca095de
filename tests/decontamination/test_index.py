"""What is found: every evaluation text, however it is dressed; nothing where no n-gram is shared; the containment as counted by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datakit.decontamination.canaries import changed, repunctuated
from datakit.decontamination.index import Index, build, find
from datakit.decontamination.words import words

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)
WORD = st.sampled_from(["alpha", "beta", "Gamma", "délta", "ß", "five5", "six", "日", "seven"])
SAID = st.lists(WORD, max_size=14).map(" ".join)
COMMON = st.sampled_from(["the", "of", "is", "how", "what", "in", "a", "to"])


def index_of(texts: list[str], n: int = 5, min_words: int = 1) -> Index:
    array = pa.array(texts, pa.string())
    return build(array, np.zeros(len(texts), np.int32), words(array).counts >= min_words, n)


def found(index: Index, texts: list[str], threshold: float = 0.7) -> set[tuple[int, int, bool, float]]:
    hits = find(index, pa.array(texts, pa.string()), threshold)
    columns = (
        hits.texts.tolist(),
        hits.others.tolist(),
        hits.exact.tolist(),
        [round(value, 9) for value in hits.values.tolist()],
    )
    return set(zip(*columns, strict=True))


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, TEXT, st.integers(1, 9), st.floats(0.01, 1))
def test_any_evaluation_text_is_caught_verbatim_recased_repunctuated_and_in_any_longer_text(
    texts: list[str], before: str, after: str, n: int, threshold: float
) -> None:
    index = index_of(texts, n)
    for number, text in enumerate(texts):
        if not len(words(pa.array([text])).hashes):
            continue
        dressed = [text, text.upper(), text.lower(), text.title(), repunctuated(text), changed("re-cased", repunctuated(text))]
        hits = found(index, dressed, threshold)
        for place in range(len(dressed)):
            assert (place, number, True, 1.0) in hits
            assert (place, number, False, 1.0) in hits
        longer = [f"{before} {each}\n{after}" for each in dressed]
        hits = found(index, longer, threshold)
        for place in range(len(longer)):
            assert (place, number, False, 1.0) in hits


@settings(deadline=None)
@given(
    st.lists(SAID, min_size=1, max_size=5),
    st.lists(SAID, max_size=5),
    st.integers(1, 6),
    st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    st.integers(1, 4),
)
def test_the_hits_are_those_that_sets_of_strings_give(
    evaluation: list[str], texts: list[str], n: int, threshold: float, min_words: int
) -> None:
    def said(text: str) -> list[str]:
        return text.casefold().replace("é", "e").split()

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        return {tuple(said(text)[place : place + size]) for place in range(len(said(text)) - size + 1)}

    expected = set()
    for place, text in enumerate(texts):
        for number, other in enumerate(evaluation):
            if said(other) and said(text) == said(other):
                expected.add((place, number, True, 1.0))
            if len(said(other)) >= min_words:
                size = min(n, len(said(other)))
                value = len(grams(other, size) & grams(text, size)) / len(grams(other, size))
                if value >= threshold - 1e-9:
                    expected.add((place, number, False, round(value, 9)))
    assert found(index_of(evaluation, n, min_words), texts, threshold) == expected


@settings(deadline=None)
@given(
    st.lists(st.lists(COMMON, min_size=1, max_size=9), min_size=1, max_size=4), st.lists(COMMON, max_size=60), st.integers(1, 6)
)
def test_a_clean_text_that_shares_no_ngram_is_never_caught(evaluation: list[list[str]], text: list[str], n: int) -> None:
    sizes = {tuple(other): min(n, len(other)) for other in evaluation}
    assume(
        all(
            tuple(text[p : p + size]) not in {other[q : q + size] for q in range(len(other) - size + 1)}
            for other, size in sizes.items()
            for p in range(len(text) - size + 1)
        )
    )
    assert not found(index_of([" ".join(other) for other in evaluation], n), [" ".join(text)], 1e-6)


def test_a_short_text_is_found_only_where_a_text_equals_it() -> None:
    index = index_of(["python", "sort a list in python"], min_words=4)
    assert found(index, ["Python!", "I like python", "to sort a list in python 3"]) == {(0, 0, True, 1.0), (2, 1, False, 1.0)}


def test_one_word_more_or_less_does_not_hide_a_text() -> None:
    text = "patients with type two diabetes who exercise every day have lower blood pressure than those who rest"
    index = index_of([text], 3)
    assert {hit[:3] for hit in found(index, [text.replace("lower", "low"), text + " at home", text.split(" ", 1)[1]])} == {
        (0, 0, False), (1, 0, False), (2, 0, False),
    }  # fmt: skip
    assert not found(index, ["patients with type one diabetes who run each day have higher blood sugar than those who rest"])


def test_a_text_larger_than_a_block_and_many_hits_are_whole() -> None:
    evaluation = [f"common words stand here {number}" for number in range(300)]
    index = index_of(evaluation, 2)
    long = "nothing " * 700_000 + evaluation[7]
    texts = [evaluation[3], long, *evaluation]
    hits = found(index, texts, 1.0)
    assert (1, 7, False, 1.0) in hits
    assert {(number + 2, number, True, 1.0) for number in range(300)} <= hits
