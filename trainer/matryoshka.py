"""Cosines of every prefix of vectors for the price of one matrix product, block by block of rows, with their gradients.

A loss over B queries and N documents at P dimensions would hold P matrices [B, N] and several copies of each. Here a block of
rows at a time has its cosines, its loss and its gradients, and only the gradients of the vectors are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Elements of one matrix of cosines at a time: 8 MB of float32.
BLOCK_ELEMENTS = 2**21
TINY = 1e-24


@dataclass(frozen=True)
class Block:
    """Some rows of a batch. Its tensors are where the gradient begins; cosines are a list, one matrix for each dimension."""

    rows: slice
    dimensions: Sequence[int]
    queries: Tensor  # [b, d]
    positives: Tensor  # [b, d]
    own: Tensor  # [b, K, d] mined negatives; of absent ones, any document
    cosines: list[Tensor]  # [b, N] query and document
    query_cosines: list[Tensor] = field(default_factory=list)  # [b, B] query and query
    positive_cosines: list[Tensor] = field(default_factory=list)  # [b, N] positive and document

    @property
    def other_queries(self) -> bool:
        return bool(self.query_cosines)


Where = slice | Tensor
RowLosses = Callable[[Block], tuple[Tensor, dict[str, Tensor]]]


def in_blocks(
    queries: Tensor,
    documents: Tensor,
    positive: Tensor,
    own: Tensor,
    dimensions: Sequence[int],
    rows: RowLosses,
    other_queries: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over B rows of a loss that `rows` gives as a sum over a block of them, with statistics likewise.

    queries [B, d], documents [N, d], dimensions ascending. The gradient is computed at once, and scaled on the way back: it can
    be had once, and has no derivative of its own.
    """
    statistics: dict[str, Tensor] = {}
    run: Callable[..., Tensor] = _InBlocks.apply
    loss = run(queries, documents, positive, own, dimensions, rows, other_queries, statistics)
    return loss, statistics


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        positive: Tensor,
        own: Tensor,
        dimensions: Sequence[int],
        rows: RowLosses,
        other_queries: bool,
        statistics: dict[str, Tensor],
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        q, d = Side(queries, dimensions), Side(documents, dimensions)
        total = queries.new_zeros(())
        height = max(1, min(len(queries), BLOCK_ELEMENTS // max(1, len(documents))))
        for start in range(0, len(queries), height):
            at = slice(start, min(start + height, len(queries)))
            places, mined = positive[at], own[at].clamp(min=0)
            cosines = [Cosines(q, at, d)]
            if other_queries:
                cosines += [Cosines(q, at, q), Cosines(d, places, d)]
            leaves = [each.detach().requires_grad_(wanted) for each in (queries[at], documents[places], documents[mined])]
            for each in cosines:
                leaves += [value.requires_grad_(wanted) for value in each.values]
            count = len(dimensions)
            parts = [leaves[3 + count * number : 3 + count * (number + 1)] for number in range(len(cosines))]
            with torch.enable_grad():
                vectors = leaves[0], leaves[1], leaves[2]
                found, sums = rows(Block(at, dimensions, *vectors, *parts))
            total += found.detach()
            for name, value in sums.items():
                statistics[name] = statistics.get(name, 0.0) + value.detach() / len(queries)
            if not wanted:
                continue
            gradients = torch.autograd.grad(found, leaves, allow_unused=True)
            begun: list[tuple[Side, Where]] = [(q, at), (d, places), (d, mined)]
            for gradient, (side, where) in zip(gradients[:3], begun, strict=True):
                if gradient is not None:
                    put(side.gradient, where, gradient)
            for number, each in enumerate(cosines):
                each.backward(gradients[3 + count * number : 3 + count * (number + 1)])
        if wanted:
            ctx.save_for_backward(q.gradients().div_(len(queries)), d.gradients().div_(len(queries)))
        return total / len(queries)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        q, d = ctx.saved_tensors
        return (q.mul_(scale), d.mul_(scale), *[None] * 6)


class Side:
    """Vectors [n, d], the inverse norms of their prefixes, and the gradient that comes together for them."""

    def __init__(self, vectors: Tensor, dimensions: Sequence[int]) -> None:
        self.vectors = vectors.detach()
        self.dimensions = dimensions
        squares = torch.zeros_like(self.vectors[:, 0])
        scales, start = [], 0
        for stop in dimensions:
            squares = squares + self.vectors[:, start:stop].square().sum(1)
            scales.append(squares.clamp(min=TINY).rsqrt())
            start = stop
        self.scales = torch.stack(scales)  # [P, n]
        self.gradient = torch.zeros_like(self.vectors)
        # For each prefix, the sum of gradient times cosine, which the norm takes away.
        self.radial = torch.zeros_like(self.scales)

    def gradients(self) -> Tensor:
        for stop, radial, scale in zip(self.dimensions, self.radial, self.scales, strict=True):
            self.gradient[:, :stop].addcmul_(self.vectors[:, :stop], (radial * scale.square())[:, None], value=-1)
        return self.gradient


def put(there: Tensor, where: Where, values: Tensor) -> None:
    """Adds values to the rows `where` of a tensor; a row may stand there several times."""
    if isinstance(where, slice):
        there[where] += values
    else:
        there.index_add_(0, where.reshape(-1), values.reshape(-1, *there.shape[1:]))


class Cosines:
    """The cosines of the prefixes of some vectors of one side, `where`, with all of another."""

    def __init__(self, left: Side, where: Where, right: Side) -> None:
        self.left, self.where, self.right = left, where, right
        self.vectors, self.scales = left.vectors[where], left.scales[:, where]
        products: Tensor | None = None
        self.values: list[Tensor] = []
        start = 0
        for place, stop in enumerate(right.dimensions):
            one, other = self.vectors[:, start:stop], right.vectors[:, start:stop].T
            products = one @ other if products is None else products.addmm_(one, other)
            self.values.append((products * self.scales[place][:, None]).mul_(right.scales[place]))
            start = stop

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes the gradients [b, n] of the cosines, and uses them up."""
        left, right = self.left, self.right
        dimensions = right.dimensions
        whole: Tensor | None = None
        gradient = torch.zeros_like(self.vectors)
        for place in reversed(range(len(dimensions))):
            if (found := gradients[place]) is not None:
                radial = self.values[place].detach().mul_(found)
                put(left.radial[place], self.where, radial.sum(1))
                right.radial[place] += radial.sum(0)
                found = found.mul_(self.scales[place][:, None]).mul_(right.scales[place])
                whole = found if whole is None else whole.add_(found)
            if whole is None:
                continue
            part = slice(dimensions[place - 1] if place else 0, dimensions[place])
            gradient[:, part] = whole @ right.vectors[:, part]
            right.gradient[:, part].addmm_(whole.T, self.vectors[:, part])
        put(left.gradient, self.where, gradient)


def cosine_pairs(one: Tensor, other: Tensor, dimension: int) -> Tensor:
    """The cosine of the first components of vectors [..., d] that stand beside each other, [...]."""
    one, other = one[..., :dimension], other[..., :dimension]
    norms = (one.square().sum(-1).clamp(min=TINY) * other.square().sum(-1).clamp(min=TINY)).rsqrt()
    return (one * other).sum(-1) * norms
