"""Distances and heads of trainer.experimental, against closed forms in float64 and the other models of the same spaces."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainer
from trainer.experimental.geometry import DISTANCES, SPACES, Head, Space, contrastive, exponential, hyperbolic, place, spherical

KIND = torch.float64


def draw(count: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, width, dtype=KIND, generator=torch.Generator().manual_seed(seed))


def poincare(points: Tensor, curvature: float) -> Tensor:
    """From the hyperboloid to the ball (Nickel & Kiela 2018): the rest over 1 + time, of radius 1 / root of the curvature."""
    hyperboloid = exponential(points, curvature)
    return hyperboloid[:, 1:] / (1 + curvature**0.5 * hyperboloid[:, :1])


def ball_distances(a: Tensor, b: Tensor, c: float) -> Tensor:
    """Nickel & Kiela 2017, eq. 1, for the ball of radius 1 / root of c."""
    gaps = (a[:, None] - b[None]).square().sum(-1)
    room = (1 - c * a.square().sum(-1))[:, None] * (1 - c * b.square().sum(-1))[None]
    return torch.arccosh(1 + 2 * c * gaps / room) / c**0.5


PATIENT = settings(deadline=None, max_examples=40)
curvatures = st.floats(0.05, 5.0)
cases = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.01, 4.0), curvatures)


@PATIENT
@given(cases)
def test_hyperbolic_distance_agrees_with_the_lorentz_model_and_the_poincare_ball(case):
    seed, width, scale, c = case
    # Near the origin: farther out the other models lose digits.
    a, b = draw(4, width, seed, scale / 4 / c**0.5), draw(5, width, seed + 1, scale / 4 / c**0.5)
    found = hyperbolic(a, b, c)
    x, y = exponential(a, c), exponential(b, c)
    assert (c * (x[:, 0].square() - x[:, 1:].square().sum(1)) - 1).abs().max() < 1e-6
    product = c * (x[:, :1] * y[:, :1].T - x[:, 1:] @ y[:, 1:].T)
    torch.testing.assert_close(found, torch.arccosh(product.clamp(min=1)) / c**0.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, ball_distances(poincare(a, c), poincare(b, c), c), atol=1e-5, rtol=1e-5)


@PATIENT
@given(cases)
def test_the_distance_from_the_origin_is_the_norm_and_in_the_ball_twice_artanh(case):
    seed, width, scale, c = case
    points, origin = draw(6, width, seed, scale), torch.zeros(1, width, dtype=KIND)
    norms = points.norm(dim=1)
    torch.testing.assert_close(hyperbolic(origin, points, c)[0], norms)
    inside = (1 - torch.arange(1, 7, dtype=KIND) / 10)[:, None] * torch.nn.functional.normalize(points, dim=1) / c**0.5
    chart = 2 / c**0.5 * torch.atanh(c**0.5 * inside.norm(dim=1, keepdim=True)) * torch.nn.functional.normalize(inside, dim=1)
    torch.testing.assert_close(poincare(chart, c), inside)


@PATIENT
@given(cases, st.sampled_from(SPACES))
def test_distances_are_a_metric(case, space: Space):
    seed, width, scale, c = case
    points = place(space, draw(6, width, seed, scale))
    found = DISTANCES[space](points, points, c)
    torch.testing.assert_close(found, found.T)
    assert found.diagonal().abs().max() < 1e-7
    assert (found >= 0).all()
    assert (found[:, None, :] <= found[:, :, None] + found[None, :, :] + 1e-9).all()


@PATIENT
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_with_less_and_less_curvature_the_hyperbolic_distance_is_the_euclidean(seed, width):
    a, b = draw(4, width, seed), draw(5, width, seed + 1)
    straight = torch.cdist(a, b)
    errors = [(hyperbolic(a, b, c) - straight).abs().max().item() for c in (1e-2, 1e-4, 1e-8)]
    assert errors[2] < 1e-6
    assert errors[1] <= errors[0] / 50 + 1e-12, "the error is of the first order in the curvature"
    assert (hyperbolic(a, b, 1.0) >= straight - 1e-9).all(), "the exponential map shortens nothing"


@PATIENT
@given(st.floats(1e-12, math.pi), st.floats(0.2, 4.0))
def test_angles_are_exact_from_equal_to_opposite(angle, curvature):
    one = torch.tensor([[1.0, 0.0]], dtype=KIND)
    other = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=KIND)
    assert spherical(one, other, curvature).item() == pytest.approx(angle / curvature**0.5, rel=1e-12)
    assert spherical(one, -one).item() == pytest.approx(math.pi)


@pytest.mark.parametrize("radius", [10.0, 25.0, 40.0])
def test_float32_holds_far_points_that_the_ball_does_not(radius):
    directions = torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
    far = (radius * directions).requires_grad_()
    found = hyperbolic(far, far)
    exact = hyperbolic(far.detach().double(), far.detach().double())
    torch.testing.assert_close(found, exact.float(), atol=1e-4, rtol=1e-5)
    assert exact[0, 2].item() == pytest.approx(2 * radius), "opposite points are joined through the origin"
    nearer = (radius - 1) * directions
    torch.testing.assert_close(hyperbolic(nearer, far).diagonal(), torch.ones(3), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), far)
    assert gradient.isfinite().all()
    if radius > 17:
        ball = torch.tanh(far.detach() / 2)
        assert ball[0, 0] == 1, "here the ball has lost the point"


@pytest.mark.parametrize("space", SPACES)
def test_gradients(space: Space):
    a, b = draw(3, 4, 1).requires_grad_(), draw(5, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: DISTANCES[space](place(space, a), place(space, b), 0.7), (a, b))
    # At equal points a distance has a kink, at opposite points of the sphere too; at the origin the chart of the head begins.
    special = torch.cat([a.detach()[:1], a.detach()[:1], -a.detach()[:1], torch.zeros(1, 4, dtype=KIND)]).requires_grad_()
    placed = place(space, special)
    (gradient,) = torch.autograd.grad(DISTANCES[space](placed, placed, 1.0).sum(), special)
    assert gradient.isfinite().all()


@PATIENT
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0]))
def test_the_loss_is_the_cross_entropy_of_what_counts(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    distances, positive = draw(4, 7, seed).abs().requires_grad_(), torch.randint(7, (4,), generator=generator)
    candidates = torch.rand(4, 7, generator=generator) < 0.5
    candidates[torch.arange(4), positive] = True
    found = contrastive(distances, positive, candidates, temperature)
    logits = (-distances / temperature).masked_fill(~candidates, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, positive)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each, distances)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("space", SPACES)
def test_a_head_learns_a_small_tree(space: Space):
    """A root, three children, nine grandchildren with vectors of their own: each finds its ancestors before all others."""
    parents = [-1, 0, 0, 0, *(1 + number // 3 for number in range(9))]
    ancestors = torch.zeros(13, 13, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestors[node] = ancestors[parent]
            ancestors[node, parent] = True
    vectors, (u, v) = torch.eye(13), ancestors.nonzero().T
    candidates = ~(ancestors | torch.eye(13, dtype=torch.bool))[u]
    candidates[torch.arange(len(u)), v] = True
    head = Head(13, 6, space, seed=3)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(200):
        points = head(vectors)
        optimiser.zero_grad()
        contrastive(head.distances(points[u], points), v, candidates, 0.1).backward()
        optimiser.step()
    with torch.inference_mode():
        found = head.distances(head(vectors), head(vectors)).fill_diagonal_(torch.inf)
    for node in range(4, 13):
        assert set(found[node].argsort()[:2].tolist()) == set(ancestors[node].nonzero()[:, 0].tolist())


def test_heads_differ_in_nothing_but_their_space():
    heads = {space: Head(6, 3, space, seed=5) for space in SPACES}
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    plain = heads["euclidean"](vectors)
    for space, head in heads.items():
        assert sum(parameter.numel() for parameter in head.parameters()) == 3 * (6 + 1)
        torch.testing.assert_close(head(vectors), place(space, plain))
    torch.testing.assert_close(heads["spherical"](vectors).norm(dim=1), torch.ones(4))


def test_what_a_head_refuses():
    with pytest.raises(ValueError, match=r"no space 'toroidal'; allowed: euclidean, hyperbolic, spherical"):
        Head(6, 3, "toroidal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"curvature is -1.0; allowed: above 0"):
        Head(6, 3, "hyperbolic", curvature=-1.0)


def test_nothing_of_the_trainer_imports_what_is_experimental():
    root = Path(trainer.__path__[0])
    imports = re.compile(r"^\s*(from|import)\b.*\bexperimental\b", re.MULTILINE)
    files = [path for path in root.rglob("*.py") if "experimental" not in path.relative_to(root).parts]
    assert len(files) > 30
    assert not [path for path in files if imports.search(path.read_text(encoding="utf-8"))]
