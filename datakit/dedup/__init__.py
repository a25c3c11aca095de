"""Duplicates: equal rows, nearly equal rows; one of them survives."""

from __future__ import annotations

from collections.abc import Iterator

from datakit.dedup.exact import exact_step
from datakit.dedup.minhash import minhash_step
from datakit.recipe import AnyDedup, ExactDedup
from datakit.step import Step


def dedup_step(number: int, dedup: AnyDedup, inputs: tuple[Step, ...]) -> Step:
    """The step of one entry of the recipe's `dedup`, called after its type and what it compares: `dedup-minhash-query`.

    `number` is the place of the entry; it goes into the name of a step whose name an earlier one has.
    """
    name = f"dedup-{dedup.type}-{dedup.on}"
    if name in _names(inputs):
        name = f"{name}-{number}"
    if isinstance(dedup, ExactDedup):
        return exact_step(name, dedup, inputs)
    return minhash_step(name, dedup, inputs)


def _names(steps: tuple[Step, ...]) -> Iterator[str]:
    for step in steps:
        yield step.name
        yield from _names(step.inputs)
