"""A second way to the rows of a mixture, for tests: slow, in fractions, by searching the level at which limits are met.

`datakit.mixing.weights` closes categories round by round; here each limit is a place where the level may bend, and they are tried
in order. Weights are computed here where they are rational (T = 1); else they are those of the code under test, which a test of
their own compares with n^(1/T).
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

from datakit.mixing.weights import weights
from datakit.recipe import Mixture


def decimal(number: float) -> Fraction:
    return Fraction(str(number))


def rounded(shares: dict[str, Fraction], total: int, size: dict[str, int]) -> dict[str, int]:
    rows = {name: floor(share) for name, share in shares.items()}
    for _ in range(total - sum(rows.values())):
        first = max(shares, key=lambda name: (shares[name] - rows[name], size.get(name, 0), [-ord(letter) for letter in name]))
        rows[first] += 1
    return rows


def level(weight: dict[str, Fraction], total: int, most: dict[str, int], size: dict[str, int]) -> dict[str, int]:
    """min(limit, level * weight) for the one level at which they sum to `total`; all limits where they sum to less."""
    names = [name for name in weight if most[name]]
    if sum(most[name] for name in names) <= total:
        return {name: most[name] for name in weight}
    bends = sorted({Fraction(most[name]) / weight[name] for name in names})
    reached = next(bend for bend in bends if sum(min(Fraction(most[n]), bend * weight[n]) for n in names) >= total)
    below = [bend for bend in bends if bend < reached]
    closed = [name for name in names if below and most[name] <= below[-1] * weight[name]]
    still = [name for name in names if name not in closed]
    left = total - sum(most[name] for name in closed)
    at = Fraction(left) / sum(weight[name] for name in still)
    # A category that is met exactly at the level counts as closed: its share is whole.
    rows = rounded({name: at * weight[name] for name in still}, left, size)
    return {**dict.fromkeys(weight, 0), **{name: most[name] for name in closed}, **rows}


def weighed(size: dict[str, int], temperature: float, factors: dict[str, float]) -> dict[str, Fraction]:
    if temperature == 1:
        return {name: count * Fraction(factors.get(name, 1.0)) for name, count in size.items() if count}
    return weights(size, temperature, factors)


def pool_rows(
    size: dict[str, int], weight: dict[str, Fraction], own: int, rows: int, most: dict[str, int], widest: dict[str, int]
) -> dict[str, int]:
    if not weight:
        return {}
    whole = sum(weight.values())
    share = rounded({name: own * each / whole for name, each in weight.items()}, own, size)
    ceilings = {name: min(widest[name], max(most[name], share[name])) for name in weight}
    return level(weight, rows, ceilings if sum(ceilings.values()) >= rows else widest, size)


def rows_of(counts: dict[str, int], mixture: Mixture, members: list[list[str]], factors: dict[str, float]) -> dict[str, int]:
    """Rows of each category."""

    def limit(name: str, epochs: float) -> int:
        most = floor(counts[name] * decimal(epochs))
        return min(most, mixture.caps[name]) if name in mixture.caps else most

    most = {name: limit(name, mixture.max_epochs) for name in counts}
    widest = {name: limit(name, mixture.repeat_epochs) for name in counts} if mixture.shortfall == "repeat" else most
    taken = {name for pool in members for name in pool}
    rest = [name for name in counts if name not in taken]
    total = mixture.total
    if total is None:
        total = sum(quota.rows for quota in mixture.quotas) + sum(min(counts[name], most[name]) for name in rest)
    shares = {f"{i}": decimal(q.share) * total for i, q in enumerate(mixture.quotas) if q.share is not None}
    fixed = sum(quota.rows for quota in mixture.quotas if quota.rows is not None)
    whole = rounded({**shares, "rest": total - fixed - sum(shares.values())}, total - fixed, {})
    held = [quota.rows if quota.share is None else whole[f"{i}"] for i, quota in enumerate(mixture.quotas)]
    result = dict.fromkeys(counts, 0)
    for pool, rows in zip(members, held, strict=True):
        size = {name: counts[name] for name in pool if counts.get(name) and widest[name]}
        result.update(pool_rows(size, weighed(size, mixture.temperature, factors), rows, rows, most, widest))
    size = {name: counts[name] for name in rest if counts[name] and widest[name]}
    left = total - sum(result.values())
    result.update(pool_rows(size, weighed(size, mixture.temperature, factors), total - sum(held), left, most, widest))
    return result


def languages_of(rows: int, counts: dict[str, int], mixture: Mixture) -> dict[str, int]:
    """Rows of each language of a category."""
    most = {name: ceil(count * decimal(mixture.max_epochs)) for name, count in counts.items()}
    wide = {name: ceil(count * decimal(mixture.repeat_epochs)) for name, count in counts.items()}
    weight = weighed(counts, mixture.language_temperature or 1, {})
    return pool_rows(counts, weight, rows, rows, most, wide if mixture.shortfall == "repeat" else most)
