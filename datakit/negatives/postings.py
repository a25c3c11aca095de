"""The compiled loops of retrieval. Each goes on with the best documents that were found in earlier pieces of a corpus.

What is kept of a query is the k best of all documents seen so far, as a heap with the worst on top. A document is worse when its
score is lower, and among equal scores when its position is higher: so the k best are the same for any pieces, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datakit.dedup.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

# A float32 product of two vectors of length 1 is nearer than this to their cosine.
MARGIN = 1e-4


@dataclass(frozen=True)
class Excluded:
    """Positions that may not be hits, ascending for each query: those of query i are documents[starts[i] : starts[i + 1]]."""

    documents: Array
    starts: Array

    @classmethod
    def nothing(cls, queries: int) -> Excluded:
        return cls(np.zeros(0, np.int64), np.zeros(queries + 1, np.int64))


@dataclass(frozen=True)
class Best:
    """The best documents of n queries so far: `found` and `sums` (n, k), of which `filled` (n) are in use."""

    found: Array
    sums: Array
    filled: Array

    @classmethod
    def nothing(cls, queries: int, k: int) -> Best:
        return cls(np.full((queries, k), -1, np.int64), np.zeros((queries, k)), np.zeros(queries, np.int64))

    def ranked(self) -> tuple[Array, Array]:
        """Best first: positions, -1 where there are fewer than k, and scores, 0 there. The heaps are no heaps after that."""
        _rank(self.found, self.sums, self.filled)
        return self.found, self.sums


@dataclass(frozen=True)
class Postings:
    """Documents by term: term t adds added[i] to documents[i] (+ first), for i from starts[t] to starts[t + 1]."""

    first: int
    size: int
    starts: Array
    documents: Array
    added: Array


def add_up(postings: Postings, terms: Array, term_starts: Array, excluded: Excluded, best: Best) -> None:
    """Adds the documents of a piece with the highest sums over the terms of each query; only those with a sum above zero."""
    _add_up(
        postings.added, postings.documents, postings.starts, postings.first, postings.size, terms, term_starts,
        excluded.documents, excluded.starts, best.found, best.sums, best.filled,
    )  # fmt: skip


@compiled
def _add_up(
    added: Array,
    documents: Array,
    starts: Array,
    first: int,
    size: int,
    terms: Array,
    term_starts: Array,
    excluded: Array,
    excluded_starts: Array,
    found: Array,
    sums: Array,
    filled: Array,
) -> None:
    total = np.zeros(size, np.float64)
    for query in range(len(term_starts) - 1):
        total[:] = 0
        for i in range(term_starts[query], term_starts[query + 1]):
            start, end = starts[terms[i]], starts[terms[i] + 1]
            which, much = documents[start:end], added[start:end]
            for j in range(len(which)):
                # Unsigned, so that no negative index has to be looked for.
                total[np.uint64(which[j])] += much[j]
        for i in range(excluded_starts[query], excluded_starts[query + 1]):
            if first <= excluded[i] < first + size:
                total[excluded[i] - first] = 0
        own, values, used = found[query], sums[query], filled[query]
        least = values[0] if used == len(own) else 0.0
        for document in range(size):
            if total[document] >= least and total[document] > 0:
                used = _push(own, values, used, first + document, total[document])
                if used == len(own):
                    least = values[0]
        filled[query] = used


def share(
    phrases: Postings,
    words: Postings,
    asked: tuple[Array, Array, Array, Array, Array, Array],
    limits: tuple[float, float],
    excluded: Excluded,
    best: Best,
) -> None:
    """Adds the documents of a piece that share phrases with the query, and few of its other words.

    `asked` are, for phrases and then for words: terms, weights (of a query they sum to 1), starts. With p and w the weights of
    the phrases and words that a document has, its score is p (1 - w); documents with p below the first of `limits`, or w
    above the second, have none.
    """
    _share(
        phrases.documents, phrases.starts, words.documents, words.starts, phrases.first, phrases.size, *asked, *limits,
        excluded.documents, excluded.starts, best.found, best.sums, best.filled,
    )  # fmt: skip


@compiled
def _share(
    documents: Array,
    starts: Array,
    word_documents: Array,
    word_starts: Array,
    first: int,
    size: int,
    terms: Array,
    weights: Array,
    term_starts: Array,
    words: Array,
    word_weights: Array,
    words_of: Array,
    least: float,
    most: float,
    excluded: Array,
    excluded_starts: Array,
    found: Array,
    sums: Array,
    filled: Array,
) -> None:
    shared = np.zeros(size, np.float64)
    other = np.zeros(size, np.float64)
    met = np.empty(size, np.int64)
    for query in range(len(term_starts) - 1):
        count = 0
        for i in range(term_starts[query], term_starts[query + 1]):
            for j in range(starts[terms[i]], starts[terms[i] + 1]):
                document = documents[j]
                if shared[document] == 0:
                    met[count] = document
                    count += 1
                    other[document] = 0
                shared[document] += weights[i]
        if count == 0:
            continue
        for i in range(words_of[query], words_of[query + 1]):
            for j in range(word_starts[words[i]], word_starts[words[i] + 1]):
                other[word_documents[j]] += word_weights[i]
        for i in range(excluded_starts[query], excluded_starts[query + 1]):
            if first <= excluded[i] < first + size:
                other[excluded[i] - first] = 2.0
        own, values, used = found[query], sums[query], filled[query]
        for i in range(count):
            document = met[i]
            if shared[document] >= least and other[document] <= most and other[document] < 1:
                score = shared[document] * (1 - other[document])
                used = _push(own, values, used, first + document, score)
            shared[document] = 0
        filled[query] = used


def nearest(
    products: Array, queries: Array, vectors: Array, positions: Array, rows: Array, excluded: Excluded, best: Best
) -> None:
    """Adds the nearest of some vectors to some queries. `products` is queries @ vectors.T in float32, `rows` the numbers of the
    queries in `best`, `positions` those of the vectors in the corpus. What may be among the best is computed anew in float64,
    term by term, so that the result does not depend on the matrix product."""
    _nearest(products, queries, vectors, positions, rows, excluded.documents, excluded.starts, best.found, best.sums, best.filled)


@compiled
def _nearest(
    products: Array,
    queries: Array,
    vectors: Array,
    positions: Array,
    rows: Array,
    excluded: Array,
    excluded_starts: Array,
    found: Array,
    sums: Array,
    filled: Array,
) -> None:
    k = found.shape[1]
    for number in range(len(rows)):
        row = rows[number]
        own, values, used = found[row], sums[row], filled[row]
        least = np.float32(values[0] - MARGIN) if used == k else np.float32(-3.0)
        for place in range(len(positions)):
            if products[number, place] < least:
                continue
            position = positions[place]
            low, high = excluded_starts[row], excluded_starts[row + 1]
            while low < high:
                middle = (low + high) // 2
                if excluded[middle] < position:
                    low = middle + 1
                else:
                    high = middle
            if low < excluded_starts[row + 1] and excluded[low] == position:
                continue
            exact = 0.0
            for i in range(vectors.shape[1]):
                exact += np.float64(queries[number, i]) * np.float64(vectors[place, i])
            used = _push(own, values, used, position, exact)
            if used == k:
                least = np.float32(values[0] - MARGIN)
        filled[row] = used


@compiled
def _rank(found: Array, sums: Array, filled: Array) -> None:
    for query in range(len(found)):
        for last in range(filled[query] - 1, 0, -1):
            _swap(found[query], sums[query], 0, last)
            _sink(found[query], sums[query], 0, last)


@compiled
def _push(found: Array, sums: Array, filled: int, document: int, score: float) -> int:
    """Takes a document among the best, if it is one; returns how many these are."""
    if filled < len(found):
        found[filled], sums[filled] = document, score
        child = filled
        while child > 0 and _worse(found, sums, child, (child - 1) // 2):
            _swap(found, sums, child, (child - 1) // 2)
            child = (child - 1) // 2
        return filled + 1
    if score > sums[0] or (score == sums[0] and document < found[0]):
        found[0], sums[0] = document, score
        _sink(found, sums, 0, filled)
    return filled


@compiled
def _sink(found: Array, sums: Array, root: int, filled: int) -> None:
    while 2 * root + 1 < filled:
        child = 2 * root + 1
        if child + 1 < filled and _worse(found, sums, child + 1, child):
            child += 1
        if _worse(found, sums, root, child):
            return
        _swap(found, sums, root, child)
        root = child


@compiled
def _swap(found: Array, sums: Array, one: int, other: int) -> None:
    found[one], found[other] = found[other], found[one]
    sums[one], sums[other] = sums[other], sums[one]


@compiled
def _worse(found: Array, sums: Array, one: int, other: int) -> bool:
    return bool(sums[one] < sums[other] or (sums[one] == sums[other] and found[one] > found[other]))
