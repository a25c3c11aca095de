"""Heads onto three spaces (Euclidean, hyperbolic, spherical), the distances of each, and InfoNCE over distances.

The hyperbolic space has two usual models, the Poincaré ball (Nickel & Kiela 2017, arXiv 1705.08039) and the Lorentz model
(Nickel & Kiela 2018, arXiv 1806.03417). Neither is good to compute in: in the ball float32 cannot tell a point from the boundary
beyond a distance of 17 from the origin, and the product of the Lorentz model is a difference of large numbers. So a point is kept
as the vector whose exponential map at the origin it is (its normal coordinates; Mishne et al. 2023, arXiv 2211.00181), and the
distance is the law of cosines as a sum of terms that are not negative. Parameters are then ordinary vectors: the optimiser need
not know the space.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from trainer.losses import info_nce, log_partition, penalty

Space = Literal["euclidean", "hyperbolic", "spherical"]
SPACES: tuple[Space, ...] = get_args(Space)


def norms_apart(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j| [n, m] of [n, k] and [m, k], from differences: exact for near vectors. The gradient at equal ones is 0."""
    found: Tensor = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return found


def euclidean(a: Tensor, b: Tensor, curvature: float = 0.0) -> Tensor:
    """The distances [n, m] of points [n, k] and [m, k]. There is no curvature to heed."""
    return norms_apart(a, b)


def spherical(a: Tensor, b: Tensor, curvature: float = 1.0) -> Tensor:
    """The angles [n, m], in radians, of points [n, k] and [m, k] of norm 1, times 1 / sqrt(curvature).

    2 atan2(|a - b|, |a + b|) (Kahan 2006, "How Futile are Mindless Assessments of Roundoff"): arccos of the cosine is wrong in
    half the digits near 0 and pi, and has no gradient there.
    """
    return torch.atan2(norms_apart(a, b), norms_apart(a, -b)).mul(2 / curvature**0.5)


def hyperbolic(a: Tensor, b: Tensor, curvature: float = 1.0) -> Tensor:
    """The distances [n, m] of points [n, k] and [m, k], in normal coordinates, of the space of curvature -`curvature`.

    With radii r, s (times c, the root of the curvature) and the angle t: cosh(c d) = cosh r cosh s - sinh r sinh s cos t, that is
    sinh^2(c d / 2) = sinh^2((r - s) / 2) + sinh r sinh s sin^2(t / 2). Float32 holds r + s up to 88, but directions only to
    1e-7, which at radius r is a distance of 1e-7 e^r. The gradient at equal points, and for a point at the origin, is 0.
    """
    root = curvature**0.5
    r, s = root * a.norm(dim=1)[:, None], root * b.norm(dim=1)[None, :]
    chord = norms_apart(nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1))
    squares = torch.sinh((r - s) / 2).square() + torch.sinh(r) * torch.sinh(s) * (chord / 2).square()
    apart = squares > 0
    # The root has no gradient at 0; `where` alone would let it through as NaN.
    return torch.where(apart, 2 / root * torch.asinh(torch.where(apart, squares, 1.0).sqrt()), 0.0)


DISTANCES = {"euclidean": euclidean, "hyperbolic": hyperbolic, "spherical": spherical}


def exponential(points: Tensor, curvature: float = 1.0) -> Tensor:
    """Points [n, k] in normal coordinates as those of the hyperboloid [n, k + 1], time first: the exponential map at its origin.

    (cosh(c |v|), sinh(c |v|) v / |v|) / c with c the root of the curvature. The rest over 1 + c time is the point of the Poincaré
    ball of radius 1 / c, tanh(c |v| / 2) v / (c |v|): the map of v / 2 in the convention of Ganea et al. 2018, arXiv 1805.09112.
    """
    root = curvature**0.5
    radii = root * points.norm(dim=1, keepdim=True)
    return torch.cat([torch.cosh(radii), torch.sinh(radii) * nn.functional.normalize(points, dim=1)], 1).div(root)


def place(space: Space, vectors: Tensor) -> Tensor:
    """Any vectors [n, k] as points [n, k] of a space: of norm 1 on the sphere, as they are elsewhere."""
    return nn.functional.normalize(vectors, dim=1) if space == "spherical" else vectors


class Head(nn.Module):
    """Vectors [n, d] of an encoder to points [n, k] of a space: one linear layer of (d + 1) k parameters, whatever the space."""

    def __init__(self, dimension: int, width: int, space: Space, curvature: float = 1.0, seed: int = 0) -> None:
        """Raises ValueError for a space that there is not, and for a curvature that is not positive (the space has its sign)."""
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"There is no space '{space}'; allowed: {', '.join(SPACES)}. Choose one of them.")
        if curvature <= 0:
            raise ValueError(f"The curvature is {curvature}; allowed: above 0. Give its size alone: the space decides its sign.")
        self.space, self.curvature = space, curvature
        self.layer = nn.Linear(dimension, width)
        with torch.no_grad():
            nn.init.normal_(self.layer.weight, std=dimension**-0.5, generator=torch.Generator().manual_seed(seed))
            nn.init.zeros_(self.layer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return place(self.space, self.layer(vectors))

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances [n, m] of points [n, k] and [m, k], as `forward` gives them."""
        return DISTANCES[self.space](a, b, self.curvature)


def contrastive(distances: Tensor, positive: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """The mean of InfoNCE over -distance / temperature, the loss of Nickel & Kiela 2017, section 4.1.

    distances [b, n]; positive [b] int64, the column of each row's own; candidates [b, n] bool, what counts, the own among them.
    """
    similarities = -distances
    own = similarities.gather(1, positive[:, None])[:, 0]
    partition = log_partition(similarities, penalty(candidates, distances.dtype), temperature)
    return info_nce(own, [partition], temperature).mean()
