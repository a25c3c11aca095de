"""What the rules of Gopher and C4 measure of texts. All are functions of a column of texts to one number for each.

Gopher: arXiv 2112.11446, section A.1.1 and table A1. C4: arXiv 1910.10683, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from datakit.filters.sides import Array
from datakit.filters.stop_words import STOP_WORDS
from datakit.filters.words import WORD, count_words, mix

_ELLIPSIS = r"\.\.\.|…"
_BULLET = r"^\s*(?:[-*•‣◦▪●–·]|\d{1,3}[.)])\s"
_TERMINAL = r"[.!?。！？…][\"'”’»)\]]*$"
# A line that asks for JavaScript; a text about JavaScript does not.
_JAVASCRIPT = (
    r"(?i)(?:(?:enable|turn on|activate|allow|requires?|without|support(?:s|ing)?) (?:your browser'?s? )?javascript\b"
    r"|javascript (?:is |must be |to be |seems to be |appears to be |has been |currently )*"
    r"(?:disabled|enabled|turned off|required|not supported))"
)
_LOREM = r"(?i)\blorem\s+ipsum\b"
# A line of fewer words is a heading or a cell, which need not end in a full stop (C4: 5).
_LINE_WORDS = 5


def mean_word_length(texts: pl.Series) -> Array:
    """Characters that are no white space, for each word; 0 without words."""
    return np.asarray(texts.str.count_matches(r"\S").to_numpy() / np.maximum(count_words(texts), 1))


def symbol_ratio(texts: pl.Series) -> Array:
    """Hashes and ellipses for each word: the larger of the two (Gopher counts both, each by itself)."""
    words = np.maximum(count_words(texts), 1)
    hashes, ellipses = texts.str.count_matches("#").to_numpy(), texts.str.count_matches(_ELLIPSIS).to_numpy()
    return np.asarray(np.maximum(hashes, ellipses) / words)


def alphabetic_share(texts: pl.Series) -> Array:
    """The share of words with at least one letter; 1 without words."""
    words = count_words(texts)
    without = texts.str.count_matches(r"(?:^|\s)[^\s\p{L}]+(?:\s[^\s\p{L}]+)*")
    # Neighbours without letters are one match; they are counted one by one only in the few texts that have any.
    some = np.flatnonzero(without.to_numpy())
    share = np.ones(len(texts))
    if len(some):
        picked = texts.gather(some.astype(np.uint32)).str.extract_all(WORD)
        letters = picked.explode(empty_as_null=False).str.contains(r"\p{L}").to_numpy()
        lengths = picked.list.len().to_numpy()
        row = np.repeat(np.arange(len(some)), lengths)
        share[some] = np.bincount(row, letters, minlength=len(some)) / np.maximum(lengths, 1)
    return np.where(words == 0, 1.0, share)


def stop_words(texts: pl.Series, languages: Sequence[str | None]) -> Array:
    """How many different stop words of its language each text has; -1 where the language is not known or has no list."""
    found = np.full(len(texts), -1)
    tags = np.array([(each or "").split("-")[0] for each in languages], dtype=object)
    for language in sorted({each for each in tags.tolist() if each in STOP_WORDS}):
        rows = np.flatnonzero(tags == language)
        pattern = rf"\b(?:{'|'.join(STOP_WORDS[language])})\b"
        hits = texts.gather(rows.astype(np.uint32)).str.to_lowercase().str.extract_all(pattern)
        found[rows] = hits.list.n_unique().to_numpy()
    return found


@dataclass(frozen=True)
class Lines:
    """The shares of each text's lines (or, with `gap`, paragraphs); 0 for a text of a single one."""

    bullets: Array
    ellipses: Array
    duplicates: Array
    duplicate_characters: Array
    terminal: Array

    @classmethod
    def of(cls, texts: pl.Series, gap: bool = False) -> Lines:
        """`terminal` is the share of lines of five words and more that end a sentence; 1 where fewer than four are so long."""
        size = len(texts)
        split = texts.str.replace_all(r"\n\s*\n", "\x1d").str.split("\x1d") if gap else texts.str.split("\n")
        many = np.flatnonzero(split.list.len().to_numpy() > 1)
        zeros, ones = np.zeros(size), np.ones(size)
        if not len(many):
            return cls(zeros, zeros, zeros, zeros, ones)
        parts = pl.DataFrame({"row": many, "line": split.gather(many.astype(np.uint32))}).explode("line")
        parts = parts.with_columns(line=pl.col("line").str.strip_chars()).filter(pl.col("line") != "")
        long = pl.col("line").str.count_matches(r"\S+") >= _LINE_WORDS
        ends = pl.col("line").str.contains(_TERMINAL)
        later = ~pl.struct("row", "line").is_first_distinct()
        size_of = pl.col("line").str.len_chars()
        sums = (
            parts.with_columns(later=later, long=long, ends=ends, size=size_of)
            .group_by("row", maintain_order=True)
            .agg(
                lines=pl.len(),
                bullets=pl.col("line").str.contains(_BULLET).mean(),
                ellipses=pl.col("line").str.contains(rf"(?:{_ELLIPSIS})$").mean(),
                duplicates=pl.col("later").mean(),
                characters=pl.col("size").filter("later").sum() / pl.col("size").sum(),
                long=pl.col("long").sum(),
                terminal=pl.col("ends").filter("long").mean(),
            )
            .filter(pl.col("lines") > 1)
        )
        rows = sums["row"].to_numpy()

        def placed(values: pl.Series, other: Array) -> Array:
            result = other.copy()
            result[rows] = values.to_numpy()
            return result

        few = sums["long"] < 4
        terminal = pl.select(pl.when(few).then(1.0).otherwise(sums["terminal"])).to_series()
        return cls(
            placed(sums["bullets"], zeros),
            placed(sums["ellipses"], zeros),
            placed(sums["duplicates"], zeros),
            placed(sums["characters"], zeros),
            placed(terminal, ones),
        )


class Grams:
    """The n-grams of words of some texts, as numbers; characters are those of their words, without the spaces between."""

    def __init__(self, texts: pl.Series) -> None:
        words = texts.str.to_lowercase().str.extract_all(WORD)
        flat = words.explode(empty_as_null=False)
        self._rows = len(texts)
        self._row = np.repeat(np.arange(len(texts)), words.list.len().to_numpy().astype(np.int64))
        self._codes = flat.hash(seed=0).to_numpy().astype(np.uint64)
        self._characters = flat.str.len_chars().to_numpy().astype(np.int64)
        self._total = np.maximum(np.bincount(self._row, self._characters, minlength=self._rows), 1)

    def only(self, texts: Array) -> Grams:
        """The n-grams of the texts of a mask."""
        left = Grams.__new__(Grams)
        words = texts[self._row]
        left._rows, left._total = int(texts.sum()), self._total[texts]
        left._row = (np.cumsum(texts) - 1)[self._row[words]]
        left._codes, left._characters = self._codes[words], self._characters[words]
        return left

    def _grams(self, n: int) -> tuple[Array, Array]:
        """The numbers of the n-grams that lie within one text, and where they begin."""
        length = len(self._codes) - n + 1
        if length <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        at = np.flatnonzero(self._row[:length] == self._row[n - 1 :])
        grams = mix(self._row[at].astype(np.uint64))
        for offset in range(n):
            grams = mix(grams ^ self._codes[at + offset])
        return grams, at

    def top(self, n: int) -> Array:
        """The largest share of a text's characters that one n-gram takes up which is there more than once."""
        grams, at = self._grams(n)
        ends = np.concatenate([[0], np.cumsum(self._characters)])
        sizes = ends[at + n] - ends[at]
        most = np.zeros(self._rows)
        order = np.argsort(grams, kind="stable")
        grams, at, sizes = grams[order], at[order], sizes[order]
        starts = np.flatnonzero(np.concatenate([[True], grams[1:] != grams[:-1]])) if len(grams) else np.zeros(0, np.int64)
        counts = np.diff(np.append(starts, len(grams)))
        several = starts[counts > 1]
        np.maximum.at(most, self._row[at[several]], counts[counts > 1] * sizes[several])
        return np.minimum(most / self._total, 1.0)

    def duplicated(self, n: int) -> Array:
        """The share of a text's characters in n-grams that stood in it before; no character counts twice."""
        grams, at = self._grams(n)
        later = at[~pl.Series(grams).is_first_distinct().to_numpy()]
        covered = np.zeros(len(self._codes), bool)
        for offset in range(n):
            covered[later + offset] = True
        inside = np.bincount(self._row[covered], self._characters[covered], minlength=self._rows)
        return np.asarray(inside / self._total)


def curly_share(texts: pl.Series) -> Array:
    """The share of characters that are curly brackets."""
    return np.asarray(texts.str.count_matches(r"[{}]").to_numpy() / np.maximum(texts.str.len_chars().to_numpy(), 1))


def asks_for_javascript(texts: pl.Series) -> Array:
    return np.asarray(texts.str.contains(_JAVASCRIPT).to_numpy(), dtype=bool)


def has_lorem_ipsum(texts: pl.Series) -> Array:
    return np.asarray(texts.str.contains(_LOREM).to_numpy(), dtype=bool)
