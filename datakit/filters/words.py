"""What a word is, for all filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]

# Scripts that put no spaces between words. A Han or kana character counts as a word, as word processors count them; in the
# scripts of South-East Asia five characters do (a Thai or Khmer word has four to six).
_SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}"
_JOINED = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = rf"[{_SINGLE}]|[{_JOINED}]{{1,5}}|[^\s{_SINGLE}{_JOINED}]+"


def series(table: pa.Table, column: str) -> pl.Series:
    """A text column; a missing text is an empty one."""
    return pl.Series(column, table.column(column), dtype=pl.String).fill_null("")


def count_words(texts: pl.Series) -> Array:
    """The number of words of each text: runs between white space, and the rule above for scripts without spaces."""
    return texts.str.count_matches(WORD).to_numpy().astype(np.int64)


def fold(texts: pl.Series) -> pl.Series:
    """Texts in lower case, with one space for each run of punctuation, symbols and white space, and none at the ends."""
    return texts.str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N}]+", " ").str.strip_chars(" ")


def repeated_fraction(texts: pl.Series) -> Array:
    """The share of each text's words that lie in a 3-gram which stood earlier in the same text: float64, 0 to 1.

    The first occurrence of a 3-gram does not count, so the figure is the part that repeats (Gopher, arXiv 2112.11446, table A1,
    counts characters of 5- to 10-grams in the same way).
    """
    words = texts.str.to_lowercase().str.extract_all(WORD)
    lengths = words.list.len().to_numpy().astype(np.int64)
    # Words as numbers; equality is all that matters.
    codes = words.explode(empty_as_null=False).hash(seed=0).to_numpy().astype(np.uint64)
    if len(codes) < 3:
        return np.zeros(len(texts))
    row = np.repeat(np.arange(len(texts)), lengths)
    grams = mix(mix(mix(row[:-2].astype(np.uint64)) ^ codes[:-2]) ^ codes[1:-1])
    grams = mix(grams ^ codes[2:])
    inside = np.flatnonzero(row[:-2] == row[2:])
    later = np.flatnonzero(~pl.Series(grams[inside]).is_first_distinct().to_numpy())
    covered = np.zeros(len(codes), bool)
    for offset in range(3):
        covered[inside[later] + offset] = True
    return np.asarray(np.bincount(row[covered], minlength=len(texts)) / np.maximum(lengths, 1))


def mix(values: Array) -> Array:
    """splitmix64's finaliser: 64-bit numbers to well mixed ones. One to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
