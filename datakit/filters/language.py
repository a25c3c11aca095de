"""Texts in a language that the recipe does not allow, by fastText's lid.176.

Only the dominant language of a text is known; the first 1,000 characters decide. A text of fewer than `min_words` words, or one
that the model is less sure of than `min_confidence`, is `unknown`: not wrong. Not checked are class labels, and in code search
the side that looks like source code (`looks_like_code`).

The step also fills `language` and `positive_language` where they are null with what was identified; unknown stays null.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit.assets import locate
from datakit.errors import MissingExtra, UserError
from datakit.filters.annotate import annotated, fill
from datakit.filters.language_codes import covered, tag
from datakit.filters.sides import Array, is_code, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import count_words, series
from datakit.recipe import LanguageFilter
from datakit.step import Work

VERSION = 1

WRONG_LANGUAGE = "wrong_language"
WRONG_POSITIVE_LANGUAGE = "wrong_positive_language"
UNKNOWN_LANGUAGE = "unknown_language"
REASONS = (WRONG_LANGUAGE, WRONG_POSITIVE_LANGUAGE, UNKNOWN_LANGUAGE)

_CHARACTERS = 1_000

# Share of characters that prose hardly uses; measured on descriptions, signatures and sources of python-api and docstrings.
_CODE_CHARACTERS = r"[(){}\[\]<>=_;#*@\\/|+]"
_CODE_FRACTION = 0.04


def work(work: Work) -> None:
    annotated(work, annotate)


def annotate(table: pa.Table, parameters: LanguageFilter) -> tuple[pa.Table, pa.Table]:
    allowed = {each for language in parameters.allowed for each in covered(language)}
    verdicts = Verdicts(table.num_rows)
    unknown = []
    for column, target, reason, skipped in (
        ("query", "language", WRONG_LANGUAGE, np.zeros(table.num_rows, bool)),
        ("positive", "positive_language", WRONG_POSITIVE_LANGUAGE, positive_is_label(table)),
    ):
        texts = series(table, column)
        skipped = skipped | (is_code(table) & looks_like_code(texts))
        words = count_words(texts)
        tags, confidence = identify(texts, ~skipped & (words >= parameters.min_words), parameters.model)
        sure = confidence >= parameters.min_confidence
        wrong = np.array([each is not None and each not in allowed for each in tags], dtype=bool)
        verdicts.add(wrong & sure, reason, value=confidence, threshold=parameters.min_confidence, detail=tags)
        table = fill(table, target, pa.array([each if yes else None for each, yes in zip(tags, sure, strict=True)], pa.string()))
        unknown.append((column, ~skipped & ~sure, words, tags, confidence))
    if parameters.unknown == "reject":
        for column, unsure, words, tags, confidence in unknown:
            short = words < parameters.min_words
            details = [f"{column}: {'too short to tell' if each is None else each}" for each in tags]
            for mask, value, threshold in (
                (unsure & short, words, parameters.min_words),
                (unsure & ~short, confidence, parameters.min_confidence),
            ):
                verdicts.add(mask, UNKNOWN_LANGUAGE, value=value, threshold=threshold, detail=list(details))
    return table, verdicts.table()


def identify(texts: pl.Series, wanted: Array, model: str) -> tuple[list[str | None], Array]:
    """The BCP 47 tag and the confidence (0 to 1) of each text in the mask `wanted`; None and 0 for the others."""
    predict = load(model).predict
    # One line, and lower case: lid.176 is right on 89 % of sentences, and on 36 % of the same sentences in capitals.
    lines = texts.str.slice(0, _CHARACTERS).str.replace_all(r"[\s\p{C}]+", " ").str.to_lowercase().to_list()
    known: dict[str, tuple[str | None, float]] = {}
    tags: list[str | None] = [None] * len(lines)
    confidence = np.zeros(len(lines))
    for row in np.flatnonzero(wanted).tolist():
        line = lines[row]
        if line not in known:
            labels, probabilities = predict(line)
            known[line] = (tag(labels[0]), min(float(probabilities[0]), 1.0)) if labels else (None, 0.0)
        tags[row], confidence[row] = known[line]
    return tags, confidence


def looks_like_code(texts: pl.Series) -> Array:
    """Whether at least 4 % of the characters are those of source code or of a signature."""
    marks = texts.str.count_matches(_CODE_CHARACTERS).to_numpy().astype(np.float64)
    characters = texts.str.len_chars().to_numpy()
    return np.asarray(marks >= _CODE_FRACTION * np.maximum(characters, 1))


@functools.lru_cache(maxsize=1)
def load(model: str) -> Any:
    """A fastText model with a `predict`. What is not one, is a UserError."""
    try:
        # fasttext-community and fasttext-predict both install this module; predict(text) is what they share.
        import fasttext
    except ImportError as error:
        raise MissingExtra("The language filter", "fasttext-community", "") from error
    path = locate(model)
    if not os.path.isfile(path):
        raise UserError(f"The language filter's model '{model}' should be a fastText file, and there is no file '{path}'.")
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The language filter's model '{model}' is not a fastText model: {error}.") from error


def check(parameters: LanguageFilter) -> None:
    """Refuses languages that the model cannot tell: every row of them would be dropped."""
    labels, _ = load(parameters.model).predict("a", k=-1)
    known = sorted({tag(label) for label in labels})
    for language in parameters.allowed:
        if not set(covered(language)) & set(known):
            raise UserError(
                f"The language filter allows '{language}', which the model '{parameters.model}' cannot tell. "
                f"It knows: {', '.join(known)}."
            )
