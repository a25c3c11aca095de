"""The pydantic models of a run file, and nothing else. Unknown keys are refused; errors name file, line and key.

A run has one model and one or more stages; a stage has its data, its loss (config_loss.py), its optimizer, length and gate.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from datakit.recipe import Model, Path, operational
from trainer.config_loss import LossConfig


class Lora(Model):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft; merged into the weights at export."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="The adapters are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field([], description="Names of linear layers, such as q_proj; all linear layers when empty.")


class Local(Model):
    """Layers in which a token sees those at most window // 2 from it, to both sides."""

    layers: float = Field(1 / 3, gt=0, le=1, description="Part of all layers, from the first; rounded.")
    window: int = Field(128, ge=2, description="In tokens.")


class Strided(Model):
    """Layers in which a token sees those whose distance is a multiple of the stride."""

    layers: float = Field(1 / 3, gt=0, le=1, description="Part of all layers, to the last; rounded.")
    stride: int = Field(4, ge=2, description="In tokens.")


class Attention(Model):
    """Which token sees which, by layer; in the layers between, every token sees every other (the brief, VIII)."""

    local: Local | None = None
    strided: Strided | None = None

    @model_validator(mode="after")
    def _parts(self) -> Self:
        parts = [part.layers for part in (self.local, self.strided) if part is not None]
        if not parts:
            raise ValueError("local and strided: give one of the two, or both")
        if sum(parts) > 1:
            raise ValueError(f"local.layers and strided.layers are {parts[0]} and {parts[1]}; allowed: up to 1 together")
        return self


class Heads(Model):
    """One head for each objective of the run, from the vector to another of its size (the brief, VII). It begins as no change."""

    layers: Literal[1, 2] = Field(1, description="1: a matrix. 2: two, with a GELU between, that add to the vector.")
    width: int | None = Field(None, ge=1, description="Dimensions between two layers; 64 when absent.")

    @model_validator(mode="after")
    def _width_is_of_two(self) -> Self:
        if self.layers == 1 and self.width is not None:
            raise ValueError(f"width is {self.width} with layers: 1; it lies between two layers: set layers: 2, or leave it out")
        return self


class ModelConfig(Model):
    """The base, and how a text becomes a vector."""

    base: Path = Field(description="A model of transformers: a name on the hub, a folder, or package:NAME/inner/path.")
    gguf: str | None = Field(None, description="The GGUF file inside the base.")
    revision: str | None = Field(None, description="Revision on the hub.")
    layers: int | None = Field(None, ge=1, description="Keep the first so many layers; all when absent.")
    bidirectional: bool = Field(True, description="Every token sees every other. Checked when the base is loaded.")
    attention: Attention | None = Field(None, description="As the base has it when absent: full in all layers.")
    positions: Literal["base", "alibi"] = Field(
        "base", description="alibi: linear biases in place of rotary embeddings (Press et al. 2021, arXiv 2108.12409)."
    )
    pooling: Literal["mean", "last", "cls", "weighted"] = Field(
        "mean", description="mean; last or first (cls) token; weighted: the mean with weights 1, 2, 3, ... (SGPT)."
    )
    layer_weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="What is pooled is the mean of all layers' outputs with these weights; the last output when absent."
    )
    pool_instruction: bool = Field(True, description="Whether the tokens of the instruction count in the pooling.")
    lowercase: bool = Field(False, description="Texts and instructions are read in lower case.")
    projection: int | None = Field(None, ge=1, description="Dimension of a linear layer after the pooling; none when absent.")
    max_length: int = Field(512, ge=2, description="Texts are cut to so many tokens, instruction included.")
    embeddings: Literal["trained", "frozen", "sparse"] = Field(
        "trained", description="Token embeddings: sparse updates only the rows of tokens that a step has seen (lazy Adam)."
    )
    lora: Lora | None = None
    heads: Heads | None = Field(None, description="Small networks after the vector, trained in turn by objectives of stages.")
    query_prefix: str = Field(
        "Instruct: {instruction}\nQuery: ", description="Before a query that has an instruction; '' for none."
    )
    document_prefix: str = Field("Instruct: {instruction}\nDocument: ", description="The same for documents.")

    @field_validator("layer_weights")
    @classmethod
    def _some_weight(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not sum(value) > 0:
            raise ValueError(f"{value} weighs no layer; allowed: one number >= 0 for each layer, not all of them 0")
        return value

    @field_validator("query_prefix", "document_prefix")
    @classmethod
    def _one_field(cls, value: str) -> str:
        try:
            known = not value or value.format(instruction="?") != value
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = False
        if not known:
            raise ValueError(
                f"'{value}' has fields other than {{instruction}}, or lacks it; allowed: '' or text with {{instruction}}"
            )
        return value


class Curriculum(Model):
    """Which mined negatives are drawn: those whose difficulty is nearest to one that moves from `start` to `end`."""

    start: float = Field(0.2, ge=0, le=1)
    end: float = Field(0.9, ge=0, le=1)
    until: float = Field(0.7, gt=0, le=1, description="Part of the stage's steps after which `end` is reached.")


class Remine(Model):
    """The model that is trained mines the negatives of its rows anew (ANCE: Xiong et al. 2021, arXiv 2007.00808).

    By datakit's dense miner, among all positives and negatives of the training rows. Rows without in-batch negatives keep theirs.
    """

    every: int = Field(ge=1, description="Steps between two rounds. Before the first round the build's own negatives are drawn.")
    depth: int = Field(50, ge=1, description="Documents nearest to a query that are looked at.")
    per_query: int = Field(8, ge=1, le=64, description="The nearest of those that pass the screen; what a batch draws from.")
    margin: float = Field(
        0.95, gt=0, le=1, description="Of the similarity of the least similar positive; what is more similar is no negative."
    )


class DataConfig(Model):
    """How rows of a build become batches."""

    build: Path | None = Field(None, description="The build of this stage; the one of the command line when absent.")
    batch_size: int = Field(64, ge=2, description="Rows of one batch. They share a batch_group, and are each other's negatives.")
    negatives: int = Field(1, ge=0, description="Mined negatives of a row, drawn anew in each epoch.")
    curriculum: Curriculum | None = Field(None, description="Mined negatives are drawn alike when absent.")
    max_length: int | None = Field(None, ge=2, description="Tokens of a text while training; the model's max_length when absent.")
    remine: Remine | None = Field(None, description="The build's negatives are drawn to the end when absent.")

    @model_validator(mode="after")
    def _mined_are_drawn(self) -> Self:
        for name in ("remine", "curriculum"):
            if getattr(self, name) is not None and self.negatives == 0:
                raise ValueError(
                    f"{name} is of mined negatives, and negatives: 0 draws none; give 1 or more, or leave {name} out"
                )
        return self


class OptimizerConfig(Model):
    """AdamW, with warm-up and cosine."""

    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="For matrices; vectors (norms, biases) and token embeddings have none.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Part of the steps in which the rate rises from 0.")
    floor: float = Field(0.0, ge=0, le=1, description="Part of the rate that is left at the last step.")


class TrainingConfig(Model):
    """How long, in which numbers, and what is computed twice to save memory."""

    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1, description="Batches of one step. Each has its own in-batch negatives only.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 autocast on GPUs, and on CPUs with AMX or AVX-512 BF16. Similarities are float32 always.",
    )
    gradient_cache: bool = Field(
        False, description="Memory of one chunk, whatever the batch size (Gao et al. 2021, arXiv 2101.06983)."
    )
    activation_checkpointing: bool = Field(False, description="Keeps each layer's input only, and computes the rest again.")
    compile: bool = Field(False, description="torch.compile of the layers: a minute or more at first.")
    unpadded: bool = Field(False, description="The texts of a chunk stand in one row, and attention alone pads them.")
    chunk_tokens: int | None = Field(None, ge=1, description="Tokens that go through the base at once, padding included.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="With several processes (torchrun), which share each batch. ddp: each has the model, gradients are summed. "
        "fsdp: layers, gradients and optimizer state are divided among them (FSDP2).",
    )
    divergence: float | None = Field(
        3.0, gt=1, description="Stops where the median loss of 20 steps is so many times its smallest, and 1 above it."
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("steps and epochs: give one of the two")
        if self.compile and (self.activation_checkpointing or self.parallel == "fsdp"):
            raise ValueError(
                "compile is on with activation_checkpointing or parallel: fsdp; allowed: neither; it was never tried"
            )
        if self.parallel == "fsdp" and self.precision == "float16":
            raise ValueError("precision is float16 with parallel: fsdp; allowed with it: auto, float32, bfloat16")
        return self


class Gate(Model):
    """What happens after a stage, by what it changed in nDCG@10 at the widest dimension."""

    min_gain: float = Field(0.0, description="The stage is passed where the metric rose by so much at least.")
    repeats: int = Field(0, ge=0, description="Times that a stage that is not passed is done again, from where it began.")
    repeat_rate: float = Field(0.5, gt=0, description="Factor of the learning rate at each repeat.")
    otherwise: Literal["stop", "go_on"] = Field("stop", description="What is done when no repeat passed.")


class Consolidation(Model):
    """Elastic weight consolidation: strength / 2 x sum of F (weight - weight at the stage's start)^2 is added to the loss.

    Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3. F is the diagonal of the empirical Fisher information of the earlier rows.
    """

    strength: float = Field(gt=0, description="Lambda. F is small: 1e3 to 1e7 are usual.")
    rows: int = Field(512, ge=1, description="Earlier rows that F is the mean over. Each is a pass forward and back of its own.")
    build: Path | None = Field(
        None, description="Where the earlier rows are, with this stage's loss; the stage before, with its own, when absent."
    )


class Layers(Model):
    """Which layers a stage trains. Ordered stages that freeze more and more are a freezing cascade (the brief, VII)."""

    frozen: float = Field(0.0, ge=0, lt=1, description="Share of the layers, from the bottom, that stay; with the embeddings.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Each layer that is not frozen is left out with this probability, never all (LayerDrop)."
    )


class Objective(Model):
    """The rows of one objective: those of these tasks and of these categories. Its loss is the one that the rows ask for."""

    tasks: list[str] = Field([], description="Such as retrieval, similarity, classification.")
    categories: list[str] = Field([], description="Keys of categories.")
    weight: float = Field(1.0, gt=0, description="lambda: factor of the loss of its batches.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.tasks and not self.categories:
            raise ValueError("tasks and categories are empty; name at least one, such as tasks: [retrieval]")
        return self


class Lagging(Model):
    """Weights are multiplied by T exp(r_t / temperature) / sum of exp(r_i / temperature), over T objectives."""

    every: int = Field(50, ge=1, description="Steps of a period. r_t: the mean loss of the last one, relative to the first one.")
    temperature: float = Field(0.5, gt=0, description="The lower, the more an objective is raised whose loss has fallen less.")


class Stage(Model):
    """One part of a run, from the weights of the stage before."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    layers: Layers = Layers()
    objectives: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")], Objective] = Field(
        {}, description="Their batches take turns, and other rows are left out. All rows, in proportion, when empty."
    )
    lagging: Lagging | None = Field(None, description="Raises the weights of objectives that lag; they stay when absent.")
    gate: Gate | None = Field(None, description="The next stage follows whatever came out when absent.")
    consolidation: Consolidation | None = Field(None, description="What was learnt before is held by nothing when absent.")

    @model_validator(mode="after")
    def _negatives_are_enough(self) -> Self:
        loss = self.loss
        own = loss.distillation is not None and loss.distillation.documents == "own"
        for name, wanted, least in (
            ("mixing", loss.mixing, 2),
            ("triangle", loss.triangle, 1),
            ("distillation of documents: own", own, 1),
        ):
            if wanted and self.data.negatives < least:
                count = self.data.negatives
                raise ValueError(
                    f"loss.{name} is of a row's mined negatives, and data.negatives is {count}; allowed: from {least}"
                )
        return self

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.training.compile and self.layers.dropout:
            raise ValueError("training.compile is on with layers.dropout; allowed with it: layers that are never left out")
        remine, steps = self.data.remine, self.training.steps
        if remine is not None and steps is not None and remine.every >= steps:
            raise ValueError(f"data.remine.every is {remine.every}, and the stage has {steps} steps; allowed: fewer than these")
        if remine is not None and self.loss.distillation is not None and self.loss.distillation.kind == "scores":
            raise ValueError(
                "data.remine finds pairs that a teacher of kind scores has not read; set loss.distillation.kind: embeddings, "
                "or leave data.remine out"
            )
        if self.consolidation is not None and self.training.parallel == "fsdp":
            raise ValueError("training.parallel is fsdp with consolidation; allowed with it: ddp")
        return self


class CheckpointConfig(Model):
    """How often a run is made safe. None of this changes the weights that come out."""

    every: int = operational(100, ge=1, description="Steps between two checkpoints.")
    keep: int = operational(2, ge=1, description="Checkpoints that are kept, beside the best one by the dev metric.")


class EvaluationConfig(Model):
    """What of the validation split is measured, and what stands beside the trained model."""

    every: int | None = Field(None, ge=1, description="Steps between two measurements inside a stage; none when absent.")
    queries: int | None = Field(None, ge=1, description="At most so many queries, drawn by their digest; all when absent.")
    documents: int | None = Field(
        None, ge=1, description="At most so many documents; the positives of the queries are always there."
    )
    bm25: bool = True
    encoders: list[Path] = Field([], description="sentence-transformers models: names, folders, or package:NAME/inner/path.")


class Config(Model):
    """A run file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: Path = operational(Path("models"), validate_default=True)
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelConfig
    stages: list[Stage] = Field(min_length=1)
    export: Literal["last", "best"] = Field("last", description="best: of each stage the checkpoint with the best dev metric.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every: int = operational(10, ge=1, description="Steps between two lines of the log.")
    tensorboard: bool = operational(False, description="Writes the log as TensorBoard events too. Needs datakit[tensorboard].")

    @property
    def objectives(self) -> dict[str, Objective]:
        """The objectives of all stages, in the order in which they come."""
        return {name: each for stage in self.stages for name, each in stage.objectives.items()}

    def without_gates(self) -> Self:
        """Runs that are compared have no gates: those of different length could not be."""
        return self.model_copy(update={"stages": [stage.model_copy(update={"gate": None}) for stage in self.stages]})

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"the stages are named {names}; allowed: different names")
        first = self.stages[0]
        if first.consolidation is not None and first.consolidation.build is None:
            raise ValueError(
                f"stage '{first.name}' is the first one: its consolidation needs `build`, the rows that the base was trained on"
            )
        for stage in self.stages:
            if stage.training.parallel == "fsdp" and self.model.embeddings == "sparse":
                raise ValueError(
                    f"stage '{stage.name}': training.parallel is fsdp, which cannot divide model.embeddings: sparse; "
                    "allowed with it: trained, frozen"
                )
            length = stage.data.max_length
            if length is not None and length > self.model.max_length:
                raise ValueError(
                    f"stage '{stage.name}': data.max_length is {length}; "
                    f"allowed: up to model.max_length, which is {self.model.max_length}"
                )
            if stage.loss.annealing is not None and self.evaluation.every is None:
                raise ValueError(
                    f"stage '{stage.name}': loss.annealing needs evaluation.every, the steps between two measurements"
                )
            every, steps = self.evaluation.every, stage.training.steps
            if every and steps and every > steps and (self.export == "best" or stage.loss.annealing is not None):
                raise ValueError(
                    f"stage '{stage.name}' has {steps} steps, and evaluation.every is {every}: export: best and loss.annealing "
                    f"need a measurement within each stage; allowed: up to {steps}"
                )
            if stage.lagging is not None and len(stage.objectives) < 2:
                raise ValueError(f"stage '{stage.name}': lagging compares objectives; it has {len(stage.objectives)}, give two")
            for name, objective in stage.objectives.items():
                other = self.objectives[name]
                if (other.tasks, other.categories) != (objective.tasks, objective.categories):
                    raise ValueError(f"objective '{name}' has other rows in stage '{stage.name}' than in a later one; rename it")
        if self.model.heads is not None and not self.objectives:
            raise ValueError("model.heads are of objectives, and no stage has some; name objectives, or leave heads out")
        if self.export == "best" and self.evaluation.every is None:
            raise ValueError("export: best needs evaluation.every, the steps between two measurements")
        return self
