"""Heuristics for text that is not worth learning from (in the manner of Gopher, arXiv 2112.11446, and C4, arXiv 1910.10683).

First come the rules for pairs (a leaked prompt, a query that is its positive), then those of C4, then those of Gopher. A positive
is a document, unless it is a class label or the task pairs sentences.

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
from datakit.filters.quality_rules import (
    Grams,
    Lines,
    alphabetic_share,
    asks_for_javascript,
    curly_share,
    has_lorem_ipsum,
    mean_word_length,
    stop_words,
    symbol_ratio,
)
from datakit.filters.sides import Array, is_code, is_graded, is_sentence_pair, is_written, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import count_words, fold, repeated_fraction, series
from datakit.recipe import C4, Gopher, QualityFilter
from datakit.step import Work

VERSION = 1

REPETITIVE = "repetitive"
SYMBOLS = "symbols"
BOILERPLATE = "boilerplate"
PROMPT_LEAK = "prompt_leak"
QUERY_IS_POSITIVE = "query_is_positive"
# C4
LOREM_IPSUM = "lorem_ipsum"
JAVASCRIPT = "javascript"
CURLY_BRACKETS = "curly_brackets"
NO_TERMINAL_PUNCTUATION = "no_terminal_punctuation"
# Gopher
WORD_LENGTH = "word_length"
SYMBOL_RATIO = "symbol_ratio"
FEW_ALPHABETIC_WORDS = "few_alphabetic_words"
BULLET_LINES = "bullet_lines"
ELLIPSIS_LINES = "ellipsis_lines"
DUPLICATE_LINES = "duplicate_lines"
DUPLICATE_LINE_CHARACTERS = "duplicate_line_characters"
DUPLICATE_PARAGRAPHS = "duplicate_paragraphs"
DUPLICATE_PARAGRAPH_CHARACTERS = "duplicate_paragraph_characters"
FEW_STOP_WORDS = "few_stop_words"
TOP_GRAM = {n: f"top_{n}_gram" for n in (2, 3, 4)}
DUPLICATE_GRAMS = {n: f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10)}
REASONS = (
    PROMPT_LEAK,
    QUERY_IS_POSITIVE,
    SYMBOLS,
    REPETITIVE,
    BOILERPLATE,
    LOREM_IPSUM,
    JAVASCRIPT,
    CURLY_BRACKETS,
    NO_TERMINAL_PUNCTUATION,
    WORD_LENGTH,
    SYMBOL_RATIO,
    FEW_ALPHABETIC_WORDS,
    BULLET_LINES,
    ELLIPSIS_LINES,
    DUPLICATE_LINES,
    DUPLICATE_LINE_CHARACTERS,
    DUPLICATE_PARAGRAPHS,
    DUPLICATE_PARAGRAPH_CHARACTERS,
    FEW_STOP_WORDS,
    *TOP_GRAM.values(),
    *DUPLICATE_GRAMS.values(),
)

# A written query of so many words that stands in its passage as it is, was copied, not asked.
_COPIED_WORDS = 8

# A document of so many words may say once what a page around it says; a shorter one is hardly more than that.
_PAGE_WORDS = 100

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

    page = count_words(positive) >= _PAGE_WORDS
    for texts, judged in ((query, ~code), (positive, ~code & ~label & ~page)):
        empty_phrases = judged & _contains_any(texts, parameters.boilerplate)
        verdicts.add(empty_phrases, BOILERPLATE, value=1.0, detail=_found(texts, empty_phrases, parameters.boilerplate))

    document = ~code & ~label & ~is_sentence_pair(table)
    _by_c4(verdicts, query, positive, ~code, document, ~code & ~label, parameters.c4)
    languages = table.column("positive_language").to_pylist(), table.column("language").to_pylist()
    tags = [own or other for own, other in zip(*languages, strict=True)]
    _by_gopher(verdicts, query, positive, ~code, document, ~code & ~label, tags, parameters.gopher)

    words = np.minimum(1.0, count_words(query) / 8)
    return verdicts.table(), (1 - repeated) * (1 - symbols) * (0.5 + 0.5 * words)


def _by_c4(
    verdicts: Verdicts, query: pl.Series, positive: pl.Series, asked: Array, document: Array, told: Array, rules: C4
) -> None:
    """`asked`: rows whose query is judged; `told`: whose positive is judged; `document`: whose positive is a document."""
    for wanted, reason, found in (
        (rules.lorem_ipsum, LOREM_IPSUM, has_lorem_ipsum),
        (rules.javascript, JAVASCRIPT, asks_for_javascript),
    ):
        if wanted:
            verdicts.add(asked & found(query), reason, value=1.0, detail=["query"] * len(query))
            verdicts.add(told & found(positive), reason, value=1.0, detail=["positive"] * len(query))
    if rules.max_curly_brackets is not None:
        share = curly_share(positive)
        above = document & (share > rules.max_curly_brackets)
        verdicts.add(above, CURLY_BRACKETS, value=share, threshold=rules.max_curly_brackets)
    if rules.min_terminal_lines is not None:
        terminal = Lines.of(positive).terminal
        below = document & (terminal < rules.min_terminal_lines)
        verdicts.add(below, NO_TERMINAL_PUNCTUATION, value=terminal, threshold=rules.min_terminal_lines)


def _by_gopher(
    verdicts: Verdicts,
    query: pl.Series,
    positive: pl.Series,
    asked: Array,
    document: Array,
    told: Array,
    languages: list[str | None],
    rules: Gopher,
) -> None:
    rows = len(query)
    for name, texts, judged, bounds in (
        ("query", query, asked | (told & ~document), rules.query_word_length),
        ("positive", positive, document, rules.document_word_length),
        ("positive", positive, told & ~document, rules.query_word_length),
    ):
        if bounds is not None and judged.any():
            length = mean_word_length(texts)
            for wrong, bound in ((length < bounds[0], bounds[0]), (length > bounds[1], bounds[1])):
                # A text without words is none of this rule's business.
                verdicts.add(judged & wrong & (length > 0), WORD_LENGTH, value=length, threshold=bound, detail=[name] * rows)
    for name, texts, judged in (("query", query, asked), ("positive", positive, told)):
        detail: list[str | None] = [name] * rows
        if rules.max_symbol_ratio is not None:
            ratio = symbol_ratio(texts)
            # A single ellipsis or hash is no fault of a short text.
            several = texts.str.count_matches(r"#|\.\.\.|…").to_numpy() > 1
            above = judged & several & (ratio > rules.max_symbol_ratio)
            verdicts.add(above, SYMBOL_RATIO, value=ratio, threshold=rules.max_symbol_ratio, detail=detail)
        if rules.min_alphabetic_words is not None:
            letters = alphabetic_share(texts)
            below = judged & (letters < rules.min_alphabetic_words)
            verdicts.add(below, FEW_ALPHABETIC_WORDS, value=letters, threshold=rules.min_alphabetic_words, detail=detail)
    lines, paragraphs = Lines.of(positive), Lines.of(positive, gap=True)
    for reason, share, most in (
        (BULLET_LINES, lines.bullets, rules.max_bullet_lines),
        (ELLIPSIS_LINES, lines.ellipses, rules.max_ellipsis_lines),
        (DUPLICATE_LINES, lines.duplicates, rules.max_duplicate_lines),
        (DUPLICATE_LINE_CHARACTERS, lines.duplicate_characters, rules.max_duplicate_line_characters),
        (DUPLICATE_PARAGRAPHS, paragraphs.duplicates, rules.max_duplicate_paragraphs),
        (DUPLICATE_PARAGRAPH_CHARACTERS, paragraphs.duplicate_characters, rules.max_duplicate_paragraph_characters),
    ):
        if most is not None:
            verdicts.add(document & (share > most), reason, value=share, threshold=most)
    long = np.flatnonzero(document & (count_words(positive) >= rules.min_words))
    if not len(long):
        return
    texts = positive.gather(long.astype(np.uint32))

    def among_all(values: Array) -> Array:
        """Values of the long documents, in the places of their rows."""
        placed = np.zeros(rows)
        placed[long] = values
        return placed

    if rules.min_stop_words is not None:
        different = stop_words(texts, [languages[row] for row in long.tolist()])
        few = np.zeros(rows, bool)
        few[long] = (different >= 0) & (different < rules.min_stop_words)
        verdicts.add(few, FEW_STOP_WORDS, value=among_all(np.maximum(different, 0)), threshold=rules.min_stop_words)
    grams = Grams(texts)
    for n, most in sorted(rules.max_top_grams.items()):
        share = among_all(grams.top(n))
        verdicts.add(share > most, TOP_GRAM[n], value=share, threshold=most)
    # What longer n-grams cover, shorter ones cover too: few texts are left to look at.
    for size, most in sorted(rules.max_duplicate_grams.items()):
        share = grams.duplicated(size)
        verdicts.add(among_all(share) > most, DUPLICATE_GRAMS[size], value=among_all(share), threshold=most)
        left = share > min(rules.max_duplicate_grams.values())
        long, grams = long[left], grams.only(left)


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
