"""What changes from step to step by a rule: the learning rate, the temperature, and what a sound loss is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median

from trainer.config_loss import Annealing

WINDOW = 20


def rate(step: int, steps: int, warmup: float, floor: float) -> float:
    """The part of the peak rate that step `step` (from 0) of `steps` takes: a linear rise, then half a cosine down to `floor`.

    `warmup` is the part of the steps that rise. The first step is above 0 and the last of the rise is at 1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising - 1)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class State:
    """What goes on from one step of a stage to the next, beside the weights and the optimizer."""

    temperature: float
    best: float | None = None  # the highest dev metric, and the number of steps after which it was measured
    best_step: int | None = None
    waited: int = 0  # measurements in a row that were no better
    losses: list[float] = field(default_factory=list)  # the last WINDOW of them
    smallest: float | None = None  # median of so many losses
    objectives: dict[str, dict[str, float]] = field(default_factory=dict)  # see trainer.objectives


def measured(state: State, steps: int, metric: float, annealing: Annealing | None) -> State:
    """The state after the dev metric (higher is better, and free of the temperature) was measured after `steps` steps.

    At a plateau, `patience` measurements in a row that are no better than the best by `min_gain`, the temperature falls.
    """
    better = state.best is None or metric > state.best + (annealing.min_gain if annealing else 0.0)
    state = replace(state, waited=0 if better else state.waited + 1)
    if state.best is None or metric > state.best:
        state = replace(state, best=metric, best_step=steps)
    if annealing is None or state.waited < annealing.patience:
        return state
    lower = min(state.temperature, max(annealing.floor, state.temperature * annealing.factor))
    # Losses of another temperature are not to be compared with.
    return replace(state, temperature=lower, waited=0, losses=[], smallest=None)


def with_loss(state: State, loss: float) -> State:
    losses = [*state.losses, loss][-WINDOW:]
    if len(losses) < WINDOW:
        return replace(state, losses=losses)
    smallest = median(losses) if state.smallest is None else min(state.smallest, median(losses))
    return replace(state, losses=losses, smallest=smallest)


def diverged(state: State, limit: float | None) -> bool:
    """Whether the median of the last losses is above `limit` times the smallest such median, and by more than 1."""
    if limit is None or state.smallest is None:
        return False
    return median(state.losses) > max(limit * state.smallest, state.smallest + 1.0)
