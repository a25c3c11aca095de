"""How many negatives each miner gives: an order of the candidates of a row of which any beginning is mixed as the quota says.

The k-th candidate of a miner with the weight w stands at (k - 1/2) / w; candidates go by that, and miners in the order of the
recipe where it is equal. With weights that sum to n, the first n hold as many of each miner as its weight says; where a miner has
too few, the others go on in the same proportions. Miners with the weight 0 come last. When candidates are taken away (a screen),
the order is made anew from those that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import polars as pl

from datakit.recipe import Negatives, RandomMiner
from datakit.recipe.negatives import AnyMiner


def weights(miners: Sequence[AnyMiner], quota: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of each miner by name, in the order of the recipe: the quota, 0 where it names others; or equal ones, and 0 for
    random texts where there are others."""
    names = [miner.type for miner in miners]
    if quota is not None:
        return {name: float(quota.get(name, 0.0)) for name in names}
    alone = all(isinstance(miner, RandomMiner) for miner in miners)
    return {miner.type: 0.0 if isinstance(miner, RandomMiner) and not alone else 1.0 for miner in miners}


def weights_of(negatives: Negatives) -> dict[str, float]:
    return weights(negatives.miners, negatives.quota)


def mixed(candidates: pl.DataFrame, weight: Mapping[str, float]) -> pl.DataFrame:
    """The candidates (row, miner, and others), each miner's of a row best first, in the order above: by row. Miners without a
    weight come first, in their order: what the data had."""
    order = {name: number for number, name in enumerate(weight)}
    miner = pl.col("miner")
    place = pl.int_range(pl.len()).over("row", "miner").cast(pl.Float64) + 0.5
    share = miner.replace_strict(dict(weight), default=None, return_dtype=pl.Float64)
    at = pl.when(share.is_null()).then(-1.0).when(share > 0).then(place / share).otherwise(1e9 + place)
    number = miner.replace_strict(order, default=-1, return_dtype=pl.Int64)
    # Equal quotients must be equal numbers: 1.5 / 3 and 0.5 / 1 are.
    return (
        candidates.with_columns(_at=at.round(9), _miner=number)
        .sort("row", "_at", "_miner", maintain_order=True)
        .drop("_at", "_miner")
    )


def distinct(candidates: pl.DataFrame, weight: Mapping[str, float], text: str) -> pl.DataFrame:
    """`mixed`, where several miners found the same `text` (a column) of a row: it is the one's whose turn it comes at first."""
    once = mixed(candidates, weight).unique(["row", text], keep="first", maintain_order=True)
    return mixed(once, weight)


def shortfalls(candidates: pl.DataFrame, rows: int, weight: Mapping[str, float], per_query: int) -> dict[str, int]:
    """By miner with a quota: how many negatives of `rows` rows it lacks of its share of `per_query`, which others gave if they
    had them."""
    # The numbers as somebody wrote them: with floats, 3 of 11 of 55 are less than 15.
    shares = {name: Fraction(str(value)) for name, value in weight.items()}
    total = sum(shares.values())
    counts = candidates.group_by("row", "miner").agg(number=pl.len())
    lacking = {}
    for name, share in shares.items():
        wanted = int(share / total * per_query) if total else 0
        if wanted:
            given = counts.filter(pl.col("miner") == name).get_column("number")
            lacking[name] = wanted * rows - int(given.clip(upper_bound=wanted).sum())
    return lacking
