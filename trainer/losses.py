"""Losses: pure functions of embeddings and a config. Each returns (loss, statistics)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.config import LossConfig

Statistics = dict[str, Tensor]


def prefix_similarities(queries: Tensor, documents: Tensor, dimensions: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """For each dimension, ascending: the cosine [B, N] of the first so many components of queries [B, d] and documents [N, d].

    Dot products and squared norms are summed block by block, so that all prefixes together cost one matrix product of the widest.
    """
    products = queries.new_zeros(len(queries), len(documents))
    query_squares, document_squares = queries.new_zeros(len(queries)), documents.new_zeros(len(documents))
    start = 0
    for stop in sorted(dimensions):
        q, d = queries[:, start:stop], documents[:, start:stop]
        products = products + q @ d.T
        query_squares = query_squares + q.square().sum(1)
        document_squares = document_squares + d.square().sum(1)
        scale = query_squares.clamp(min=1e-12).rsqrt()[:, None] * document_squares.clamp(min=1e-12).rsqrt()[None, :]
        yield stop, products * scale
        start = stop


def info_nce(
    queries: Tensor, documents: Tensor, positive: Tensor, candidates: Tensor, config: LossConfig
) -> tuple[Tensor, Statistics]:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4), the mean over rows and the weighted mean over dimensions.

    queries [B, d]; documents [N, d], the different documents of the batch; positive [B], the document of each row;
    candidates [B, N], which documents stand in a row's denominator, its positive among them.
    At each Matryoshka dimension (Kusupati et al. 2022, arXiv 2205.13147), with s the cosine of the first components:
    -log(exp(s(q, d+) / t) / sum over candidates exp(s(q, d) / t)).
    Similarities, division and log-softmax are float32 at least, whatever the embeddings are, and outside autocast.
    """
    dimensions = config.dimensions or [queries.shape[1]]
    weights = dict(zip(dimensions, config.weights or [1.0] * len(dimensions), strict=True))
    kind = torch.promote_types(queries.dtype, torch.float32)
    statistics: Statistics = {}
    loss = torch.zeros((), dtype=kind, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for dimension, similarities in prefix_similarities(queries.to(kind), documents.to(kind), dimensions):
            logits = (similarities / config.temperature).masked_fill(~candidates, -torch.inf)
            rows = -torch.log_softmax(logits, dim=1).gather(1, positive[:, None])[:, 0]
            loss = loss + rows.mean() * (weights[dimension] / sum(weights.values()))
            statistics[f"loss_{dimension}"] = rows.detach().mean()
        with torch.no_grad():
            statistics |= _seen(similarities, positive, candidates)
    return loss, statistics


def _seen(similarities: Tensor, positive: Tensor, candidates: Tensor) -> Statistics:
    """The batch at the widest dimension: rows won by their positive, similarities, negatives a row, masked documents."""
    own = similarities.gather(1, positive[:, None])
    negatives = candidates.scatter(1, positive[:, None], False)
    count = negatives.sum()
    hardest = similarities.masked_fill(~negatives, -torch.inf).amax(1)
    return {
        "accuracy": (own[:, 0] > hardest).float().mean(),
        "positive_similarity": own.mean(),
        "negative_similarity": (similarities * negatives).sum() / count.clamp(min=1),
        "negatives": count.float() / len(similarities),
        "masked": 1.0 - candidates.float().mean(),
    }
