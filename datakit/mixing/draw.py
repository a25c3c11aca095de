"""Which rows of a stratum are taken, how often, and where they stand. Decided by digests of what a row says and of the seed.

A stratum is a category, or a language within it where the mixture has a `language_temperature`. The order is by a number in
[0, 1), drawn for each row: any stretch of it holds categories and languages as a random sample of that size would. Where rows of
a stratum are taken e > 1 times, the order is cut into e pieces and each row stands once in each piece: a row comes again only
when all others of its stratum have been there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit.schema import digest

Array = np.ndarray[Any, np.dtype[Any]]

# Category and language; the language is "" where rows are drawn whatever their language.
Stratum = tuple[str, str]

UNKNOWN_LANGUAGE = "und"  # as in BCP 47


@dataclass(frozen=True)
class Draw:
    """Every row of a stratum is taken `copies` times, and once more up to the key and row_id of `cut`; `rows` of `available`."""

    copies: int
    cut: tuple[int, str] | None
    rows: int
    available: int


def keys(purpose: str, seed: int, contents: Sequence[str], copy: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A pseudo-random 64-bit number for each content: the digest of the purpose, the seed, the number of the copy and the id."""
    start = hashlib.blake2b(digest(purpose, str(seed), str(copy)).encode(), digest_size=8)
    result = bytearray()
    for content in contents:
        state = start.copy()
        state.update(content.encode())
        result += state.digest()
    return np.frombuffer(bytes(result), dtype=">u8").astype(np.uint64)


def contents(table: pa.Table) -> list[str]:
    """What a row is drawn by: what it says, so that its source and place do not matter."""
    found: list[str] = pc.coalesce(table.column("content_id"), table.column("row_id")).to_pylist()
    return found


def languages(table: pa.Table) -> pa.ChunkedArray:
    """The language of each row: "de"; "en>de" where query and positive differ; "und" where the language is not known."""
    query = pc.coalesce(table.column("language"), table.column("positive_language"), pa.scalar(UNKNOWN_LANGUAGE))
    positive = pc.coalesce(table.column("positive_language"), query)
    return pc.if_else(pc.equal(query, positive), query, pc.binary_join_element_wise(query, positive, ">"))


def strata(table: pa.Table, by_language: bool) -> list[Stratum]:
    """The stratum of each row."""
    names = table.column("category").to_pylist()
    return list(zip(names, languages(table).to_pylist() if by_language else [""] * len(names), strict=True))


def copies(table: pa.Table, of: Sequence[Stratum], draws: Mapping[Stratum, Draw], seed: int) -> Array:
    """How often each row is taken."""
    result = np.zeros(table.num_rows, np.int64)
    drawn = keys("draw", seed, contents(table)).tolist()
    row_ids = table.column("row_id").to_pylist()
    for row, stratum in enumerate(of):
        draw = draws[stratum]
        result[row] = draw.copies + (draw.cut is not None and (drawn[row], row_ids[row]) <= draw.cut)
    return result


def places(seed: int, of_content: Sequence[str], copy: int, draws: Sequence[Draw]) -> Array:
    """Where each row stands in the order, in steps of 2^-64, when it is taken for the `copy`-th time (from 0).

    Copy k of a stratum that is taken e times stands somewhere in [k/e, (k+1)/e), or in [k/e, 1) when it is the last, in part.
    """
    order = keys("order", seed, of_content, copy)
    epochs = np.array([max(1.0, draw.rows / draw.available) for draw in draws])
    repeated = epochs > 1
    if repeated.any():
        piece = np.minimum(1.0, epochs[repeated] - copy)
        unit = (order[repeated] >> np.uint64(11)).astype(np.float64) / 2.0**53
        place = np.minimum((copy + unit * piece) / epochs[repeated], 1.0 - 2.0**-53)
        order[repeated] = (place * 2.0**53).astype(np.uint64) << np.uint64(11)
    return order
