"""MinHash signatures of shingle sets, and the band keys under which similar sets meet.

Two sets agree in one place of their signatures with a probability of their Jaccard similarity s (Broder 1997), so they share at
least one of b bands of r places with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The share of pairs exactly at the threshold that must meet in some band. Equal weights for both errors, as datasketch and others
# choose by default, find only about 40 % of them; what meets without being similar is sorted out by verification.
RECALL = 0.985

# Sets signed at a time: rensa hands its signatures out as Python integers, and this bounds how many there are at once.
BLOCK_SETS = 2048

Engine = Literal["rensa", "datasketch"]


class Bands(NamedTuple):
    """`bands` bands of `rows` places each, and the share of pairs at the threshold that they find."""

    bands: int
    rows: int
    recall: float


def bands_for(threshold: float, permutations: int) -> Bands:
    """The longest bands that still find RECALL of the pairs at the threshold; bands of one place where none do."""
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        recall = 1 - (1 - threshold**rows) ** bands
        if recall >= RECALL:
            return Bands(bands, rows, recall)
    return Bands(permutations, 1, 1 - (1 - threshold) ** permutations)


def signatures(
    tokens: NDArray[np.uint64], starts: NDArray[np.int64], permutations: int, seed: int, engine: Engine
) -> NDArray[np.uint32]:
    """uint32 of (sets, permutations): the signature of each set tokens[starts[i]:starts[i + 1]]. No set may be empty.

    tokens: uint64 hashes. The engines draw their permutations differently, so their signatures are not comparable.
    """
    sign = _rensa if engine == "rensa" else _datasketch
    sets = len(starts) - 1
    result = np.empty((sets, permutations), np.uint32)
    for first in range(0, sets, BLOCK_SETS):
        last = min(first + BLOCK_SETS, sets)
        begin, end = starts[first], starts[last]
        result[first:last] = sign(tokens[begin:end], starts[first : last + 1] - begin, permutations, seed)
    return result


def _rensa(tokens: NDArray[np.uint64], starts: NDArray[np.int64], permutations: int, seed: int) -> NDArray[np.uint32]:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(tokens, starts.astype(np.uint64), permutations, seed)
    return np.array(matrix.to_rows(), np.uint32)


def _datasketch(tokens: NDArray[np.uint64], starts: NDArray[np.int64], permutations: int, seed: int) -> NDArray[np.uint32]:
    from datasketch import MinHash

    # datasketch takes 32-bit hashes; the upper half of a token says which text of a pair it is from.
    hashes = (tokens ^ (tokens >> np.uint64(32)) * np.uint64(0x9E3779B9)).astype(np.uint32)
    blank = MinHash(permutations, seed=seed, hashfunc=_as_it_is, scheme="affine32")
    result = np.empty((len(starts) - 1, permutations), np.uint32)
    for number in range(len(starts) - 1):
        minhash = blank.copy()
        minhash.update_batch(hashes[starts[number] : starts[number + 1]])
        result[number] = minhash.hashvalues
    return result


def _as_it_is(value: int) -> int:
    return value


def band_keys(signed: NDArray[np.uint32], bands: Bands, scopes: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """uint64 of (bands, sets): sets meet in a band when their keys are equal there.

    `scopes` (uint64 of sets) keeps sets apart: only sets of one scope meet. Unequal bands get equal keys with a probability of
    2^-64, and then are verified in vain.
    """
    used = signed[:, : bands.bands * bands.rows].reshape(len(signed), bands.bands, bands.rows)
    keys = np.zeros((bands.bands, len(signed)), np.uint64)
    if scopes is not None:
        keys ^= scopes
    for place in range(bands.rows):
        keys = _mix(keys * np.uint64(0x9E3779B97F4A7C15) + used[:, :, place].T + np.uint64(1))
    return keys


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3 (64 bit), for arrays."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))
