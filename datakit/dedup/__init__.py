"""Duplicates: equal rows, nearly equal rows, rows that mean the same; one of them survives."""

from __future__ import annotations

from collections.abc import Iterator

from datakit.dedup.exact import exact_step
from datakit.dedup.minhash import minhash_step
from datakit.dedup.semantic import semantic_step
from datakit.errors import UserError
from datakit.recipe import AnyDedup, ExactDedup, MinHashDedup
from datakit.step import Step


def dedup_step(number: int, dedup: AnyDedup, inputs: tuple[Step, ...], vectors: Step | None = None) -> Step:
    """The step of one entry of the recipe's `dedup`, called after its type and what it compares: `dedup-minhash-query`.

    `number` is the place of the entry; it goes into the name of a step whose name an earlier one has.
    `vectors` is an embed step over the rows of `inputs`, or over rows that they come from; `semantic` alone needs it.
    """
    name = f"dedup-{dedup.type}-{dedup.on}"
    if name in _names(inputs):
        name = f"{name}-{number}"
    if isinstance(dedup, ExactDedup):
        return exact_step(name, dedup, inputs)
    if isinstance(dedup, MinHashDedup):
        return minhash_step(name, dedup, inputs)
    if vectors is None:
        raise UserError(f"The dedup 'semantic' needs the encoder '{dedup.encoder}', and was given no vectors.")
    return semantic_step(name, dedup, inputs, vectors)


def _names(steps: tuple[Step, ...]) -> Iterator[str]:
    for step in steps:
        yield step.name
        yield from _names(step.inputs)
