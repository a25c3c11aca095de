"""Texts as words: what does not count."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datakit.decontamination.words import blocks, folded_characters, weight, words


def hashes(text: str) -> list[int]:
    return words(pa.array([text])).hashes.tolist()  # type: ignore[no-any-return]


def folded(text: str) -> list[int]:
    places, codes = folded_characters()
    return [int(code) for one in text for code in codes[places[ord(one)] : places[ord(one) + 1]]]


def test_the_case_of_no_character_counts() -> None:
    surrogates = range(0xD800, 0xE000)
    for code in range(0x110000):
        if code in surrogates:
            continue
        one = chr(code)
        own = folded(one)
        for other in (one.upper(), one.lower(), one.title(), one.casefold(), one.swapcase()):
            if other != one:
                assert folded(other) == own, f"U+{code:04X} and {other!r}"


@pytest.mark.parametrize(
    "other",
    [
        "WHAT IS THE CAFÉ'S Nº 12?",
        "what is the cafe s no 12",
        "“What—is, the: Café’s (Nº) 12!”",
        "Ｗhat is\u00a0the\ncafé's\tnº １２",
        "wh\u00adat is t\u200dhe café's nº 12",
    ],
)
def test_case_punctuation_space_and_form_do_not_count(other: str) -> None:
    assert hashes(other) == hashes("What is the café's nº 12?")


def test_words_and_their_order_count() -> None:
    assert hashes("red green") != hashes("green red")
    assert hashes("red green") != hashes("redgreen")
    assert len(hashes("日本語の文")) == 5
    assert hashes("  …?! ") == []


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=5))
@example(["", "a b", "㌖㌖㌖", "\ufdfa" * 50, "ﷺ"])
def test_texts_do_not_touch_each_other(texts: list[str]) -> None:
    together = words(pa.array(texts, pa.string()))
    for number, text in enumerate(texts):
        alone = words(pa.array([text]))
        assert together.hashes[together.starts[number] : together.starts[number + 1]].tolist() == alone.hashes.tolist()
        assert together.wholes[number] == alone.wholes[0]
        assert (alone.wholes[0] == 0) == (len(alone.hashes) == 0)


def test_blocks_hold_every_text_once() -> None:
    texts = pa.chunked_array(
        [pa.array(["a" * 3_000_000, "b", None, "c" * 9_000_000]), pa.array(["d"] * 3), pa.array([], pa.string())]
    )
    found = [(first + place, text) for first, block in blocks(texts) for place, text in enumerate(block.to_pylist())]
    assert found == list(enumerate(texts.to_pylist()))
    assert sum(1 for _ in blocks(texts)) > 2


def test_a_character_that_is_a_word_weighs_half() -> None:
    assert weight("sort a list") == 3
    assert weight("日本語の") == 2
