"""The miner of shared entities: texts that have a rare key phrase of the query, and little else of it.

Key phrases of a corpus are the terms that at least two of its texts have, and at most `max_share` of them (or 20 texts):
- words of three letters or more, numbers of three digits or more, parts of identifiers;
- names: two to four words in a row that begin with a capital.
A text has a phrase where it is about it: the phrase stands among its first words (BEGINNING), or twice. Those of a query are the
ones that it says, whatever its case, and its positive is about; where there are none, the three of the positive with the highest
tf idf. With idf = log((N + 1) / df), the score of a text n for the query q is

    (idf of the phrases of q that n has / idf of all phrases of q) x (1 - idf of the other words of q that n has / idf of all)

Other words are those of q that are in no phrase of it. A text with less than `min_shared` of the phrases is about something else,
and no candidate. A text with more than `max_overlap` of them may well have the same intent,
and is no candidate; nor is any text for a query without other words. A screen sees to texts that say the same in other words.

    phrases     piece   -> which texts have which terms
    rare        corpus  -> which of these are key phrases, and how rare
    shared      piece   -> texts by key phrase, and by word

Memory: the terms of one piece in each worker; the vocabulary of the corpus.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from datakit import storage
from datakit.encoders.vectors import load_array, save_array
from datakit.negatives.corpus import Corpora, Corpus, Piece
from datakit.negatives.finding import windowed
from datakit.negatives.postings import Array, Best, Excluded, Postings, share
from datakit.negatives.terms import Counted, Statistics, spread, tokens
from datakit.recipe import EntitiesMiner
from datakit.step import Work

ENTITIES = "entities"

LEAST_TEXTS, RARE_TEXTS = 2, 20
# The first words of a text say what it is about.
BEGINNING = 24
# Phrases of a positive that stand for a query without any.
_OF_POSITIVE = 3
_WORDS_OF_NAME = 4
# Between the words of a name: no token has a blank.
_BLANK = " "

_NAME = r"\p{Lu}[\p{L}\p{N}'’-]*(?:\s\p{Lu}[\p{L}\p{N}'’-]*){1,3}"


def names(texts: pl.Series) -> pl.Series:
    """The names in each text: runs of two to four words with capitals, as their tokens with blanks between."""
    flat = pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "name": texts.fill_null("").str.extract_all(_NAME)})
    flat = flat.explode("name").drop_nulls("name")
    flat = flat.with_columns(name=tokens(flat.get_column("name")).list.join(_BLANK)).filter(pl.col("name").str.contains(_BLANK))
    lists = flat.group_by("row", maintain_order=True).agg("name")
    rows = pl.DataFrame({"row": pl.int_range(len(texts), eager=True)}).join(lists, on="row", how="left", maintain_order="left")
    return rows.get_column("name").fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


def terms(texts: pl.Series) -> pl.Series:
    """Words and names of each text; those at its beginning twice. So what it is about is there at least twice."""
    words = tokens(texts)
    both = pl.DataFrame({"words": words, "first": words.list.head(BEGINNING), "names": names(texts)})
    runs = [_runs(both.get_column("first"), length) for length in range(2, _WORDS_OF_NAME + 1)]
    begin = pl.DataFrame(dict(zip("abc", runs, strict=True))).select(pl.concat_list("a", "b", "c")).to_series()
    first_names = pl.DataFrame({"names": both.get_column("names"), "begin": begin}).select(
        pl.col("names").list.set_intersection("begin").list.sort()
    )
    both = both.with_columns(first_names.to_series().alias("first_names"))
    return both.select(pl.concat_list("words", "first", "names", "first_names")).to_series()


def _runs(words: pl.Series, length: int) -> pl.Series:
    """All runs of so many of the words of each text."""
    frame = pl.DataFrame({"words": words}).with_row_index("row").explode("words")
    joined = pl.col("words")
    for step in range(1, length):
        joined = joined + _BLANK + pl.col("words").shift(-step).over("row")
    lists = frame.select("row", term=joined).group_by("row", maintain_order=True).agg(pl.col("term").drop_nulls())
    return lists.get_column("term")


def said(texts: pl.Series) -> pl.Series:
    """Words of each text, and all runs of two to four of them: what may be a name, whatever its case."""
    words = tokens(texts)
    frame = pl.DataFrame({"words": words}).with_row_index("row").explode("words").drop_nulls("words")
    runs = [frame.select("row", term="words")]
    joined = pl.col("words")
    for length in range(2, _WORDS_OF_NAME + 1):
        joined = joined + _BLANK + pl.col("words").shift(-(length - 1)).over("row")
        runs.append(frame.select("row", term=joined).drop_nulls())
    lists = pl.concat(runs).group_by("row", maintain_order=True).agg("term")
    rows = pl.DataFrame({"row": pl.int_range(len(texts), eager=True, dtype=pl.UInt32)})
    rows = rows.join(lists, on="row", how="left", maintain_order="left")
    return rows.get_column("term").fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


# Terms, weights and starts.
Asked = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Sharing:
    """An index of a corpus: statistics of its terms, which of them are phrases, and pieces of (phrases and words) by text."""

    statistics: Statistics
    rare: Array
    idf: Array
    pieces: tuple[tuple[Postings, Postings], ...]

    def top(
        self, queries: pl.Series, positives: pl.Series, k: int, limits: tuple[float, float], excluded: Excluded
    ) -> tuple[Array, Array]:
        """The k best texts for each query: positions, -1 where there are fewer, and scores."""
        phrases, words = _asked(self, queries, positives)
        best = Best.nothing(len(queries), k)
        for about, has in self.pieces:
            share(about, has, (*phrases, *words), limits, excluded, best)
        return best.ranked()


def rare_terms(statistics: Statistics, max_share: float) -> Array:
    """Which terms are key phrases."""
    texts = statistics.vocabulary.get_column("texts").to_numpy()
    vocabulary = statistics.vocabulary.get_column("term")
    most = max(RARE_TEXTS, max_share * statistics.documents)
    enough = vocabulary.str.len_chars().to_numpy() >= 3
    return (texts >= LEAST_TEXTS) & (texts <= most) & enough


def index(texts: pl.Series, max_share: float, piece: int | None = None) -> Sharing:
    """The index of some texts, in memory."""
    size = piece or max(1, len(texts))
    counted = [Counted.of(texts[start : start + size], terms) for start in range(0, max(1, len(texts)), size)]
    statistics = Statistics.of(counted)
    firsts = np.cumsum([0, *(len(each.lengths) for each in counted)]).tolist()
    pieces = tuple(_postings(each, statistics, first) for each, first in zip(counted, firsts, strict=False))
    return Sharing(statistics, rare_terms(statistics, max_share), _idf(statistics), pieces)


def _idf(statistics: Statistics) -> Array:
    return np.log((statistics.documents + 1) / statistics.vocabulary.get_column("texts").to_numpy())


def _postings(counted: Counted, statistics: Statistics, first: int) -> tuple[Postings, Postings]:
    """Texts by the terms that they are about, and by the terms that they have."""
    ids, size = statistics.ids_of(counted.vocabulary), len(counted.lengths)
    about = np.asarray(counted.counts) >= 2
    ends = np.concatenate(([0], np.cumsum(about)))[counted.starts]
    return (
        Postings(first, size, spread(ends, ids, len(statistics.vocabulary)), counted.documents[about], np.zeros(0)),
        Postings(first, size, spread(counted.starts, ids, len(statistics.vocabulary)), counted.documents, np.zeros(0)),
    )


def _asked(index: Sharing, queries: pl.Series, positives: pl.Series) -> tuple[Asked, Asked]:
    """Terms, weights and starts of the phrases of each query, and of its other words."""
    ids, starts = index.statistics.looked_up(said(queries))
    row = np.repeat(np.arange(len(queries)), np.diff(starts))
    frame = pl.DataFrame({"row": row, "id": ids}).unique().sort("row", "id")
    vocabulary = index.statistics.vocabulary
    term = vocabulary.get_column("term").gather(frame.get_column("id").cast(pl.UInt32))
    frame = frame.with_columns(
        term=term,
        rare=pl.Series(index.rare[frame.get_column("id").to_numpy()], dtype=pl.Boolean),
        idf=pl.Series(index.idf[frame.get_column("id").to_numpy()], dtype=pl.Float64),
    )
    about, ends = index.statistics.looked_up(terms(positives))
    row = np.repeat(np.arange(len(positives)), np.diff(ends))
    twice = pl.DataFrame({"row": row, "id": about}).filter(pl.len().over("row", "id") >= 2).unique()
    phrases = frame.filter("rare").join(twice, on=["row", "id"], how="semi").select("row", "id", "term", "idf")
    without = np.setdiff1d(np.arange(len(queries)), phrases.get_column("row").unique().to_numpy())
    phrases = pl.concat([phrases, _of_positives(index, positives, without)]).sort("row", "id")
    # Words of a name that is a phrase are no other words.
    inner = phrases.select("row", term=pl.col("term").str.split(_BLANK)).explode("term").unique()
    words = frame.filter(~pl.col("term").str.contains(_BLANK, literal=True)).join(inner, on=["row", "term"], how="anti")
    has_both = words.select("row").unique()
    phrases = phrases.join(has_both, on="row", how="semi", maintain_order="left")
    return _weighted(phrases, len(queries)), _weighted(words.sort("row", "id"), len(queries))


def _of_positives(index: Sharing, positives: pl.Series, rows: Array) -> pl.DataFrame:
    """The phrases of some positives with the highest tf idf."""
    empty = pl.DataFrame(schema={"row": pl.Int64, "id": pl.Int64, "term": pl.String, "idf": pl.Float64})
    if not len(rows):
        return empty
    ids, starts = index.statistics.looked_up(terms(positives.gather(rows)))
    frame = pl.DataFrame({"row": np.repeat(rows, np.diff(starts)), "id": ids}).group_by("row", "id").agg(times=pl.len())
    frame = frame.filter(pl.Series(index.rare[frame.get_column("id").to_numpy()], dtype=pl.Boolean))
    frame = frame.with_columns(
        idf=pl.Series(index.idf[frame.get_column("id").to_numpy()], dtype=pl.Float64),
        term=index.statistics.vocabulary.get_column("term").gather(frame.get_column("id").cast(pl.UInt32)),
    )
    frame = frame.sort("row", -(pl.col("times") * pl.col("idf")), "id").group_by("row", maintain_order=True).head(_OF_POSITIVE)
    return frame.select(empty.columns).cast(dict(empty.schema))  # type: ignore[arg-type]


def _weighted(frame: pl.DataFrame, queries: int) -> tuple[Array, Array, Array]:
    """Ids, idf as shares that sum to 1 for each query, and starts. `frame` has row, id, idf, sorted by row."""
    row, idf = frame.get_column("row").to_numpy(), frame.get_column("idf").to_numpy().astype(np.float64)
    starts = np.zeros(queries + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=queries), out=starts[1:])
    # Summed in the order of the ids, query by query: the same whatever stands beside it.
    total = np.zeros(queries)
    np.add.at(total, row, idf)
    weights = np.divide(idf, total[row], out=np.zeros_like(idf), where=total[row] > 0)
    return frame.get_column("id").to_numpy().astype(np.int64), weights, starts


@dataclass(frozen=True)
class EntitiesFinder:
    miner: EntitiesMiner
    indexes: dict[tuple[str, str], tuple[str, tuple[tuple[str, int, int], ...]]]
    name: str = ENTITIES

    def find(self, rows: pl.DataFrame, corpus: Corpus, excluded: Excluded) -> pl.DataFrame:
        statistics, pieces = self.indexes[corpus.part, corpus.name]
        index = _loaded(statistics, pieces, self.miner.max_share)
        first, last = self.miner.window
        limits = self.miner.min_shared, self.miner.max_overlap
        found = index.top(rows.get_column("query"), rows.get_column("positive"), min(last, corpus.size), limits, excluded)
        return windowed(*found, (first, last))


@functools.lru_cache(maxsize=1)
def _loaded(folder: str, pieces: tuple[tuple[str, int, int], ...], max_share: float) -> Sharing:
    statistics = Statistics.load(folder)
    nothing = np.zeros(0)

    def postings(folder: str, kind: str, first: int, size: int) -> Postings:
        starts, documents = (
            np.asarray(load_array(storage.join(folder, f"{kind}-{name}.npy"))) for name in ("starts", "documents")
        )
        return Postings(first, size, starts, documents, nothing)

    found = tuple((postings(each, "about", *place), postings(each, "has", *place)) for each, *place in pieces)
    return Sharing(statistics, rare_terms(statistics, max_share), _idf(statistics), found)


def prepare(work: Work, corpora: Corpora, miner: EntitiesMiner) -> EntitiesFinder:
    """Builds the indexes of all corpora that are not labelled."""
    searched = {(each.part, each.name): each for each in corpora.values() if not each.labelled}
    units = [(key, piece) for key in sorted(searched) for piece in searched[key].pieces]
    work.map("entities-terms", _count, [piece for _, piece in units])
    folders = [work.files("entities-terms", number, "") for number in range(len(units))]
    groups = {key: [number for number, (owner, _) in enumerate(units) if owner == key] for key in sorted(searched)}
    work.map("entities-statistics", _statistics, [[folders[number] for number in mine] for mine in groups.values()])
    statistics = {key: work.files("entities-statistics", number, "") for number, key in enumerate(groups)}
    work.map("entities-index", _index, [(folders[number], statistics[key]) for number, (key, _) in enumerate(units)])
    indexes = {
        key: (
            statistics[key],
            tuple((work.files("entities-index", number, ""), units[number][1].first, units[number][1].size) for number in mine),
        )
        for key, mine in groups.items()
    }
    return EntitiesFinder(miner, indexes)


def _count(piece: Piece, folder: str) -> dict[str, Any]:
    Counted.of(piece.texts("text").get_column("text"), terms).save(folder)
    return {"rows": piece.size}


def _statistics(folders: list[str], folder: str) -> dict[str, Any]:
    frames = [pl.DataFrame(storage.read_table(storage.join(each, "vocabulary.parquet"))) for each in folders]
    documents = sum(int(storage.read_json(storage.join(each, "unit.json"))["rows"]) for each in folders)
    Statistics.together(frames, documents, 0).save(folder)
    return {}


def _index(unit: tuple[str, str], folder: str) -> dict[str, Any]:
    terms_of_piece, statistics = unit
    both = _postings(Counted.load(terms_of_piece), Statistics.load(statistics), 0)
    for kind, postings in zip(("about", "has"), both, strict=True):
        save_array(storage.join(folder, f"{kind}-starts.npy"), postings.starts)
        save_array(storage.join(folder, f"{kind}-documents.npy"), postings.documents)
    return {}
