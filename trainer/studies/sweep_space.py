"""The space of a sweep: places of a run file by their dotted paths, and what may stand at each. sweep.py searches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from datakit.errors import UserError
from datakit.recipe import Model
from trainer.config import Config

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None
Values = dict[str, Value]
Place = tuple[str | int, ...]


class Parameter(Model):
    """Numbers from low to high, whole ones with `int: true`, or one of some choices, which have no order."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log: bool = Field(False, description="Drawn evenly in the logarithm.")
    int: bool = Field(False, description="Whole numbers, low and high included.")
    step: PositiveInt | None = Field(None, description="Of whole numbers, counted from low; 1 when absent.")
    choices: list[Value] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            others = (self.low, self.high, self.log, self.int, self.step)
            if others != (None, None, False, False, None) or len(set(self.choices)) < len(self.choices):
                raise ValueError(f"choices are {self.choices}; allowed: different ones, with no other key beside them")
            return self
        if self.low is None or self.high is None:
            raise ValueError("low and high, or choices: give one of the two")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; allowed: a low that is below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low} with log: true; allowed: above 0, for 0 has no logarithm")
        if self.step and (self.log or not self.int):
            raise ValueError(f"step is {self.step}; allowed with int: true, and without log")
        if self.int and (self.low % 1 or (self.high - self.low) % (self.step or 1)):
            raise ValueError(
                f"low is {self.low} and high is {self.high}; allowed with int: true: whole numbers, whole steps apart"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low or 0, self.high or 0

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        low, high = self.bounds
        if self.int:
            return IntDistribution(round(low), round(high), log=self.log, step=self.step or 1)
        return FloatDistribution(low, high, log=self.log)

    def probes(self) -> list[Value]:
        """All choices, or the extremes; of other numbers one between too: a place for whole numbers refuses it."""
        low, high = self.bounds
        return self.choices or ([round(low), round(high)] if self.int else [low, high, low + (high - low) * 0.618034])

    def holds(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        low, high = self.bounds
        number = type(value) is int or (type(value) is float and not self.int)
        return number and low <= value <= high and (not self.int or (value - low) % (self.step or 1) == 0)


def places_of(space: Mapping[str, Parameter], config: Config) -> dict[str, Place]:
    """Where each dotted path leads. Raises UserError where the run file has nothing there."""
    found = {path: place_of(path, config) for path in space}
    for path, place in found.items():
        if inside := [other for other, longer in found.items() if other != path and longer[: len(place)] == place]:
            raise UserError(f"space: '{inside[0]}' lies at or inside '{path}'. Leave one of the two out.")
    return found


def place_of(path: str, config: Config) -> Place:
    """Stages go by their names, which may hold dots; other lists by numbers from 0."""
    parts = path.split(".")
    if parts[0] == "evaluation":
        raise UserError(f"space: '{path}' changes what is measured, so that trials could not be compared. Take it out.")
    if parts[0] == "stages":
        names, inner = [stage.name for stage in config.stages], path.removeprefix("stages.")
        name = max((each for each in names if inner.startswith(f"{each}.")), key=len, default=None)
        if name is None:
            raise UserError(f"space: '{path}' names no stage. The run file has: {', '.join(names)}.")
        parts = ["stages", str(names.index(name)), *inner.removeprefix(f"{name}.").split(".")]
    node: Any = config.model_dump(mode="json")
    place: Place = ()
    for part in parts:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        key = int(part) if isinstance(node, list) and part.isdigit() else part
        if key not in keys:
            allowed = f"There is: {', '.join(map(str, keys))}" if keys else f"It has {node!r} in its place: write it there first"
            raise UserError(f"space: '{path}': the run file has no '{part}' there. {allowed}.")
        node, place = node[key], (*place, key)
    return place


def with_values(config: Config, places: Mapping[str, Place], values: Mapping[str, Value]) -> Config:
    """The run file with other values. Raises ValidationError where it does not allow them."""
    tree = config.model_dump(mode="json")
    for path, value in values.items():
        *parents, last = places[path]
        node: Any = tree
        for key in parents:
            node = node[key]
        node[last] = value
    return Config.model_validate(tree)


def own_values(space: Mapping[str, Parameter], places: Mapping[str, Place], config: Config) -> Values:
    """What the run file itself has, of all that lies within the space."""
    found: Values = {}
    for path, place in places.items():
        value: Any = config.model_dump(mode="json")
        for key in place:
            value = value[key]
        if space[path].holds(value):
            found[path] = value
    return found
