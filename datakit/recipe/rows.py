"""What is done with all rows: dedup, split, mixture."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe.fields import Model


class ExactDedup(Model):
    """Reason: exact_duplicate. Equal after case folding, and without punctuation and repeated white space."""

    type: Literal["exact"]
    on: Literal["query", "positive", "pair"] = Field(
        "pair", description="`query` keeps one row of each query, whatever its positives; `positive`, one of each document."
    )
    within: Literal["category", "all"] = Field(
        "category", description="Rows of different categories are compared only under `all`."
    )


class MinHashDedup(Model):
    """Reason: near_duplicate. Candidates by MinHash and LSH, verified by the true Jaccard similarity of their shingles."""

    type: Literal["minhash"]
    on: Literal["query", "positive", "pair"] = Field(
        "query",
        description="`query` keeps one row of queries that are alike, whatever their positives; `pair` asks that both are alike.",
    )
    threshold: float = Field(0.8, gt=0, le=1)
    shingle: Literal["word", "character"] = "word"
    shingle_size: int = Field(3, ge=1, le=32, description="Words or characters in a shingle; a shorter text is one shingle.")
    permutations: int = Field(128, ge=16, le=1024)
    within: Literal["category", "all"] = Field(
        "category", description="Rows of different categories are compared only under `all`."
    )
    engine: Literal["rensa", "datasketch"] = Field(
        "rensa", description="Who signs: rensa, or datasketch, the reference, which is about 50 times slower."
    )
    seed: int = 1


class SemanticDedup(Model):
    """Reason: semantic_duplicate. The cosine of the vectors of an encoder, computed for every pair that is compared."""

    type: Literal["semantic"]
    encoder: str
    on: Literal["query", "positive", "pair"] = Field(
        "query",
        description="`query` keeps one row of queries that mean the same, whatever their positives; `pair` asks that both do.",
    )
    threshold: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Cosine. Depends on the encoder: all-MiniLM-L6-v2 finds 57 % of the disfluent forms of questions at 0.9 (88 "
        "% of what it finds is right), 87 % at 0.8 (76 %).",
    )
    within: Literal["category", "all"] = Field(
        "category", description="Rows of different categories are compared only under `all`."
    )
    probes: int = Field(
        8,
        ge=1,
        description="Clusters that a text is compared with, where more than 50,000 are compared. Below that, all are compared.",
    )


AnyDedup = Annotated[ExactDedup | MinHashDedup | SemanticDedup, Field(discriminator="type")]


class Split(Model):
    """Validation rows, whole documents at a time. Documents whose texts are near duplicates count as one."""

    validation: float = Field(0.1, ge=0, lt=1, description="Share of documents.")
    near_duplicate_threshold: float = Field(0.8, gt=0, le=1)
    max_group_fraction: float = Field(
        0.01, gt=0, le=1, description="A group of documents with more of the rows than this is for training."
    )


class MixtureQuota(Model):
    """A fixed part of the training rows for one category, or for all categories of a family or task together."""

    category: str | None = None
    family: str | None = Field(None, description="Of the registry, such as medical; `recipe` for categories with `define`.")
    task: str | None = Field(None, description="Such as bitext.")
    rows: int | None = Field(None, ge=0)
    share: float | None = Field(None, gt=0, le=1, description="Of `total`.")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if sum(value is not None for value in (self.category, self.family, self.task)) != 1:
            raise ValueError("a quota is for one of 'category', 'family' and 'task'; name exactly one")
        if (self.rows is None) == (self.share is None):
            raise ValueError("a quota has either 'rows' or 'share'; give exactly one")
        return self

    @property
    def name(self) -> str:
        """What the quota is for, for a person: "task bitext"."""
        kind = next(kind for kind in ("category", "family", "task") if getattr(self, kind) is not None)
        return f"{kind} {getattr(self, kind)}"


class Feedback(Model):
    """How an evaluation changes weights (`datakit build --feedback`). The formula stands in datakit/mixing/feedback.py."""

    bound: float = Field(2.0, ge=1, le=16, description="A weight is multiplied by 1/bound to bound; 1 changes nothing.")
    poor: float = Field(0.5, gt=0, le=10, description="So far below the mean score, relative to it, gets the whole raise.")
    plateau: float = Field(
        0.01, gt=0, le=1, description="Scores that move less than this at each evaluation, relative to the score, are a plateau."
    )
    window: int = Field(2, ge=1, description="A plateau is seen over so many steps from one evaluation to the next.")
    rows: int = Field(100, ge=0, description="A score of so many rows counts half; of few rows, little.")


class Mixture(Model):
    """p_i proportional to n_i^(1/T), with quotas and caps; counts sum exactly to the total."""

    temperature: float = Field(1.0, gt=0, description="1 keeps the proportions of the data; a large one makes categories equal.")
    language_temperature: float | None = Field(
        None,
        gt=0,
        description="The same for the languages within each category. Default: rows are drawn whatever their language, which is "
        "about 1. Rows of unknown language are a group of their own, and so is each pair of languages.",
    )
    total: int | None = Field(
        None,
        ge=1,
        description="Training rows. Default: as many as there are under the caps and quotas; then the temperature acts only "
        "where max_epochs is above 1.",
    )
    max_epochs: float = Field(1.0, gt=0, description="A row is used at most so often, on average over its category.")
    caps: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="Most rows of a category.")
    quotas: list[MixtureQuota] = Field([], description="The temperature shares out what they leave, and what each quota holds.")
    shortfall: Literal["renormalise", "repeat", "stop"] = Field(
        "renormalise",
        description="When the share of a category is more than its rows give in `max_epochs`: the others get what is left "
        "(no row is repeated unasked); its own rows are repeated up to `repeat_epochs`; or the build stops.",
    )
    repeat_epochs: float = Field(
        4.0,
        gt=0,
        description="Under `shortfall: repeat`. Language models gained from up to 4 epochs as from new text (arXiv 2305.16264).",
    )
    batch_groups: Literal["category", "language"] = Field(
        "category",
        description="Rows of one `batch_group` may share a batch: those of a category, or of a category and language.",
    )
    feedback: Feedback = Feedback()

    @model_validator(mode="after")
    def _quotas_fit(self) -> Self:
        shares = sum(Fraction(str(quota.share)) for quota in self.quotas if quota.share is not None)
        rows = sum(quota.rows for quota in self.quotas if quota.rows is not None)
        if shares and self.total is None:
            raise ValueError("a quota with 'share' is a share of 'total'; give 'total' too")
        if self.total is not None and rows + shares * self.total > self.total:
            raise ValueError(
                f"the quotas ask for {math.ceil(rows + shares * self.total):,} rows, and 'total' is {self.total:,}; lower them"
            )
        if self.shortfall == "repeat" and self.repeat_epochs < self.max_epochs:
            raise ValueError(
                f"'repeat_epochs' is {self.repeat_epochs:g} and 'max_epochs' is {self.max_epochs:g}; raise 'repeat_epochs'"
            )
        return self
