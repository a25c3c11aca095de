"""The losses against their definitions, against sentence-transformers, and the properties that they promise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import naive_losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer import matryoshka
from trainer.config_loss import Distillation, LossConfig
from trainer.losses import Targets, batch_loss, cosent, draw_mixtures, focal_weight

WIDTH = 12


def example(
    seed: int, rows: int = 5, documents: int = 9, mined: int = 3, kind: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Targets]:
    """Vectors and targets of every shape that a batch can have: rows without negatives, rows with own ones only, equal queries."""
    draw = torch.Generator().manual_seed(seed)

    def vectors(count: int, width: int = WIDTH) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, width, generator=draw, dtype=kind) + 0.4, dim=1)

    positive = torch.randint(documents, (rows,), generator=draw)
    own = torch.full((rows, mined), -1)
    for row in range(rows):
        others = [j for j in torch.randperm(documents, generator=draw).tolist() if j != positive[row]]
        count = int(torch.randint(min(mined, len(others)) + 1, (1,), generator=draw))
        own[row, :count] = torch.tensor(others[:count], dtype=torch.long)
    positives = torch.rand(rows, documents, generator=draw) < 0.1
    own = own.masked_fill(positives.gather(1, own.clamp(min=0)), -1) if mined else own
    positives[torch.arange(rows), positive] = True
    in_batch = torch.rand(rows, generator=draw) < 0.7
    candidates = in_batch[:, None].repeat(1, documents)
    for row in range(rows):
        candidates[row, own[row][own[row] >= 0]] = True
    candidates &= ~positives
    candidates[torch.arange(rows), positive] = True
    equal = torch.rand(rows, rows, generator=draw) < 0.2
    scores = torch.randn(rows, 1 + mined, generator=draw, dtype=kind)
    scores[:, 1:] = scores[:, 1:].masked_fill(own < 0, torch.nan)
    targets = Targets(
        positive=positive, candidates=candidates, own=own, equal_queries=equal | equal.T | torch.eye(rows, dtype=torch.bool),
        in_batch=in_batch, teacher_vectors=(vectors(rows, 5), vectors(documents, 5)), teacher_scores=scores,
    )  # fmt: skip
    return vectors(rows), vectors(documents), targets


TEACHER = {"teacher": "t", "weight": 0.7, "teacher_temperature": 0.1, "student_temperature": 0.2}
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "margin": {"false_negative_margin": 0.05},
    "qwen3": {"form": "qwen3", "false_negative_margin": 0.1},
    "qwen3 without margin": {"form": "qwen3"},
    "focal": {"focal": {"gamma": 0.5, "detach": False}},
    "focal detached": {"focal": {"gamma": 2.0, "alpha": 0.25}},
    "mixing": {"mixing": {"pairs": 2, "lists": True}},
    "kl": {"contrastive": 0.0, "distillation": TEACHER},
    "kl texts": {"distillation": {**TEACHER, "documents": "texts"}},
    "kl own": {"distillation": {**TEACHER, "documents": "own"}},
    "kl scores": {"distillation": {**TEACHER, "documents": "own", "kind": "scores"}},
    "triangle": {"triangle": {"weight": 0.3, "epsilon": 0.05}},
    "triangle angular": {"triangle": {"distance": "angular", "epsilon": 0.3}},
    "all": {
        "form": "qwen3", "false_negative_margin": 0.1, "focal": {"gamma": 0.5, "detach": False}, "mixing": {"pairs": 1, "lists": True},
        "distillation": TEACHER, "triangle": {"distance": "euclidean", "epsilon": 0.2},
    },
}  # fmt: skip
MATRYOSHKA: list[dict[str, Any]] = [{}, {"dimensions": [12, 3, 5]}, {"dimensions": [8, 4], "weights": [1.0, 0.3]}]


def targets_for(targets: Targets, config: LossConfig) -> Targets:
    scores = config.distillation is not None and config.distillation.kind == "scores"
    return dataclasses.replace(targets, teacher_scores=targets.teacher_scores if scores else None)


def gradients(function: Any, queries: Tensor, documents: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    loss = function(q, d, *rest)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (loss * 1.7).backward()
    return loss.detach(), q.grad, d.grad  # type: ignore[return-value]


def close(found: Tensor, expected: Tensor, within: float = 1e-9) -> bool:
    return bool((found - expected).norm() <= within * expected.norm().clamp(min=1e-3))


@pytest.mark.parametrize("block", [1, 20, 10_000])
@pytest.mark.parametrize(("term", "dimensions"), list(itertools.product(TERMS, range(len(MATRYOSHKA)))))
def test_value_and_gradients_are_those_of_the_definition(
    term: str, dimensions: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matryoshka, "BLOCK_ELEMENTS", block)
    config = LossConfig.model_validate({**TERMS[term], **MATRYOSHKA[dimensions]})
    for seed in range(3):
        queries, documents, targets = example(seed)
        rest = (targets_for(targets, config), config, 0.2, 11)
        expected = gradients(naive_losses.naive_loss, queries, documents, *rest)
        found = gradients(batch_loss, queries, documents, *rest)
        for one, other in zip(found, expected, strict=True):
            assert close(one, other), (seed, one, other)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3), st.sampled_from(sorted(TERMS)))
@settings(max_examples=60, deadline=None)
def test_any_shape_gives_the_value_and_gradients_of_the_definition(
    seed: int, rows: int, documents: int, mined: int, term: str
) -> None:
    queries, vectors, targets = example(seed, rows, documents, mined)
    config = LossConfig.model_validate({**TERMS[term], "dimensions": [12, 4]})
    rest = (targets_for(targets, config), config, 0.3, seed)
    expected = gradients(naive_losses.naive_loss, queries, vectors, *rest)
    found = gradients(batch_loss, queries, vectors, *rest)
    for one, other in zip(found, expected, strict=True):
        assert close(one, other, 1e-8)


def plain_targets(rows: int, mined: int) -> Targets:
    """Row i has positive i, and the documents rows + i mined + k as its own negatives; all are in everybody's denominator."""
    documents = rows * (1 + mined)
    positive = torch.arange(rows)
    return Targets(
        positive=positive, candidates=torch.ones(rows, documents, dtype=torch.bool), own=(rows + torch.arange(rows * mined)).view(rows, mined),
        equal_queries=torch.eye(rows, dtype=torch.bool), in_batch=torch.ones(rows, dtype=torch.bool),
    )  # fmt: skip


class Given(torch.nn.Module):
    """A model of sentence-transformers whose vectors are there already."""

    def get_embedding_dimension(self) -> int:
        return WIDTH

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["sentence_embedding"]}


def features(*columns: Tensor) -> list[dict[str, Tensor]]:
    return [{"sentence_embedding": column} for column in columns]


@pytest.mark.parametrize("dimensions", [[WIDTH], [WIDTH, 6, 3]])
def test_the_loss_is_that_of_sentence_transformers(dimensions: list[int]) -> None:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    draw = torch.Generator().manual_seed(3)
    q, p, n = (torch.randn(6, WIDTH, generator=draw, dtype=torch.float64) for _ in range(3))
    model: Any = Given()
    inner = MultipleNegativesRankingLoss(model, scale=20.0)
    loss = MatryoshkaLoss(model, inner, dimensions) if len(dimensions) > 1 else inner
    expected = loss(features(q, p, n), torch.empty(0)) / len(dimensions)
    config = LossConfig(dimensions=dimensions)
    found, _ = batch_loss(q, torch.cat([p, n]), plain_targets(6, 1), config, 0.05, 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_cosent_is_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    draw = torch.Generator().manual_seed(4)
    a, b = (torch.randn(7, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    scores = torch.tensor([0.0, 0.2, 0.2, 1.0, 0.6, 0.4, 1.0], dtype=torch.float64)
    expected = CoSENTLoss(Given())(features(a, b), scores)  # type: ignore[arg-type]
    assert cosent(torch.cosine_similarity(a, b), scores, 20.0).item() == pytest.approx(expected.item(), rel=1e-9)
    targets = dataclasses.replace(plain_targets(7, 0), scores=scores)
    found, statistics = batch_loss(a, b, targets, LossConfig.model_validate({"similarity": {}}), 0.05, 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    assert statistics["cosent"] == found
    squares, _ = batch_loss(a, b, targets, LossConfig.model_validate({"similarity": {"kind": "mse", "weight": 2.0}}), 0.05, 0)
    assert squares.item() == pytest.approx(2 * (torch.cosine_similarity(a, b) - scores).square().mean().item(), rel=1e-9)


def test_gamma_0_is_the_plain_loss_and_alpha_a_scale() -> None:
    queries, documents, targets = example(1)
    losses = [
        batch_loss(queries, documents, targets, LossConfig.model_validate(each), 0.1, 0)[0].item()
        for each in ({}, {"focal": {"gamma": 0.0}}, {"focal": {"gamma": 0.0, "alpha": 0.25}})
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] == pytest.approx(0.25 * losses[0], rel=1e-12)


def test_gamma_2_at_p_09_shrinks_the_gradient_from_0100_to_00029() -> None:
    # The gradient with respect to the logit of the positive, where p = 0.9 and nothing is detached.
    logit = torch.tensor(math.log(9.0), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.softplus(-logit)
    (plain,) = torch.autograd.grad(loss, logit, retain_graph=True)
    config = LossConfig.model_validate({"focal": {"gamma": 2.0, "detach": False}}).focal
    assert config is not None
    (focal,) = torch.autograd.grad(focal_weight(loss, config) * loss, logit)
    assert -plain.item() == pytest.approx(0.100, abs=5e-4)
    assert -focal.item() == pytest.approx(0.0029, abs=5e-5)


def test_a_masked_document_changes_nothing_and_gets_no_gradient() -> None:
    queries, documents, targets = example(2)
    targets.candidates[:, 4] = False
    targets.candidates[torch.arange(5), targets.positive] = True
    targets.own[targets.own == 4] = -1
    masked = (targets.positive != 4).all()
    assert masked, "choose another example"
    _, _, gradient = gradients(batch_loss, queries, documents, targets, LossConfig(dimensions=[12, 5]), 0.1, 0)
    assert gradient[4].abs().max() == 0
    changed = documents.clone()
    changed[4] = -changed[4]
    values = [batch_loss(queries, each, targets, LossConfig(), 0.1, 0)[0] for each in (documents, changed)]
    assert values[0] == values[1]


def test_the_order_of_rows_does_not_matter() -> None:
    queries, documents, targets = example(5)
    order = torch.tensor([3, 1, 4, 0, 2])
    config = LossConfig.model_validate({"form": "qwen3", "focal": {}, "triangle": {}, "dimensions": [12, 4]})
    moved = dataclasses.replace(
        targets, positive=targets.positive[order], candidates=targets.candidates[order], own=targets.own[order],
        equal_queries=targets.equal_queries[order][:, order], in_batch=targets.in_batch[order],
    )  # fmt: skip
    one, other = (
        batch_loss(queries, documents, targets, config, 0.1, 0),
        batch_loss(queries[order], documents, moved, config, 0.1, 0),
    )
    assert one[0].item() == pytest.approx(other[0].item(), rel=1e-12)
    assert {name: value.item() for name, value in one[1].items()} == pytest.approx(
        {name: value.item() for name, value in other[1].items()}
    )


def test_mixtures_depend_on_the_seed_alone_and_mix_two_different_negatives() -> None:
    own = torch.tensor([[3, 4, 5], [6, 7, -1], [8, -1, -1], [-1, -1, -1]])
    config = LossConfig.model_validate({"mixing": {"pairs": 50, "lists": False}}).mixing
    assert config is not None
    first, again, other = (draw_mixtures(own, config, seed) for seed in (1, 1, 2))
    assert torch.equal(first.share, again.share)
    assert torch.equal(first.first, again.first)
    assert not torch.equal(first.share, other.share)
    assert first.enough.tolist() == [True, True, False, False]
    assert (first.first[:2] != first.second[:2]).all()
    assert set(first.first[1].tolist()) | set(first.second[1].tolist()) == {0, 1}
    assert set(first.first[0].tolist()) == {0, 1, 2}
    assert 0.4 < first.share.mean() < 0.6


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_numbers_are_compared_in_float32(kind: torch.dtype) -> None:
    queries, documents, targets = example(7, kind=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = batch_loss(queries.to(kind), documents.to(kind), targets, LossConfig(dimensions=[12, 4]), 0.05, 0)
    assert found.dtype == torch.float32
    exact, _ = batch_loss(
        queries.to(kind).double(), documents.to(kind).double(), targets, LossConfig(dimensions=[12, 4]), 0.05, 0
    )
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_triangle_of_a_metric_is_never_broken_and_the_rate_is_told() -> None:
    queries, documents, targets = example(8, rows=20, documents=40, mined=5)
    for distance in ("euclidean", "angular"):
        config = LossConfig.model_validate({"triangle": {"distance": distance}})
        _, statistics = batch_loss(queries, documents, targets, config, 0.1, 0)
        assert statistics["triangle_active"] == 0
    # One minus cosine is broken where b lies between a and c.
    a, b, c = (torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64) for angle in (0.0, 0.5, 1.0))
    config = LossConfig.model_validate({"triangle": {"distance": "cosine"}})
    _, statistics = batch_loss(a, torch.cat([b, c]), plain_targets(1, 1), config, 0.1, 0)
    assert statistics["triangle_active"] == 1
    assert statistics["triangle"].item() == pytest.approx((1 - math.cos(1)) - 2 * (1 - math.cos(0.5)), rel=1e-9)


def test_vectors_that_are_no_numbers_give_a_loss_that_is_none() -> None:
    queries, documents, targets = example(9)
    queries[1, 3] = torch.nan
    assert not batch_loss(queries, documents, targets, LossConfig(dimensions=[12, 4]), 0.1, 0)[0].isfinite()


def test_a_teacher_equal_to_the_student_has_nothing_to_say() -> None:
    queries, documents, targets = example(10)
    targets = dataclasses.replace(targets, teacher_scores=None, teacher_vectors=(queries, documents))
    config = LossConfig(contrastive=0.0, distillation=Distillation(teacher="t", teacher_temperature=0.2, student_temperature=0.2))
    loss, gradient, _ = gradients(batch_loss, queries, documents, targets, config, 0.1, 0)
    assert loss.abs() < 1e-12
    assert gradient.abs().max() < 1e-12
