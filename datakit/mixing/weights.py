"""Temperature sampling: how many rows each category gives. Pure functions of counts.

p_i is proportional to n_i^(1/T) (Conneau and Lample, arXiv 1901.07291, section 3.1, with alpha = 1/T). T = 1 keeps the
proportions of the data, a large T makes categories equal. What a category cannot give, because of its cap or of its maximum of
epochs, is shared among the others in their proportions. Counts are whole numbers by largest remainder, so they sum exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Allocation:
    """Rows by category. `requested` is what was asked for; `total` is less where all categories are at their limits."""

    rows: dict[str, int]
    limits: dict[str, int]
    requested: int

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def shortfall(self) -> int:
        return self.requested - self.total


def probabilities(counts: Mapping[str, int], temperature: float) -> dict[str, float]:
    """p_i = n_i^(1/T) / sum_j n_j^(1/T); 0 for an empty category."""
    weights = _weights(counts, temperature)
    whole = sum(weights.values())
    return {name: float(weights[name] / whole) if name in weights else 0.0 for name in counts}


def limits(counts: Mapping[str, int], caps: Mapping[str, int], max_epochs: float) -> dict[str, int]:
    """The most rows that each category may give: floor(n_i * max_epochs), and not more than its cap."""
    epochs = Fraction(str(max_epochs))  # the decimal number that was written: 0.3 of 10 rows are 3
    most = {name: math.floor(count * epochs) for name, count in counts.items()}
    return {name: min(rows, caps.get(name, rows)) for name, rows in most.items()}


def allocate(
    counts: Mapping[str, int],
    temperature: float = 1.0,
    total: int | None = None,
    caps: Mapping[str, int] | None = None,
    max_epochs: float = 1.0,
) -> Allocation:
    """Rows for each category, in the order of `counts`.

    Without a total it is as many rows as the data has under the caps: the sum of min(n_i, limit_i). With one epoch at most that
    takes every row, whatever the temperature; with more, a high temperature repeats small categories in place of rows of large
    ones. Equal remainders go to the larger category, then to the name that sorts first.
    """
    most = limits(counts, caps or {}, max_epochs)
    requested = sum(min(counts[name], most[name]) for name in counts) if total is None else total
    rows = dict.fromkeys(counts, 0)
    left = min(requested, sum(most.values()))
    open_categories = {name: counts[name] for name in sorted(counts) if most[name]}
    while left:
        weights = _weights(open_categories, temperature)
        whole = sum(weights.values())
        shares = {name: left * weight / whole for name, weight in weights.items()}
        full = [name for name, share in shares.items() if share >= most[name]]
        if not full:
            rows.update(_whole(shares, left, counts))
            break
        for name in full:
            rows[name] = most[name]
            left -= most[name]
            del open_categories[name]
    return Allocation(rows, most, requested)


def _weights(counts: Mapping[str, int], temperature: float) -> dict[str, Fraction]:
    """n_i^(1/T) of the categories with rows, over that of the largest (no overflow), as exact numbers so that shares add up."""
    largest = max(counts.values(), default=0)
    if temperature == 1:
        return {name: Fraction(count, largest) for name, count in counts.items() if count}
    scale = {name: math.log(count) - math.log(largest) for name, count in counts.items() if count}
    return {name: Fraction(math.exp(value / temperature)) for name, value in scale.items()}


def _whole(shares: Mapping[str, Fraction], total: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that sum to `total`, by largest remainder."""
    rows = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (rows[name] - shares[name], -counts[name], name))
    for name in by_remainder[: total - sum(rows.values())]:
        rows[name] += 1
    return rows
