"""How many rows each category gives, and each language within it. Pure functions of counts and the recipe's section `mixture`.

p_i is proportional to f_i n_i^(1/T) (Conneau and Lample, arXiv 1901.07291, section 3.1, with alpha = 1/T; f_i is the factor of an
evaluation, 1 without one, see feedback.py). T = 1 keeps the proportions of the data, a large T makes categories equal. What a
category cannot give, because of its cap or its epochs, is shared among the others in their proportions. Counts are whole numbers
by largest remainder, so they sum exactly. Quotas are shared out first, each among its own categories by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from datakit.errors import UserError
from datakit.recipe import Mixture

Weights = Mapping[str, Fraction]

# The least weight beside the largest, as an exponent of e. Below it a float would be 0, and nobody could say how categories share
# what larger ones cannot give; those below it are alike.
_LEAST = -700.0


@dataclass(frozen=True)
class Allocation:
    """Rows by category.

    `shares` is what temperature and quotas would give each, whatever it has; `limits` is the most that it may give without being
    repeated beyond `max_epochs`. `requested` is what was asked for; the total is less where no category may give more.
    """

    rows: dict[str, int]
    limits: dict[str, int]
    shares: dict[str, int]
    requested: int

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def shortfall(self) -> int:
        return self.requested - self.total


def probabilities(counts: Mapping[str, int], temperature: float, factors: Mapping[str, float] | None = None) -> dict[str, float]:
    """p_i = f_i n_i^(1/T) / sum_j f_j n_j^(1/T); 0 for an empty category."""
    found = weights(counts, temperature, factors)
    whole = sum(found.values())
    return {name: float(found[name] / whole) if name in found else 0.0 for name in counts}


def weights(counts: Mapping[str, int], temperature: float, factors: Mapping[str, float] | None = None) -> dict[str, Fraction]:
    """f_i n_i^(1/T) of the categories with rows, over n^(1/T) of the largest (no overflow); exact, so that shares add up."""
    largest = max(counts.values(), default=0)
    there = {name: count for name, count in counts.items() if count}
    if temperature == 1:
        plain = {name: Fraction(count, largest) for name, count in there.items()}
    else:
        powers = {name: (math.log(count) - math.log(largest)) / temperature for name, count in there.items()}
        plain = {name: Fraction(math.exp(max(power, _LEAST))) for name, power in powers.items()}
    return {name: weight * Fraction((factors or {}).get(name, 1)) for name, weight in plain.items()}


def limits(counts: Mapping[str, int], caps: Mapping[str, int], epochs: float) -> dict[str, int]:
    """The most rows that each category may give: floor(n_i * epochs), and not more than its cap."""
    most = {name: math.floor(count * _written(epochs)) for name, count in counts.items()}
    return {name: min(rows, caps.get(name, rows)) for name, rows in most.items()}


def allocate(
    counts: Mapping[str, int],
    mixture: Mixture,
    members: Sequence[Iterable[str]] = (),
    factors: Mapping[str, float] | None = None,
) -> Allocation:
    """Rows for each category, in the order of `counts`. `members` are the categories of each of the mixture's quotas.

    Without a total it is as many rows as the data has under the caps: the sum of min(n_i, limit_i), and of the quotas. With one
    epoch at most that takes every row, whatever the temperature; with more, a high temperature repeats small categories in place
    of rows of large ones. What a quota's categories cannot give goes to the categories without a quota; never the other way.

    Equal remainders go to the larger category, then to the name that sorts first. Raises UserError where quotas leave rows that
    no category is there to give.
    """
    most = limits(counts, mixture.caps, mixture.max_epochs)
    widest = limits(counts, mixture.caps, mixture.repeat_epochs) if mixture.shortfall == "repeat" else most
    pools = [sorted(name for name in pool if name in counts) for pool in members]
    rest = sorted(set(counts) - {name for pool in pools for name in pool})
    quotas, requested = _quotas(mixture, sum(min(counts[name], most[name]) for name in rest), bool(rest))
    rows, shares = dict.fromkeys(counts, 0), dict.fromkeys(counts, 0)
    left = requested
    for pool, wanted in zip([*pools, rest], [*quotas, requested - sum(quotas)], strict=True):
        # The rest comes last, and makes up for what the quotas could not fill.
        size = wanted if pool is not rest else left
        sizes = {name: counts[name] for name in pool if widest[name]}
        found = weights(sizes, mixture.temperature, factors)
        own = divided(found, wanted, sizes)
        ceilings = {name: min(widest[name], max(most[name], own[name])) for name in sizes}
        if sum(ceilings.values()) < size:
            ceilings = {name: widest[name] for name in sizes}
        got = filled(found, size, ceilings, sizes)
        shares.update(own)
        rows.update(got)
        left -= sum(got.values())
    return Allocation(rows, most, shares, requested)


def _quotas(mixture: Mixture, there: int, rest: bool) -> tuple[list[int], int]:
    """The rows of each quota, and of the whole. Shares of the total are whole numbers that sum as the shares do."""
    fixed = sum(quota.rows or 0 for quota in mixture.quotas)
    if mixture.total is None:
        return [quota.rows or 0 for quota in mixture.quotas], fixed + there
    parts = {
        str(number): _written(quota.share) * mixture.total
        for number, quota in enumerate(mixture.quotas)
        if quota.share is not None
    }
    remaining = mixture.total - fixed - sum(parts.values())
    if remaining and not rest and mixture.quotas:
        raise UserError(
            f"The mixture's quotas cover every category and hold {mixture.total - math.floor(remaining):,} rows, and 'total' is "
            f"{mixture.total:,}: nobody is left to give the others. Lower 'total', or leave a category without a quota."
        )
    whole = _rounded({**parts, "rest": remaining}, mixture.total - fixed, {})
    return [
        quota.rows if quota.rows is not None else whole[str(number)] for number, quota in enumerate(mixture.quotas)
    ], mixture.total


def by_language(rows: int, counts: Mapping[str, int], mixture: Mixture) -> dict[str, int]:
    """How the rows of one category go to its languages: p_l proportional to n_l^(1/language_temperature), summing to `rows`.

    A language gives ceil(n_l * max_epochs) rows at most; then the others of the category give more, or under `repeat` it is
    repeated for its own share, up to `repeat_epochs`. `stop` is about categories alone.
    """
    assert mixture.language_temperature is not None
    epochs = mixture.repeat_epochs if mixture.shortfall == "repeat" else mixture.max_epochs
    most, widest = (
        {name: math.ceil(count * _written(each)) for name, count in counts.items()} for each in (mixture.max_epochs, epochs)
    )
    found = weights(counts, mixture.language_temperature)
    own = divided(found, rows, counts)
    ceilings = {name: min(widest[name], max(most[name], own.get(name, 0))) for name in counts}
    if sum(ceilings.values()) < rows:
        ceilings = widest
    return {**dict.fromkeys(counts, 0), **filled(found, rows, ceilings, counts)}


def divided(weight: Weights, rows: int, counts: Mapping[str, int]) -> dict[str, int]:
    """`rows` in proportion to the weights, as whole numbers that sum to it; empty where there is no weight."""
    whole = sum(weight.values())
    return _rounded({name: rows * each / whole for name, each in weight.items()}, rows, counts) if whole else {}


def filled(weight: Weights, rows: int, most: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """`rows`, or as many as `most` allows, in proportion to the weights; what is above a limit goes to the others."""
    left = min(rows, sum(most[name] for name in weight))
    result = dict.fromkeys(weight, 0)
    still = {name: each for name, each in weight.items() if most[name]}
    while left:
        whole = sum(still.values())
        shares = {name: left * each / whole for name, each in still.items()}
        full = [name for name, share in shares.items() if share >= most[name]]
        if not full:
            result.update(_rounded(shares, left, counts))
            break
        for name in full:
            result[name] = most[name]
            left -= most[name]
            del still[name]
    return result


def _rounded(shares: Mapping[str, Fraction | int], total: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that sum to `total`, by largest remainder."""
    rows = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (rows[name] - shares[name], -counts.get(name, 0), name))
    for name in by_remainder[: total - sum(rows.values())]:
        rows[name] += 1
    return rows


def _written(number: float) -> Fraction:
    """The decimal number that was written: 0.3 of 10 rows are 3."""
    return Fraction(str(number))
