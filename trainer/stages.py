"""A run, stage by stage: train, measure, export, and go where the gate says. What is finished is not done again."""

from __future__ import annotations

import json
import logging
import os
from itertools import takewhile
from pathlib import Path

import torch
from rich.console import Console

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.opened import Build, open_build
from trainer import checkpoint, consolidation, distributed, loop, teacher, unpadded
from trainer.config import Config, Stage
from trainer.data import TrainingRows, no_rows, part_files, usable_blocks
from trainer.evaluation import objectives, retrieval
from trainer.export import export
from trainer.freezing import freeze
from trainer.heads import attach
from trainer.model import Encoder, load_encoder
from trainer.objectives import check, names_of, those_of
from trainer.outcome import Decision, Outcome, baseline, best, decide, metrics_of, of_stage, publish
from trainer.report import Metrics, StageMetrics
from trainer.run import Run, attempt_name, claim, claimed, open_run, stage_seed

log = logging.getLogger(__name__)


def do(config: Config, build: Build, output: str | None, console: Console, only: str | None = None) -> tuple[Run, Metrics]:
    """Does all stages, or the stage `only`, or what is left of them. However often it was stopped, the weights are the same.

    On CPUs to the bit. Raises BuildError where a gate stops the run, UserError where a stage before `only` is not done.
    """
    run = open_run(config, build, output)
    distributed.wait()  # nothing is written before all have read what is there
    last = last_stage(config, only)
    done: list[StageMetrics] = []
    previous: Outcome | None = None
    start: Path | None = None
    if finished(run, last):
        claim(run)
        log.info("This is finished; nothing is left to do.")
    later = config.stages[config.stages.index(last) + 1 :]
    for stage in config.stages[: config.stages.index(last) + 1]:
        fresh = not finished(run, stage)
        if fresh and stage is not last and only is not None:
            raise UserError(
                f"Stage '{only}' begins with the weights of '{stage.name}', which is not finished in '{run.folder}'. "
                f"Train it first, with --stage {stage.name}, or all stages with `trainer run`."
            )
        attempts: list[Outcome] = []
        decision: Decision = "repeat"
        while decision == "repeat":
            attempts.append(attempt(run, stage, len(attempts) + 1, start, previous, console))
            decision = decide(stage.gate, attempts)
        done.append(of_stage(stage, attempts))
        previous = attempts[best(attempts)]
        folder = attempt_name(stage, best(attempts) + 1)
        if decision == "stop":
            publish(run, metrics_of(run, done), None if start is None else os.path.join(start.parents[1].name, "model"))
            raise BuildError(stopped(run, stage, previous))
        start = checkpoint.place(run.path(folder, "checkpoints"), previous.taken)
        # What a stop kept from being published is published with the stage that follows, or by the next command.
        if fresh or (stage is last and not any(os.path.isdir(run.path(each.name)) for each in later)):
            publish(run, metrics_of(run, done), os.path.join(folder, "model"))
    return run, metrics_of(run, done)


def last_stage(config: Config, only: str | None) -> Stage:
    """The last stage that is to be done: the one that is named, else the last of all."""
    found = [stage for stage in config.stages if only in (None, stage.name)]
    if not found:
        raise UserError(f"There is no stage '{only}'; the config has: {', '.join(stage.name for stage in config.stages)}.")
    return found[-1]


def finished(run: Run, stage: Stage) -> bool:
    """Whether a stage is done and was passed."""
    repeats = stage.gate.repeats if stage.gate else 0
    paths = [run.path(attempt_name(stage, number), "metrics.json") for number in range(1, repeats + 2)]
    # A repeat says nothing without the attempts before it, which somebody has moved away.
    found = [Outcome.model_validate(storage.read_json(path)) for path in takewhile(os.path.isfile, paths)]
    return bool(found) and decide(stage.gate, found) == "go on"


def attempt(run: Run, stage: Stage, number: int, start: Path | None, previous: Outcome | None, console: Console) -> Outcome:
    """An attempt (from 1) at a stage, from the weights of the checkpoint `start`, else the base's; each at a lower rate."""
    config, folder = run.config, run.path(attempt_name(stage, number))
    path = os.path.join(folder, "metrics.json")
    if os.path.isfile(path):
        return Outcome.model_validate(storage.read_json(path))
    if number > 1 and stage.gate is not None:
        lower = stage.optimizer.learning_rate * stage.gate.repeat_rate ** (number - 1)
        stage = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update={"learning_rate": lower})})
        log.info("Stage '%s' is repeated from where it began, with a learning rate of %.2g", stage.name, lower)
    with distributed.main_first():
        if distributed.rank() == 0 and not claimed(run):
            preflight(run, stage)
    encoder = prepared(config, stage)
    dimensions = matryoshka_dimensions(config, encoder)
    task = retrieval.load_task(run.build, config.evaluation.queries, config.evaluation.documents)
    measured = objectives.load(run.build, config)
    with distributed.main_first():
        claim(run)
        before = previous.after if previous else baseline(run, encoder, task, dimensions, measured)
    if start is not None:
        checkpoint.load_weights(start, encoder)
    os.makedirs(folder, exist_ok=True)
    rows = TrainingRows(run.builds[stage.name], folder, stage, stage_seed(config, stage))
    distillation = stage.loss.distillation
    with distributed.main_first():
        teaching = teacher.Teacher.open(distillation, rows, run.path("teacher")) if distillation else None
    consolidate = consolidation.penalty(run, stage, folder, encoder)
    distributed.spread(encoder, stage.training.parallel)
    job = loop.Job(config, stage, folder, encoder, rows, teaching, task, dimensions, consolidate)
    log.info("Stage '%s': %s; %s on %s", stage.name, size(job), encoder.compute, encoder.device)
    taken = loop.train(job, console)
    if taken != job.steps:
        checkpoint.load_weights(checkpoint.place(job.checkpoints, taken), encoder)
    log.info("Stage '%s': measuring its model on %d queries and %d documents", stage.name, len(task.queries), len(task.documents))
    after, by_objective = retrieval.measure(encoder, task, dimensions), objectives.measure(encoder, measured)
    with distributed.main_first():
        if distributed.rank() > 0:
            return Outcome.model_validate(storage.read_json(path))
        if distributed.world() > 1:
            # What was spread is no model that can be written.
            encoder = prepared(config, stage)
            checkpoint.load_weights(checkpoint.place(job.checkpoints, taken), encoder)
        outcome = Outcome(
            learning_rate=stage.optimizer.learning_rate,
            steps=job.steps,
            seconds=seconds(os.path.join(folder, "log.jsonl")),
            taken=taken,
            before=before,
            after=after,
            objectives=by_objective,
        )
        build = run.builds[stage.name].version
        scores = {dimension: each.score for dimension, each in outcome.after.items()}
        export(encoder, os.path.join(folder, "model"), rows.prompts(encoder), run.title, build, dimensions, scores)
        storage.write_json(path, outcome.model_dump(mode="json"))
    return outcome


def preflight(run: Run, begins: Stage | None = None) -> None:
    """Tries what other stages than `begins` need, so that a mistake in the last one is told before the first one is trained."""
    for stage in run.config.stages:
        look_through(run.builds[stage.name], stage)
        if stage.loss.distillation is not None:
            teacher.load(stage.loss.distillation)
        look_through_earlier(stage)
        if stage is not begins:
            prepared(run.config, stage)
    for name in run.config.evaluation.encoders:
        retrieval.load(name)


def look_through_earlier(stage: Stage) -> None:
    """look_through of the build that a stage's consolidation names, where it does. Graded rows have no part in it."""
    if stage.consolidation is not None and stage.consolidation.build is not None:
        look_through(open_build(stage.consolidation.build), stage, ungraded=True)


def look_through(build: Build, stage: Stage, ungraded: bool = False) -> None:
    """Raises UserError where a build has no row that a stage can use, or none of an objective.

    With `ungraded`, rows without a score are needed.
    """
    found, count = set[str](), 0
    for block in usable_blocks(part_files(build, "train"), stage.loss.similarity is not None):
        own = those_of(block, stage.objectives)
        found.update(names_of(own, stage.objectives))
        count += own.column("score").null_count if ungraded else own.num_rows
    check(stage, build, found)
    if not count:
        raise no_rows(build, stage)


def prepared(config: Config, stage: Stage) -> Encoder:
    """The base on the device, set up for a stage."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory with NaN finds bugs; here it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    encoder = load_encoder(config.model, config.seed).to("cuda" if torch.cuda.is_available() else "cpu")
    attach(encoder, config)
    freeze(encoder, stage.layers)
    encoder.compute = loop.compute_type(stage.training.precision, encoder.device)
    if encoder.compute == torch.bfloat16 and encoder.device.type == "cpu":
        # oneDNN keeps compiled products of the last 1,024 shapes, up to a megabyte each, and chunks come in as many shapes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    encoder.chunk_tokens = stage.training.chunk_tokens
    if stage.training.unpadded:
        unpadded.turn_on(encoder)
    encoder.activation_checkpointing(stage.training.activation_checkpointing)
    if stage.training.compile:
        encoder.compile_layers()
    return encoder


def matryoshka_dimensions(config: Config, encoder: Encoder) -> list[int]:
    """The dimensions of all stages, widest first. All of them are measured before and after each stage."""
    for stage in config.stages:
        if (widest := max(stage.loss.dimensions, default=0)) > encoder.dimension:
            raise UserError(
                f"Stage '{stage.name}': loss.dimensions holds {widest}; the base '{config.model.base}' gives vectors of "
                f"{encoder.dimension} dimensions, and that is the largest allowed."
            )
    found = {dimension for stage in config.stages for dimension in stage.loss.dimensions or [encoder.dimension]}
    return sorted(found, reverse=True)


def size(job: loop.Job) -> str:
    return f"{len(job.rows):,} rows in {len(job.rows.groups)} groups, {job.steps:,} steps"


def seconds(path: str) -> float:
    """What the steps in a log, and the mining before them, took together, however often they were interrupted."""
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return round(float(sum(line["tokens"] / line["tokens_per_second"] + line.get("mining_seconds", 0.0) for line in lines)), 1)


def stopped(run: Run, stage: Stage, outcome: Outcome) -> str:
    """The sentence for a run that a gate stops."""
    before, after = outcome.scores
    wanted = stage.gate.min_gain if stage.gate else 0.0
    return (
        f"Stage '{stage.name}' was not passed: {retrieval.METRIC} went from {before:.4f} to {after:.4f} ({after - before:+.4f}), "
        f"and its gate asks for {wanted:+.4f}. '{run.path('report.html')}' shows the run. To try again, change the stage, move "
        f"'{run.path(stage.name)}' and its repeats away, and run with --output {run.folder}: what came before is kept."
    )
