"""One stage, step by step, from its last checkpoint to its end. Stopped at any moment, it goes on to the same weights."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from rich.console import Console
from torch import Tensor, nn

from datakit import storage
from datakit.errors import BuildError
from datakit.schema import digest
from trainer import checkpoint, distributed, gradcache, heads, objectives, remine
from trainer.batch import Batch
from trainer.config import Config, OptimizerConfig, Stage
from trainer.data import TrainingRows
from trainer.evaluation.retrieval import Task, measure
from trainer.flops import meter
from trainer.losses import Statistics, Targets, batch_loss
from trainer.model import Encoder
from trainer.progress import training_progress
from trainer.run import Journal
from trainer.schedule import State, diverged, measured, rate, with_loss
from trainer.teacher import Teacher

log = logging.getLogger(__name__)

COUNTS = ("tokens", "pairs")  # of a batch, added up over those of a step; all other statistics are means


@dataclass(frozen=True)
class Job:
    """A stage to do, and what it is done with. `folder` takes log.jsonl, checkpoints/ and failed-batch.json."""

    config: Config
    stage: Stage
    folder: str
    encoder: Encoder
    rows: TrainingRows
    teacher: Teacher | None
    task: Task
    dimensions: list[int]  # widest first
    consolidate: Callable[[Encoder], float] | None = None  # adds the gradient of a penalty, and returns the penalty

    @property
    def checkpoints(self) -> str:
        return os.path.join(self.folder, "checkpoints")

    @property
    def steps_of_an_epoch(self) -> int:
        return math.ceil(self.rows.batches_per_epoch / self.stage.training.accumulate)

    @property
    def steps(self) -> int:
        return self.stage.training.steps or self.steps_of_an_epoch * (self.stage.training.epochs or 0)

    def batches(self, step: int) -> tuple[int, list[Batch]]:
        """The epoch of a step, and its batches: `accumulate` of them, fewer at the end of an epoch."""
        epoch, place = divmod(step, self.steps_of_an_epoch)
        first = place * self.stage.training.accumulate
        numbers = range(first, min(first + self.stage.training.accumulate, self.rows.batches_per_epoch))
        return epoch, [self.rows.batch(epoch, number, self.encoder, step / self.steps) for number in numbers]


def train(job: Job, console: Console) -> int:
    """Does the stage, or what is left of it. Returns the step of the checkpoint that comes out of it (config.export)."""
    config, steps = job.config, job.steps
    optimizers = make_optimizers(job.encoder, job.stage.optimizer)
    scaler = torch.amp.GradScaler(job.encoder.device.type, enabled=job.encoder.compute == torch.float16)
    lacking = partial(remine.lacking, folder=job.folder, config=job.stage.data.remine)
    with distributed.main_first():
        done, kept = checkpoint.restore(job.checkpoints, job.encoder, optimizers, lacking)
    main = distributed.rank() == 0
    state = State(**kept["state"]) if done else State(job.stage.loss.temperature)
    if done:
        scaler.load_state_dict(kept["scaler"])
        log.info("Going on after step %d of %d of '%s'", done, steps, job.stage.name)
    tell_what_never_comes(job)
    journal = Journal(os.path.join(job.folder, "log.jsonl"), done) if main else None
    board = os.path.join(job.folder, "tensorboard") if config.tensorboard and main else None
    speed = meter(job.encoder)
    with training_progress(console, steps, done, config.log_every, job.stage.name, board) as advance:
        for step in range(done, steps):
            mined = remine.renew(step, job.folder, job.encoder, job.rows)
            began = time.monotonic()
            state, statistics = take_step(step, job, state, optimizers, scaler)
            statistics |= speed(statistics["tokens"], statistics.pop("pairs"), time.monotonic() - began)
            if config.evaluation.every and (step + 1) % config.evaluation.every == 0:
                results = measure(job.encoder, job.task, job.dimensions)
                scores = {dimension: distributed.agreed(each.score) for dimension, each in results.items()}
                state = measured(state, step + 1, scores[job.dimensions[0]], job.stage.loss.annealing)
                statistics |= {f"dev_{dimension}": score for dimension, score in scores.items()}
            if journal is not None:
                journal.write(step + 1, statistics | mined)
            if (step + 1) % config.checkpoint.every == 0 or step + 1 in (steps, state.best_step):
                kept = {"state": asdict(state), "scaler": scaler.state_dict()}
                checkpoint.save(job.checkpoints, step + 1, job.encoder, optimizers, kept, config.checkpoint.keep, state.best_step)
            advance(step + 1, statistics)
    return state.best_step or steps if config.export == "best" else steps


def tell_what_never_comes(job: Job) -> None:
    """Warns of what comes after more steps than the stage has: the config does not know how long epochs are."""
    every, remined = job.config.evaluation.every, job.stage.data.remine
    if every is not None and every > job.steps and (job.config.export == "best" or job.stage.loss.annealing is not None):
        log.warning(
            "Stage '%s' has %d steps, and evaluation.every is %d: the dev metric is not measured within it, so that export: best "
            "takes the last step, and loss.annealing does nothing.", job.stage.name, job.steps, every,
        )  # fmt: skip
    if remined is not None and remined.every >= job.steps:
        log.warning(
            "Stage '%s' has %d steps, and data.remine.every is %d: nothing is mined.", job.stage.name, job.steps, remined.every
        )


def take_step(
    step: int, job: Job, state: State, optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> tuple[State, dict[str, float]]:
    """One step of the optimizers (steps count from 0): a pure function of weights, optimizers, scaler, state and number.

    With accumulation the gradient is the mean over the rows of all its batches. Each batch has its own in-batch negatives only: a
    row has no more of them than without accumulation. Nothing changes where the loss or the gradient is no number.
    """
    stage, encoder = job.stage, job.encoder
    epoch, batches = job.batches(step)
    learning_rate = stage.optimizer.learning_rate * rate(step, job.steps, stage.optimizer.warmup, stage.optimizer.floor)
    encoder.train()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    rows = sum(len(batch.row_ids) for batch in batches)
    weights = objectives.weights(stage, state.objectives)
    shares = [len(batch.row_ids) / rows * weights.get(batch.objective, 1.0) for batch in batches]
    found = [
        backward(batch, share, seed_of(job.config, stage, step, number), job, state.temperature, scaler)
        for number, (batch, share) in enumerate(zip(batches, shares, strict=True))
    ]
    # The losses, and so the heads before them, are computed by every process.
    distributed.sum_gradients(value for name, value in encoder.named_parameters() if not name.startswith("heads."))
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    penalty = {"consolidation": job.consolidate(encoder)} if job.consolidate else {}
    norm = clip(encoder.parameters(), stage.optimizer.clip)
    statistics = penalty | mean_over_rows(found, [len(batch.row_ids) for batch in batches])
    state = with_loss(state, statistics["loss"])
    if stage.lagging is not None:
        told = [(batch.objective, each["loss"].item()) for batch, each in zip(batches, found, strict=True)]
        state = replace(state, objectives=objectives.with_losses(state.objectives, told, step, stage.lagging))
    # Numbers of float16 may overflow: then the scale is halved, and the step is left out. At a scale below 1 it is no overflow.
    overflow = scaler.is_enabled() and not math.isfinite(norm) and scaler.get_scale() >= 1.0
    if not math.isfinite(statistics["loss"]) or not (math.isfinite(norm) or overflow):
        stop(step, job, batches, f"the loss is {statistics['loss']} and the norm of the gradient {norm}")
    if diverged(state, stage.training.divergence):
        grown = f"the loss has grown to {statistics['loss']:.3g}: the median of the last steps was {state.smallest:.3g}"
        stop(step, job, batches, grown)
    if not overflow:
        statistics["gradient_norm"] = norm
        for optimizer in optimizers:
            scaler.step(optimizer)
    if scaler.is_enabled():
        statistics |= {"scale": scaler.get_scale(), "left_out": float(overflow)}
        scaler.update()
    counts = {"epoch": epoch, "rows": rows, **{name: sum(each[name].item() for each in found) for name in COUNTS}}
    statistics |= {f"weight_{name}": weight for name, weight in weights.items()}
    return state, {**counts, "rate": learning_rate, "temperature": state.temperature, **statistics}


def backward(batch: Batch, share: float, seed: int, job: Job, temperature: float, scaler: torch.amp.GradScaler) -> Statistics:
    """Adds the gradient of a batch's loss, times `share`. Each different text of it is encoded once."""
    stage, encoder = job.stage, job.encoder
    tokens = encoder.tokenize(batch.queries + batch.documents, stage.data.max_length)
    targets = targets_of(batch, job.teacher, encoder.device)
    count = len(batch.queries)

    def objective(vectors: Tensor) -> tuple[Tensor, Statistics]:
        vectors = heads.applied(encoder, batch.objective, vectors)
        loss, statistics = batch_loss(vectors[:count], vectors[count:], targets, stage.loss, temperature, seed)
        return scaler.scale(loss * share), {"loss": loss.detach(), **statistics}

    statistics = gradcache.backward(encoder, tokens, seed, objective, stage.training.gradient_cache)
    if batch.objective:
        statistics[f"loss_{batch.objective}"] = statistics["loss"]
    if batch.difficulty is not None:
        statistics["difficulty"] = torch.tensor(batch.difficulty)
    return {**statistics, "tokens": torch.tensor(float(tokens.count)), "pairs": torch.tensor(float(tokens.pairs))}


def targets_of(batch: Batch, teacher: Teacher | None, device: torch.device) -> Targets:
    """What the loss of a batch is computed against, on the device of the vectors."""

    def there(values: object) -> Tensor:
        return torch.as_tensor(values).to(device)

    vectors = scores = None
    if teacher is not None and batch.scores is None:
        if teacher.kind == "embeddings":
            queries, documents = teacher.vectors(batch)
            vectors = there(queries), there(documents)
        else:
            scores = there(teacher.scores(batch))
    return Targets(
        positive=there(batch.positive),
        candidates=there(batch.candidates),
        own=there(batch.own),
        equal_queries=there(batch.equal_queries),
        in_batch=there(batch.in_batch),
        scores=None if batch.scores is None else there(batch.scores),
        teacher_vectors=vectors,
        teacher_scores=scores,
    )


def mean_over_rows(found: Sequence[Statistics], rows: Sequence[int]) -> dict[str, float]:
    """The mean of each statistic over the rows of the batches that have it."""
    result = {}
    for name in dict.fromkeys(name for each in found for name in each if name not in COUNTS):
        values = [(each[name].item(), count) for each, count in zip(found, rows, strict=True) if name in each]
        result[name] = sum(value * count for value, count in values) / sum(count for _, count in values)
    return result


def seed_of(config: Config, stage: Stage, step: int, number: int) -> int:
    """Decides what a batch of a step draws, so that a resumed run draws the same."""
    return int(digest("batch", str(config.seed), stage.name, str(step), str(number))[:15], 16)


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scales all gradients so that their norm together is at most `largest`. Returns what it was."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        if parameter.grad is not None:
            values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = distributed.total_norm(values)
    if math.isfinite(norm) and norm > largest:
        for value in values:
            value.mul_(largest / norm)
    return norm


def stop(step: int, job: Job, batches: Sequence[Batch], reason: str) -> None:
    """Says why training cannot go on, and writes down the rows that it came from. Always raises BuildError."""
    path = os.path.join(job.folder, "failed-batch.json")
    rows = [
        {
            "row_id": row_id,
            "query": "".join(batch.queries[number]),
            "positive": "".join(batch.documents[batch.positive[number]]),
            "negatives": ["".join(batch.documents[each]) for each in batch.own[number] if each >= 0],
        }
        for batch in batches
        for number, row_id in enumerate(batch.row_ids)
    ]
    storage.write_json(path, {"stage": job.stage.name, "step": step + 1, "reason": reason, "rows": rows})
    raise BuildError(
        f"At step {step + 1} of stage '{job.stage.name}' {reason}. Training stopped before the weights changed; the rows are "
        f"in '{path}'. Mend them, or lower optimizer.learning_rate (now {job.stage.optimizer.learning_rate})."
    )


def make_optimizers(encoder: Encoder, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019); only matrices decay, the token embeddings not. Lazy Adam for sparse embeddings."""
    embeddings = encoder.embedding_parameter
    sparse = [embeddings] if encoder.config.embeddings == "sparse" and embeddings.requires_grad else []
    trained = [each for each in encoder.parameters() if each.requires_grad and not any(each is other for other in sparse)]
    decaying = [each for each in trained if each.ndim > 1 and each is not embeddings]
    others = [each for each in trained if each.ndim <= 1 or each is embeddings]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        optimizers.append(torch.optim.AdamW(groups, betas=config.betas, fused=True))
    return optimizers + [torch.optim.SparseAdam(sparse, betas=config.betas) for _ in sparse]


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on GPUs that have it, and on CPUs that multiply it (AMX, or AVX-512 BF16). Elsewhere it is slower."""
    if precision == "auto":
        # These have no public names in all releases of torch that are allowed.
        on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else on_cpu
        precision = "bfloat16" if fast else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
