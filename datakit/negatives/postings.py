"""The compiled loop of BM25 retrieval."""

from __future__ import annotations

from typing import Any

import numpy as np

from datakit.dedup.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]


def best(
    added: Array,
    documents: Array,
    starts: Array,
    size: int,
    terms: Array,
    term_starts: Array,
    excluded: Array,
    excluded_starts: Array,
    k: int,
) -> tuple[Array, Array]:
    """The k documents with the highest sums for each query, best first, equal sums by position: positions and sums, (n, k).

    Term t adds added[i] to document documents[i] for i from starts[t] to starts[t + 1]. Sums are above zero for documents that
    share a term with the query; places beyond them are -1 and 0. `size` is the number of documents.
    """
    queries = len(term_starts) - 1
    found, sums = np.full((queries, k), -1, np.int64), np.zeros((queries, k), np.float64)
    _best(added, documents, starts, size, terms, term_starts, excluded, excluded_starts, found, sums)
    return found, sums


@compiled
def _best(
    added: Array,
    documents: Array,
    starts: Array,
    size: int,
    terms: Array,
    term_starts: Array,
    excluded: Array,
    excluded_starts: Array,
    found: Array,
    sums: Array,
) -> None:
    total = np.zeros(size, np.float64)
    for query in range(len(term_starts) - 1):
        total[:] = 0
        for i in range(term_starts[query], term_starts[query + 1]):
            for j in range(starts[terms[i]], starts[terms[i] + 1]):
                total[documents[j]] += added[j]
        for i in range(excluded_starts[query], excluded_starts[query + 1]):
            total[excluded[i]] = 0
        _select(total, found[query], sums[query])


@compiled
def _select(total: Array, found: Array, sums: Array) -> None:
    """Fills `found` and `sums` with the best documents, best first. While it works they are a heap with the worst on top."""
    k = len(found)
    filled = 0
    document = 0
    while document < len(total) and filled < k:
        if total[document] > 0:
            found[filled], sums[filled] = document, total[document]
            filled += 1
        document += 1
    for root in range(filled // 2 - 1, -1, -1):
        _sink(found, sums, root, filled)
    while document < len(total):
        # A later document with an equal sum is worse than the one it would push out.
        if total[document] > sums[0]:
            found[0], sums[0] = document, total[document]
            _sink(found, sums, 0, filled)
        document += 1
    for last in range(filled - 1, 0, -1):
        found[0], found[last] = found[last], found[0]
        sums[0], sums[last] = sums[last], sums[0]
        _sink(found, sums, 0, last)


@compiled
def _sink(found: Array, sums: Array, root: int, filled: int) -> None:
    while 2 * root + 1 < filled:
        child = 2 * root + 1
        if child + 1 < filled and _worse(found, sums, child + 1, child):
            child += 1
        if _worse(found, sums, root, child):
            return
        found[root], found[child] = found[child], found[root]
        sums[root], sums[child] = sums[child], sums[root]
        root = child


@compiled
def _worse(found: Array, sums: Array, one: int, other: int) -> bool:
    return bool(sums[one] < sums[other] or (sums[one] == sums[other] and found[one] > found[other]))
