"""The whole of mixture.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe.decontamination import Decontamination
from datakit.recipe.fields import Language, Model, Path, operational
from datakit.recipe.filters import (
    AnyFilter,
    ConsistencyFilter,
    Encoder,
    JudgeFilter,
    LanguageFilter,
    LengthFilter,
    RoundTripFilter,
)
from datakit.recipe.negatives import AdversarialMiner, DenseMiner, Negatives, OtherClusterMiner
from datakit.recipe.rows import AnyDedup, Mixture, SemanticDedup, Split
from datakit.recipe.screen import JudgeRelabel
from datakit.recipe.sources import AnySource, PythonDocsSource, TableSource
from datakit.recipe.synthesis import Budget, ClusterSelect, Engines, Synthesis, Writing


class Task(Model):
    """What a category is, where the registry does not say it."""

    task: Literal[
        "retrieval", "question_answering", "code_search", "similarity", "nli", "paraphrase", "classification", "clustering",
        "bitext", "summarisation", "conversation", "fact_checking", "reranking",
    ]  # fmt: skip
    instruction: str = ""
    document_instruction: str = ""
    in_batch_negatives: bool = Field(True, description="Whether the positives of other rows are negatives.")
    symmetric: bool = Field(False, description="Query and positive are of one kind, and may change places.")
    writing: Writing = Writing()


class CategoryRecipe(Model):
    """One category of the mixture: from sources of its own, from the public sources of the registry, or written by a model."""

    registry: str | None = Field(None, description="Key of the registry entry. Default: the name of the category.")
    define: Task | None = Field(None, description="Defines a category that the registry does not have.")
    sources: list[AnySource] | Literal["public"] = Field(
        description="`public`: what the registry knows; asks the network, unless `mirror` has the data sets."
    )
    synthesis: Synthesis | None = None
    language: Language | None = Field(None, description="BCP 47 code of the rows, where the source does not say it.")

    @model_validator(mode="after")
    def _documents_have_synthesis(self) -> Self:
        if self.sources == "public":
            if self.synthesis is not None:
                raise ValueError("public sources are pairs; for 'synthesis' name sources of documents")
            return self
        if not self.sources and self.synthesis is None:
            raise ValueError(
                "'sources' is empty; give at least one, or 'public', or 'synthesis' with a prompt that needs no text"
            )
        if not self.sources and self.synthesis and (self.synthesis.quota or isinstance(self.synthesis.select, ClusterSelect)):
            raise ValueError("'quota' and 'select' are about texts that are read, and 'sources' is empty")
        for source in self.sources:
            if isinstance(source, PythonDocsSource):
                documents = source.documents
            else:
                documents = isinstance(source, TableSource) and source.mapping.document is not None
            if documents != (self.synthesis is not None):
                raise ValueError(
                    "a source of documents needs 'synthesis', and synthesis needs sources of documents "
                    f"(here: documents {'yes' if documents else 'no'}, synthesis {'yes' if self.synthesis else 'no'})"
                )
            if self.synthesis and self.synthesis.quota and not (isinstance(source, TableSource) and source.mapping.domain):
                raise ValueError("'quota' goes by the domains of documents: each source needs 'domain' in its columns")
        return self


class Recipe(Model):
    """mixture.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    description: str = ""
    seed: int = 0
    output: Path = operational(Path("datasets"))
    cache: Path = operational(Path(".datakit"))
    mirror: Path | None = operational(
        None, description="A folder with copies of Hub data sets, as <mirror>/<owner>/<name>; looked at before the Hub."
    )
    registries: list[Path] = Field([], description="YAML files with further categories; they go before those of datakit.")
    shard_rows: int = Field(65_536, ge=1)
    categories: dict[str, CategoryRecipe] = Field(min_length=1)
    engines: Engines = {}
    encoders: dict[str, Encoder] = {}
    budget: Budget = operational(Budget())
    filters: list[AnyFilter] = []
    dedup: list[AnyDedup] = []
    decontamination: Decontamination | None = None
    split: Split = Split()
    negatives: Negatives | None = None
    mixture: Mixture = Mixture()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        used: list[tuple[str, str, Mapping[str, Any], str]] = []
        for name, category in self.categories.items():
            if category.synthesis:
                used.append((f"categories.{name}.synthesis.engine", category.synthesis.engine, self.engines, "engines"))
                select = category.synthesis.select
                if isinstance(select, ClusterSelect):
                    used.append((f"categories.{name}.synthesis.select.encoder", select.encoder, self.encoders, "encoders"))
        for number, item in enumerate(self.filters):
            if isinstance(item, LengthFilter):
                used += [(f"filters.{number}.categories", each, self.categories, "categories") for each in item.categories]
            if isinstance(item, RoundTripFilter | ConsistencyFilter):
                used.append((f"filters.{number}.encoder", item.encoder, self.encoders, "encoders"))
            if isinstance(item, LanguageFilter) and not isinstance(item.allow_code_switch, bool):
                place = f"filters.{number}.allow_code_switch"
                used += [(place, name, self.categories, "categories") for name in item.allow_code_switch]
            if isinstance(item, JudgeFilter):
                used.append((f"filters.{number}.engine", item.engine, self.engines, "engines"))
        for number, dedup in enumerate(self.dedup):
            if isinstance(dedup, SemanticDedup):
                used.append((f"dedup.{number}.encoder", dedup.encoder, self.encoders, "encoders"))
        if self.decontamination and self.decontamination.semantic:
            encoder = self.decontamination.semantic.encoder
            used.append(("decontamination.semantic.encoder", encoder, self.encoders, "encoders"))
        if self.negatives and self.negatives.screen:
            used.append(("negatives.screen.encoder", self.negatives.screen.encoder, self.encoders, "encoders"))
            if isinstance(self.negatives.screen.relabel, JudgeRelabel):
                engine = self.negatives.screen.relabel.engine
                used.append(("negatives.screen.relabel.engine", engine, self.engines, "engines"))
        for number, miner in enumerate(self.negatives.miners if self.negatives else []):
            if isinstance(miner, DenseMiner | OtherClusterMiner):
                used.append((f"negatives.miners.{number}.encoder", miner.encoder, self.encoders, "encoders"))
            elif isinstance(miner, AdversarialMiner):
                used.append((f"negatives.miners.{number}.engine", miner.engine, self.engines, "engines"))
        for place, name, known, where in used:
            if name not in known:
                raise ValueError(f"{place} is '{name}', and '{where}' has no such name (it has: {', '.join(known) or 'none'})")
        for name in self.mixture.caps:
            if name not in self.categories:
                raise ValueError(f"mixture.caps names '{name}', which is no category (there are: {', '.join(self.categories)})")
        for number, quota in enumerate(self.mixture.quotas):
            if quota.category is not None and quota.category not in self.categories:
                there = ", ".join(self.categories)
                raise ValueError(f"mixture.quotas.{number} names '{quota.category}', which is no category (there are: {there})")
        return self


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with all defaults, as it is published: no secrets, and without where its output, cache and mirror lie."""
    return recipe.model_dump(mode="json", exclude={"output", "cache", "mirror"})
