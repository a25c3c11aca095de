"""Filters and dedup, one step after the other: the part of a build that `datakit filter` runs alone; and screens of negatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from datakit.assets import Assets
from datakit.dedup import dedup_step
from datakit.encoders.embed import embed_step
from datakit.filters import filter_step, personal_data
from datakit.filters.judge import Judging
from datakit.negatives.adversarial import Writing as Adversarial
from datakit.negatives.relabel import is_judge, relabel_step
from datakit.negatives.screen import screen_step
from datakit.negatives.texts import embed_candidates_step
from datakit.recipe import (
    AnyDedup,
    AnyEngine,
    AnyFilter,
    Budget,
    ConsistencyFilter,
    Encoder,
    JudgeFilter,
    JudgeRelabel,
    Negatives,
    PersonalDataFilter,
    RoundTripFilter,
    SemanticDedup,
)
from datakit.step import Step
from datakit.synthesis.desk import asking
from datakit.synthesis.synthesise import Synthesising


class Wanted(Protocol):
    """What a recipe and a file of filters say alike."""

    @property
    def filters(self) -> Sequence[AnyFilter]: ...
    @property
    def dedup(self) -> Sequence[AnyDedup]: ...
    @property
    def encoders(self) -> Mapping[str, Encoder]: ...
    @property
    def engines(self) -> Mapping[str, AnyEngine]: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def seed(self) -> int: ...


class Vectors:
    """The embed steps of a build, one for each encoder: vectors of some rows serve all steps after them, whose rows are fewer.

    Where texts change on the way, they are embedded anew for the steps after that.
    """

    def __init__(self, encoders: Mapping[str, Encoder], steps: list[Step], assets: Assets) -> None:
        self._encoders, self._steps, self._assets = encoders, steps, assets
        self._known: dict[str, Step] = {}

    def of(self, name: str, rows: Step) -> Step:
        """The step that embeds with the encoder `name`; a new one, over `rows`, where there is none yet."""
        if name not in self._known:
            taken = {step.name for step in self._steps}
            labels = itertools.chain([f"embed-{name}"], (f"embed-{name}-{number}" for number in itertools.count(2)))
            label = next(each for each in labels if each not in taken)
            self._known[name] = embed_step(label, self._encoders[name], (rows,), self._assets)
            self._steps.append(self._known[name])
        return self._known[name]

    def forget(self) -> None:
        """From here on, rows have texts that were not embedded."""
        self._known.clear()


def clean(wanted: Wanted, rows: Step, steps: list[Step], vectors: Vectors, assets: Assets) -> Step:
    """Adds the steps of all filters and of dedup to `steps`; returns the last one. `steps` are those before it in the build."""
    for number, item in enumerate(wanted.filters):
        seen, encoder, asks = None, None, None
        if isinstance(item, RoundTripFilter | ConsistencyFilter):
            seen, encoder = vectors.of(item.encoder, rows), wanted.encoders[item.encoder]
        elif isinstance(item, JudgeFilter):
            asks = asking(item.engine, wanted.engines[item.engine], wanted.budget, wanted.seed, those_asking(steps), assets)
        rows = filter_step(number, item, (rows,), seen, encoder, assets, asks)
        steps.append(rows)
        if isinstance(item, PersonalDataFilter) and personal_data.masks(item):
            vectors.forget()
    for number, dedup in enumerate(wanted.dedup):
        seen = vectors.of(dedup.encoder, rows) if isinstance(dedup, SemanticDedup) else None
        rows = dedup_step(number, dedup, (rows,), seen)
        steps.append(rows)
    return rows


def screened(
    negatives: Negatives, wanted: Wanted, rows: Step, steps: list[Step], vectors: Callable[[str, Step], Step], assets: Assets
) -> Step:
    """Adds the steps that screen and relabel mined negatives, where the recipe has a screen; returns the last one.

    `vectors` gives the embed step of an encoder, by its name, for some rows.
    """
    screen = negatives.screen
    if screen is None:
        return rows
    encoder, seen = wanted.encoders[screen.encoder], vectors(screen.encoder, rows)
    # Negatives that a model wrote, that the data had, or that came from outside are no texts of rows.
    candidates = embed_candidates_step(f"embed-{screen.encoder}-negatives", encoder, rows, seen, assets)
    steps.append(candidates)
    rows = screen_step(negatives, encoder, (rows,), (seen, candidates))
    steps.append(rows)
    if screen.relabel is not None:
        asks = None
        if isinstance(screen.relabel, JudgeRelabel):
            name = screen.relabel.engine
            asks = asking(name, wanted.engines[name], wanted.budget, wanted.seed, those_asking(steps), assets)
        rows = relabel_step(negatives, asks, (rows,), assets)
        steps.append(rows)
    return rows


def those_asking(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Those that ask a language model: one budget is for all of them."""
    return tuple(step for step in steps if isinstance(step.parameters, Synthesising | Judging | Adversarial) or is_judge(step))
