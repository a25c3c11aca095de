"""Heuristics for text that is not worth learning from (in the manner of Gopher, arXiv 2112.11446, and C4, arXiv 1910.10683).

Not looked at: class labels, and in rows of code search repetition, symbols and boilerplate, which are ordinary there.

Fills `quality` where it is null:

    quality = (1 - r) (1 - s) (1/2 + 1/2 min(1, w / 8))

r is the larger repeated share of query and positive, s the share of symbols in the query (both 0 for code search), and w the
number of words of the query. It is 1 for a query of eight words or more that repeats nothing and has no punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from datakit.filters.annotate import annotated, fill
from datakit.filters.sides import Array, is_code, is_graded, is_written, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import count_words, fold, repeated_fraction, series
from datakit.recipe import QualityFilter
from datakit.step import Work

VERSION = 1

REPETITIVE = "repetitive"
SYMBOLS = "symbols"
BOILERPLATE = "boilerplate"
PROMPT_LEAK = "prompt_leak"
QUERY_IS_POSITIVE = "query_is_positive"
REASONS = (PROMPT_LEAK, QUERY_IS_POSITIVE, SYMBOLS, REPETITIVE, BOILERPLATE)

# A written query of so many words that stands in its passage as it is, was copied, not asked.
_COPIED_WORDS = 8

# Rows that are judged at once: bounds the memory for words as numbers.
_BLOCK = 8_192


def work(work: Work) -> None:
    annotated(work, annotate)


def annotate(table: pa.Table, parameters: QualityFilter) -> tuple[pa.Table, pa.Table]:
    said, quality = [], []
    for start in range(0, table.num_rows, _BLOCK):
        verdicts, values = _judge(table.slice(start, _BLOCK), parameters)
        rows = pa.array(verdicts.column("row").to_numpy() + start, pa.int64())
        said.append(verdicts.set_column(0, verdicts.schema.field("row"), rows))
        quality.append(values)
    if not said:
        return table, Verdicts(0).table()
    values = pa.array(np.concatenate(quality).astype(np.float32), pa.float32())
    return fill(table, "quality", values), pa.concat_tables(said).combine_chunks()


def _judge(table: pa.Table, parameters: QualityFilter) -> tuple[pa.Table, Array]:
    query, positive = series(table, "query"), series(table, "positive")
    label, code, graded, written = positive_is_label(table), is_code(table), is_graded(table), is_written(table)
    verdicts = Verdicts(table.num_rows)

    leaked = written & _contains_any(query, parameters.prompt_words)
    verdicts.add(leaked, PROMPT_LEAK, value=1.0, detail=_found(query, leaked, parameters.prompt_words))

    share = np.where(label | graded, 0.0, _copied(query, positive, written))
    verdicts.add(share > 0, QUERY_IS_POSITIVE, value=share)

    symbols = np.where(code, 0.0, symbol_fraction(query))
    document_symbols = np.where(code | label, 0.0, symbol_fraction(positive))
    for each in (symbols, document_symbols):
        verdicts.add(each > parameters.max_symbol_fraction, SYMBOLS, value=each, threshold=parameters.max_symbol_fraction)

    repeated = np.where(code, 0.0, np.maximum(repeated_fraction(query), np.where(label, 0.0, repeated_fraction(positive))))
    verdicts.add(
        repeated > parameters.max_repeated_fraction, REPETITIVE, value=repeated, threshold=parameters.max_repeated_fraction
    )

    for texts, judged in ((query, ~code), (positive, ~code & ~label)):
        empty_phrases = judged & _contains_any(texts, parameters.boilerplate)
        verdicts.add(empty_phrases, BOILERPLATE, value=1.0, detail=_found(texts, empty_phrases, parameters.boilerplate))

    words = np.minimum(1.0, count_words(query) / 8)
    return verdicts.table(), (1 - repeated) * (1 - symbols) * (0.5 + 0.5 * words)


def symbol_fraction(texts: pl.Series) -> Array:
    """The share of characters that are neither letters (with their marks), digits nor white space."""
    symbols = texts.str.count_matches(r"[^\p{L}\p{M}\p{N}\s]").to_numpy().astype(np.float64)
    return np.asarray(symbols / np.maximum(texts.str.len_chars().to_numpy(), 1))


def _copied(query: pl.Series, positive: pl.Series, written: Array) -> Array:
    """How much of the positive the query is: 1 where both are equal after folding, and for written queries of eight words and
    more that stand in the positive as they are, their share of its characters; else 0."""
    pairs = pl.DataFrame({"query": fold(query), "positive": fold(positive)})
    q, p = pl.col("query"), pl.col("positive")
    facts = pairs.select(
        equal=(q == p) & (q != ""),
        long=q.str.count_matches(" ") >= _COPIED_WORDS - 1,
        share=q.str.len_chars() / p.str.len_chars().clip(1),
    )
    copied = facts["equal"].to_numpy().copy()
    # Few rows are asked this, and Python's search has no limit: polars makes a regular expression of a single needle.
    for row in np.flatnonzero(facts["long"].to_numpy() & written):
        copied[row] |= pairs["query"][int(row)] in pairs["positive"][int(row)]
    return np.where(copied, facts["share"].to_numpy(), 0.0)


def _pattern(phrases: Sequence[str]) -> str:
    """A regular expression for any of the phrases as whole words: "persona" is not in "personal"."""
    bounded = []
    for phrase in phrases:
        words = r"\s+".join(re.escape(word) for word in phrase.split())
        start = r"\b" if re.match(r"\w", phrase.strip()) else ""
        end = r"\b" if re.search(r"\w$", phrase.strip()) else ""
        bounded.append(f"{start}{words}{end}")
    return f"(?i)(?:{'|'.join(bounded)})"


def _contains_any(texts: pl.Series, phrases: Sequence[str]) -> Array:
    if not phrases:
        return np.zeros(len(texts), bool)
    return np.asarray(texts.str.contains(_pattern(phrases)).to_numpy(), dtype=bool)


def _found(texts: pl.Series, rows: Array, phrases: Sequence[str]) -> list[str | None]:
    """The phrase that was found, for the rows of a mask."""
    found: list[str | None] = [None] * len(texts)
    at = np.flatnonzero(rows)
    if len(at):
        hits = texts.gather(at.astype(np.uint32)).str.extract(_pattern(phrases), 0).str.to_lowercase()
        hits = hits.str.replace_all(r"\s+", " ")
        for row, hit in zip(at.tolist(), hits.to_list(), strict=True):
            found[row] = hit
    return found
