"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): weights that earlier rows need are held.

The penalty is strength / 2 x sum of F (weight - anchor)^2 (eq. 3), where the anchor is the weights at the stage's start, and F,
for each weight, the mean over earlier rows of the squared gradient of the row's loss: the diagonal of the empirical Fisher
information. Rows go one by one, since the square of a mean over rows is not the mean of squares: gradients of rows that pull in
opposite directions would cancel, and F would fall with the size of the batch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from datakit import storage
from datakit.opened import open_build
from trainer import distributed, gradcache, heads
from trainer.checkpoint import seal, sealed, trained
from trainer.config import Stage
from trainer.data import TrainingRows, no_rows
from trainer.loop import targets_of
from trainer.losses import Statistics, Targets, batch_loss
from trainer.model import Encoder
from trainer.run import Run, stage_seed
from trainer.teacher import Teacher

log = logging.getLogger(__name__)


def penalty(run: Run, stage: Stage, folder: str, encoder: Encoder) -> Callable[[Encoder], float] | None:
    """`pull` of a stage whose first weights the encoder has. F is computed once, and kept in the stage's folder."""
    config = stage.consolidation
    if config is None:
        return None
    path = os.path.join(folder, "fisher.safetensors")
    if sealed(path) is None:
        number = [each.name for each in run.config.stages].index(stage.name)
        earlier = stage if config.build is not None else run.config.stages[number - 1]
        build = open_build(config.build) if config.build is not None else run.builds[earlier.name]
        rows, began = TrainingRows(build, folder, earlier, stage_seed(run.config, earlier)), time.monotonic()
        distillation = earlier.loss.distillation
        with distributed.main_first():
            teacher = Teacher.open(distillation, rows, run.path("teacher")) if distillation else None
        # Each process computes all of it, as the encoder is not spread yet.
        found, count = fisher(encoder, rows, earlier, teacher, config.rows)
        if distributed.rank() == 0:
            storage.write_bytes(path, save({name: value.cpu() for name, value in found.items()}))
            seal(path, {"rows": count, "build": build.version})
        distributed.wait()
        log.info("Fisher information of %d rows of '%s' in %.0f s", count, build.path, time.monotonic() - began)
    anchors = {name: parameter.detach().clone() for name, parameter in trained(encoder).items()}
    return partial(pull, config.strength, anchors, load_file(path, device=str(encoder.device)))


@torch.no_grad()
def pull(strength: float, anchors: dict[str, Tensor], importance: dict[str, Tensor], encoder: Encoder) -> float:
    """Adds the gradient strength F (weight - anchor) of the penalty to the encoder's gradients, and returns the penalty.

    Of embeddings with sparse gradients only the rows that the gradient has are pulled: the others do not move in this step.
    """
    total = torch.zeros((), dtype=torch.float64, device=encoder.device)
    for name, parameter in trained(encoder).items():
        away = parameter - anchors[name]
        gradient = strength * importance[name] * away
        total += (gradient * away).sum(dtype=torch.float64) / 2
        if parameter.grad is None:
            # A gradient of zeros would make AdamW decay what the stage does not train.
            parameter.grad = gradient if gradient.any() else None
        elif parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            parameter.grad.values().add_(gradient[parameter.grad.indices()[0]])
        else:
            parameter.grad += gradient
    return total.item()


def fisher(
    encoder: Encoder, rows: TrainingRows, stage: Stage, teacher: Teacher | None, most: int
) -> tuple[dict[str, Tensor], int]:
    """F of each trained parameter, in its shape, and of how many rows it is the mean: up to `most`, from all batches alike.

    The loss is the stage's, at its first temperature, without dropout, as in the batches of its first epoch, with negatives of
    the build as the curriculum has them at its end; of form qwen3 without other queries. Graded rows have no part in it: their
    loss is one of pairs of rows.
    """
    encoder.eval()
    parameters = trained(encoder)
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for number, place in islice(_places(rows), most):
        encoder.zero_grad(set_to_none=True)
        row_gradient(encoder, rows, stage, teacher, number, place)
        for name, parameter in parameters.items():
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                gradient = gradient.coalesce()
                found[name].index_add_(0, gradient.indices()[0], gradient.values().square())
            elif gradient is not None:
                found[name].addcmul_(gradient, gradient)
        count += 1
    encoder.zero_grad(set_to_none=True)
    if count == 0:
        raise no_rows(rows.build, stage)
    return {name: value / count for name, value in found.items()}, count


def row_gradient(encoder: Encoder, rows: TrainingRows, stage: Stage, teacher: Teacher | None, number: int, place: int) -> None:
    """Adds the gradient of the loss of the row at `place` of batch `number`, among the documents of that batch."""
    batch = rows.batch(0, number, encoder, 1.0)
    whole, one = targets_of(batch, teacher, encoder.device), slice(place, place + 1)
    vectors, scores = whole.teacher_vectors, whole.teacher_scores
    targets = Targets(
        positive=whole.positive[one],
        candidates=whole.candidates[one],
        own=whole.own[one],
        equal_queries=whole.equal_queries[one, one],
        in_batch=whole.in_batch[one],
        teacher_vectors=None if vectors is None else (vectors[0][one], vectors[1]),
        teacher_scores=None if scores is None else scores[one],
    )

    def objective(found: Tensor) -> tuple[Tensor, Statistics]:
        found = heads.applied(encoder, batch.objective, found)
        return batch_loss(found[:1], found[1:], targets, stage.loss, stage.loss.temperature, 0)

    tokens = encoder.tokenize([batch.queries[place], *batch.documents], stage.data.max_length)
    gradcache.backward(encoder, tokens, 0, objective, stage.training.gradient_cache)


def _places(rows: TrainingRows) -> Iterator[tuple[int, int]]:
    """(batch, row) of all ungraded rows in the first epoch: the first row of each batch, then the second of each, and so on."""
    batches = [(number, stop - start) for number, (group, start, stop) in enumerate(rows.plan(0)) if not rows.groups[group][1]]
    for place in range(rows.data.batch_size):
        yield from ((number, place) for number, size in batches if place < size)
