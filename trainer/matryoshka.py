"""Cosines of every prefix of vectors for the price of one matrix product, block by block of rows, with their gradients.

A loss over B queries and N documents at P dimensions would hold P matrices [B, N] and several copies of each. Here a block of
rows at a time has its cosines, its loss and its gradients, and only the gradients of the vectors are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Cosines of a block at one dimension: 8 MB of float32.
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


Where = slice | Tensor
# Yields, for each dimension, widest first, a sum over the rows of a block, and sums of statistics over them.
RowLosses = Callable[[Block], Iterator[tuple[Tensor, dict[str, Tensor]]]]


def in_blocks(
    queries: Tensor,
    documents: Tensor,
    positive: Tensor,
    own: Tensor,
    dimensions: Sequence[int],
    rows: RowLosses,
    all_pairs: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over B rows of a loss that `rows` gives for a block of them, with statistics likewise.

    queries [B, d], documents [N, d], dimensions ascending. The gradient is computed at once, dimension by dimension, and scaled
    on the way back: it can be had once, and has no derivative of its own.
    """
    statistics: dict[str, Tensor] = {}
    run: Callable[..., Tensor] = _InBlocks.apply
    loss = run(queries, documents, positive, own, dimensions, rows, all_pairs, statistics)
    return loss, statistics


def block_height(queries: int, documents: int, dimensions: int) -> int:
    """Rows of a block. Fewer at several dimensions, whose cosines are all held; no fewer, as low blocks take longer."""
    return max(1, min(queries, BLOCK_ELEMENTS * 8 // ((dimensions + 7) * max(1, documents))))


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
        all_pairs: bool,
        statistics: dict[str, Tensor],
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        q, d = Side(queries, dimensions), Side(documents, dimensions)
        total = queries.new_zeros(())
        height = block_height(len(queries), len(documents), len(dimensions))
        for start in range(0, len(queries), height):
            at = slice(start, min(start + height, len(queries)))
            for loss, sums in one_block(q, d, at, positive[at], own[at].clamp(min=0), rows, all_pairs, wanted):
                total += loss
                for name, value in sums.items():
                    statistics[name] = statistics.get(name, 0.0) + value / len(queries)
        if wanted:
            ctx.save_for_backward(q.gradients().div_(len(queries)), d.gradients().div_(len(queries)))
        return total / len(queries)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        q, d = ctx.saved_tensors
        return (q.mul_(scale), d.mul_(scale), *[None] * 6)


def one_block(
    q: Side, d: Side, at: slice, positive: Tensor, own: Tensor, rows: RowLosses, all_pairs: bool, wanted: bool
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The losses of the rows `at`, as they come. Adds their gradients to both sides, where they are wanted."""
    cosines = [Cosines(q, at, d)]
    if all_pairs:
        cosines += [Cosines(q, at, q), Cosines(d, positive, d)]
    begun: list[tuple[Side, Where]] = [(q, at), (d, positive), (d, own)]
    vectors = [side.vectors[where].requires_grad_(wanted) for side, where in begun]
    for value in (value for each in cosines for value in each.values):
        value.requires_grad_(wanted)
    with torch.enable_grad():
        found = rows(Block(at, q.dimensions, vectors[0], vectors[1], vectors[2], *(each.values for each in cosines)))
        for place in reversed(range(len(q.dimensions))):
            loss, sums = next(found)
            if wanted:
                leaves = [*vectors, *(each.values[place] for each in cosines)]
                gradients = list(torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=place > 0))
                loss = loss.detach()  # lets go of what was kept for the gradient
                del leaves
                with torch.no_grad():
                    for side, where in begun:
                        if (gradient := gradients.pop(0)) is not None:
                            put(side.gradient, where, gradient)
                    for each in cosines:
                        each.backward(place, gradients.pop(0))
            yield loss.detach(), sums


class Side:
    """Vectors [n, d], the inverse norms of their prefixes, and the gradient that comes together for them."""

    def __init__(self, vectors: Tensor, dimensions: Sequence[int]) -> None:
        self.vectors = vectors.detach()
        self.dimensions = dimensions
        squares = torch.zeros_like(self.vectors[:, 0])
        scales, start = [], 0
        for stop in dimensions:
            squares = squares + torch.linalg.vector_norm(self.vectors[:, start:stop], dim=1).square()
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
    """The cosines of the prefixes of some vectors of one side, `where`, with all of another: `values`, narrowest first."""

    def __init__(self, left: Side, where: Where, right: Side) -> None:
        self.left, self.where, self.right = left, where, right
        self.vectors, self.scales = left.vectors[where], left.scales[:, where]
        self.values: list[Tensor] = []
        self.whole: Tensor | None = None  # the gradient of the products of the dimensions that were taken back
        products: Tensor | None = None
        start = 0
        for place, stop in enumerate(right.dimensions):
            one, other = self.vectors[:, start:stop], right.vectors[:, start:stop].T
            products = one @ other if products is None else products.addmm_(one, other)
            scaled = products.mul_ if stop == right.dimensions[-1] else products.mul
            self.values.append(scaled(self.scales[place][:, None]).mul_(right.scales[place]))
            start = stop

    def backward(self, place: int, found: Tensor | None) -> None:
        """Takes the gradient [b, n] of the cosines of one dimension, widest first, and uses both up."""
        left, right, value = self.left, self.right, self.values.pop().detach()
        if found is not None:
            radial = value.mul_(found)
            put(left.radial[place], self.where, radial.sum(1))
            right.radial[place] += radial.sum(0)
            found = found.mul_(self.scales[place][:, None]).mul_(right.scales[place])
            self.whole = found if self.whole is None else self.whole.add_(found)
        if self.whole is None:
            return
        part = slice(right.dimensions[place - 1] if place else 0, right.dimensions[place])
        gradient = torch.zeros_like(self.vectors)
        gradient[:, part] = self.whole @ right.vectors[:, part]
        put(left.gradient, self.where, gradient)
        right.gradient[:, part].addmm_(self.whole.T, self.vectors[:, part])


def cosine_pairs(one: Tensor, other: Tensor, dimension: int) -> Tensor:
    """The cosine of the first components of vectors [..., d] that stand beside each other, [...]."""
    one, other = one[..., :dimension], other[..., :dimension]
    norms = (one.square().sum(-1).clamp(min=TINY) * other.square().sum(-1).clamp(min=TINY)).rsqrt()
    return (one * other).sum(-1) * norms
