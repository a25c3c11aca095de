"""A whole number parted among groups, by weight and within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def allocate(count: int, weights: Sequence[Fraction], available: Sequence[int], floors: Sequence[int]) -> list[int]:
    """`count` parted among groups by weight: at least the floor of each and at most what it has, whole by largest remainder.

    The sum is `count`, or all that groups with a weight or a floor have. Where the floors alone are more than `count`, they are
    parted evenly.
    """
    least = [min(floor, size) for floor, size in zip(floors, available, strict=True)]
    if sum(least) > count:
        return allocate(count, [Fraction(1)] * len(least), least, [0] * len(least))
    most = [size if weight else low for weight, size, low in zip(weights, available, least, strict=True)]
    if sum(most) <= count:
        return most

    def shares(level: Fraction) -> list[Fraction]:
        return [min(max(level * w, Fraction(low)), Fraction(high)) for w, low, high in zip(weights, least, most, strict=True)]

    # The sum of shares grows with the level, in straight pieces between the levels at which a group leaves a bound.
    turns = sorted({Fraction(bound) / w for w, *bounds in zip(weights, least, most, strict=True) if w for bound in bounds})
    low, high = 0, len(turns) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(shares(turns[middle])) >= count else (middle + 1, high)
    end = turns[low]
    start = turns[low - 1] if low else Fraction(0)
    below, above = sum(shares(start)), sum(shares(end))
    level = end if above == below else start + (end - start) * (count - below) / (above - below)
    exact = shares(level)
    whole = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda each: (whole[each] - exact[each], each))
    for each in order[: count - sum(whole)]:
        whole[each] += 1
    return whole
