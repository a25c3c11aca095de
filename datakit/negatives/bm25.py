"""BM25+ retrieval with two engines that agree: bm25s (the default) and rank-bm25's BM25Plus (the reference).

score(q, d) = sum over terms t of q of idf(t) (delta + tf (k1 + 1) / (tf + k1 (1 - b + b |d| / avgdl))), with
idf(t) = log((N + 1) / df(t)) (Lv and Zhai, "Lower-bounding term frequency normalization", CIKM 2011). A term that is in no
document counts nothing, and a term that the query says twice counts twice.

delta counts for absent terms too, so documents that share no term with the query have a score above zero. They are never hits.

An index may lie in pieces, each over some texts of the corpus. idf and avgdl are those of the whole corpus, and the terms of a
query are added in its order: so scores and hits are, to the bit, those of an index in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from datakit import storage
from datakit.encoders.vectors import load_array, save_array
from datakit.negatives.postings import Array, Best, Excluded, Postings, add_up
from datakit.negatives.terms import Counted, Statistics, repeated, spread, tokens
from datakit.recipe import Bm25Miner

__all__ = ["PACKAGES", "Bm25sIndex", "Excluded", "Hits", "Index", "build", "tokens"]

# Packages whose version decides a score, by engine. polars brings the Unicode tables of the tokenizer.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bm25s": ("bm25s", "numpy", "polars"),
    "rank_bm25": ("numpy", "polars", "rank-bm25"),
}


@dataclass(frozen=True)
class Hits:
    """The best documents of n queries: positions in the corpus (-1 where there are fewer than k) and scores, both (n, k).

    Best first; equal scores by position. `floors` (n) is the score of a document that shares no term with the query.
    """

    documents: Array
    scores: Array
    floors: Array


class Index(Protocol):
    """What an engine offers."""

    def top(self, queries: pl.Series, k: int, excluded: Excluded | None = None) -> Hits:
        """The k best documents for each query (text) among those that share a term with it."""
        ...


def build(texts: pl.Series, miner: Bm25Miner, piece: int | None = None) -> Index:
    """An index of the texts of a corpus, in pieces of so many; a hit's position is that of its text. It lives in memory."""
    if miner.engine == "rank_bm25":
        return _RankBm25.build(texts, miner)
    size = piece or max(1, len(texts))
    counted = [Counted.of(texts[start : start + size]) for start in range(0, max(1, len(texts)), size)]
    statistics = Statistics.of(counted)
    firsts = np.cumsum([0, *(len(each.lengths) for each in counted)]).tolist()
    pieces = [scored(each, statistics, miner, first) for each, first in zip(counted, firsts, strict=False)]
    return Bm25sIndex(statistics, floors(statistics, miner), tuple(pieces))


def _idf(statistics: Statistics) -> Array:
    """bm25s' idf of each term of a corpus."""
    from bm25s.scoring import _select_idf_scorer

    idf = _select_idf_scorer("bm25+")
    texts = statistics.vocabulary.get_column("texts").to_numpy()
    different, places = np.unique(texts, return_inverse=True)
    values = np.array([idf(int(each), statistics.documents) for each in different], np.float64)
    return values[places] if len(values) else np.zeros(0)


def floors(statistics: Statistics, miner: Bm25Miner) -> Array:
    """What each term adds to a document that does not have it."""
    return _idf(statistics) * miner.delta


def scored(counted: Counted, statistics: Statistics, miner: Bm25Miner, first: int) -> Postings:
    """What each occurrence adds to `floors`, by bm25s' formula, for the texts of a piece that begins at `first`."""
    from bm25s.scoring import _select_tfc_scorer

    ids = statistics.ids_of(counted.vocabulary)
    average = statistics.words / statistics.documents if statistics.words else 1.0
    lengths = counted.lengths[counted.documents].astype(np.float64)
    part = _select_tfc_scorer("bm25+")(counted.counts.astype(np.float64), lengths, average, miner.k1, miner.b, 0.0)
    added = repeated(counted.starts, _idf(statistics)[ids]) * part
    starts = spread(counted.starts, ids, len(statistics.vocabulary))
    return Postings(first, len(counted.lengths), starts, counted.documents, added)


@dataclass(frozen=True)
class Bm25sIndex:
    """bm25s' matrix of scores, by term: what each occurrence adds to `floors`. 12 bytes for a term of a document.

    Retrieval is a compiled loop of our own over that matrix. bm25s' own takes 15 s to compile in each process, breaks ties at
    random, cannot leave documents out and returns documents that share no term; and its index is built from Python lists of all
    terms of the corpus, in one piece.
    """

    statistics: Statistics
    floors: Array
    pieces: Sequence[Postings]

    def top(self, queries: pl.Series, k: int, excluded: Excluded | None = None) -> Hits:
        terms, starts = self.statistics.looked_up(tokens(queries))
        best = Best.nothing(len(queries), k)
        for piece in self.pieces:
            add_up(piece, terms, starts, excluded or Excluded.nothing(len(queries)), best)
        documents, scores = best.ranked()
        lowest = np.zeros(len(queries))
        np.add.at(lowest, np.repeat(np.arange(len(queries)), np.diff(starts)), self.floors[terms])
        return Hits(documents, scores + lowest[:, None], lowest)


def save_piece(folder: str, postings: Postings) -> None:
    for name in ("starts", "documents", "added"):
        save_array(storage.join(folder, f"{name}.npy"), getattr(postings, name))
    storage.write_json(storage.join(folder, "piece.json"), [postings.first, postings.size])


def load_piece(folder: str) -> Postings:
    """The piece that was saved there. On a local disk its arrays are mapped, and shared by all processes that read them."""
    first, size = storage.read_json(storage.join(folder, "piece.json"))
    arrays = (np.asarray(load_array(storage.join(folder, f"{name}.npy"))) for name in ("starts", "documents", "added"))
    return Postings(first, size, *arrays)


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
        documents, scores, lowest = np.full((n, k), -1, np.int64), np.zeros((n, k)), np.zeros(n)
        for row, query in enumerate(tokens(queries).to_list() if self.engine else []):
            with np.errstate(invalid="ignore"):  # with b = 1 it gives a text without tokens 0/0, which is no hit
                found = self.engine.get_scores(query)
            lowest[row] = _floor(self.engine, query)
            possible = found > lowest[row]
            possible[excluded.documents[excluded.starts[row] : excluded.starts[row + 1]]] = False
            places = np.flatnonzero(possible)
            places = places[np.argsort(-found[places], kind="stable")][:k]
            documents[row, : len(places)] = places
            scores[row, : len(places)] = found[places]
            scores[row, len(places) :] = lowest[row]
        return Hits(documents, scores, lowest)


def _floor(engine: Any, query: Sequence[str]) -> float:
    """What a document without any of the terms gets, summed as BM25Plus does it, so that the comparison is exact."""
    total = 0.0
    for term in query:
        total += engine.idf.get(term, 0) * engine.delta
    return total
