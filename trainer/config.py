"""The pydantic model of a training file, and nothing else. Unknown keys are refused; errors name file, line and key."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from datakit.recipe import Model, Path, operational


class ModelConfig(Model):
    """The base, and how a text becomes a vector."""

    base: Path = Field(description="A decoder of transformers: a name on the hub, a folder, or package:NAME/inner/path.")
    gguf: str | None = Field(None, description="The GGUF file inside the base.")
    revision: str | None = Field(None, description="Revision on the hub.")
    layers: int | None = Field(None, ge=1, description="Keep the first so many layers; all when absent.")
    bidirectional: bool = Field(True, description="Every token sees every other. Checked when the base is loaded.")
    pooling: Literal["mean"] = "mean"
    max_length: int = Field(512, ge=2, description="Texts are cut to so many tokens, instruction included.")
    train_embeddings: bool = Field(True, description="False leaves the token embeddings of the base as they are.")
    query_prefix: str = Field(
        "Instruct: {instruction}\nQuery: ", description="Before a query that has an instruction; '' for none."
    )
    document_prefix: str = Field("Instruct: {instruction}\nDocument: ", description="The same for documents.")

    @field_validator("query_prefix", "document_prefix")
    @classmethod
    def _one_field(cls, value: str) -> str:
        try:
            known = not value or value.format(instruction="?") != value
        except (KeyError, IndexError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"'{value}' has fields other than {{instruction}}, or lacks it; allowed: '' or text with {{instruction}}"
            )
        return value


class DataConfig(Model):
    """How rows of a build become batches."""

    batch_size: int = Field(64, ge=2, description="Rows of one batch. They share a batch_group, and are each other's negatives.")
    negatives: int = Field(1, ge=0, description="Mined negatives of a row, drawn anew in each epoch.")
    max_length: int | None = Field(None, ge=2, description="Tokens of a text while training; the model's max_length when absent.")


class LossConfig(Model):
    """InfoNCE over in-batch and mined negatives, at each dimension."""

    temperature: float = Field(0.05, gt=0)
    dimensions: list[int] = Field([], description="Matryoshka dimensions; the whole vector when empty.")
    weights: list[float] = Field([], description="Weight of each dimension; alike when empty. The loss is their weighted mean.")

    @model_validator(mode="after")
    def _matching(self) -> Self:
        if any(dimension < 1 for dimension in self.dimensions) or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(f"dimensions are {self.dimensions}; allowed: different whole numbers above 0")
        if self.weights and len(self.weights) != len(self.dimensions):
            raise ValueError(f"weights has {len(self.weights)} values for {len(self.dimensions)} dimensions; give one for each")
        if any(weight < 0 for weight in self.weights) or (self.weights and sum(self.weights) == 0):
            raise ValueError(f"weights are {self.weights}; allowed: numbers from 0, not all of them 0")
        return self


class OptimizerConfig(Model):
    """AdamW, with warm-up and cosine."""

    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="For matrices; vectors (norms, biases) and embeddings have none.")
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Part of the steps in which the rate rises from 0.")
    floor: float = Field(0.0, ge=0, le=1, description="Part of the rate that is left at the last step.")


class TrainingConfig(Model):
    """How long, and in which numbers."""

    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1, description="Batches of one step. Each has its own in-batch negatives only.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 autocast where it is faster.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("steps and epochs: give one of the two")
        return self


class CheckpointConfig(Model):
    """How often a run is made safe. None of this changes the weights that come out."""

    every: int = operational(100, ge=1, description="Steps between two checkpoints.")
    keep: int = operational(2, ge=1, description="Checkpoints that are kept.")


class EvaluationConfig(Model):
    """What of the validation split is measured, and what stands beside the trained model."""

    queries: int | None = Field(None, ge=1, description="At most so many queries, drawn by their digest; all when absent.")
    documents: int | None = Field(
        None, ge=1, description="At most so many documents; the positives of the queries are always there."
    )
    bm25: bool = True
    encoders: list[Path] = Field([], description="sentence-transformers models: names, folders, or package:NAME/inner/path.")


class Config(Model):
    """A training file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: Path = operational(Path("models"), validate_default=True)
    seed: int = 0
    model: ModelConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every: int = operational(10, ge=1, description="Steps between two lines of the log.")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.data.max_length is not None and self.data.max_length > self.model.max_length:
            raise ValueError(
                f"data.max_length is {self.data.max_length}; allowed: up to model.max_length, which is {self.model.max_length}"
            )
        return self
