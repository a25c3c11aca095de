"""The heuristics of the quality filter."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filter_rows import PROSE, row, said, table
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.filters import quality
from datakit.filters.quality_rules import Grams, Lines, alphabetic_share, stop_words
from datakit.filters.words import WORD, repeated_fraction
from datakit.recipe import Gopher, QualityFilter

FILTER = QualityFilter(type="quality")
WRITTEN = {"provenance": {"model": "smollm2", "persona": None, "template": None, "request_id": None, "parents": None}}


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (row(positive="The heart pumps blood. " * 4), quality.REPETITIVE, None),
        (row("what is it what is it what is it"), quality.REPETITIVE, None),
        (row("?!?! ... ### heart ***"), quality.SYMBOLS, None),
        (row(positive="=-=-=-=-=-=-=-=- the heart =-=-=-=-=-=-=-=-"), quality.SYMBOLS, None),
        (row(positive=f"{PROSE} Please  Click\nHERE to read on."), quality.BOILERPLATE, "click here"),
        (row("As an AI, I ask how hearts work", **WRITTEN), quality.PROMPT_LEAK, "as an ai"),
        (row("Sure, how does the heart work?", **WRITTEN), quality.PROMPT_LEAK, "sure,"),
        (row("What does this passage say?", **WRITTEN), quality.PROMPT_LEAK, "this passage"),
        (row("the HEART pumps", "The heart -- pumps!"), quality.QUERY_IS_POSITIVE, None),
        (row("the heart pumps blood through the body and the valves", **WRITTEN), quality.QUERY_IS_POSITIVE, None),
    ],
)
def test_each_reason(record: dict[str, Any], reason: str, detail: str | None) -> None:
    (found,) = quality.annotate(table(record), FILTER)[1].to_pylist()
    assert (found["reason"], found["detail"]) == (reason, detail)
    assert found["value"] is not None
    if found["threshold"] is not None:
        assert found["value"] > found["threshold"]


@pytest.mark.parametrize(
    "record",
    [
        row(),
        row("What does this passage say?"),
        row("What do personal persons need?", **WRITTEN),
        row("the heart pumps blood through the body and the valves"),
        row("the heart pumps", **WRITTEN),
        row("same text here", "same text here", label="a", task="classification"),
        row("same text here", "same text here", score=1.0, task="similarity"),
        row(
            "f(a, *, b=None, **kw) -> [x]",
            "a = {}; b = {}; a = {}; b = {}; a = {}; b = {}  # all rights reserved",
            task="code_search",
        ),
    ],
)
def test_what_is_let_pass(record: dict[str, Any]) -> None:
    assert quality.annotate(table(record), FILTER)[1].num_rows == 0


WORDS = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron",
    "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]  # fmt: skip


def prose(words: int) -> str:
    """Words that repeat nothing, with Gopher's stop words among them."""
    return "the be to of " + " ".join(f"{WORDS[n % 24]}{WORDS[n // 24]}" for n in range(words))


@pytest.mark.parametrize(
    ("positive", "reason", "detail"),
    [
        (f"{PROSE} Lorem  ipsum dolor sit amet.", quality.LOREM_IPSUM, "positive"),
        ("Please enable JavaScript in your browser to see what this page holds.", quality.JAVASCRIPT, "positive"),
        ("JavaScript must be enabled to read what stands on this page here.", quality.JAVASCRIPT, "positive"),
        ("{{a}} {{b}} and {{c}} are what a template has in it, and no more.", quality.CURLY_BRACKETS, None),
        ("\n".join(" ".join(WORDS[n : n + 5]) for n in range(0, 20, 5)), quality.NO_TERMINAL_PUNCTUATION, None),
        ("a b c d e f g h i j k l m n o p", quality.WORD_LENGTH, "positive"),
        ("Donaudampfschifffahrtsgesellschaftskapitaen Rindfleischetikettierungsgesetz", quality.WORD_LENGTH, "positive"),
        ("one # two # three # four five six seven", quality.SYMBOL_RATIO, "positive"),
        ("in 1234 2345 3456 4567 5678 6789 we 7890 8901 9012", quality.FEW_ALPHABETIC_WORDS, "positive"),
        ("\n".join(f"- {WORDS[n]} is one." for n in range(8)), quality.BULLET_LINES, None),
        ("\n".join(f"this line of {WORDS[n]} breaks off in the midst of all..." for n in range(5)), quality.ELLIPSIS_LINES, None),
        (
            "\n".join([*WORDS[:3], *WORDS[:3], "A longer line that stands only once in all of this."]),
            quality.DUPLICATE_LINES,
            None,
        ),
        ("one\ntwo\nsix\n" + f"{prose(30)}\n{prose(20)}\n{prose(20)}", quality.DUPLICATE_LINE_CHARACTERS, None),
        (" ".join(f"{WORDS[n % 24]}{WORDS[n // 24]}" for n in range(60)), quality.FEW_STOP_WORDS, None),
    ],
)
def test_each_rule_of_gopher_and_c4(positive: str, reason: str, detail: str | None) -> None:
    fields = {"c4": {"min_terminal_lines": 0.1}, "max_repeated_fraction": 1.0, "max_symbol_fraction": 1.0}
    web = QualityFilter.model_validate({"type": "quality", **fields})
    (found,) = quality.annotate(table(row(positive=positive, language="en")), web)[1].to_pylist()
    assert (found["reason"], found["detail"]) == (reason, detail)
    off = {"gopher": {}, "c4": {}}
    off["c4"] = {"lorem_ipsum": False, "javascript": False, "max_curly_brackets": None, "min_terminal_lines": None}
    off["gopher"] = {
        name: None for name in Gopher.model_fields if name.startswith(("query_", "document_", "max_", "min_a", "min_s"))
    }
    off["gopher"] |= {"max_top_grams": {}, "max_duplicate_grams": {}}
    lenient = QualityFilter.model_validate({"type": "quality", **off, "max_repeated_fraction": 1.0, "max_symbol_fraction": 1.0})
    assert quality.annotate(table(row(positive=positive, language="en")), lenient)[1].num_rows == 0
    assert quality.annotate(table(row(positive=positive, task="code_search")), FILTER)[1].num_rows == 0


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 10])
def test_each_rule_of_repeated_ngrams(n: int) -> None:
    strict = (
        {"max_top_grams": {n: 0.05}, "max_duplicate_grams": {}}
        if n < 5
        else {"max_top_grams": {}, "max_duplicate_grams": {n: 0.05}}
    )
    rules = QualityFilter.model_validate({"type": "quality", "gopher": strict, "max_repeated_fraction": 1.0})
    again = " ".join(prose(40).split()[4 : 4 + n])
    found = quality.annotate(table(row(positive=f"{prose(60)} {again} and then {again} end"), row(positive=prose(90))), rules)[1]
    assert said(found) == [(0, quality.TOP_GRAM[n] if n < 5 else quality.DUPLICATE_GRAMS[n])]


TEXTS = st.lists(st.text(alphabet="ab \n.中", max_size=60), max_size=6)


@settings(deadline=None)
@given(TEXTS)
def test_ngram_shares_are_those_of_a_plain_count(texts: list[str]) -> None:
    grams = Grams(pl.Series(texts, dtype=pl.String))
    only = [index % 2 == 0 for index in range(len(texts))]
    for n in (2, 3, 5):
        top, duplicated = [], []
        for text in texts:
            words = pl.Series([text.lower()]).str.extract_all(WORD).to_list()[0]
            total = max(sum(len(word) for word in words), 1)
            counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
            most = max((count * sum(map(len, gram)) for gram, count in counts.items() if count > 1), default=0)
            top.append(min(most / total, 1.0))
            seen, covered = set(), set()
            for at in range(len(words) - n + 1):
                gram = tuple(words[at : at + n])
                if gram in seen:
                    covered |= set(range(at, at + n))
                seen.add(gram)
            duplicated.append(sum(len(words[at]) for at in covered) / total)
        np.testing.assert_allclose(grams.top(n), top)
        np.testing.assert_allclose(grams.duplicated(n), duplicated)
        np.testing.assert_allclose(grams.only(np.array(only, bool)).duplicated(n), np.array(duplicated)[np.array(only, bool)])


@settings(deadline=None)
@given(TEXTS)
def test_shares_of_lines_are_those_of_a_plain_count(texts: list[str]) -> None:
    found = Lines.of(pl.Series(texts, dtype=pl.String))
    for at, text in enumerate(texts):
        lines = [line.strip() for line in text.split("\n") if line.strip()] if "\n" in text else []
        if len(lines) < 2:
            assert (found.duplicates[at], found.ellipses[at], found.terminal[at]) == (0, 0, 1)
            continue
        later = [line in lines[:number] for number, line in enumerate(lines)]
        assert found.duplicates[at] == pytest.approx(np.mean(later))
        sizes = [len(line) for line in lines]
        repeated = sum(size for size, again in zip(sizes, later, strict=True) if again)
        assert found.duplicate_characters[at] == pytest.approx(repeated / sum(sizes))
        assert found.ellipses[at] == pytest.approx(np.mean([line.endswith("...") for line in lines]))


def test_the_alphabetic_share_is_that_of_a_plain_count() -> None:
    texts = ["a 1 b 2", "", "1 2 3", "word", "中 1 文", "a-1 --- b"]
    expected = [0.5, 1.0, 0.0, 1.0, 2 / 3, 2 / 3]
    np.testing.assert_allclose(alphabetic_share(pl.Series(texts)), expected)


def test_stop_words_count_by_language_and_unknown_languages_are_not_asked() -> None:
    texts = pl.Series(["the cat and the dog of that", "der Hund und die Katze", "xyz", "the and"])
    assert stop_words(texts, ["en", "de-AT", "en", "sw"]).tolist() == [4, 3, 0, -1]


def test_clean_data_sets_lose_less_than_two_percent(real_data: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
    import quality as benchmark

    for name, rows in benchmark.clean_sets(real_data, "held-out").items():
        rows = rows.slice(0, 400)
        assert quality.annotate(rows, FILTER)[1].num_rows < 0.02 * rows.num_rows + 4, name


def test_quality_is_the_documented_formula_and_only_fills_nulls() -> None:
    rows = table(row("how hearts beat"), row("how hearts beat", quality=0.25), row("how do the hearts of very small mice beat"))
    values = quality.annotate(rows, FILTER)[0].column("quality").to_pylist()
    assert values == [pytest.approx(0.5 + 0.5 * 3 / 8), 0.25, 1.0]
    (worse,) = quality.annotate(table(row("how, hearts: beat", "a b c d a b c e")), FILTER)[0].column("quality").to_pylist()
    assert worse == pytest.approx((1 - 3 / 8) * (1 - 2 / 17) * (0.5 + 0.5 * 3 / 8))


def test_blocks_do_not_change_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [row(f"what is heart {n}", PROSE if n % 3 else "The heart pumps blood. " * 4) for n in range(23)]
    whole = quality.annotate(table(*records), FILTER)
    monkeypatch.setattr(quality, "_BLOCK", 4)
    parts = quality.annotate(table(*records), FILTER)
    assert parts[0].equals(whole[0])
    assert parts[1].equals(whole[1])
    assert said(whole[1]) == [(n, quality.REPETITIVE) for n in range(0, 23, 3)]


@given(st.lists(st.text(alphabet="ab \n中文ก", max_size=40), max_size=8))
def test_the_repeated_share_is_that_of_a_plain_count(texts: list[str]) -> None:
    expected = []
    for text in texts:
        words = pl.Series([text.lower()]).str.extract_all(WORD).to_list()[0]
        seen, covered = set(), set()
        for at in range(len(words) - 2):
            gram = tuple(words[at : at + 3])
            if gram in seen:
                covered |= {at, at + 1, at + 2}
            seen.add(gram)
        expected.append(len(covered) / len(words) if words else 0.0)
    np.testing.assert_allclose(repeated_fraction(pl.Series(texts, dtype=pl.String)), expected)


def test_a_single_row_with_a_text_of_a_megabyte_is_judged_like_any_other() -> None:
    kept, _ = quality.annotate(table(row("x" * 1_000_000, positive=PROSE)), FILTER)
    assert kept.num_rows == 1
