"""Cosines of the texts of rows to evaluation texts, at or above a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Vectors that meet all evaluation texts at once, and evaluation texts that they meet: 4,096 x 4,096 cosines take 64 MiB.
_BLOCK = 4_096
_SLACK = 1e-3


def alike(vectors: Array, evaluation: Array, threshold: float) -> tuple[Array, Array, Array]:
    """(row, evaluation text, cosine) of all pairs at or above the threshold.

    A matrix product finds candidates; the cosine of each is summed by itself in float64 and rounded to 0.0001, so that it does
    not depend on what stands beside it. Both arrays are float32 (n, d), of length 1.
    """
    rows, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(vectors), _BLOCK):
        for start in range(0, len(evaluation), _BLOCK):
            near = vectors[first : first + _BLOCK] @ evaluation[start : start + _BLOCK].T
            row, other = np.nonzero(near >= threshold - _SLACK)
            rows.append(row + first)
            others.append(other + start)
    row, other = np.concatenate(rows), np.concatenate(others)
    cosines = np.zeros(len(row))
    for first in range(0, len(row), _BLOCK):
        some = slice(first, first + _BLOCK)
        cosines[some] = np.einsum("nd,nd->n", vectors[row[some]].astype(float), evaluation[other[some]].astype(float))
    cosines = np.round(cosines, 4)
    high = cosines >= threshold
    return row[high], other[high], cosines[high]
