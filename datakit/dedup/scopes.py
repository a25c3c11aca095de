"""Scopes: only rows of one scope are compared with each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit.schema import digest


def scope(values: pa.ChunkedArray) -> NDArray[np.uint64]:
    """A number for each value, equal for equal values; 0 for null."""
    encoded = values.combine_chunks().dictionary_encode()
    numbers = [int(digest("scope", value)[:16], 16) for value in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(numbers)).to_numpy()
    taken: NDArray[np.uint64] = np.array([*numbers, 0], np.uint64)[indices]
    return taken
