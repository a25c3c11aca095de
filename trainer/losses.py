"""Losses: pure functions of vectors, targets and a config.

Each is a function of similarities that gives one number a row, so that they compose: a row's loss is their weighted sum, the loss
the mean over rows and the weighted mean over Matryoshka dimensions. Similarities are cosines, float32 at least, outside autocast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.config import Distillation, Focal, LossConfig, Mixing, Triangle
from trainer.matryoshka import Pairing, Statistics, Texts, Tile, WithGradients, by_blocks, row_cosines

# Added to a logit that is left out. Finite, so that a row with nothing left has no NaN; its exp is 0 beside any cosine.
LEFT_OUT = -1e30


@dataclass(frozen=True)
class Targets:
    """What a batch of B queries and N documents asks for. All tensors are on the device of the vectors."""

    positive: Tensor  # [B] int64: the document of each row
    candidates: Tensor  # [B, N] bool: documents in the row's denominator, its positive among them
    own: Tensor  # [B, K] int64: the row's mined negatives among the documents, -1 where absent
    equal_queries: (
        Tensor  # [B, B] bool: queries that are no negatives of each other (qwen3); all of them for a row without in-batch ones
    )
    positives: Tensor  # [B, N] bool: documents that are a positive of the row's query, known anywhere in the data
    scores: Tensor | None = None  # [B] float: graded rows. Then only the similarity loss applies, to (query, positive)
    teacher_vectors: tuple[Tensor, Tensor] | None = None  # queries [B, t], documents [N, t], norm 1
    teacher_scores: Tensor | None = None  # [B, 1 + K]: of the positive and of `own`, NaN where absent

    def of(self, rows: slice) -> Targets:
        """The same for some of the rows."""
        teacher = self.teacher_vectors
        return Targets(
            **{name: getattr(self, name)[rows] for name in ("positive", "candidates", "own", "equal_queries", "positives")},
            teacher_vectors=None if teacher is None else (teacher[0][rows], teacher[1]),
            teacher_scores=None if self.teacher_scores is None else self.teacher_scores[rows],
        )

    def negatives(self) -> Tensor:
        """[B, N] bool: candidates that are no positive of the query."""
        return (self.candidates & ~self.positives).scatter(1, self.positive[:, None], False)

    def own_negatives(self) -> Tensor:
        """[B, K] bool: which of `own` are there, and are no positive of the query."""
        place = self.own.clamp(min=0)
        return (self.own >= 0) & self.candidates.gather(1, place) & ~self.positives.gather(1, place)


def batch_loss(
    queries: Tensor, documents: Tensor, targets: Targets, config: LossConfig, temperature: float, seed: int
) -> tuple[Tensor, Statistics]:
    """The loss of queries [B, d] and documents [N, d], and what is seen of it: detached scalars, at the widest dimension.

    temperature: of InfoNCE, as annealed. seed: decides what mixing draws, for each row by its place. The gradient is exact, taken
    with the loss; a second derivative is an error.
    """
    kind = torch.promote_types(queries.dtype, torch.float32)
    dimensions = sorted(config.dimensions or [queries.shape[1]])
    given = dict(zip(config.dimensions or dimensions, config.weights or [1.0] * len(dimensions), strict=True))
    shares = [given[dimension] / sum(given.values()) for dimension in dimensions]
    with torch.autocast(queries.device.type, enabled=False):
        queries, documents = queries.to(kind), documents.to(kind)
        if targets.scores is not None:
            losses, statistics = graded_losses(queries, documents, targets, config, dimensions)
        ...
