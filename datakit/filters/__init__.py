"""Filters: each says yes to a row, or why not. `REASONS` lists what each may say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from datakit.assets import Assets
from datakit.errors import UserError
from datakit.filters import (
    consistency,
    judge,
    language,
    language_model,
    length,
    personal_data,
    quality,
    quality_model,
    round_trip,
    toxicity,
    toxicity_detoxify,
    toxicity_embedded,
    user,
)
from datakit.recipe import (
    AnyFilter,
    ConsistencyFilter,
    Encoder,
    JudgeFilter,
    LanguageFilter,
    LengthFilter,
    PersonalDataFilter,
    QualityFilter,
    QualityModelFilter,
    RoundTripFilter,
    ToxicityFilter,
    UserFilter,
)
from datakit.step import Step, Work
from datakit.synthesis.desk import Asking

REASONS: dict[str, tuple[str, ...]] = {
    "length": length.REASONS,
    "language": language.REASONS,
    "toxicity": toxicity.REASONS,
    "quality": quality.REASONS,
    "quality_model": quality_model.REASONS,
    "round_trip": round_trip.REASONS,
    "consistency": consistency.REASONS,
    "personal_data": personal_data.REASONS,
    "judge": judge.REASONS,
}


def filter_step(
    number: int,
    filter: AnyFilter,
    inputs: tuple[Step, ...],
    vectors: Step | None,
    encoder: Encoder | None,
    assets: Assets,
    asking: Asking | None = None,
) -> Step:
    """The step of the recipe's filter `number` (from 0) on the rows of `inputs`.

    `vectors` is the embed step that `encoder` made, over these rows or over rows that they come from; only round_trip and
    consistency need both.
    `asking` says how a judge asks.
    A model that is missing, and a language that the model cannot tell, are a UserError here, before anything runs.
    """
    name = f"filter-{filter.type.replace('_', '-')}"
    if name in _names(inputs):
        name = f"{name}-{number}"
    side: tuple[Step, ...] = ()
    digests: dict[str, str] = {}
    packages: tuple[str, ...] = ("polars",)
    function: Callable[[Work], None]
    match filter:
        case LengthFilter():
            function, version = length.work, length.VERSION
            if filter.tokenizer is not None:
                length.check(filter)
                digests["tokenizer"] = assets.digest(filter.tokenizer)
                packages += ("tokenizers", "transformers")
        case LanguageFilter():
            function, version = language.work, language.VERSION
            language.check(filter)
            digests["model"] = assets.digest(filter.model)
            digests["calibration"] = assets.digest(filter.calibration or str(language_model.SHIPPED))
            packages += ("fasttext-community", "fasttext-predict")
        case ToxicityFilter(engine="embedded"):
            function, version = toxicity.work, toxicity.VERSION
            toxicity.check(filter)
            digests["words"] = assets.digest(toxicity_embedded.WORDS)
        case ToxicityFilter():
            function, version = toxicity.work, toxicity.VERSION
            toxicity.check(filter)
            digests |= {"checkpoint": assets.digest(str(filter.checkpoint)), "config": assets.digest(str(filter.config))}
            packages += toxicity_detoxify.PACKAGES
        case QualityFilter():
            function, version = quality.work, quality.VERSION
        case QualityModelFilter():
            function, version = quality_model.work, quality_model.VERSION
            quality_model.load(filter.model)
            digests["model"] = assets.digest(filter.model)
            packages += ("fasttext-community", "fasttext-predict")
        case RoundTripFilter():
            if vectors is None or encoder is None:
                raise UserError(f"The filter 'round_trip' needs the encoder '{filter.encoder}', and was given no vectors.")
            function, version = round_trip.work, round_trip.VERSION
            side = (vectors,)
            packages = ("numpy",)
        case ConsistencyFilter():
            if vectors is None or encoder is None:
                raise UserError(f"The filter 'consistency' needs the encoder '{filter.encoder}', and was given no vectors.")
            function, version = consistency.work, consistency.VERSION
            side = (vectors,)
            packages = ("numpy",)
        case PersonalDataFilter():
            function, version = personal_data.work, personal_data.VERSION
            personal_data.check(filter)
            packages += ("phonenumbers", "python")
        case UserFilter():
            plugin = user.locate(filter)
            user.check(filter, plugin)
            function, version = functools.partial(user.work, plugin), user.VERSION
            digests |= user.digests(filter, plugin, assets)
        case JudgeFilter():
            if asking is None:
                raise UserError(f"The filter 'judge' needs the engine '{filter.engine}', and was given none.")
            return judge.judge_step(name, filter, asking, inputs)
    return Step(name, version, function, filter, inputs, side, digests, packages)


def _names(steps: tuple[Step, ...]) -> set[str]:
    """The names of steps and of all that their rows come from."""
    found: set[str] = set()
    waiting: list[Any] = list(steps)
    while waiting:
        step = waiting.pop()
        if step.name not in found:
            found.add(step.name)
            waiting.extend(step.inputs)
    return found
