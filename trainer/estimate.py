"""What a run would take: steps, tokens, FLOPs, memory, days and storage, counted from its config, with every assumption said.

FLOPs are those of trainer.flops.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import transformers
from rich.console import Group
from rich.table import Table

from datakit.assets import locate
from datakit.errors import UserError
from datakit.opened import Build
from datakit.planning import about
from trainer.base import cut
from trainer.config import Config, ModelConfig, Stage
from trainer.data import TrainingRows
from trainer.flops import HARDWARE, Hardware, Shape, counted, step_flops
from trainer.matryoshka import block_height
from trainer.model import CHUNK_TOKENS, prefix, quiet
from trainer.run import stage_builds, stage_seed

SAMPLE_ROWS = 1_000
TOKENS_OF_A_TEXT, CHARACTERS_OF_A_TOKEN = 128, 4
# Bytes that a token leaves in a layer for the gradient, for each dimension of the layer, and of its feed-forward part: counted in
# Llama and Qwen2 of transformers 5.23 without dropout. With a kernel for attention nothing grows with the square of the length.
ACTIVATIONS = {"bfloat16": (34.4, 7.9), "float32": (40.7, 15.8)}
STATES = ("weights", "gradients", "Adam's moments")
BRIEF = (
    "For comparison, the brief gives for 8 A100, by stage: 1B parameters 3, 2, 1 days; 3B 7, 4, 2; 7B 14, 7, 3; and 5-30 GB a "
    "checkpoint."
)


class Amount(NamedTuple):
    """What a stage goes through: `texts` are queries, positives and drawn negatives."""

    steps: float
    rows: float
    texts: float
    tokens: float
    length: float  # tokens that a token sees: E[s^2] / E[s] over texts
    once: float  # tokens of all its rows


@dataclass(frozen=True)
class StageCost:
    name: str
    figures: dict[str, float]  # steps, rows, texts, tokens, FLOPs, days
    memory: dict[str, float]  # bytes on a device that holds all, by what fills them
    chunk: float  # tokens whose activations are kept at a time


@dataclass(frozen=True)
class Estimate:
    hardware: Hardware
    devices: int
    stages: list[StageCost]
    storage: dict[str, float]  # bytes
    assumptions: list[str]

    def tables(self) -> Group:
        time, memory = Table(""), Table("", title=f"Memory of each of {self.devices} devices, {about(self.hardware.memory, 'B')}")
        for name in [*(stage.name for stage in self.stages), "all"]:
            time.add_column(name, justify="right")
            if name != "all":
                memory.add_column(name, justify="right")
        for name in self.stages[0].figures:
            values = [stage.figures[name] for stage in self.stages]
            form = {"steps": "{:,.0f}", "FLOPs": "{:.1e}", "days": "{:.2g}"}.get(name)
            time.add_row(name, *(form.format(value) if form else about(value) for value in [*values, sum(values)]))
        for name in self.stages[0].memory:
            memory.add_row(name, *(about(stage.memory[name], "B") for stage in self.stages))
        memory.add_section()
        for name, parts in (("in all", 1), (f"weights and the like dealt to {self.devices} (FSDP2)", self.devices)):
            used = [self.used(stage, parts) for stage in self.stages]
            memory.add_row(name, *(about(each, "B") + " (too much)" * (each > self.hardware.memory) for each in used))
        memory.add_row("tokens at a time (chunk_tokens) that fit then", *(about(self.fits(stage)) for stage in self.stages))
        kept = [f"  {name}: {about(size, 'B')}" for name, size in self.storage.items()]
        return Group(time, memory, "Storage:", *kept, "Assumed:", *(f"  {each}" for each in self.assumptions), BRIEF)

    def used(self, stage: StageCost, parts: int) -> float:
        """Bytes on a device that holds one of so many parts of the states."""
        return sum(size / (parts if name in STATES else 1) for name, size in stage.memory.items())

    def fits(self, stage: StageCost) -> int:
        """The tokens of a chunk that fill nine tenths of a device, where states are dealt to all."""
        rest = self.used(stage, self.devices) - stage.memory["activations"]
        return max(0, int((0.9 * self.hardware.memory - rest) / stage.memory["activations"] * stage.chunk))


def estimate(
    config: Config,
    hardware: str,
    build: Build | None = None,
    rows: Sequence[int] = (),
    tokens: float | None = None,
    parameters: float | None = None,
    share: float | None = None,
) -> Estimate:
    """The estimate of a run on `hardware`, such as a100x8.

    rows of the build, of all stages or of each, and tokens of a text, instruction included: else both are read off the build.
    parameters: of a base that is not on this machine; share: of the peak that is reached.
    Raises UserError where the hardware, the size of the base or the rows are not known, or a number is out of range.
    """
    device, count = hardware_of(hardware)
    for option, values in (("--rows", rows), ("--tokens-per-text", [tokens]), ("--parameters", [parameters])):
        for value in values:
            if value is not None and not 1 <= value < math.inf:
                raise UserError(f"{option} is {value:g}; allowed: numbers from 1 on.")
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--mfu is {share:g}; allowed: a share above 0 and not above 1, such as 0.4.")
    device = device._replace(share=device.share if share is None else share)
    if len(rows) not in (0, 1, len(config.stages)):
        raise UserError(f"--rows is given {len(rows)} times; give it once, or once for each of {len(config.stages)} stages.")
    shape, said = shape_of(config.model, parameters)
    builds = {} if build is None else stage_builds(config, build)
    tokenizer = local(transformers.AutoTokenizer, config.model.base, config.model) if builds and tokens is None else None
    if tokens is None and not builds:
        tokens = float(min(TOKENS_OF_A_TEXT, config.model.max_length))
    read = f"those of {SAMPLE_ROWS:,} rows, " + ("tokenized" if tokenizer else f"{CHARACTERS_OF_A_TOKEN} characters a token")
    assumptions = [
        f"the base: {about(shape.matrices)} parameters and {about(shape.embeddings)} of token embeddings, {said}",
        f"{count} x {device.peak / 1e12:.4g} TFLOP/s, {device.share:.0%} of it reached, repeated passes counted; {device.source}",
        f"tokens of a text: {read if tokens is None else f'{tokens:g}'}; all see each other; none is padding",
        "no time for embeddings, norms, the optimizer, communication, measuring, loading and stops",
        "float32 for weights (with bfloat16 copies), gradients and moments; activations as Llama's with a kernel for attention",
    ]
    costs = []
    for number, stage in enumerate(config.stages):
        wanted = rows[number % len(rows)] if rows else None
        amount, teacher = amount_of(config, stage, builds.get(stage.name), wanted, tokens, tokenizer), None
        if stage.loss.distillation is not None:
            teacher = teacher_shape(name := stage.loss.distillation.teacher)
            size = (
                f"reads every text once, with {about(teacher.matrices)} parameters"
                if teacher
                else "is of unknown size: not counted"
            )
            assumptions.append(f"{stage.name}: the teacher '{name}' {size}")
        costs.append(cost(config, stage, shape, teacher, amount, device, count))
    whole, kept = shape.matrices + shape.embeddings, config.checkpoint.keep + (config.export == "best")
    states = 12.0 * sum(trained(config.model, shape))
    storage = {
        "a checkpoint, of what is trained (weights and Adam's moments, float32)": states,
        f"the checkpoints of the run, {kept} a stage": len(costs) * kept * states,
        "the exported model (float32)": 4.0 * whole,
        "its weights in bfloat16": 2.0 * whole,
    }
    return Estimate(device, count, costs, storage, assumptions)


def cost(
    config: Config, stage: Stage, shape: Shape, teacher: Shape | None, amount: Amount, device: Hardware, count: int
) -> StageCost:
    """One stage. Activation checkpointing adds a forward pass, and gradient caching one of all chunks of a batch but the last."""
    training, rows, dimensions = stage.training, stage.data.batch_size, max(1, len(stage.loss.dimensions))
    width, documents = config.model.projection or shape.hidden, rows * (amount.texts / amount.rows - 1)
    whole = chunk = rows / count * amount.tokens / amount.rows  # tokens of a batch on a device
    if training.gradient_cache:
        chunk = min(whole, training.chunk_tokens or CHUNK_TOKENS["cpu" if device.numbers == "float32" else "cuda"])
    forward, repeated = shape.forward(amount.length), 1 - chunk / whole + training.activation_checkpointing
    matrices, embeddings = trained(config.model, shape)
    pairs = rows * documents + (rows * (rows + documents) if stage.loss.form == "qwen3" else 0)
    flops = step_flops(shape, matrices, amount.tokens, amount.tokens * amount.length) + amount.tokens * repeated * forward
    flops += amount.rows / rows * 6 * pairs * width
    flops += amount.once * teacher.forward(amount.length) if teacher else 0.0

    kind = "float32" if training.precision == "float32" else device.numbers
    a_layer = ACTIVATIONS[kind][0] * shape.hidden + ACTIVATIONS[kind][1] * shape.feed_forward
    kept = shape.layers * 4 * shape.hidden + a_layer if training.activation_checkpointing else shape.layers * a_layer
    memory = {
        "weights": 4.0 * (shape.matrices + shape.embeddings) + (2.0 * shape.matrices if kind == "bfloat16" else 0.0),
        "gradients": 4.0 * (matrices + embeddings),
        "Adam's moments": 8.0 * (matrices + embeddings),
        "activations": chunk * kept,
        "vectors and their gradients": 12.0 * (rows + documents) * width,
        # A byte for each pair; of a block, its cosines at each dimension and three matrices more.
        "loss": pairs + 4.0 * block_height(rows, int(documents), dimensions) * pairs / rows * (dimensions + 3),
    }
    days = flops / (count * device.peak * device.share) / 86_400
    figures = {**{name: getattr(amount, name) for name in Amount._fields[:4]}, "FLOPs": flops, "days": days}
    return StageCost(stage.name, figures, memory, chunk)


def amount_of(
    config: Config, stage: Stage, build: Build | None, rows: int | None, tokens: float | None, tokenizer: Any
) -> Amount:
    """The steps as the trainer plans them; the texts of a row and their tokens as they are in a sample of the build."""
    training, batch = stage.training, stage.data.batch_size
    limit = stage.data.max_length or config.model.max_length
    a_row, batches, counts = 2.0 + stage.data.negatives, 1.0 / batch, np.array([tokens or 0.0])
    if build is not None:
        with tempfile.TemporaryDirectory() as folder:
            there = TrainingRows(build, folder, stage, stage_seed(config, stage))
            sample = there.take(np.unique(np.linspace(0, len(there) - 1, SAMPLE_ROWS).astype(np.int64))).to_pylist()
            rows, batches = len(there) if rows is None else rows, there.batches_per_epoch / len(there)
        queries = [prefix(config.model.query_prefix, row["instruction"]) + row["query"] for row in sample]
        documents = [
            prefix(config.model.document_prefix, row["document_instruction"]) + text
            for row in sample
            for text in [row["positive"], *(each["text"] for each in (row["negatives"] or [])[: stage.data.negatives])]
        ]
        a_row = 1 + len(documents) / len(sample)
        if tokens is None:
            lengths = tokenizer(queries + documents)["input_ids"] if tokenizer else queries + documents
            counts = np.array([len(each) for each in lengths]) / (1 if tokenizer else CHARACTERS_OF_A_TOKEN)
    counts = counts.clip(1, limit)
    mean, length = float(counts.mean()), float((counts**2).mean() / counts.mean())
    if rows is None and training.steps is None:
        raise UserError(f"Stage '{stage.name}' goes by epochs: give --data BUILD, or --rows, once or once for each stage.")
    rows = batch * training.accumulate * (training.steps or 1) if rows is None else rows
    steps_of_an_epoch = math.ceil(math.ceil(rows * batches - 1e-6) / training.accumulate)
    steps = training.steps or (training.epochs or 1) * steps_of_an_epoch
    seen = steps / steps_of_an_epoch * rows
    return Amount(steps, seen, seen * a_row, seen * a_row * mean, length, rows * a_row * mean)


def hardware_of(text: str) -> tuple[Hardware, int]:
    """NAME or NAMExCOUNT. The cores of a CPU are one device."""
    found = re.fullmatch(rf"({'|'.join(HARDWARE)})(?:x([1-9]\d*))?", text.lower())
    if found is None:
        raise UserError(f"The hardware '{text}' is not known; known: {', '.join(HARDWARE)}; several as NAMExCOUNT, as a100x8.")
    device, count = HARDWARE[found[1]], int(found[2] or 1)
    if found[1] == "cpu":
        return device._replace(peak=device.peak * count, memory=device.memory * count), 1
    return device, count


def trained(model: ModelConfig, shape: Shape) -> tuple[int, int]:
    """The parameters that are trained, beside the token embeddings and of them."""
    if model.lora is not None:
        return model.lora.rank * shape.adapters, 0
    return shape.matrices, 0 if model.embeddings == "frozen" else shape.embeddings


def shape_of(model: ModelConfig, parameters: float | None) -> tuple[Shape, str]:
    """The shape of the base, and where it is from: its config on this machine, or its number of parameters."""
    if parameters is not None:
        shape = typical(parameters)
        return (
            shape,
            f"as --parameters is taken for the former alone; {shape.layers} layers of {shape.hidden} dimensions, as is usual",
        )
    settings = local(transformers.AutoConfig, model.base, model)
    if settings is None:
        raise UserError(f"The base '{model.base}' is not on this machine. Give its size, such as --parameters 1.5e9.")
    if model.layers is not None:
        cut(settings, model, model.layers)
    return counted(settings, tuple(model.lora.targets) if model.lora else ()), f"by the config of '{model.base}'"


def typical(parameters: float) -> Shape:
    """A decoder of 12 h^2 parameters a layer, 128 times as wide as deep, as Llama 3 and Qwen2.5 of 1 to 8B nearly are; SwiGLU."""
    hidden = round((128 * parameters / 12) ** (1 / 3))
    layers = max(1, round(hidden / 128))
    return Shape(round(parameters), 0, layers, hidden, hidden, 8 * hidden // 3, 19 * hidden * layers)


def local(loader: Any, name: str, model: ModelConfig | None = None) -> Any:
    """What a class of transformers loads of a model in a folder or in the hub's cache; None where it is in neither."""
    source = {"gguf_file": model.gguf, "revision": model.revision} if model else {}
    try:
        with quiet():
            given = {key: value for key, value in source.items() if value is not None}
            return loader.from_pretrained(locate(name), local_files_only=True, **given)
    except (OSError, ValueError):
        return None


def teacher_shape(name: str) -> Shape | None:
    """By its config on this machine, else by the size that its name tells, such as 8B or 335M."""
    if (settings := local(transformers.AutoConfig, name)) is not None:
        return counted(settings)
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", name.lower())
    return typical(float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]) if found else None
