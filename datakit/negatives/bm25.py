"""BM25+ retrieval with two engines that agree: bm25s (the default) and rank-bm25's BM25Plus (the reference).

score(q, d) = sum over terms t of q of idf(t) (delta + tf (k1 + 1) / (tf + k1 (1 - b + b |d| / avgdl))), with
idf(t) = log((N + 1) / df(t)) (Lv and Zhai, "Lower-bounding term frequency normalization", CIKM 2011). A term that is in no
document counts nothing, and a term that the query says twice counts twice.

delta counts for absent terms too, so documents that share no term with the query have a score above zero. They are never hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from datakit import storage
from datakit.encoders.vectors import load_array, save_array
from datakit.recipe import Bm25Miner

Array = np.ndarray[Any, np.dtype[Any]]

# Packages whose version decides a score, by engine. polars brings the Unicode tables of the tokenizer.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bm25s": ("bm25s", "numpy", "polars"),
    "rank_bm25": ("numpy", "polars", "rank-bm25"),
}

_IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}"
_TOKEN = rf"[{_IDEOGRAPHS}]|[\w--[{_IDEOGRAPHS}_]]+"


def tokens(texts: pl.Series) -> pl.Series:
    """The tokens of each text, a list of strings: runs of word characters in lower case; nulls have none.

    Identifiers are split at underscores and at inner capitals (`getUserName`, `HTTPServer`), so that words find them. Chinese and
    Japanese characters are tokens of their own, since nothing stands between words there. nDCG@10 with and without the splits:
    CoSQA 0.370 and 0.293, SciFact 0.673 and 0.665, Cranfield 0.506 both.
    """
    split = texts.fill_null("").str.replace_all(r"(\p{Ll}|\d)(\p{Lu})", "$1 $2")
    return split.str.replace_all(r"(\p{Lu})(\p{Lu}\p{Ll})", "$1 $2").str.to_lowercase().str.extract_all(_TOKEN)


@dataclass(frozen=True)
class Hits:
    """The best documents of n queries: positions in the corpus (-1 where there are fewer than k) and scores, both (n, k).

    Best first; equal scores by position. `floors` (n) is the score of a document that shares no term with the query.
    """

    documents: Array
    scores: Array
    floors: Array


@dataclass(frozen=True)
class Excluded:
    """Positions in the corpus that may not be hits: those of query i are documents[starts[i] : starts[i + 1]]."""

    documents: Array
    starts: Array

    @classmethod
    def nothing(cls, queries: int) -> Excluded:
        return cls(np.zeros(0, np.int64), np.zeros(queries + 1, np.int64))


class Index(Protocol):
    """What an engine offers."""

    def top(self, queries: pl.Series, k: int, excluded: Excluded | None = None) -> Hits:
        """The k best documents for each query (text) among those that share a term with it."""
        ...


def build(texts: pl.Series, miner: Bm25Miner) -> Index:
    """An index of the texts of a corpus; a hit's position is that of its text. It lives in memory."""
    if miner.engine == "rank_bm25":
        return _RankBm25.build(texts, miner)
    return Bm25sIndex.build(texts, miner)


@dataclass(frozen=True)
class Bm25sIndex:
    """bm25s' matrix of scores, by term (CSC): what each occurrence adds to `floors`. About 12 bytes for a term of a document.

    Retrieval is a compiled loop of our own over that matrix. bm25s' own takes 15 s to compile in each process, breaks ties at
    random, cannot leave documents out and returns documents that share no term.
    """

    vocabulary: pl.DataFrame
    starts: Array
    documents: Array
    added: Array
    floors: Array
    size: int

    @classmethod
    def build(cls, texts: pl.Series, miner: Bm25Miner) -> Bm25sIndex:
        import bm25s

        words = tokens(texts)
        vocabulary = words.explode().drop_nulls().unique().sort().alias("term").to_frame().with_row_index("id")
        if vocabulary.is_empty():
            nothing = np.zeros(0)
            return cls(vocabulary, np.zeros(1, np.int64), nothing.astype(np.int32), nothing, nothing, len(texts))
        terms, starts = _term_ids(words, vocabulary)
        # bm25s wants lists; one int object for each term of the vocabulary, not for each word of the corpus.
        numbers = np.array(range(len(vocabulary)), dtype=object)
        lists = [part.tolist() for part in np.split(numbers[terms], starts[1:-1])]
        names = dict(zip(vocabulary.get_column("term").to_list(), numbers.tolist(), strict=True))
        engine = bm25s.BM25(k1=miner.k1, b=miner.b, delta=miner.delta, method="bm25+", dtype="float64", backend="numpy")
        engine.index((lists, names), create_empty_token=False, show_progress=False)
        matrix = engine.scores
        return cls(vocabulary, matrix["indptr"], matrix["indices"], matrix["data"], engine.nonoccurrence_array, len(texts))

    def save(self, folder: str) -> None:
        storage.write_table(storage.join(folder, "vocabulary.parquet"), self.vocabulary.to_arrow())
        for name in ("starts", "documents", "added", "floors"):
            save_array(storage.join(folder, f"{name}.npy"), getattr(self, name))
        storage.write_json(storage.join(folder, "size.json"), self.size)

    @classmethod
    def load(cls, folder: str) -> Bm25sIndex:
        """The index that was saved there. On a local disk its arrays are mapped, and shared by all processes that read them."""
        vocabulary = pl.DataFrame(storage.read_table(storage.join(folder, "vocabulary.parquet")))
        starts, documents, added, floors = (
            np.asarray(load_array(storage.join(folder, f"{name}.npy"))) for name in ("starts", "documents", "added", "floors")
        )
        return cls(vocabulary, starts, documents, added, floors, int(storage.read_json(storage.join(folder, "size.json"))))

    def top(self, queries: pl.Series, k: int, excluded: Excluded | None = None) -> Hits:
        from datakit.negatives.postings import best

        terms, starts = _term_ids(tokens(queries), self.vocabulary)
        excluded = excluded or Excluded.nothing(len(queries))
        documents, scores = best(
            self.added, self.documents, self.starts, self.size, terms, starts, excluded.documents, excluded.starts, k
        )
        floors = np.zeros(len(queries))
        np.add.at(floors, np.repeat(np.arange(len(queries)), np.diff(starts)), self.floors[terms])
        return Hits(documents, scores + floors[:, None], floors)


def _term_ids(words: pl.Series, vocabulary: pl.DataFrame) -> tuple[Array, Array]:
    """The numbers of the known terms of each text, in their order, and where each text starts: (m), (n + 1)."""
    flat = pl.DataFrame({"row": pl.int_range(len(words), eager=True), "term": words}).explode("term").drop_nulls("term")
    known = flat.join(vocabulary, on="term", how="inner", maintain_order="left")
    starts = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.bincount(known.get_column("row").to_numpy(), minlength=len(words)), out=starts[1:])
    return known.get_column("id").to_numpy().astype(np.int64), starts


@dataclass(frozen=True)
class _RankBm25:
    """rank-bm25's BM25Plus: looks at every document for every term of a query."""

    engine: Any
    size: int

    @classmethod
    def build(cls, texts: pl.Series, miner: Bm25Miner) -> _RankBm25:
        from rank_bm25 import BM25Plus

        corpus = tokens(texts).to_list()
        # It divides by the mean length; a corpus without a single token has no hits.
        engine = BM25Plus(corpus, k1=miner.k1, b=miner.b, delta=miner.delta) if any(corpus) else None
        return cls(engine, len(texts))

    def top(self, queries: pl.Series, k: int, excluded: Excluded | None = None) -> Hits:
        n = len(queries)
        excluded = excluded or Excluded.nothing(n)
        documents, scores, floors = np.full((n, k), -1, np.int64), np.zeros((n, k)), np.zeros(n)
        for row, query in enumerate(tokens(queries).to_list() if self.engine else []):
            with np.errstate(invalid="ignore"):  # with b = 1 it gives a text without tokens 0/0, which is no hit
                found = self.engine.get_scores(query)
            floors[row] = _floor(self.engine, query)
            possible = found > floors[row]
            possible[excluded.documents[excluded.starts[row] : excluded.starts[row + 1]]] = False
            places = np.flatnonzero(possible)
            places = places[np.argsort(-found[places], kind="stable")][:k]
            documents[row, : len(places)] = places
            scores[row, : len(places)] = found[places]
            scores[row, len(places) :] = floors[row]
        return Hits(documents, scores, floors)


def _floor(engine: Any, query: Sequence[str]) -> float:
    """What a document without any of the terms gets, summed as BM25Plus does it, so that the comparison is exact."""
    total = 0.0
    for term in query:
        total += engine.idf.get(term, 0) * engine.delta
    return total
