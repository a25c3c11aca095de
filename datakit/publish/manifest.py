"""manifest.json: what a build is made of, and how it came about. No time stamps, no secrets, nothing of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from datakit.recipe import (
    AnySource,
    CrossEncoderRelabel,
    Encoder,
    Engine,
    OutsideCorpus,
    ParallelSource,
    PythonDocsSource,
    Recipe,
)
from datakit.registry import Category
from datakit.schema import SCHEMA_VERSION
from datakit.sources.public import listed
from datakit.step import Counts, Output, Step, package_version

MANIFEST_VERSION = 1

# What steps call the model among their assets.
MODEL_ASSETS = ("encoder", "engine", "model")

# What stands in the place of a category beside a source of texts that negatives may be.
CORPUS = "(negatives)"


class File(BaseModel):
    """A published file: the BLAKE2b digest (128 bit, hex) of its bytes, and its rows where it has rows."""

    digest: str
    rows: int | None = None


class StepEntry(BaseModel):
    """A step of the build, with its counts in whole and by category."""

    name: str
    key: str
    version: int
    counts: Counts
    categories: dict[str, Counts] = {}
    notes: dict[str, Any] = {}
    assets: dict[str, str] = {}

    @property
    def carries_rows(self) -> bool:
        """False for a step that only makes something for others to look at: vectors, documents."""
        return self.counts != Counts()


class SourceEntry(BaseModel):
    """Where rows came from, and under which licence; None where the recipe does not say it."""

    name: str
    licence: str | None = None


class CategoryEntry(BaseModel):
    """A category: what it is, and what became of its rows. created = train + validation + rejected + not_sampled."""

    task: str
    description: str = ""
    instruction: str = ""
    document_instruction: str = ""
    sources: list[SourceEntry] = []
    languages: list[str] = []
    created: int = 0
    rejected: dict[str, int] = {}
    not_sampled: int = 0
    train: int = 0
    validation: int = 0

    @property
    def kept(self) -> int:
        return self.train + self.validation

    def balanced(self) -> bool:
        return self.created == self.kept + sum(self.rejected.values()) + self.not_sampled


class ModelEntry(BaseModel):
    """A model that the recipe names; the digest of its files, or what identifies one that is not on this machine."""

    model: str
    revision: str | None = None
    digest: str | None = None


class Spent(BaseModel):
    """What language models were asked, over all steps; money by currency."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: dict[str, float] = {}


class Totals(BaseModel):
    """Rows of the whole build. created = train + validation + rejected + not_sampled."""

    created: int = 0
    train: int = 0
    validation: int = 0
    rejected: int = 0
    not_sampled: int = 0

    @property
    def kept(self) -> int:
        return self.train + self.validation

    def balanced(self) -> bool:
        return self.created == self.kept + self.rejected + self.not_sampled


class Variety(BaseModel):
    """How varied some texts are that a model wrote (publish/diversity.py); None where there are too few to say, or no means to.

    `rows` have them; `texts` of those that differ were looked at. exact, near: shares of rows and of texts that are another's.
    """

    rows: int
    texts: int
    distinct_1: float | None = None
    distinct_2: float | None = None
    distinct_3: float | None = None
    similarity: float | None = None
    exact: float
    near: float | None = None
    toxicity: float | None = None


class Diversity(BaseModel):
    """The variety of the training rows that a model wrote. `measure` says what similarity is measured by.

    `personas` are the most used ones. `personas_even` personas that are used equally would be as spread as all that are used.
    """

    rows: int
    measure: str
    whole: Variety
    categories: dict[str, Variety]
    personas: dict[str, Variety]
    personas_used: int
    personas_even: float
    warnings: list[str] = []


class Manifest(BaseModel):
    """manifest.json. `corpus` are the sources of texts from outside that negatives may be."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    manifest_version: int = Field(MANIFEST_VERSION, alias="schema")
    row_schema: int = SCHEMA_VERSION
    datakit: str
    name: str
    version: str
    description: str = ""
    recipe: dict[str, Any]
    steps: list[StepEntry]
    files: dict[str, File]
    packages: dict[str, str]
    models: dict[str, ModelEntry]
    spent: Spent
    categories: dict[str, CategoryEntry]
    corpus: list[SourceEntry] = []
    totals: Totals
    diversity: Diversity | None = None

    @property
    def sources(self) -> list[tuple[str, SourceEntry]]:
        """Whatever texts of the build are from, by category; those of negatives from outside last."""
        of_categories = [(name, source) for name, entry in self.categories.items() for source in entry.sources]
        return of_categories + [(CORPUS, source) for source in self.corpus]

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.model_dump_json(indent=2))}</pre>"


def step_entries(outputs: Sequence[tuple[Step, Output]]) -> list[StepEntry]:
    """One entry for each step, in order."""
    return [
        StepEntry(
            name=step.name,
            key=step.key,
            version=step.version,
            counts=output.report.counts,
            categories=output.report.categories,
            notes=output.report.notes,
            assets=dict(sorted(step.assets.items())),
        )
        for step, output in outputs
    ]


def packages(steps: Sequence[Step]) -> dict[str, str]:
    """The versions of Python and of all packages that decided a step's output."""
    names = {"python", *(name for step in steps for name in step.packages)}
    return {name: package_version(name) for name in sorted(names)}


def models(recipe: Recipe, steps: Sequence[Step]) -> dict[str, ModelEntry]:
    """The models of the recipe by their place in it, with the digest that a step which uses one gave it."""
    result = {}
    makers: list[tuple[str, Engine | Encoder]] = [(f"engines.{name}", engine) for name, engine in recipe.engines.items()]
    makers += [(f"encoders.{name}", encoder) for name, encoder in recipe.encoders.items()]
    for place, maker in makers:
        digest = _digest(steps, maker, maker.model, MODEL_ASSETS)
        result[place] = ModelEntry(model=_raw(maker.model), revision=maker.revision, digest=digest)
    for number, item in enumerate(recipe.filters):
        for key in ("model", "checkpoint", "tokenizer"):
            if (value := getattr(item, key, None)) is not None:
                result[f"filters.{number}.{key}"] = ModelEntry(model=_raw(value), digest=_digest(steps, item, value, (key,)))
    screen = recipe.negatives.screen if recipe.negatives else None
    if screen is not None and isinstance(relabel := screen.relabel, CrossEncoderRelabel):
        digest = _digest(steps, screen, relabel.model, ("cross-encoder",))
        entry = ModelEntry(model=_raw(relabel.model), revision=relabel.revision, digest=digest)
        result["negatives.screen.relabel.model"] = entry
    return result


def _digest(steps: Sequence[Step], owner: BaseModel, model: str, names: Sequence[str]) -> str | None:
    """The digest of a model among the assets of a step that has `owner`, the part of the recipe that names it, as a parameter."""
    for step in steps:
        held = [step.parameters, *(getattr(step.parameters, name) for name in type(step.parameters).model_fields)]
        if any(value == owner for value in held):
            for name in (_raw(model), *names):
                if name in step.assets:
                    return step.assets[name]
    return None


def _raw(value: str) -> str:
    """A path as it stands in the recipe, before variables were filled in."""
    return str(getattr(value, "raw", value))


def spent(entries: Sequence[StepEntry]) -> Spent:
    """Requests, tokens and money over all steps; a step notes what it spent under these names."""
    total, money = Counter[str](), dict[str, float]()
    for entry in entries:
        for key in ("requests", "prompt_tokens", "completion_tokens"):
            total[key] += int(entry.notes.get(key) or 0)
        for currency, amount in (entry.notes.get("money") or {}).items():
            money[currency] = round(money.get(currency, 0.0) + float(amount), 6)
    return Spent(
        requests=total["requests"],
        prompt_tokens=total["prompt_tokens"],
        completion_tokens=total["completion_tokens"],
        money=dict(sorted(money.items())),
    )


def categories(
    recipe: Recipe,
    entries: Mapping[str, Category],
    steps: Sequence[StepEntry],
    parts: Mapping[str, Mapping[str, int]],
    languages: Mapping[str, Sequence[str]],
) -> dict[str, CategoryEntry]:
    """What became of each category's rows. `parts` are the published rows of "train" and "validation" by category."""
    counted: dict[str, Counts] = {}
    for step in steps:
        for category, counts in step.categories.items():
            counted[category] = counted.get(category, Counts()).plus(counts)
    result = {}
    for name in [*recipe.categories, *sorted(set(counted) - set(recipe.categories))]:
        counts, entry = counted.get(name, Counts()), entries.get(name)
        result[name] = CategoryEntry(
            task=entry.task if entry else "unknown",
            description=entry.description if entry else "",
            instruction=entry.instruction if entry else "",
            document_instruction=entry.document_instruction if entry else "",
            sources=_sources(listed(recipe.categories[name])) if name in recipe.categories else [],
            languages=list(languages.get(name, [])),
            created=counts.created,
            rejected=counts.rejected,
            not_sampled=counts.not_sampled,
            train=parts.get("train", {}).get(name, 0),
            validation=parts.get("validation", {}).get(name, 0),
        )
    return result


def corpus(recipe: Recipe) -> list[SourceEntry]:
    """The sources of texts from outside that negatives may be."""
    outside = recipe.negatives.corpus if recipe.negatives else None
    return _sources(outside.sources) if isinstance(outside, OutsideCorpus) else []


def _sources(sources: Sequence[AnySource]) -> list[SourceEntry]:
    result = []
    for source in sources:
        if isinstance(source, PythonDocsSource):
            default = f"python-docs: {source.part}"
        elif isinstance(source, ParallelSource):
            default = ", ".join(_raw(path) for path in source.paths)
        else:
            paths = source.path if isinstance(source.path, list) else [source.path]
            default = ", ".join(_raw(path) for path in paths)
        result.append(SourceEntry(name=source.name or default, licence=source.licence))
    return result


def totals(entries: Mapping[str, CategoryEntry]) -> Totals:
    """The sums over all categories."""
    return Totals(
        created=sum(entry.created for entry in entries.values()),
        train=sum(entry.train for entry in entries.values()),
        validation=sum(entry.validation for entry in entries.values()),
        rejected=sum(sum(entry.rejected.values()) for entry in entries.values()),
        not_sampled=sum(entry.not_sampled for entry in entries.values()),
    )
