"""The learning rate over a run."""

from __future__ import annotations

import math


def rate(step: int, steps: int, warmup: float, floor: float) -> float:
    """The part of the peak rate that step `step` (from 0) of `steps` takes: a linear rise, then half a cosine down to `floor`.

    `warmup` is the part of the steps that rise. The first step is above 0 and the last of the rise is at 1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising - 1)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
