"""Cosines at every Matryoshka dimension for the price of the widest, by blocks of rows, with their gradients taken at once.

With edges 0 < d1 < d2 < ... the product of two prefixes is the sum of the products of their parts, so all prefixes together cost one
matrix product of the widest; so does the way back (Kusupati et al. 2022, arXiv 2205.13147, has the loss, not this way to it).
A matrix [B, N] for each dimension would not fit in a cache, hardly in memory. So the loss is taken for a few rows at a time,
with their gradients, and of each block only its share of the gradients stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Statistics = dict[str, Tensor]

# Bytes of the products of one block, and of one matrix [rows, N] of a tile of it. Blocks are as high as matrix products want them,
# tiles so low that what is done to each element finds it in the cache. A GPU has no use for tiles.
BLOCK_BYTES = {"cpu": 40 << 20, "cuda": 512 << 20}
TILE_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}
SMALLEST_SQUARE = 1e-24  # of a norm, so that a prefix of zeros has cosines of 0


def parts(dimensions: Sequence[int]) -> list[slice]:
    """The components that each dimension, ascending, adds to the one before."""
    return [slice(start, stop) for start, stop in pairwise([0, *dimensions])]


def row_cosines(left: Tensor, right: Tensor, dimensions: Sequence[int]) -> Tensor:
    """Cosines [M, R, K] of left [R, d] and right [R, K, d], row by row, at each of M dimensions, ascending. Differentiable."""

    def prefixes(one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([(one[..., part] * two[..., part]).sum(-1) for part in parts(dimensions)]).cumsum(0)

    left = left[:, None]
    squares = prefixes(left, left).clamp(min=SMALLEST_SQUARE) * prefixes(right, right).clamp(min=SMALLEST_SQUARE)
    return prefixes(left, right) * squares.rsqrt()


class Texts:
    """Vectors [n, d], the inverse norms of their prefixes [M, n], and the gradient [n, d] that gathers block by block."""

    def __init__(self, vectors: Tensor, dimensions: Sequence[int]) -> None:
        self.vectors = vectors.detach()
        self.parts = parts(dimensions)
        squares = torch.stack([torch.linalg.vector_norm(self.vectors[:, part], dim=1).square() for part in self.parts])
        self.inverse = squares.cumsum(0).clamp(min=SMALLEST_SQUARE).rsqrt()
        self.gradient = torch.zeros_like(self.vectors)
        self.pull = torch.zeros_like(self.inverse)  # [M, n]: sum of cosine times its gradient

    def through_norms(self) -> Tensor:
        """The whole gradient: what came through the products, and what comes through the norms.

        For c = x.y / (|x| |y|): dc/dx = y / (|x| |y|) - c x / |x|^2. The first term is in `gradient`, c times its weight in `pull`.
        """
        weight = (self.pull * self.inverse.square()).flip(0).cumsum(0).flip(0)
        for part, each in zip(self.parts, weight, strict=True):
            self.gradient[:, part].addcmul_(self.vectors[:, part], each[:, None], value=-1.0)
        return self.gradient


class Pairing(NamedTuple):
    """For each row of the batch a text of `left`, against all texts of `right`."""

    left: Texts
    index: Tensor  # [B] int64
    right: Texts
    trained: bool = True

    def products(self, rows: slice) -> Tensor:
        """Products [M, b, n] of each part by itself."""
        left = self.left.vectors[self.index[rows]]
        found = left.new_empty(len(self.left.parts), len(left), len(self.right.vectors))
        for number, part in enumerate(self.left.parts):
            torch.mm(left[:, part], self.right.vectors[:, part].T, out=found[number])
        return found

    def cosines(self, rows: slice, products: Tensor) -> list[Tensor]:
        """Cosines [r, n] at each dimension, from the products [M, r, n] of these rows, which are summed up in place."""
        inverse = self.left.inverse[:, self.index[rows], None]
        found = []
        for number in range(len(products)):
            if number:
                products[number] += products[number - 1]
            found.append(torch.mul(products[number], self.right.inverse[number]).mul_(inverse[number]))
        return found

    def to_products(self, rows: slice, cosines: list[Tensor], gradients: Sequence[Tensor], products: Tensor) -> None:
        """From the gradients with respect to the cosines those with respect to the products of the parts, which they replace."""
        index = self.index[rows]
        inverse = self.left.inverse[:, index, None]
        for number in reversed(range(len(products))):
            pull = gradients[number] * cosines[number]
            self.left.pull[number].index_add_(0, index, pull.sum(1))
            self.right.pull[number] += pull.sum(0)
            torch.mul(gradients[number], self.right.inverse[number], out=products[number]).mul_(inverse[number])
            if number + 1 < len(products):
                products[number] += products[number + 1]

    def to_texts(self, rows: slice, products: Tensor) -> None:
        """Adds to the gradients of both sides, from those with respect to the products."""
        index = self.index[rows]
        left = self.left.vectors[index]
        for part, gradient in zip(self.left.parts, products, strict=True):
            self.left.gradient[:, part].index_add_(0, index, gradient @ self.right.vectors[:, part])
            self.right.gradient[:, part].addmm_(gradient.T, left[:, part])


@dataclass(frozen=True)
class Tile:
    """What the loss of a few rows is a function of."""

    rows: slice
    cosines: dict[str, list[Tensor]]  # of each pairing: [r, n] at each dimension, ascending
    query: Tensor  # [r, d]
    near: Tensor | None  # [r, k, d]: the few documents of each row that it needs itself


def by_blocks(
    queries: Texts,
    documents: Texts,
    pairings: dict[str, Pairing],
    near: Tensor | None,
    objective: Callable[[Tile], tuple[Tensor, Statistics]],
) -> tuple[Tensor, Statistics]:
    """The sum of objective(tile) = (loss, statistics) over all rows. The gradients go to `queries` and `documents`.

    near [B, k] int64: documents whose vectors stand in tile.near; their gradient is taken too. Each tile is left with autograd,
    and what it needs is freed at once.
    """
    size = queries.vectors.element_size()
    tile = max(1, budget(TILE_BYTES, queries.vectors) // (size * max(len(each.right.vectors) for each in pairings.values())))
    row = size * sum(len(each.left.parts) * len(each.right.vectors) for each in pairings.values())
    block = tile * max(1, budget(BLOCK_BYTES, queries.vectors) // (row * tile))
    loss, statistics = queries.vectors.new_zeros(()), Statistics()
    trained = {name: each for name, each in pairings.items() if each.trained}
    for rows in slices(0, len(queries.vectors), block):
        products = {name: each.products(rows) for name, each in pairings.items()}
        for some in slices(rows.start, rows.stop, tile):
            here = {name: each[:, some.start - rows.start : some.stop - rows.start] for name, each in products.items()}
            cosines = {name: each.cosines(some, here[name]) for name, each in pairings.items()}
            query = queries.vectors[some]
            few = None if near is None else documents.vectors[near[some]]
            leaves = [each for name in trained for each in cosines[name]] + [query] + ([] if few is None else [few])
            with torch.enable_grad():
                leaves = [each.requires_grad_() for each in leaves]
                value, seen = objective(Tile(some, cosines, query, few))
                gradients = list(torch.autograd.grad(value, leaves, materialize_grads=True))
            loss += value.detach()
            for name, sums in seen.items():
                statistics[name] = statistics.get(name, 0) + sums
            if few is not None and near is not None:
                documents.gradient.index_add_(0, near[some].flatten(), gradients.pop().flatten(0, 1))
            queries.gradient[some] += gradients.pop()
            for name, each in trained.items():
                mine, gradients = gradients[: len(cosines[name])], gradients[len(cosines[name]) :]
                each.to_products(some, [one.detach() for one in cosines[name]], mine, here[name])
        for name, each in trained.items():
            each.to_texts(rows, products[name])
    return loss, statistics


def budget(sizes: dict[str, int], like: Tensor) -> int:
    return sizes.get(like.device.type, sizes["cuda"])


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


class WithGradients(torch.autograd.Function):
    """A loss whose gradients are known: WithGradients.apply(loss, gradient of a, gradient of b, a, b). Differentiable once."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return loss.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        first, second = ctx.saved_tensors
        return None, None, None, first * scale, second * scale
