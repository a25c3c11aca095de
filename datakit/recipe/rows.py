"""What is done with all rows: dedup, split, mixture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    threshold: float = Field(0.9, gt=0, le=1, description="Cosine. What is the same depends on the encoder.")
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


class Mixture(Model):
    """p_i proportional to n_i^(1/T), with caps; counts sum exactly to the total."""

    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="1 keeps the proportions of the data; a large one makes categories equal."
    )
    total: int | None = Field(
        None,
        ge=1,
        description="Training rows. Default: as many as there are under the caps; then the temperature acts only where "
        "max_epochs is above 1.",
    )
    max_epochs: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="A row is used at most so often, on average over its category."
    )
    caps: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="Most rows of a category.")
    shortfall: Literal["renormalise", "stop"] = Field(
        "renormalise", description="When the caps do not allow the total: give less, with a line in the log, or stop."
    )
