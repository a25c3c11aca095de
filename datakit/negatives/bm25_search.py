"""The BM25 miner: the index of each corpus, built piece by piece and kept on disk, and how it is searched.

    terms        piece   -> how often each of its texts has each term
    statistics   corpus  -> in how many texts each term is
    index        piece   -> what each occurrence adds to a score

Memory: the terms of one piece (about 32,768 texts) in each worker; then the vocabulary of the corpus. Searching, a worker holds
the best `depth` of 16,384 queries; indexes are mapped from disk, and of those one piece is at work at a time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import polars as pl

from datakit import storage
from datakit.negatives import bm25
from datakit.negatives.corpus import Corpora, Corpus, Piece
from datakit.negatives.finding import windowed
from datakit.negatives.postings import Excluded
from datakit.negatives.terms import Counted, Statistics
from datakit.recipe import Bm25Miner
from datakit.step import Work

BM25 = "bm25"


@dataclass(frozen=True)
class Indexed:
    """Where the index of a corpus lies."""

    statistics: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Bm25Finder:
    miner: Bm25Miner
    indexes: dict[tuple[str, str], Indexed]
    name: str = BM25

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        index = _loaded(corpus, self.miner, self.indexes.get((corpus.part, corpus.name)))
        # Room is made for as many hits as are looked for, and there are no more than texts.
        hits = index.top(rows.get_column("query"), min(self.miner.window[1], corpus.size), excluded)
        return windowed(hits.documents, hits.scores, self.miner.window)


def prepare(work: Work, corpora: Corpora, miner: Bm25Miner) -> Bm25Finder:
    """Builds the indexes of all corpora that are not labelled. rank-bm25 has none on disk."""
    searched = {(each.part, each.name): each for each in corpora.values() if not each.labelled}
    if miner.engine == "rank_bm25":
        return Bm25Finder(miner, {})
    units = [piece for key in sorted(searched) for piece in searched[key].pieces]
    work.map("bm25-terms", _count, units)
    terms = [work.files("bm25-terms", number, "") for number in range(len(units))]
    groups, start = [], 0
    for key in sorted(searched):
        groups.append(terms[start : start + len(searched[key].pieces)])
        start += len(searched[key].pieces)
    work.map("bm25-statistics", _statistics, groups)
    jobs = []
    for number, key in enumerate(sorted(searched)):
        statistics = work.files("bm25-statistics", number, "")
        jobs += [(folder, piece.first, statistics) for folder, piece in zip(groups[number], searched[key].pieces, strict=True)]
    work.map("bm25-index", _Index(miner), jobs)
    indexes, start = {}, 0
    for number, key in enumerate(sorted(searched)):
        count = len(searched[key].pieces)
        pieces = tuple(work.files("bm25-index", start + place, "") for place in range(count))
        indexes[key] = Indexed(work.files("bm25-statistics", number, ""), pieces)
        start += count
    return Bm25Finder(miner, indexes)


@functools.lru_cache(maxsize=1)
def _loaded(corpus: Corpus, miner: Bm25Miner, indexed: Indexed | None) -> bm25.Index:
    """The index of a corpus, kept until another one is asked for: memory is bounded by one index."""
    if indexed is None:
        texts = [piece.texts("text").get_column("text") for piece in corpus.pieces]
        return bm25.build(pl.concat(texts), miner)
    statistics = Statistics.load(indexed.statistics)
    pieces = tuple(bm25.load_piece(folder) for folder in indexed.pieces)
    return bm25.Bm25sIndex(statistics, bm25.floors(statistics, miner), pieces)


def _count(piece: Piece, folder: str) -> dict[str, Any]:
    counted = Counted.of(piece.texts("text").get_column("text"))
    counted.save(folder)
    return {"rows": piece.size, "words": int(counted.lengths.sum())}


def _statistics(folders: list[str], folder: str) -> dict[str, Any]:
    frames, words, documents = [], 0, 0
    for each in folders:
        frames.append(pl.DataFrame(storage.read_table(storage.join(each, "vocabulary.parquet"))))
        result = storage.read_json(storage.join(each, "unit.json"))
        words, documents = words + result["words"], documents + result["rows"]
    Statistics.together(frames, documents, words).save(folder)
    return {}


@dataclass(frozen=True)
class _Index:
    miner: Bm25Miner

    def __call__(self, unit: tuple[str, int, str], folder: str) -> dict[str, Any]:
        terms, first, statistics = unit
        bm25.save_piece(folder, bm25.scored(Counted.load(terms), Statistics.load(statistics), self.miner, first))
        return {}
