"""The losses against the naive computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.config import LossConfig
from trainer.losses import info_nce, prefix_similarities


def naive(queries: Tensor, documents: Tensor, positive: Tensor, candidates: Tensor, config: LossConfig) -> Tensor:
    """Double loop in float64, from the definition."""
    dimensions = config.dimensions or [queries.shape[1]]
    weights = config.weights or [1.0] * len(dimensions)
    total = torch.zeros((), dtype=torch.float64)
    for dimension, weight in zip(dimensions, weights, strict=True):
        for i in range(len(queries)):
            q = queries[i, :dimension].double()
            exps, own = [], None
            for j in range(len(documents)):
                d = documents[j, :dimension].double()
                value = (q @ d / (q.norm() * d.norm()) / config.temperature).exp()
                if candidates[i, j]:
                    exps.append(value)
                if j == positive[i]:
                    own = value
            assert own is not None
            total = total - weight * (own / torch.stack(exps).sum()).log() / len(queries)
    return total / sum(weights)


def example(seed: int, rows: int, documents: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    d = torch.randn(documents, width, generator=generator, dtype=torch.float64)
    positive = torch.randint(documents, (rows,), generator=generator)
    candidates = torch.rand(rows, documents, generator=generator) < 0.6
    candidates[torch.arange(rows), positive] = True
    return q, d, positive, candidates


CONFIGS = [
    {},
    {"temperature": 0.5},
    {"dimensions": [12, 6, 3]},
    {"dimensions": [3, 12, 5], "weights": [0.2, 1.0, 0.5]},
    {"dimensions": [4]},
]


@pytest.mark.parametrize("config", CONFIGS)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), documents=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_loss_and_gradient_equal_the_double_loop(config: dict[str, Any], seed: int, rows: int, documents: int) -> None:
    chosen = LossConfig.model_validate(config)
    q, d, positive, candidates = example(seed, rows, documents, 12)
    gradients, losses = [], []
    for function in (lambda *a: info_nce(*a)[0], naive):
        one, two = q.clone().requires_grad_(), d.clone().requires_grad_()
        loss = function(one, two, positive, candidates, chosen)
        loss.backward()
        gradients.append((one.grad, two.grad))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9, abs=1e-12)
    for fast, slow in zip(*gradients, strict=True):
        assert fast is not None
        torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-10)


def test_prefixes_are_the_cosines_of_the_first_components() -> None:
    q, d, _, _ = example(1, 4, 7, 10)
    seen = dict(prefix_similarities(q, d, [10, 2, 7]))
    assert list(seen) == [2, 7, 10]
    for width, found in seen.items():
        torch.testing.assert_close(found, torch.cosine_similarity(q[:, None, :width], d[None, :, :width], dim=-1))


def test_a_row_without_negatives_adds_nothing_and_pulls_at_nothing() -> None:
    q, d, positive, candidates = example(2, 3, 5, 6)
    candidates[:] = False
    candidates[torch.arange(3), positive] = True
    q.requires_grad_()
    loss, statistics = info_nce(q, d, positive, candidates, LossConfig())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert q.grad is not None
    assert q.grad.abs().max() < 1e-12
    assert statistics["negatives"] == 0


def test_similarities_and_softmax_are_float32_inside_autocast() -> None:
    q, d, positive, candidates = (value.float() if value.is_floating_point() else value for value in example(3, 6, 9, 64))
    config = LossConfig(temperature=0.01, dimensions=[64, 16])
    plain, _ = info_nce(q, d, positive, candidates, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = info_nce(q, d, positive, candidates, config)
        from_half, _ = info_nce(q.bfloat16(), d.bfloat16(), positive, candidates, config)
    assert inside.dtype == from_half.dtype == torch.float32
    assert inside.item() == plain.item()
    rounded, _ = info_nce(q.bfloat16().double(), d.bfloat16().double(), positive, candidates, config)
    assert from_half.item() == pytest.approx(rounded.item(), rel=1e-5)


def test_statistics_say_what_the_batch_looks_like() -> None:
    q = torch.eye(3)
    d = torch.stack([torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.9, 0.1])])
    candidates = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    loss, statistics = info_nce(q, d, torch.tensor([0, 1, 2]), candidates, LossConfig(temperature=1.0))
    assert statistics["accuracy"].item() == pytest.approx(1.0)
    assert statistics["masked"].item() == pytest.approx(1 / 9)
    assert statistics["negatives"].item() == pytest.approx(5 / 3)
    assert statistics["positive_similarity"].item() == pytest.approx((2 + 0.1 / math.hypot(0.9, 0.1)) / 3)
    assert statistics["loss_3"].item() == pytest.approx(loss.item())
