"""What a run would do, checked as far as this machine can: config, base, builds, and one batch of each stage. Writes nothing."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from datakit.assets import locate
from datakit.errors import UserError
from datakit.opened import Build, open_build
from trainer import loop, stages
from trainer.batch import Batch, pairs
from trainer.config import Config, Stage
from trainer.data import TrainingRows
from trainer.evaluation import objectives, retrieval
from trainer.run import check_names, stage_builds, stage_seed
from trainer.teacher import DOCUMENT, QUERY, Teacher, hashes, item_keys


def check(config: Config, build: Build | None, only: str | None) -> Iterator[str]:
    """A line for each thing that was looked at. Raises UserError for what a run would be refused for."""
    chosen = config.stages if only is None else [stages.last_stage(config, only)]
    check_names(config)
    yield f"{config.name}: {len(config.stages)} stages, {', '.join(stage.name for stage in config.stages)}"
    here = there(config.model.base, "The base")
    for stage in chosen:
        if stage.loss.distillation is not None:
            there(stage.loss.distillation.teacher, f"{stage.name}: the teacher")
    for name in config.evaluation.encoders:
        there(name, "evaluation.encoders:")
    if not here:
        yield f"The base '{config.model.base}' is no folder here: nothing was tried with it, nor asked of the hub or its cache."
    own = {stage.name: open_build(stage.data.build) for stage in config.stages if stage.data.build}
    builds = own if build is None else stage_builds(config, build)
    if build is not None:
        task = retrieval.load_task(build, config.evaluation.queries, config.evaluation.documents)
        measured = objectives.load(build, config)
        more = f"; objectives: {', '.join(measured)}" if measured else ""
        yield f"measured on {len(task.queries):,} queries and {len(task.documents):,} documents{more}"
    for stage in chosen:
        yield f"{stage.name}: {said(stage)}"
        stages.look_through_earlier(stage)
        if here:
            encoder = stages.prepared(config, stage)
            stages.matryoshka_dimensions(config, encoder)
            count = sum(each.numel() for each in encoder.parameters() if each.requires_grad)
            yield f"{stage.name}: {count / 1e6:,.1f}M trained parameters on {encoder.device}, {encoder.dimension} dimensions"
        if stage.name not in builds:
            yield f"{stage.name}: no build is given (--data), so that rows and steps are not known"
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = TrainingRows(builds[stage.name], folder, stage, stage_seed(config, stage))
            if not here:
                size = f"{len(rows):,} rows in {len(rows.groups)} groups, {rows.batches_per_epoch:,} batches an epoch"
                yield f"{stage.name}: {size}"
                continue
            none = retrieval.Task([], [], [], [], [], 0, None)
            job = loop.Job(config, stage, folder, encoder, rows, None, none, [])
            yield f"{stage.name}: {stages.size(job)}"
            yield f"{stage.name}: {tried(job)}"


def there(name: str, what: str) -> bool:
    """Whether a model is a folder here. Raises UserError where it is not, and no name on the hub either."""
    path = locate(name)
    found = os.path.exists(path)
    if not found and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", path):
        raise UserError(f"{what} '{name}' is not there. Give a folder, a name on the hub, or package:NAME/inner/path.")
    return found


def said(stage: Stage) -> str:
    """A stage in one line."""
    loss, training = stage.loss, stage.training
    length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
    batch = stage.data.batch_size * training.accumulate
    terms = [
        "InfoNCE" if loss.contrastive and loss.form == "documents" else "InfoNCE as Qwen3" if loss.contrastive else None,
        f"focal gamma {loss.focal.gamma:g}" if loss.focal else None,
        "mixed negatives" if loss.mixing else None,
        f"KL to {loss.distillation.teacher}" if loss.distillation else None,
        loss.similarity.kind if loss.similarity else None,
        "triangle" if loss.triangle else None,
        f"negatives mined anew every {stage.data.remine.every:,} steps" if stage.data.remine else None,
        f"consolidation of strength {stage.consolidation.strength:g}" if stage.consolidation else None,
    ]
    return (
        f"{length} of {batch:,} rows, {stage.data.negatives} negatives each, rate {stage.optimizer.learning_rate:g}, "
        f"temperature {loss.temperature:g}, {', '.join(filter(None, terms))}, "
        f"dimensions {'/'.join(map(str, loss.dimensions)) or 'all'}"
    )


def tried(job: loop.Job) -> str:
    """One batch forward and backward, without a step."""
    batch = job.rows.batch(0, 0, job.encoder, 0.0)
    job.encoder.train()
    distillation = job.stage.loss.distillation
    teacher = pretended(batch, distillation.kind) if distillation else None
    whole = replace(job, teacher=teacher)
    scaler = torch.amp.GradScaler(job.encoder.device.type, enabled=False)
    found = loop.backward(batch, 1.0, 0, whole, job.stage.loss.temperature, scaler)
    norm = loop.clip(job.encoder.parameters(), job.stage.optimizer.clip)
    return (
        f"tried a batch of {len(batch.row_ids)} rows of '{batch.group}', {len(batch.documents)} documents, "
        f"{found['tokens'].item():,.0f} tokens: loss {found['loss'].item():.3f}, gradient {norm:.3g}"
        + ("; with random vectors in the teacher's place" if teacher is not None else "")
    )


def pretended(batch: Batch, kind: Literal["embeddings", "scores"]) -> Teacher:
    """A teacher that gives random values to the texts of one batch: the real one would read all texts first."""
    queries, documents = ([each.text for each in texts] for texts in (batch.queries, batch.documents))
    if kind == "scores":
        items = np.unique(pairs(hashes(queries)[:, None], hashes(documents)[None, :]))
    else:
        items = np.unique(np.concatenate([item_keys(QUERY, queries), item_keys(DOCUMENT, documents)]))
    values = np.random.Generator(np.random.Philox(key=0)).standard_normal((len(items), 1 if kind == "scores" else 8))
    values = values if kind == "scores" else values / np.linalg.norm(values, axis=1, keepdims=True)
    return Teacher("random", kind, items, [values.astype(np.float32)], len(items))
