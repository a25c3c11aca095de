"""What speaks against a mined negative: the rules of the screen, on the similarities of an encoder.

Similarities are float64 dot products, one by one: no matrix product whose last bits depend on how many rows it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from datakit.encoders.vectors import Role
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import SOURCE
from datakit.recipe import Screen

EQUAL_TO_POSITIVE = "equal_to_positive"
PARAPHRASE = "paraphrase"
ABOVE_MARGIN = "above_margin"
ABOVE_ABSOLUTE_MARGIN = "above_absolute_margin"
ABOVE_CEILING = "above_ceiling"
OUTSIDE_RANKS = "outside_ranks"
# In the order in which they are asked: the first that holds is the one that is counted.
REASONS = (EQUAL_TO_POSITIVE, PARAPHRASE, ABOVE_MARGIN, ABOVE_ABSOLUTE_MARGIN, ABOVE_CEILING, OUTSIDE_RANKS)

# Negatives that are compared at a time, and vectors that are multiplied at a time: they bound the memory.
BLOCK = 65_536
_CHUNK = 4_096

Array = np.ndarray[Any, np.dtype[Any]]


class Lookup(Protocol):
    """Where vectors come from: float32 (n, d), of length 1, in the order of `ids`."""

    def __call__(self, role: Role, ids: Sequence[str], /) -> Array: ...


def compared(candidates: pl.DataFrame, screen: Screen) -> pl.Series:
    """Which candidates the encoder is asked about: not classes, and what the data had where the recipe says so."""
    unseen = [OTHER_LABEL] if screen.source else [OTHER_LABEL, SOURCE]
    return ~candidates.get_column("miner").is_in(unseen)


def reasons(candidates: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame, screen: Screen, lookup: Lookup) -> pl.Series:
    """The reason against each candidate, or null.

    `candidates` has row, id, miner; `rows` has row, query_id; `known` has all positives: row, positive_id.
    """
    equal = candidates.select("row", "id").join(
        known.with_columns(equal=True), left_on=["row", "id"], right_on=["row", "positive_id"], how="left", maintain_order="left"
    )
    is_equal = equal.get_column("equal").fill_null(False).to_numpy()
    said = np.where(is_equal, REASONS.index(EQUAL_TO_POSITIVE), len(REASONS))
    places = np.flatnonzero(~is_equal & compared(candidates, screen).to_numpy())
    pairs = candidates.select("row", "id")
    for start, stop in _blocks(candidates.get_column("row").to_numpy()[places]):
        some = places[start:stop]
        said[some] = _compare(pairs[some], rows, known, screen, lookup)
    return pl.Series([*REASONS, None], dtype=pl.String).gather(said)


def held_out(
    candidates: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame, screen: Screen, lookup: Lookup
) -> tuple[int, int]:
    """How well the rules find what is known: (trials, caught).

    A trial is a row whose query has further positives. Its own positive is taken for a candidate that nobody knows to be a
    positive, beside the others of the row; it is caught when a rule drops it.
    """
    own = rows.select("row", id="positive_id").join(known.filter(pl.len().over("row") > 1).select("row").unique(), on="row")
    if own.is_empty():
        return 0, 0
    others = known.join(own, left_on=["row", "positive_id"], right_on=["row", "id"], how="anti")
    beside = candidates.filter(compared(candidates, screen)).select("row", "id")
    beside = beside.join(own.select("row"), on="row", how="semi").join(
        known, left_on=["row", "id"], right_on=["row", "positive_id"], how="anti"
    )
    pairs = pl.concat([own.with_columns(tried=True), beside.with_columns(tried=False)]).sort("row", "tried", "id")
    caught = 0
    for start, stop in _blocks(pairs.get_column("row").to_numpy()):
        some = pairs[start:stop]
        said = _compare(some.select("row", "id"), rows, others, screen, lookup)
        caught += int((said[some.get_column("tried").to_numpy()] < len(REASONS)).sum())
    return len(own), caught


def _blocks(rows: Array) -> list[tuple[int, int]]:
    """Runs of about BLOCK negatives that hold whole rows."""
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    cuts = [0]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        if stop - cuts[-1] > BLOCK and start > cuts[-1]:
            cuts.append(int(start))
    return list(zip(cuts, [*cuts[1:], len(rows)], strict=True))


def _compare(pairs: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame, screen: Screen, lookup: Lookup) -> Array:
    """For each negative (row, id): the place in REASONS of the first rule that drops it, or their number. Whole rows."""
    asked = rows.select("row", "query_id").join(pairs.select("row"), on="row", how="semi", maintain_order="left")
    right = known.join(asked.select("row"), on="row", how="semi", maintain_order="left")
    queries = Vectors.of(lookup, "query", asked.get_column("query_id"))
    texts = Vectors.of(lookup, "document", pl.concat([pairs.get_column("id"), right.get_column("positive_id")]))
    query_of = dict(asked.iter_rows())

    of_positive = dots(queries, texts, [query_of[row] for row in right.get_column("row")], right.get_column("positive_id"))
    of_negative = dots(queries, texts, [query_of[row] for row in pairs.get_column("row")], pairs.get_column("id"))
    # s - |s| (1 - margin) grows with s, so the least similar positive decides for both margins.
    least = right.select("row").with_columns(least=of_positive).group_by("row").agg(pl.col("least").min())
    floor = pairs.join(least, on="row", how="left", maintain_order="left").get_column("least").to_numpy()
    both = pairs.with_row_index("pair").join(right, on="row", maintain_order="left")
    alike = np.full(len(pairs), -np.inf)
    np.maximum.at(
        alike, both.get_column("pair").to_numpy(), dots(texts, texts, both.get_column("id"), both.get_column("positive_id"))
    )

    said = np.full(len(pairs), len(REASONS))

    def say(reason: str, holds: Array) -> None:
        said[holds & (said == len(REASONS))] = REASONS.index(reason)

    if screen.paraphrase is not None:
        say(PARAPHRASE, alike >= screen.paraphrase)
    if screen.margin is not None:
        say(ABOVE_MARGIN, of_negative >= floor - np.abs(floor) * (1 - screen.margin))
    if screen.absolute_margin is not None:
        say(ABOVE_ABSOLUTE_MARGIN, of_negative >= floor - screen.absolute_margin)
    if screen.ceiling is not None:
        say(ABOVE_CEILING, of_negative >= screen.ceiling)
    if screen.ranks is not None:
        rank = pairs.select("row", score=pl.Series(of_negative + screen.positive_weight * alike))
        place = rank.select(pl.col("score").rank("min", descending=True).over("row")).to_series().to_numpy()
        say(OUTSIDE_RANKS, (place < screen.ranks[0]) | (place > screen.ranks[1]))
    return said


@dataclass(frozen=True)
class Vectors:
    """The vectors of some ids, each once."""

    places: dict[str, int]
    vectors: Array

    @classmethod
    def of(cls, lookup: Lookup, role: Role, ids: pl.Series) -> Vectors:
        different = ids.unique().sort().to_list()
        return cls({name: place for place, name in enumerate(different)}, lookup(role, different))

    def at(self, ids: Sequence[str] | pl.Series) -> Array:
        return np.fromiter((self.places[name] for name in ids), np.int64, len(ids))


def dots(left: Vectors, right: Vectors, left_ids: Sequence[str] | pl.Series, right_ids: Sequence[str] | pl.Series) -> Array:
    """The dot product of each pair, float64 (n). Each is summed in the order of the dimensions, whatever stands beside it."""
    one, other = left.at(left_ids), right.at(right_ids)
    result = np.zeros(len(one))
    for start in range(0, len(one), _CHUNK):
        some = slice(start, start + _CHUNK)
        a, b = left.vectors[one[some]].astype(np.float64), right.vectors[other[some]].astype(np.float64)
        result[some] = np.einsum("nd,nd->n", a, b)
    return result
