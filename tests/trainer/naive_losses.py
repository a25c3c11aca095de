"""The losses from their definitions: one row, one dimension and one document at a time, in whole vectors and with plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config_loss import LossConfig
from trainer.losses import Targets, draw_mixtures


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return one @ other / (one.norm() * other.norm())


def naive_loss(queries: Tensor, documents: Tensor, targets: Targets, config: LossConfig, temperature: float, seed: int) -> Tensor:
    dimensions = config.dimensions or [queries.shape[1]]
    queries, documents = queries[:, : max(dimensions)], documents[:, : max(dimensions)]
    weights = config.weights or [1.0] * len(dimensions)
    drawn = draw_mixtures(targets.own, config.mixing, seed) if config.mixing else None
    total = queries.new_zeros(())
    for dimension, weight in zip(dimensions, weights, strict=True):
        for i in range(len(queries)):
            total = total + weight * naive_row(i, dimension, queries, documents, targets, config, temperature, drawn)
    return total / sum(weights) / len(queries)


def naive_row(i, dimension, queries, documents, targets, config, temperature, drawn):  # type: ignore[no-untyped-def]
    q, d = queries[:, :dimension], documents[:, :dimension]
    p = int(targets.positive[i])
    own = [int(each) for each in targets.own[i] if each >= 0]
    candidates = [j for j in range(len(d)) if targets.candidates[i, j]]
    positive = cosine(q[i], d[p])
    result = queries.new_zeros(())
    ceiling = torch.inf
    if config.false_negative_margin is not None:
        ceiling = cosine(queries[i], documents[p]).item() + config.false_negative_margin
    if config.contrastive:
        kept = [j for j in candidates if cosine(queries[i], documents[j]).item() <= ceiling]
        exps = [(cosine(q[i], d[j]) / temperature).exp() for j in kept]
        if config.form == "qwen3":
            for j in range(len(q)):
                if targets.in_batch[i] and not targets.equal_queries[i, j] and cosine(queries[i], queries[j]).item() <= ceiling:
                    exps.append((cosine(q[i], q[j]) / temperature).exp())
            for j in candidates:
                if j != p and cosine(documents[p], documents[j]).item() <= ceiling:
                    exps.append((cosine(d[p], d[j]) / temperature).exp())
        if drawn is not None and len(own) >= 2:
            for first, second, share in zip(drawn.first[i], drawn.second[i], drawn.share[i], strict=True):
                a, b = documents[targets.own[i, first]], documents[targets.own[i, second]]
                mixed = share * a + (1 - share) * b
                exps.append((cosine(q[i], mixed[:dimension]) / temperature).exp())
            if drawn.lists:
                near = torch.stack([cosine(queries[i], documents[j]) for j in own]).detach()
                mixed = sum(w * documents[j] for w, j in zip(torch.softmax(near, 0), own, strict=True))
                exps.append((cosine(q[i], mixed[:dimension]) / temperature).exp())
        loss = -((positive / temperature).exp() / torch.stack(exps).sum()).log()
        if config.focal is not None:
            missed = (1 - (-loss).exp()).clamp(min=1e-15)  # the root has no slope at 0
            factor = config.focal.alpha * missed**config.focal.gamma
            loss = (factor.detach() if config.focal.detach else factor) * loss
        result = result + config.contrastive * loss
    if config.distillation is not None and config.distillation.documents == "texts":
        tq, td = targets.teacher_vectors
        by_query = [(tq[i] @ td[j], cosine(q[i], d[j])) for j in range(len(d))]
        by_query += [(tq[i] @ tq[j], cosine(q[i], q[j])) for j in range(len(q)) if j != i]
        by_positive = [(td[p] @ td[j], cosine(d[p], d[j])) for j in range(len(d)) if j != p]
        for pairs in filter(None, (by_query, by_positive)):
            told, found = (torch.stack(each) for each in zip(*pairs, strict=True))
            teacher = torch.softmax(told / config.distillation.teacher_temperature, 0)
            student = torch.log_softmax(found / config.distillation.student_temperature, 0)
            result = result + config.distillation.weight / 2 * (teacher * (teacher.log() - student)).sum()
    elif config.distillation is not None:
        over = candidates if config.distillation.documents == "batch" else [p, *own]
        if targets.teacher_scores is not None:
            told = [
                targets.teacher_scores[i, 0],
                *(s for s, j in zip(targets.teacher_scores[i, 1:], targets.own[i], strict=True) if j >= 0),
            ]
        else:
            tq, td = targets.teacher_vectors
            told = [tq[i] @ td[j] for j in over]
        teacher = torch.softmax(torch.stack(told) / config.distillation.teacher_temperature, 0)
        student = torch.log_softmax(torch.stack([cosine(q[i], d[j]) for j in over]) / config.distillation.student_temperature, 0)
        result = result + config.distillation.weight * (teacher * (teacher.log() - student)).sum()
    if config.triangle is not None and len(targets.own[i]):

        def distance(one: Tensor, other: Tensor) -> Tensor:
            c = cosine(one, other)
            return {"cosine": lambda: 1 - c, "euclidean": lambda: (2 - 2 * c).sqrt(), "angular": lambda: torch.arccos(c)}[
                config.triangle.distance
            ]()

        broken = [distance(q[i], d[j]) - distance(q[i], d[p]) - distance(d[p], d[j]) + config.triangle.epsilon for j in own]
        result = result + config.triangle.weight * sum(each.clamp(min=0) for each in broken) / max(1, len(own))
    return result
