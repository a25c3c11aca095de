"""The pydantic models of a stage's loss, the part `loss` of a run file. What they ask for is in losses.py."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from datakit.recipe import Model, Path


class Annealing(Model):
    """The temperature is multiplied by `factor` when the dev metric, which does not depend on it, reaches a plateau."""

    factor: float = Field(0.8, gt=0, lt=1)
    floor: float = Field(0.01, gt=0, description="The temperature does not go below this.")
    patience: int = Field(2, ge=1, description="Measurements in a row that are no better than the best one by min_gain.")
    min_gain: float = Field(0.001, ge=0, description="What counts as better, in nDCG@10.")


class Focal(Model):
    """Rows weigh alpha (1 - p)^gamma, p the probability of the positive (Lin et al. 2017, arXiv 1708.02002, eq. 5)."""

    gamma: float = Field(0.5, ge=0, description="KaLM-Embedding-V2 is near 0.5; the brief gives 2.")
    alpha: float = Field(1.0, gt=0, description="A scale, as each row has one positive. The brief gives 0.25.")
    detach: bool = Field(True, description="Whether the weight is a constant for the gradient.")


class Mixing(Model):
    """More negatives for a row, mixed from its own mined ones and brought back to length 1 (arXiv 2506.20923, section 3)."""

    pairs: int = Field(1, ge=0, description="lambda a + (1 - lambda) b of two drawn ones, lambda from Beta(beta, beta).")
    lists: bool = Field(True, description="One more: the sum of all of them, weighted by the softmax of their similarities.")
    beta: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.pairs and not self.lists:
            raise ValueError("pairs is 0 and lists is false, so that nothing is mixed; give one of the two, or leave mixing out")
        return self


class Distillation(Model):
    """KL(teacher || student) over a row's documents (the brief, IV stage 3). Computed once for each text, and kept in the run."""

    teacher: Path = Field(description="A sentence-transformers model: a name, a folder, or package:NAME/inner/path.")
    kind: Literal["embeddings", "scores"] = Field(
        "embeddings", description="embeddings: cosines of an encoder. scores: a cross-encoder, on the row's own documents."
    )
    max_length: int | None = Field(None, ge=2, description="Tokens of a text that the teacher reads; its own limit when absent.")
    weight: float = Field(1.0, gt=0)
    teacher_temperature: float = Field(0.05, gt=0)
    student_temperature: float = Field(0.05, gt=0)
    documents: Literal["batch", "own", "texts"] = Field(
        "batch",
        description="batch: all documents in the row's denominator. own: its positive and its mined negatives. texts: whatever "
        "the batch holds, for the query all documents and other queries, for the positive all other documents; their mean.",
    )

    @model_validator(mode="after")
    def _scores_are_own(self) -> Self:
        if self.kind == "scores" and self.documents != "own":
            raise ValueError(f"kind scores reads each pair, so only documents: own can be had; found documents: {self.documents}")
        return self


class Similarity(Model):
    """The loss of rows with a graded score; such rows are left out when it is absent."""

    kind: Literal["cosent", "mse"] = Field(
        "cosent",
        description="cosent: log(1 + sum of exp(scale (cosine of a less similar - of a more similar pair))). mse: of cosines.",
    )
    weight: float = Field(1.0, gt=0)
    scale: float = Field(20.0, gt=0, description="Of cosent.")


class Triangle(Model):
    """max(0, d(a, c) - d(a, b) - d(b, c) + epsilon) over query a, positive b, mined negative c (the brief, V)."""

    weight: float = Field(0.1, gt=0)
    epsilon: float = Field(0.0, ge=0)
    distance: Literal["cosine", "euclidean", "angular"] = Field(
        "cosine", description="1 - cosine is no metric; with the two others and epsilon 0 the loss is 0 always."
    )


class LossConfig(Model):
    """Contrastive, distilled and graded losses, each at every Matryoshka dimension."""

    temperature: float = Field(0.05, gt=0)
    annealing: Annealing | None = Field(None, description="Needs evaluation.every.")
    dimensions: list[int] = Field([], description="Matryoshka dimensions; the whole vector when empty.")
    weights: list[float] = Field([], description="Weight of each dimension; alike when empty. The loss is their weighted mean.")
    contrastive: float = Field(1.0, ge=0, description="Weight of InfoNCE; 0 for distillation alone.")
    form: Literal["documents", "qwen3"] = Field(
        "documents", description="qwen3 adds other queries, and documents seen from the positive, to the denominator."
    )
    false_negative_margin: float | None = Field(
        None, ge=0, description="In-batch texts nearer than the positive by more than this are left out (Qwen3: 0.1)."
    )
    focal: Focal | None = None
    mixing: Mixing | None = None
    distillation: Distillation | None = None
    similarity: Similarity | None = None
    triangle: Triangle | None = None

    @model_validator(mode="after")
    def _matching(self) -> Self:
        if any(dimension < 1 for dimension in self.dimensions) or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(f"dimensions are {self.dimensions}; allowed: different whole numbers above 0")
        if self.weights and len(self.weights) != len(self.dimensions):
            raise ValueError(f"weights has {len(self.weights)} values for {len(self.dimensions)} dimensions; give one for each")
        if any(weight < 0 for weight in self.weights) or (self.weights and sum(self.weights) == 0):
            raise ValueError(f"weights are {self.weights}; allowed: numbers from 0, not all of them 0")
        if self.contrastive == 0 and self.distillation is None:
            raise ValueError("contrastive is 0 and there is no distillation; one of the two is needed")
        parts = {"form: qwen3": self.form == "qwen3", **{name: getattr(self, name) for name in ("focal", "mixing", "annealing")}}
        if self.contrastive == 0 and (idle := [name for name, part in parts.items() if part]):
            raise ValueError(f"contrastive is 0, so that {', '.join(idle)} would do nothing; leave it out")
        return self
