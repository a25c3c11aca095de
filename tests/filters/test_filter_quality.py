"""The heuristics of the quality filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from filter_rows import PROSE, row, said, table
from hypothesis import given
from hypothesis import strategies as st

from datakit.filters import quality
from datakit.filters.words import WORD, repeated_fraction
from datakit.recipe import QualityFilter

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
