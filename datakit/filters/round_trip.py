"""Does the query find its own document among the documents of its category?

The corpus of a category is the distinct positives of its rows that reach this filter. The rank of a row's own document is one
more than the number of corpus texts with a higher cosine to the query. A difference below `TIE` is none, so that two texts that
the encoder cannot tell apart, and the last bits of a matrix product, do not push a document down. Exact: every query meets every
document of its category. That takes time with the square of the category; it is done in blocks, so memory does not grow.

Not checked: rows of classification and clustering (many rows share one positive), and graded pairs (a poor match may be meant).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.encoders.vectors import Array, load_array, lookup, pack, save_array
from datakit.filters.sides import is_graded, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.recipe import RoundTripFilter
from datakit.step import Output, Work, count_categories, part_of, split_rejected, write_rows

VERSION = 1

NOT_RETRIEVED = "not_retrieved"
REASONS = (NOT_RETRIEVED,)

TIE = 1e-6

# Queries of one unit, and documents that they meet at once: 4,096 x 4,096 scores take 64 MiB.
_QUERIES = 4_096
_DOCUMENTS = 4_096

_COLUMNS = ["category", "query_id", "positive_id", "query", "positive", "label", "in_batch_negatives", "score"]


@dataclass(frozen=True)
class Slice:
    """Some rows of one shard and category, by the file with their ids, and the corpus that they are checked against."""

    texts: str
    rows: Array
    corpus: str


def work(work: Work) -> None:
    (vectors,) = work.side
    shards = work.shards
    found = work.map("texts", _texts, shards)
    files = [work.files("texts", number, "texts.parquet") for number in range(len(shards))]
    categories: dict[str, list[str]] = {}
    for file, each in zip(files, found, strict=True):
        for category in each["categories"]:
            categories.setdefault(category, []).append(file)
    work.map("corpora", _corpus, list(categories.items()))
    corpora = {category: work.files("corpora", number, "ids.npy") for number, category in enumerate(categories)}
    slices: list[Slice] = []
    of_shard: list[list[int]] = []
    for number, shard in enumerate(shards):
        start = len(slices)
        slices.extend(_slices(shard, files[number], corpora))
        of_shard.append(list(range(start, len(slices))))
    work.map("ranks", _Rank(vectors), slices)
    units = [
        (shard, [work.files("ranks", number, "ranks.npy") for number in numbers], [slices[number].rows for number in numbers])
        for shard, numbers in zip(shards, of_shard, strict=True)
    ]
    work.finish("rows", work.map("rows", _Judged(work.step.parameters, work.step.name), units))


def _texts(shard: str, folder: str) -> dict[str, Any]:
    """Writes what ranking needs to know of each row: its category, its ids, and whether it is checked."""
    table = storage.read_table(shard, columns=_COLUMNS)
    document = pc.if_else(pc.is_valid(table.column("positive")), table.column("positive_id"), None)
    whole = pc.and_(pc.is_valid(table.column("query")), pc.is_valid(document))
    checked = np.asarray(whole.to_numpy()) & ~positive_is_label(table) & ~is_graded(table)
    ids = {"category": table.column("category"), "query_id": table.column("query_id"), "positive_id": document}
    storage.write_table(storage.join(folder, "texts.parquet"), pa.table({**ids, "checked": checked}))
    return {"rows": table.num_rows, "categories": sorted(count_categories(table))}


def _corpus(unit: tuple[str, Sequence[str]], folder: str) -> dict[str, Any]:
    """Writes the ids of the distinct positives of a category, in the order in which they first occur."""
    category, files = unit
    parts = []
    for file in files:
        table = storage.read_table(file, columns=["category", "positive_id"])
        mine = table.filter(pc.equal(table.column("category"), category)).column("positive_id").drop_null()
        parts.append(pack(mine.unique().to_pylist()))
    together = np.concatenate(parts)
    _, first = np.unique(together, return_index=True)
    save_array(storage.join(folder, "ids.npy"), together[np.sort(first)])
    return {"rows": len(first)}


def _slices(shard: str, file: str, corpora: dict[str, str]) -> Iterator[Slice]:
    """Fixed slices of the rows of a shard that are checked, category by category."""
    table = storage.read_table(file, columns=["category", "checked"])
    checked = np.asarray(table.column("checked").to_numpy())
    encoded = table.column("category").combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    for code, category in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero(checked & (codes == code))
        for start in range(0, len(rows), _QUERIES):
            yield Slice(file, rows[start : start + _QUERIES], corpora[category])


@dataclass(frozen=True)
class _Rank:
    vectors: Output

    def __call__(self, unit: Slice, folder: str) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits

        table = storage.read_table(unit.texts, columns=["query_id", "positive_id"]).take(pa.array(unit.rows))
        own = pack(table.column("positive_id").to_pylist())
        queries = lookup(self.vectors, "query", table.column("query_id").to_pylist())
        corpus = load_array(unit.corpus)
        # One thread and fixed blocks: how a matrix product is divided among threads changes its last bits.
        with threadpool_limits(1):
            ranks = rank(queries, own, corpus, lambda ids: lookup(self.vectors, "document", ids))
        save_array(storage.join(folder, "ranks.npy"), ranks)
        return {"rows": len(ranks)}


def rank(queries: Array, own: Array, corpus: Array, vectors: Any) -> Array:
    """The rank (from 1) of each query's own document in the corpus: int64, (n,).

    `queries` is float32 (n, d), `own` and `corpus` are packed ids, and `vectors(ids)` gives the vectors of some of them.
    """
    mine = np.einsum("nd,nd->n", queries, vectors(own))
    higher = np.zeros(len(queries), np.int64)
    for start in range(0, len(corpus), _DOCUMENTS):
        ids = corpus[start : start + _DOCUMENTS]
        above = queries @ vectors(ids).T > (mine + np.float32(TIE))[:, None]
        higher += np.count_nonzero(above, axis=1)
    return higher + 1


@dataclass(frozen=True)
class _Judged:
    parameters: Any
    name: str

    def __call__(self, unit: tuple[str, Sequence[str], Sequence[Array]], folder: str) -> dict[str, Any]:
        shard, files, rows = unit
        table = storage.read_table(shard)
        ranks = np.zeros(table.num_rows, np.int64)
        for file, at in zip(files, rows, strict=True):
            ranks[at] = load_array(file)
        kept, rejected = split_rejected(table, self.name, judge(ranks, self.parameters))
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))


def judge(ranks: Array, parameters: RoundTripFilter) -> pa.Table:
    """Reasons against the rows whose rank is above `top_k`; 0 is a row that was not checked."""
    verdicts = Verdicts(len(ranks))
    verdicts.add(ranks > parameters.top_k, NOT_RETRIEVED, value=ranks, threshold=parameters.top_k)
    return verdicts.table()
