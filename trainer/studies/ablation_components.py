"""What `trainer ablate` removes. A component changes copies of the recipe's and the run file's values; the rest is checks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from datakit.errors import UserError
from datakit.recipe import Model, Recipe, resolved
from trainer.config import Config

Values = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
Name = Literal[
    "synthetic_data", "filters", "dedup", "hard_negatives", "distillation", "bidirectional", "matryoshka", "focal", "mixing"
]  # fmt: skip


class Custom(Model):
    """A component of one's own: what stands at dotted places of the run file and the recipe without it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    run: dict[str, Any] = Field({}, description="Such as stages.1.loss.focal: null; stages count from 0.")
    recipe: dict[str, Any] = Field({}, description="Such as negatives.screen: null.")


def synthetic_data(recipe: Values, run: Values) -> None:
    """Leaves the categories out that a language model writes, and what the mixture and the filters say of them."""
    gone = {name for name, category in recipe["categories"].items() if category.get("synthesis")}
    mixture = recipe.get("mixture") or {}
    for owner, key in [(recipe, "categories"), (mixture, "caps")]:
        if key in owner:
            owner[key] = {name: value for name, value in owner[key].items() if name not in gone}
    if "quotas" in mixture:
        mixture["quotas"] = [each for each in mixture["quotas"] if each.get("category") not in gone]
    for item in recipe.get("filters") or []:
        if isinstance(item.get("categories"), dict):
            item["categories"] = {name: value for name, value in item["categories"].items() if name not in gone}
        if isinstance(item.get("allow_code_switch"), list):
            item["allow_code_switch"] = [name for name in item["allow_code_switch"] if name not in gone]


def filters(recipe: Values, run: Values) -> None:
    recipe["filters"] = []


def dedup(recipe: Values, run: Values) -> None:
    recipe["dedup"] = []


def hard_negatives(recipe: Values, run: Values) -> None:
    """Draws none, and leaves out what is of them alone."""
    for stage in run["stages"]:
        stage["data"] |= {"negatives": 0, "curriculum": None, "remine": None}
        stage["loss"] |= {"mixing": None, "triangle": None}
        if (stage["loss"]["distillation"] or {}).get("documents") == "own":
            stage["loss"] |= {"distillation": None, "contrastive": stage["loss"]["contrastive"] or 1.0}


def distillation(recipe: Values, run: Values) -> None:
    for stage in run["stages"]:
        stage["loss"]["distillation"] = None
        # A stage of distillation alone is left with the contrastive loss: without any it would be no stage.
        stage["loss"]["contrastive"] = stage["loss"]["contrastive"] or 1.0


def bidirectional(recipe: Values, run: Values) -> None:
    run["model"]["bidirectional"] = False


def matryoshka(recipe: Values, run: Values) -> None:
    for stage in run["stages"]:
        if len(dimensions := stage["loss"]["dimensions"]) > 1:
            stage["loss"] |= {"dimensions": [max(dimensions)], "weights": []}


def focal(recipe: Values, run: Values) -> None:
    for stage in run["stages"]:
        stage["loss"]["focal"] = None


def mixing(recipe: Values, run: Values) -> None:
    for stage in run["stages"]:
        stage["loss"]["mixing"] = None


# With each: what a file that does not have it lacks.
COMPONENTS: dict[Name, tuple[Callable[[Values, Values], None], str]] = {
    "synthetic_data": (synthetic_data, "no category of the recipe has 'synthesis'"),
    "filters": (filters, "the recipe has no 'filters'"),
    "dedup": (dedup, "the recipe has no 'dedup'"),
    "hard_negatives": (hard_negatives, "data.negatives is 0 in every stage"),
    "distillation": (distillation, "no stage has loss.distillation"),
    "bidirectional": (bidirectional, "model.bidirectional is false"),
    "matryoshka": (matryoshka, "no stage has several loss.dimensions"),
    "focal": (focal, "no stage has loss.focal"),
    "mixing": (mixing, "no stage has loss.mixing"),
}
OF_RECIPES = ("synthetic_data", "filters", "dedup")


def without(component: Name | Custom, recipe: Values | None, config: Config) -> tuple[Recipe | None, Config]:
    """The recipe, None where it stays as it is, and the config without a component.

    Raises UserError where they do not have it, or are no longer whole without it.
    """
    name = component.name if isinstance(component, Custom) else component
    if recipe is None and (component.recipe if isinstance(component, Custom) else name in OF_RECIPES):
        raise UserError(f"The component '{name}' changes the recipe, and the ablation file has none. Give 'recipe' for 'build'.")
    written, run = copy.deepcopy(recipe or {"categories": {}}), config.model_dump(mode="json")
    if isinstance(component, Custom):
        lacking = "what it sets stands there already"
        for values, changes in ((run, component.run), (written, component.recipe)):
            for place, value in changes.items():
                put(values, place, value, name)
    else:
        remove, lacking = COMPONENTS[component]
        remove(written, run)
    changed = checked(Config, run, name)
    made = None
    if recipe is not None and written != recipe:
        made = checked(Recipe, written, name)
        made = None if resolved(made) == resolved(Recipe.model_validate(recipe)) else made
    if made is None and changed.model_dump() == config.model_dump():
        raise UserError(f"The component '{name}' cannot be removed: {lacking}. Take it out, or add it to the run.")
    return made, changed


def put(values: Any, place: str, value: Any, name: str) -> None:
    """Sets the value at a dotted place. Raises UserError where what should hold it is not there."""
    *parents, last = place.split(".")
    try:
        for part in parents:
            values = values[int(part) if isinstance(values, list) else part]
        values[int(last) if isinstance(values, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"The component '{name}' sets '{place}', and there is no such place: {error!r}.") from error


def checked(model: type[M], values: Values, name: str) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in error.errors()[:5])
        raise UserError(f"Without the component '{name}' the {model.__name__.lower()} is not valid: {said}.") from error
