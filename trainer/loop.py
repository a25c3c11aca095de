"""One run: load, measure, train, export, measure again. Stopped at any moment, it goes on from its last checkpoint."""

from __future__ import annotations

import logging
import math
import os
import time

import torch
from rich.console import Console

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import digest
from trainer import checkpoint
from trainer.config import Config
from trainer.data import Batch, TrainingRows
from trainer.evaluation import retrieval
from trainer.evaluation.retrieval import Result, Task
from trainer.export import export
from trainer.losses import Statistics, info_nce
from trainer.model import Encoder, load_encoder
from trainer.progress import training_progress
from trainer.report import Metrics, evaluation
from trainer.run import Journal, Run, open_run
from trainer.schedule import rate

log = logging.getLogger(__name__)


def train(config: Config, build: Build, output: str | None, console: Console) -> tuple[Run, Metrics]:
    """Does the run, or what is left of it: however often it was stopped, the weights are the same (on CPU: to the bit)."""
    run = open_run(config, build, output)
    if os.path.isfile(run.path("metrics.json")):
        log.info("This run is finished; nothing is left to do.")
        return run, Metrics.model_validate(storage.read_json(run.path("metrics.json")))

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory with NaN finds bugs; here it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    encoder = load_encoder(config.model).to("cuda" if torch.cuda.is_available() else "cpu")
    encoder.compute = compute_type(config.training.precision, encoder.device)
    dimensions = matryoshka_dimensions(config, encoder)
    task = retrieval.load_task(build, config.evaluation.queries, config.evaluation.documents)
    rows = TrainingRows(build, run.folder, config.data, config.seed)
    steps = config.training.steps or steps_of_an_epoch(config, rows) * (config.training.epochs or 0)
    log.info("%d rows in %d groups, %d steps; %s on %s", len(rows), len(rows.groups), steps, encoder.compute, encoder.device)

    before, beside = measured_before(run, encoder, task, dimensions)
    optimizer = make_optimizer(config, encoder)
    done = checkpoint.restore(run.path("checkpoints"), encoder, optimizer)
    if done:
        log.info("Going on after step %d of %d", done, steps)
    journal = Journal(run.path("log.jsonl"), done)
    with training_progress(console, steps, done, config.log_every) as advance:
        for step in range(done, steps):
            began = time.monotonic()
            statistics = take_step(step, steps, run, rows, encoder, optimizer)
            statistics["tokens_per_second"] = statistics["tokens"] / (time.monotonic() - began)
            journal.write(step + 1, statistics)
            if (step + 1) % config.checkpoint.every == 0 or step + 1 == steps:
                checkpoint.save(run.path("checkpoints"), step + 1, encoder, optimizer, config.checkpoint.keep)
            advance(step + 1, statistics)

    export(encoder, run.path("model"), rows.prompts(encoder), run.title, build.version, dimensions)
    log.info("Measuring the trained model")
    metrics = Metrics(
        name=config.name,
        version=run.version,
        build=build.version,
        steps=steps,
        queries=len(task.queries),
        documents=len(task.documents),
        skipped=task.skipped,
        before=before,
        after=measure(encoder, task, dimensions),
        beside=beside,
    )
    widest = max(dimensions)
    scores = evaluation(run.title, build.version, metrics.after[widest], metrics.before[widest])
    storage.write_json(run.path("evaluation.json"), scores.model_dump(mode="json", by_alias=True))
    storage.write_json(run.path("metrics.json"), metrics.model_dump(mode="json"))
    return run, metrics


def take_step(
    step: int, steps: int, run: Run, rows: TrainingRows, encoder: Encoder, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """One step of the optimizer (steps count from 0): a pure function of the weights, the optimizer's state and the number.

    With accumulation the gradient is the mean over the rows of all its batches. Each batch has its own in-batch negatives only: a
    row has no more of them than without accumulation.
    """
    config = run.config
    epoch, batches = batches_of(step, config, rows, encoder)
    factor = rate(step, steps, config.optimizer.warmup, config.optimizer.floor)
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.learning_rate * factor
    encoder.train()
    optimizer.zero_grad(set_to_none=True)
    whole = sum(len(batch.row_ids) for batch in batches)
    totals = {"loss": 0.0, "tokens": 0.0}
    for number, batch in enumerate(batches):
        # Dropout too is a function of the step alone, so that a resumed run draws the same.
        torch.manual_seed(int(digest("dropout", str(config.seed), str(step), str(number))[:15], 16))
        loss, statistics, tokens = batch_loss(batch, config, encoder)
        share = len(batch.row_ids) / whole
        torch.autograd.backward(loss * share)
        totals["tokens"] += tokens
        for name, value in {"loss": loss.detach(), **statistics}.items():
            totals[name] = totals.get(name, 0.0) + value.item() * share
    norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.optimizer.clip).item()
    if not (math.isfinite(totals["loss"]) and math.isfinite(norm)):
        stop_at(step, totals["loss"], norm, batches, run)
    optimizer.step()
    return {"epoch": epoch, "rate": config.optimizer.learning_rate * factor, "gradient_norm": norm, "rows": whole, **totals}


def batches_of(step: int, config: Config, rows: TrainingRows, encoder: Encoder) -> tuple[int, list[Batch]]:
    """The epoch of a step, and its batches: `accumulate` of them, fewer at the end of an epoch."""
    epoch, place = divmod(step, steps_of_an_epoch(config, rows))
    first = place * config.training.accumulate
    last = min(first + config.training.accumulate, rows.batches_per_epoch)
    return epoch, [rows.batch(epoch, number, encoder) for number in range(first, last)]


def steps_of_an_epoch(config: Config, rows: TrainingRows) -> int:
    return math.ceil(rows.batches_per_epoch / config.training.accumulate)


def batch_loss(batch: Batch, config: Config, encoder: Encoder) -> tuple[torch.Tensor, Statistics, int]:
    """The loss of a batch, its statistics, and how many tokens it has. Each different text is encoded once."""
    tokens = encoder.tokenize(batch.queries + batch.documents, config.data.max_length)
    vectors = encoder(tokens)
    count = len(batch.queries)
    positive = torch.from_numpy(batch.positive).to(vectors.device)
    candidates = torch.from_numpy(batch.candidates).to(vectors.device)
    loss, statistics = info_nce(vectors[:count], vectors[count:], positive, candidates, config.loss)
    return loss, statistics, sum(map(len, tokens))


def stop_at(step: int, loss: float, norm: float, batches: list[Batch], run: Run) -> None:
    """Says that the loss is no number, and writes down the rows that it came from. Always raises."""
    path = run.path("failed-batch.json")
    storage.write_json(path, {"step": step + 1, "rows": [row for batch in batches for row in batch.row_ids]})
    raise BuildError(
        f"At step {step + 1} the loss is {loss} and the norm of the gradient {norm}. Training stopped before the weights "
        f"changed; the rows are named in '{path}'. Mend them, or lower optimizer.learning_rate "
        f"(now {run.config.optimizer.learning_rate})."
    )


def make_optimizer(config: Config, encoder: Encoder) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019). Only matrices decay, the token embeddings not."""
    embeddings = encoder.base.get_input_embeddings().weight
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in trained if parameter.ndim > 1 and parameter is not embeddings]
    others = [parameter for parameter in trained if parameter.ndim <= 1 or parameter is embeddings]
    groups = [{"params": decaying, "weight_decay": config.optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=config.optimizer.betas, fused=True)


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on GPUs that have it; float32 on CPUs, where autocast was measured to be slower."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def matryoshka_dimensions(config: Config, encoder: Encoder) -> list[int]:
    """The dimensions that are trained and measured, widest first."""
    dimensions = sorted(config.loss.dimensions or [encoder.dimension], reverse=True)
    if dimensions[0] > encoder.dimension:
        raise UserError(
            f"loss.dimensions holds {dimensions[0]}; the base '{config.model.base}' has {encoder.dimension} dimensions, "
            "and that is the largest allowed."
        )
    return dimensions


def measured_before(run: Run, encoder: Encoder, task: Task, dimensions: list[int]) -> tuple[dict[int, Result], dict[str, Result]]:
    """The results of the base as it came, and of what stands beside it: measured once, before the training, and kept."""
    path = run.path("before.json")
    if not os.path.isfile(path):
        log.info("Measuring before training: %d queries against %d documents", len(task.queries), len(task.documents))
        beside = {name: found.model_dump(mode="json") for name, found in measured_beside(run.config, task).items()}
        base = {str(dimension): found.model_dump(mode="json") for dimension, found in measure(encoder, task, dimensions).items()}
        storage.write_json(path, {"before": base, "beside": beside})
    kept = storage.read_json(path)
    before = {dimension: Result.model_validate(kept["before"][str(dimension)]) for dimension in dimensions}
    return before, {name: Result.model_validate(each) for name, each in kept["beside"].items()}


def measure(encoder: Encoder, task: Task, dimensions: list[int]) -> dict[int, Result]:
    """The results of the model that is trained, at each dimension."""
    queries = encoder.embed([encoder.query_text(text, instruction) for text, instruction in task.queries])
    documents = encoder.embed([encoder.document_text(text, instruction) for text, instruction in task.documents])
    return retrieval.evaluate_vectors(task, queries, documents, dimensions)


def measured_beside(config: Config, task: Task) -> dict[str, Result]:
    """BM25 and the encoders that the config names, at their own dimension."""
    results = {"BM25": retrieval.evaluate_bm25(task)} if config.evaluation.bm25 else {}
    for name in config.evaluation.encoders:
        ((dimension, found),) = retrieval.evaluate_encoder(task, name).items()
        results[f"{short(name)} ({dimension})"] = found
    return results


def short(name: str) -> str:
    """A name for a table: the package or the last part of a path."""
    package = name.startswith("package:")
    return name.removeprefix("package:").split("/")[0] if package else os.path.basename(os.path.normpath(name))
