"""Texts in a language that the recipe does not allow, by fastText's lid.176 and what was learned of where it errs.

The first 1,000 characters decide. A text of fewer than `min_words` words, or one whose language is less sure than
`min_confidence`, is `unknown`: not wrong. The confidence is calibrated: of the texts with 0.97, about 97 of 100 are right
(language_model.py). The two sides of a row are taken to be in one language until they say otherwise, except in bitext.
Not checked are class labels, and in code search the side that looks like source code (`looks_like_code`).

The step also fills `language` and `positive_language` where they are null with what was identified; unknown stays null.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from datakit.errors import UserError
from datakit.filters.annotate import annotated, fill
from datakit.filters.language_codes import covered
from datakit.filters.language_model import Evidence, Identifier, decide, evidence, load, with_other_side
from datakit.filters.language_switch import mixed
from datakit.filters.sides import Array, in_two_languages, is_code, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import count_words, series
from datakit.recipe import LanguageFilter
from datakit.step import Work

VERSION = 1

WRONG_LANGUAGE = "wrong_language"
WRONG_POSITIVE_LANGUAGE = "wrong_positive_language"
CODE_SWITCHED = "code_switched"
UNKNOWN_LANGUAGE = "unknown_language"
REASONS = (WRONG_LANGUAGE, WRONG_POSITIVE_LANGUAGE, CODE_SWITCHED, UNKNOWN_LANGUAGE)

# Share of characters that prose hardly uses; measured on descriptions, signatures and sources of python-api and docstrings.
_CODE_CHARACTERS = r"[(){}\[\]<>=_;#*@\\/|+]"
_CODE_FRACTION = 0.04

# How often the two sides of a row are in one language, before either is looked at.
AGREE = 0.9
# Texts at once: a matrix of so many rows and all languages.
_PORTION = 2_048


@dataclass
class _Side:
    """One side of the rows: which are looked at, their words, and what is found."""

    texts: pl.Series
    looked_at: Array
    words: Array
    tags: list[str | None]
    confidence: Array


def work(work: Work) -> None:
    annotated(work, annotate)


def annotate(table: pa.Table, parameters: LanguageFilter) -> tuple[pa.Table, pa.Table]:
    allowed = {each for language in parameters.allowed for each in covered(language)}
    identifier = load(parameters.model, parameters.calibration)
    query, positive = (_side(table, column, parameters) for column in ("query", "positive"))
    both = query.looked_at & positive.looked_at & ~in_two_languages(table) & parameters.pair_prior
    _identify_rows(query, positive, both, identifier)
    verdicts = Verdicts(table.num_rows)
    for side, target, reason in ((query, "language", WRONG_LANGUAGE), (positive, "positive_language", WRONG_POSITIVE_LANGUAGE)):
        sure = _sure(side, parameters)
        wrong = np.array([each is not None and each not in allowed for each in side.tags], dtype=bool)
        verdicts.add(wrong & sure, reason, value=side.confidence, threshold=parameters.min_confidence, detail=side.tags)
        known = [each if yes else None for each, yes in zip(side.tags, sure, strict=True)]
        table = fill(table, target, pa.array(known, pa.string()))
    if parameters.allow_code_switch is not True:
        strict = ~_in(table, parameters.allow_code_switch or [])
        for side, column in ((query, "query"), (positive, "positive")):
            _reject_mixed(verdicts, side, column, side.looked_at & strict, identifier, parameters)
    if parameters.unknown == "reject":
        for side, column in ((query, "query"), (positive, "positive")):
            _reject_unknown(verdicts, side, column, ~_skipped(table, column, side.texts), parameters)
    return table, verdicts.table()


def _skipped(table: pa.Table, column: str, texts: pl.Series) -> Array:
    code = is_code(table) & looks_like_code(texts)
    return np.asarray(code | positive_is_label(table) if column == "positive" else code)


def _in(table: pa.Table, categories: list[str]) -> Array:
    return np.array([each in categories for each in table.column("category").to_pylist()], dtype=bool)


def _side(table: pa.Table, column: str, parameters: LanguageFilter) -> _Side:
    texts = series(table, column)
    words = count_words(texts)
    looked_at = ~_skipped(table, column, texts) & (words >= parameters.min_words)
    return _Side(texts, looked_at, words, [None] * len(texts), np.zeros(len(texts)))


def _sure(side: _Side, parameters: LanguageFilter) -> Array:
    told = np.array([each is not None for each in side.tags], dtype=bool)
    return np.asarray(told & (side.confidence >= parameters.min_confidence))


def _identify_rows(query: _Side, positive: _Side, both: Array, identifier: Identifier) -> None:
    """Fills tags and confidence of both sides, portion by portion; in the rows of `both` each side speaks for the other."""
    for start in range(0, len(both), _PORTION):
        rows = np.arange(start, min(start + _PORTION, len(both)))
        seen = [rows[side.looked_at[rows]] for side in (query, positive)]
        found = [evidence(side.texts.gather(chosen), identifier) for side, chosen in zip((query, positive), seen, strict=True)]
        paired = rows[both[rows]]
        first, second = np.searchsorted(seen[0], paired), np.searchsorted(seen[1], paired)
        for side, chosen, own, at, other, other_at in (
            (query, seen[0], found[0], first, found[1], second),
            (positive, seen[1], found[1], second, found[0], first),
        ):
            tags, side.confidence[chosen] = decide(_told_by(own, at, other, other_at), identifier)
            for row, each in zip(chosen.tolist(), tags, strict=True):
                side.tags[row] = each


def _told_by(own: Evidence, at: Array, other: Evidence, other_at: Array) -> Evidence:
    """What is known of texts, with what the other sides of those at `at` say."""
    speaks = other.told[other_at]
    at, other_at = at[speaks], other_at[speaks]
    scores = own.scores.copy()
    if len(at):
        scores[at] = with_other_side(own.scores[at], other.scores[other_at], AGREE)
    return Evidence(scores, own.words, own.told)


def _reject_mixed(
    verdicts: Verdicts, side: _Side, column: str, rows: Array, identifier: Identifier, parameters: LanguageFilter
) -> None:
    for start in range(0, len(rows), _PORTION):
        chosen = start + np.flatnonzero(rows[start : start + _PORTION])
        found = mixed(side.texts.gather(chosen), identifier)
        against = np.zeros(len(rows), bool)
        share = np.zeros(len(rows))
        details: list[str | None] = [None] * len(rows)
        share[chosen] = found.share
        against[chosen] = (found.confidence >= parameters.min_confidence) & (found.share > parameters.max_switched)
        for row, pair in zip(chosen.tolist(), found.pair, strict=True):
            details[row] = None if pair is None else f"{column}: {pair[0]} and {pair[1]}"
        verdicts.add(against, CODE_SWITCHED, value=share, threshold=parameters.max_switched, detail=details)


def _reject_unknown(verdicts: Verdicts, side: _Side, column: str, prose: Array, parameters: LanguageFilter) -> None:
    unsure = prose & ~_sure(side, parameters)
    short = side.words < parameters.min_words
    details: list[str | None] = [f"{column}: {'too short to tell' if each is None else each}" for each in side.tags]
    for mask, value, threshold in (
        (unsure & short, side.words, parameters.min_words),
        (unsure & ~short, side.confidence, parameters.min_confidence),
    ):
        verdicts.add(mask, UNKNOWN_LANGUAGE, value=value, threshold=threshold, detail=details)


def identify(texts: pl.Series, identifier: Identifier) -> tuple[list[str | None], Array]:
    """The BCP 47 tag and the confidence (0 to 1) of each text; None and 0 for one without letters."""
    tags: list[str | None] = []
    confidence = [np.zeros(0)]
    for start in range(0, len(texts), _PORTION):
        found, sure = decide(evidence(texts.slice(start, _PORTION), identifier), identifier)
        tags += found
        confidence.append(sure)
    return tags, np.concatenate(confidence)


def looks_like_code(texts: pl.Series) -> Array:
    """Whether at least 4 % of the characters are those of source code or of a signature."""
    marks = texts.str.count_matches(_CODE_CHARACTERS).to_numpy().astype(np.float64)
    characters = texts.str.len_chars().to_numpy()
    return np.asarray(marks >= _CODE_FRACTION * np.maximum(characters, 1))


def check(parameters: LanguageFilter) -> None:
    """Refuses languages that the model cannot tell: every row of them would be dropped."""
    known = load(parameters.model, parameters.calibration).languages
    for language in parameters.allowed:
        if not set(covered(language)) & set(known):
            raise UserError(
                f"The language filter allows '{language}', which the model '{parameters.model}' cannot tell. "
                f"It knows: {', '.join(sorted(known))}."
            )
