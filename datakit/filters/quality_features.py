"""What the quality model sees of a row: one line of tokens for fastText.

Three kinds of tokens, all made by polars:

- q and p: the words of the query and the beginning of the positive, in lower case, tagged with their side. Of a word of five
  letters and more only the last three stay ("~ing"), and numbers are "0": the order of little words and endings tells text from
  noise in any domain, where whole words would tell one domain from another. fastText adds pairs and triples of neighbours.
- s: facts about each side, as steps of a scale: how many words, how it begins and ends, what repeats, symbols, markup, words
  without vowels, wrong encodings.
- o: how much of the query the positive takes up: the share of its longer words, by their first six letters, and whether the
  longest is among them. These are what shows a wrong positive.

Facts are few and words are many, and fastText takes the mean of all: so the facts stand five times.
"""

from __future__ import annotations

import functools

import numpy as np
import polars as pl
import pyarrow as pa

from datakit.filters.sides import Array, is_code, is_sentence_pair, positive_is_label
from datakit.filters.words import count_words, fold, repeated_fraction, series

# Characters of each side that are read as words, and of the positive for what it takes up of the query.
_QUERY, _POSITIVE, _SEARCHED = 200, 240, 4_000
_REPEATS = 5

_MOJIBAKE = r"Ã.|â€|Â[^\s\w]|ðŸ|\x{FFFD}|ï»¿|â„¢"
_MARKUP = r"</?[A-Za-z][^<>]{0,80}>|&[a-z]{2,6};|&#\d+;"
_VOWELLESS = r"\b[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]{3,}\b|[b-df-hj-np-tv-xz]{5,}"
_INSIDE = r"[a-z][^\sA-Za-z0-9'’_.()\-/\x{80}-\x{10FFFF}][a-z]|[a-z][0-9][a-z]|[a-z]{2}[A-Z][a-z]"
# Words of what surrounds a text on the web, and of prompts.
_SURROUNDING = (
    r"(?i)\b(?:cookies?|log ?in|sign (?:up|in)|subscribe|newsletter|facebook|twitter|click|copyright|rights reserved"
    r"|terms of (?:use|service)|privacy policy|javascript|skip to|menu|advertisement|read more"
    r"|next|previous|contact us|home|search)\b"
    r"|©|>>"
)
_PROMPT = (
    r"(?i)\b(?:the (?:passage|text)|persona|question \d|query|language model|here (?:is|are)|sure|certainly|output|assistant"
    r"|please|i (?:will|can)|write|provide)\b|\{\""
)
_QUESTION = r"(?i)^(?:what|how|why|when|where|which|who|whose|whom|is|are|does|do|did|can|could|should|will|has|have)\b"

_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
_COUNTS = (0.0, 1.0, 2.0, 4.0, 8.0)
_WORDS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0, 160.0)
_OVERLAP = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.99)


def lines(table: pa.Table) -> list[str]:
    """One line for each row of a table with the columns query, positive, task, label and in_batch_negatives."""
    query, positive = series(table, "query"), series(table, "positive")
    kind = np.select([positive_is_label(table), is_code(table), is_sentence_pair(table)], ["l", "c", "s"], "d")
    facts = [*_facts(query, "q"), *_facts(positive, "p"), *_shared(query, positive, kind)]
    told = pl.select(pl.concat_str([pl.Series(each) for each in facts], separator=" ")).to_series()
    parts = [_tagged(query.str.slice(0, _QUERY), "q"), _tagged(positive.str.slice(0, _POSITIVE), "p"), *[told] * _REPEATS]
    return pl.select(pl.concat_str(parts, separator=" ")).to_series().to_list()


def _tagged(texts: pl.Series, side: str) -> pl.Series:
    """The words of a side, shortened and tagged: "How does parsing work?" -> "qhow qdoes q~ing qwork q?"."""
    words = (
        texts.str.replace_all(r"[\p{C}\s]+", " ")
        .str.to_lowercase()
        .str.replace_all(r"\p{N}+", "0")
        .str.replace_all(r"[\p{L}\p{M}_]{2,}([\p{L}\p{M}_]{3})", "~$1")
        .str.replace_all(r"([^\p{L}\p{M}\p{N}\s~]|[\p{Han}\p{Hiragana}\p{Katakana}])", " $1 ")
    )
    return words.str.replace_all(r"(\S{1,24})\S*", f"{side}$1")


def _facts(texts: pl.Series, side: str) -> list[pl.Series]:
    characters = np.maximum(texts.str.len_chars().to_numpy(), 1)
    words = count_words(texts)
    many = np.maximum(words, 1)

    def share(pattern: str, of: Array) -> Array:
        return np.asarray(texts.str.count_matches(pattern).to_numpy() / of)

    measured = {
        "n": _steps(words, _WORDS),
        "r": _steps(repeated_fraction(texts), _SHARES),
        "y": _steps(share(r"[^\p{L}\p{M}\p{N}\s]", characters), _SHARES),
        "u": _steps(share(r"[\x{80}-\x{10FFFF}]", characters), _SHARES),
        "v": _steps(share(_VOWELLESS, many), _SHARES),
        "i": _steps(share(_INSIDE, many), _SHARES),
        "m": _steps(share(_MOJIBAKE, np.ones(1)), _COUNTS),
        "b": _steps(share(_SURROUNDING, np.ones(1)), _COUNTS),
        "k": _steps(share(_PROMPT, np.ones(1)), _COUNTS),
        "h": _steps(share(_MARKUP, np.ones(1)), _COUNTS),
        "l": _steps(characters / many, (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 14.0)),
        "c": _steps(share(r"\b\p{Lu}", many), _SHARES),
    }
    stripped = texts.str.strip_chars()
    ends = [_class(stripped.str.slice(0, 1)), _class(stripped.str.slice(-1, 1))]
    asks = texts.str.contains(_QUESTION).cast(pl.Int8).to_numpy()
    found = [_named(f"s{side}{name}", steps) for name, steps in measured.items()]
    edge = pl.select(pl.format(f"s{side}e{{}}{{}}{{}}", *ends, pl.Series(asks))).to_series()
    return [*found, edge]


def _shared(query: pl.Series, positive: pl.Series, kind: Array) -> list[pl.Series]:
    pairs = pl.DataFrame({"q": _stems(query.str.slice(0, _SEARCHED)), "p": _stems(positive.str.slice(0, _SEARCHED))})
    found = pairs.select(
        all=pl.col("q").list.len(),
        common=pl.col("q").list.set_intersection("p").list.len(),
        back=pl.col("p").list.len(),
    )
    whole, common = found["all"].to_numpy(), found["common"].to_numpy()
    steps = np.where(whole == 0, 99, _steps(common / np.maximum(whole, 1), _OVERLAP))
    longest = query.str.extract_all(r"\p{L}{4,}").list.eval(
        pl.element().sort_by(pl.element().str.len_chars(), descending=True, maintain_order=True).first()
    )
    first = longest.list.first().fill_null("")
    sought = pl.DataFrame({"in": positive.str.slice(0, _SEARCHED).str.to_lowercase(), "word": first.str.to_lowercase()})
    holds = sought.select(pl.col("in").str.contains(pl.col("word").str.slice(0, 6), literal=True)).to_series()
    kinds = pl.Series(kind.astype(str))
    share = pl.Series(steps)
    size = pl.Series(_steps(whole, (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)))
    return [
        pl.select(pl.format("o{}", share)).to_series(),
        pl.select(pl.format("o{}k{}", share, kinds)).to_series(),
        pl.select(pl.format("o{}n{}", share, size)).to_series(),
        pl.select(pl.format("ol{}k{}", holds.cast(pl.Int8), kinds)).to_series(),
    ]


def _stems(texts: pl.Series) -> pl.Series:
    """The distinct words of four letters and more, folded, cut to six letters; identifiers fall into their parts."""
    parted = texts.str.replace_all(r"(\p{Ll})(\p{Lu})", "$1 $2").str.replace_all("_", " ")
    return fold(parted).str.extract_all(r"\b\p{L}{4,}").list.eval(pl.element().str.slice(0, 6)).list.unique(maintain_order=True)


def _class(characters: pl.Series) -> pl.Series:
    """What a character is: a capital, a small letter, another letter, a digit, one of some marks, or else."""
    kinds = {
        r"\p{Lu}": "A",
        r"\p{Ll}": "a",
        r"\p{L}": "x",
        r"\p{N}": "0",
        r"[.!]": ".",
        r"\?": "?",
        r"[,;:]": ",",
        r"[)\]\}\"']": ")",
    }
    chosen = pl.lit("-")
    for pattern, name in reversed(kinds.items()):
        chosen = pl.when(characters.str.contains(rf"^{pattern}")).then(pl.lit(name)).otherwise(chosen)
    return pl.select(chosen).to_series()


def _steps(values: Array, bounds: tuple[float, ...]) -> Array:
    """The number of the step of a scale that each value stands on."""
    return np.asarray(np.searchsorted(_scale(bounds), np.asarray(values, np.float64), side="left"))


@functools.cache
def _scale(bounds: tuple[float, ...]) -> Array:
    return np.array(bounds)


def _named(name: str, steps: Array) -> pl.Series:
    return pl.select(pl.format(f"{name}{{}}", pl.Series(steps))).to_series()
