"""The losses of a batch: pure functions of the cosines of one Matryoshka prefix, each returning one number a row.

They compose because they see cosines only: `trainer.matryoshka` makes these for every prefix, and carries the gradients back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config_loss import Distillation, Focal, LossConfig, Mixing, Triangle
from trainer.matryoshka import Block, cosine_pairs, in_blocks

Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class Targets:
    """What B queries and N documents are to each other. All on the device of the vectors."""

    positive: Tensor  # [B] int64: the document of each row
    candidates: Tensor  # [B, N] bool: documents in the row's denominator, its positive among them
    own: Tensor  # [B, K] int64: the row's mined negatives among the documents, -1 where absent
    equal_queries: Tensor  # [B, B] bool: queries that are equal or have a positive in common
    in_batch: Tensor  # [B] bool: rows that take what is in the batch as negatives, and not their mined ones alone
    scores: Tensor | None = None  # [B]: of graded rows; then only the loss of similarities applies
    teacher_vectors: tuple[Tensor, Tensor] | None = None  # queries [B, t], documents [N, t], of norm 1
    teacher_scores: Tensor | None = None  # [B, 1 + K]: a cross-encoder's, of the positive and of `own`, NaN where absent


def batch_loss(
    queries: Tensor, documents: Tensor, targets: Targets, config: LossConfig, temperature: float, seed: int
) -> tuple[Tensor, Statistics]:
    """The loss of a batch, and what is worth watching: the mean over rows, the weighted mean over dimensions, the sum over terms.

    queries [B, d], documents [N, d]. At each Matryoshka dimension (Kusupati et al. 2022, arXiv 2205.13147, eq. 1) a vector is its
    first components, brought to norm 1. `seed` decides what `mixing` draws. Everything is float32 at least, outside autocast.
    """
    kind = torch.promote_types(queries.dtype, torch.float32)
    dimensions = sorted(config.dimensions or [queries.shape[1]])
    given = dict(zip(config.dimensions or dimensions, config.weights or [1.0] * len(dimensions), strict=True))
    weights = [given[dimension] / sum(given.values()) for dimension in dimensions]
    with torch.autocast(queries.device.type, enabled=False):
        queries, documents = queries.to(kind), documents.to(kind)
        if targets.scores is not None:
            return graded(queries, documents, targets, config, dimensions, weights)
        mixed = draw_mixtures(targets.own, config.mixing, seed) if config.mixing else None

        def rows(block: Block) -> Iterator[tuple[Tensor, Statistics]]:
            return row_losses(block, targets, mixed, config, temperature, weights)

        all_pairs = (config.form == "qwen3" and config.contrastive > 0) or relational(config)
        loss, statistics = in_blocks(queries, documents, targets.positive, targets.own, dimensions, rows, all_pairs)
    return loss, statistics


def row_losses(
    block: Block, targets: Targets, mixed: Mixtures | None, config: LossConfig, temperature: float, weights: list[float]
) -> Iterator[tuple[Tensor, Statistics]]:
    """Of each dimension, widest first: the sum of the losses of some rows, and sums of statistics over them."""
    rows, widest = block.rows, block.cosines[-1].detach()
    positive, candidates, own = targets.positive[rows], targets.candidates[rows], targets.own[rows]
    left, statistics = candidates, seen(widest, positive, candidates)
    if config.false_negative_margin is not None:
        left = candidates & (widest <= widest.gather(1, positive[:, None]) + config.false_negative_margin)
        statistics["false_negatives"] = 1 - left.sum(1) / candidates.sum(1).clamp(min=1)
    others = other_negatives(block, targets, config) if config.form == "qwen3" and config.contrastive else []
    absent = penalty(left, widest.dtype)
    negatives = mixtures(block, own, mixed, rows) if mixed is not None else None
    kind = widest.dtype
    teacher = teacher_probabilities(targets, rows, config).to(kind) if config.distillation and not relational(config) else None
    relations = teacher_relations(targets, rows, config) if relational(config) else []
    del widest

    for place in reversed(range(len(weights))):
        dimension, cosines = block.dimensions[place], block.cosines[place]
        own_cosine = cosine_pairs(block.queries, block.positives, dimension)
        terms = torch.zeros_like(own_cosine)
        if config.contrastive:
            parts = [log_partition(cosines, absent, temperature)]
            parts += [log_partition(values[place], missing, temperature) for values, missing in others]
            if negatives is not None:
                vectors, missing = negatives
                parts.append(log_partition(cosine_pairs(block.queries[:, None], vectors, dimension), missing, temperature))
            terms = info_nce(own_cosine, parts, temperature)
            statistics[f"loss_{dimension}"] = terms.detach()
            if config.focal is not None:
                weighed = focal_weight(terms, config.focal)
                statistics["focal_weight"] = weighed.detach()
                terms = weighed * terms
            terms = config.contrastive * terms
        if config.distillation is not None:
            if teacher is not None:
                divergence = distilled(cosines, own_cosine, own, candidates, teacher, config)
            else:
                values = [torch.cat([cosines, block.query_cosines[place]], 1), block.positive_cosines[place]]
                parts = [
                    kl(value, told.to(kind), there, config.distillation)
                    for value, (told, there) in zip(values, relations, strict=True)
                ]
                divergence = torch.stack(parts).mean(0)
            statistics["kl"] = divergence.detach()
            terms = terms + config.distillation.weight * divergence
        if config.triangle is not None:
            broken = triangle(block, own, dimension, config.triangle)
            count = (own >= 0).sum(1).clamp(min=1)
            statistics["triangle"] = broken.detach().sum(1) / count
            statistics["triangle_active"] = (broken.detach() > 0).sum(1) / count
            terms = terms + config.triangle.weight * broken.sum(1) / count
        # At the narrower dimensions their losses alone are told.
        told = [name for name in statistics if place == len(weights) - 1 or name == f"loss_{dimension}"]
        yield weights[place] * terms.sum(), {name: statistics[name].sum() for name in told}


class LogPartition(torch.autograd.Function):
    """log of the sum over j of exp(cosine_j / temperature + penalty_j), [b]. Keeps one matrix; the gradient can be had once."""

    @staticmethod
    def forward(ctx: Any, cosines: Tensor, penalties: Tensor, temperature: float) -> Tensor:
        shares = torch.add(penalties, cosines, alpha=1 / temperature)
        highest = shares.amax(1, keepdim=True)
        total = shares.sub_(highest).exp_().sum(1, keepdim=True)
        ctx.shares, ctx.total, ctx.temperature = shares, total, temperature
        return (highest + total.log())[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.shares.mul_(gradient[:, None] / ctx.temperature / ctx.total), None, None


def log_partition(cosines: Tensor, penalties: Tensor, temperature: float) -> Tensor:
    """See LogPartition. cosines [b, n]; penalties [b, n] of what does not count."""
    return LogPartition.apply(cosines, penalties, temperature)  # type: ignore[no-any-return, no-untyped-call]


def penalty(there: Tensor, kind: torch.dtype) -> Tensor:
    """0 for what counts, and -1e30 for what does not: as good as -inf, and a row with nothing that counts gives no NaN."""
    return torch.where(there, torch.zeros((), dtype=kind, device=there.device), -1e30)


def info_nce(positive: Tensor, parts: list[Tensor], temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4), from the logs of the parts of the denominator."""
    whole = parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), 0)
    return whole - positive / temperature


def focal_weight(losses: Tensor, config: Focal) -> Tensor:
    """alpha (1 - p)^gamma, where p = exp(-loss) (Lin et al. 2017, arXiv 1708.02002, eq. 5; KaLM-Embedding-V2 without alpha)."""
    if config.detach:
        losses = losses.detach()
    missed = -torch.expm1(-losses)
    return config.alpha * missed.clamp(min=torch.finfo(missed.dtype).eps) ** config.gamma


def other_negatives(block: Block, targets: Targets, config: LossConfig) -> list[tuple[list[Tensor], Tensor]]:
    """What Qwen3-Embedding (arXiv 2506.05176, eq. 1) adds to the denominator: other queries, documents seen from the positive.

    As there, those nearer than the positive by more than the margin are left out, and whatever is known to be a positive.
    """
    rows = block.rows
    positive = targets.positive[rows]
    queries = ~targets.equal_queries[rows] & targets.in_batch[rows, None]
    documents = targets.candidates[rows].scatter(1, positive[:, None], False)
    if config.false_negative_margin is not None:
        ceiling = block.cosines[-1].detach().gather(1, positive[:, None]) + config.false_negative_margin
        queries = queries & (block.query_cosines[-1].detach() <= ceiling)
        documents = documents & (block.positive_cosines[-1].detach() <= ceiling)
    kind = block.queries.dtype
    return [(block.query_cosines, penalty(queries, kind)), (block.positive_cosines, penalty(documents, kind))]


class Mixtures(NamedTuple):
    """How each row's mined negatives are mixed."""

    first: Tensor  # [B, P] places in `own`
    second: Tensor  # [B, P]
    share: Tensor  # [B, P] of the first
    enough: Tensor  # [B] rows with two mined negatives at least
    lists: bool


def draw_mixtures(own: Tensor, config: Mixing, seed: int) -> Mixtures:
    """Draws `pairs` pairs of different mined negatives of each row, and their shares. The same seed, the same draw."""
    rows, places = own.shape
    draw = np.random.Generator(np.random.Philox(key=seed))
    luck = torch.from_numpy(draw.random((rows, config.pairs, places))).to(own.device)
    share = torch.from_numpy(draw.beta(config.beta, config.beta, (rows, config.pairs))).to(own.device)
    luck = luck.masked_fill((own < 0)[:, None], -1.0)
    enough = (own >= 0).sum(1) >= 2
    none = torch.zeros(rows, config.pairs, 2, dtype=torch.long, device=own.device)
    two = luck.topk(2, dim=2).indices if places >= 2 else none
    return Mixtures(two[..., 0], two[..., 1], share, enough, config.lists)


def mixtures(block: Block, own: Tensor, drawn: Mixtures, rows: slice) -> tuple[Tensor, Tensor] | None:
    """More negatives of some rows: vectors [b, M, d] and their penalties [b, M] (KaLM-Embedding-V2, arXiv 2506.20923).

    Pairs: l a + (1 - l) b. Lists: the sum of all mined negatives, weighted by the softmax of their cosines to the query. The
    weights are constants for the gradient. Rows with fewer than two mined negatives have no mixture. No norm: cosines have one.
    """
    enough = drawn.enough[rows]
    if not own.shape[1]:
        return None
    at = torch.arange(len(own), device=own.device)[:, None]
    share = drawn.share[rows].to(block.own.dtype)[..., None]
    pairs = share * block.own[at, drawn.first[rows]] + (1 - share) * block.own[at, drawn.second[rows]]
    parts = [pairs]
    if drawn.lists:
        with torch.no_grad():
            nearness = cosine_pairs(block.queries[:, None], block.own, block.dimensions[-1])
            weights = torch.softmax(nearness.masked_fill(own < 0, torch.finfo(nearness.dtype).min), dim=1)
        parts.append((weights[..., None] * block.own).sum(1, keepdim=True))
    vectors = torch.cat(parts, 1)
    return vectors, penalty(enough[:, None].expand(vectors.shape[:2]), vectors.dtype)


def teacher_probabilities(targets: Targets, rows: slice, config: LossConfig) -> Tensor:
    """The teacher's distribution over all candidates [b, N], or over the positive and the mined negatives [b, 1 + K]."""
    assert config.distillation is not None
    if targets.teacher_scores is not None:
        scores = targets.teacher_scores[rows]
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
    else:
        assert targets.teacher_vectors is not None, "a teacher of vectors"
        scores = targets.teacher_vectors[0][rows] @ targets.teacher_vectors[1].T
        if config.distillation.documents == "own":
            scores = with_own(scores, targets.positive[rows], targets.own[rows])
        else:
            scores = scores.masked_fill(~targets.candidates[rows], -torch.inf)
    return torch.softmax(scores / config.distillation.teacher_temperature, dim=1)


def with_own(values: Tensor, positive: Tensor, own: Tensor) -> Tensor:
    """Of values [b, N] those of the positive and the mined negatives [b, 1 + K], -inf where absent."""
    picked = values.gather(1, torch.cat([positive[:, None], own.clamp(min=0)], 1))
    return picked.masked_fill(nn.functional.pad(own < 0, (1, 0)), -torch.inf)


def distilled(
    cosines: Tensor, own_cosine: Tensor, own: Tensor, candidates: Tensor, teacher: Tensor, config: LossConfig
) -> Tensor:
    """KL(teacher || student) of each row, in nats (Hinton et al. 2015, arXiv 1503.02531; the brief, IV stage 3).

    Not multiplied by the squared temperature: below 1 that would shrink the gradient, and weight says how much it counts.
    """
    assert config.distillation is not None
    if config.distillation.documents == "own":
        cosines = torch.cat([own_cosine[:, None], cosines.gather(1, own.clamp(min=0))], 1)
        candidates = nn.functional.pad(own >= 0, (1, 0), value=True)
    return kl(cosines, teacher, candidates, config.distillation)


def kl(cosines: Tensor, teacher: Tensor, there: Tensor, config: Distillation) -> Tensor:
    """KL(teacher || student) [b] over those of n texts that are there: cosines, teacher's probabilities and `there` [b, n]."""
    temperature = config.student_temperature
    negentropy = torch.xlogy(teacher, teacher).sum(1)
    partition = log_partition(cosines, penalty(there, cosines.dtype), temperature)
    return negentropy + partition - (teacher * cosines).sum(1) / temperature


def relational(config: LossConfig) -> bool:
    """Whether the teacher tells of all texts of a batch. It knows which are alike, so that no mask is needed."""
    return config.distillation is not None and config.distillation.documents == "texts"


def teacher_relations(targets: Targets, rows: slice, config: LossConfig) -> list[tuple[Tensor, Tensor]]:
    """The teacher's distributions of queries over documents and queries [b, N + B], of positives over documents [b, N].

    With each, what it is over: all but the text itself (similarities of a batch: Tung & Mori 2019, arXiv 1907.09682, in the form
    of distributions).
    """
    assert config.distillation is not None
    assert targets.teacher_vectors is not None, "a teacher of vectors"
    queries, documents = targets.teacher_vectors
    positive = targets.positive[rows]
    own_place = torch.arange(len(queries), device=queries.device)[rows] + len(documents)
    found = []
    for vectors, others, itself in (
        (queries[rows], torch.cat([documents, queries]), own_place),
        (documents[positive], documents, positive),
    ):
        there = torch.ones(len(vectors), len(others), dtype=torch.bool, device=vectors.device)
        if len(others) > 1:
            there.scatter_(1, itself[:, None], False)
        scores = (vectors @ others.T).masked_fill(~there, -torch.inf)
        found.append((torch.softmax(scores / config.distillation.teacher_temperature, 1), there))
    return found


def triangle(block: Block, own: Tensor, dimension: int, config: Triangle) -> Tensor:
    """max(0, d(a, c) - d(a, b) - d(b, c) + epsilon) [b, K] over query a, positive b, mined negative c; 0 where there is none."""

    def distance(cosine: Tensor) -> Tensor:
        if config.distance == "cosine":
            return 1 - cosine
        if config.distance == "euclidean":
            return (2 - 2 * cosine).clamp(min=1e-12).sqrt()
        return torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))

    if not own.shape[1]:
        return block.queries.new_zeros(len(own), 1)
    a, b = block.queries[:, None], block.positives[:, None]
    sides = [distance(cosine_pairs(one, other, dimension)) for one, other in ((a, block.own), (a, b), (b, block.own))]
    return (sides[0] - sides[1] - sides[2] + config.epsilon).clamp(min=0).masked_fill(own < 0, 0.0)


def graded(
    queries: Tensor, documents: Tensor, targets: Targets, config: LossConfig, dimensions: list[int], weights: list[float]
) -> tuple[Tensor, Statistics]:
    """The loss of rows with a graded score, at each dimension."""
    assert targets.scores is not None
    assert config.similarity is not None, "graded rows are left out without loss.similarity"
    loss, statistics = queries.new_zeros(()), Statistics()
    for dimension, weight in zip(dimensions, weights, strict=True):
        cosines = cosine_pairs(queries, documents[targets.positive], dimension)
        if config.similarity.kind == "cosent":
            found = cosent(cosines, targets.scores, config.similarity.scale)
        else:
            found = (cosines - targets.scores.to(cosines.dtype)).square().mean()
        statistics[f"{config.similarity.kind}_{dimension}"] = found.detach()
        loss = loss + weight * config.similarity.weight * found
    statistics[config.similarity.kind] = found.detach()
    return loss, statistics


def cosent(cosines: Tensor, scores: Tensor, scale: float) -> Tensor:
    """CoSENT (Su 2022): log(1 + sum of exp(scale (cos_i - cos_j)) over pairs where row i is graded below row j)."""
    differences = scale * (cosines[:, None] - cosines[None, :])
    below = scores[:, None] < scores[None, :]
    return torch.logsumexp(torch.cat([cosines.new_zeros(1), differences[below]]), 0)


@torch.no_grad()
def seen(cosines: Tensor, positive: Tensor, candidates: Tensor) -> Statistics:
    """Some rows at the widest dimension: won by their positive, cosines, negatives a row, share of masked documents."""
    own = cosines.gather(1, positive[:, None])[:, 0]
    # -2 is below every cosine.
    negatives = torch.where(candidates, cosines, -2.0).scatter_(1, positive[:, None], -2.0)
    count = candidates.sum(1) - 1
    total = negatives.sum(1, dtype=torch.float64) + 2 * (cosines.shape[1] - count)
    return {
        "accuracy": (own > negatives.amax(1)).to(cosines.dtype),
        "positive_similarity": own,
        "negative_similarity": (total / count.clamp(min=1)).to(cosines.dtype),
        "negatives": count.to(cosines.dtype),
        "masked": 1 - (count + 1) / cosines.shape[1],
    }
