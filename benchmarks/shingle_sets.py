"""Sets of shingles as Python strings, and all pairs of them by brute force: the truth that near duplicates are held against."""

from __future__ import annotations

import numpy as np
import regex

# The words of datakit.dedup.shingles.
WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]+|[\p{S}#%&*/@\\]")
Pairs = dict[tuple[int, int], float]


def shingle_sets(texts: list[str]) -> list[set[str]]:
    """The shingles of datakit.dedup.shingles (three words), as Python sets of strings."""
    sets = []
    for text in texts:
        words = WORD.findall(text.casefold())
        sets.append({" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))} if words else set())
    return sets


def brute_force(sets: list[set[str]], threshold: float) -> Pairs:
    """All pairs at or above the threshold, by a product of sparse matrices."""
    from scipy import sparse

    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(shingle, len(numbers)) for item in sets for shingle in item]
    sizes = np.array([len(item) for item in sets])
    starts = np.concatenate(([0], np.cumsum(sizes)))
    matrix = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(sets), len(numbers)))
    transposed = matrix.T.tocsr()
    found: Pairs = {}
    for first in range(0, len(sets), 500):
        common = (matrix[first : first + 500] @ transposed).tocoo()
        left, right = common.row + first, common.col
        jaccard = common.data / (sizes[left] + sizes[right] - common.data)
        kept = (left < right) & (jaccard >= threshold)
        pairs = zip(left[kept].tolist(), right[kept].tolist(), strict=True)
        found.update(zip(pairs, jaccard[kept].tolist(), strict=True))
    return found
