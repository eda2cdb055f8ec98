"""A lower bound of W2 from means and covariances alone: Gelbrich 1990."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.schema import rounded
from pfc.theory.transport.clouds import Clouds, ratio, times


@dataclass(frozen=True)
class Gelbrich:
    r"""A proven lower bound of the squared Wasserstein-2 distance, of the whole set.

    $$ W_2^2 \ge Tr S_0 + Tr S_L - 2 \| S_0^{1/2} S_L^{1/2} \|_* $$

    for centred clouds with covariances $S_0, S_L$; Gelbrich 1990. It is tight if the map is affine with
    a positive semidefinite matrix. An orthogonal projection of both clouds has no greater distance, so
    its bound is a bound as well, only weaker.

    Args:
        bound: Of W2^2; between 0 and the cost.
        ratio: cost / bound: the map costs at most so many times the optimal transport.
        projected: Directions that both clouds were projected on; `None` if they were not.
    """

    bound: float
    ratio: float
    projected: int | None

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return "The map costs nothing, so there is nothing to prove by the covariances."
        of = "" if self.projected is None else f" of a projection on {self.projected:,} directions"
        least, most = rounded(self.bound, 4, up=False), times(self.ratio, up=True)
        return (
            f"Proven by the covariances of the whole set (Gelbrich bound{of}): W2^2 is at least "
            f"{least}, the map costs at most {most} the optimal transport."
        )


def gelbrich(clouds: Clouds, cost: float, directions: int, rng: np.random.Generator) -> Gelbrich:
    """The Gelbrich bound, of projected clouds where samples and features exceed `directions`."""
    # with factors S_0 = F^T F, S_L = E^T E and F E^T = U s V^T it is |F - U V^T E|_F^2: a sum of
    # squares, in which nothing cancels, and errors of U V^T count in second order only
    projected = directions if min(clouds.N, clouds.D) > directions else None
    if clouds.N <= min(clouds.D, directions):
        bound = _by_samples(clouds)
    else:
        basis = None if projected is None else _basis(clouds, projected, rng)
        F, E = _factors(clouds, basis)
        bound = float((F - _rotation(F @ E.mT) @ E).square().sum())
    bound = min(bound, cost)
    return Gelbrich(bound, ratio(cost, bound), projected)


def _rotation(M: Float64[Tensor, "R R"]) -> Float64[Tensor, "R R"]:
    """The orthogonal matrix nearest to M."""
    U, _, Vh = torch.linalg.svd(M)
    return U @ Vh


def _by_samples(clouds: Clouds) -> float:
    """With the weighted samples themselves as factors, block by block of features."""
    root, every = clouds.w.sqrt()[:, None], torch.arange(clouds.N, device="cpu")
    M = torch.zeros(clouds.N, clouds.N, dtype=torch.float64, device="cpu")
    for a, b in clouds.columns(every):
        M.addmm_(root * a, (root * b).mT)
    Q = _rotation(M)
    return float(sum((root * a - Q @ (root * b)).square().sum() for a, b in clouds.columns(every)))


def _factors(
    clouds: Clouds, basis: Float64[Tensor, "D P"] | None
) -> tuple[Float64[Tensor, "P P"], Float64[Tensor, "P P"]]:
    """Triangular factors of both covariances by QR, batch after batch, never squaring the features."""
    P = clouds.D if basis is None else basis.shape[1]
    F = E = torch.zeros(0, P, dtype=torch.float64, device="cpu")
    for at, *both in clouds.rows(2 * P):
        root = clouds.w[at].sqrt()[:, None]
        a, b = (root * (x if basis is None else x @ basis) for x in both)
        F, E = (torch.linalg.qr(torch.cat(pair), mode="r").R for pair in ((F, a), (E, b)))
    return F, E


def _basis(clouds: Clouds, P: int, rng: np.random.Generator) -> Float64[Tensor, "D P"]:
    """Orthonormal directions spanned by random samples of both clouds: they see most of the spread."""
    half = [torch.from_numpy(rng.choice(clouds.N, n, replace=False)) for n in (P - P // 2, P // 2)]
    spanning = [x[i].cpu().double() for x, i in zip((clouds.start, clouds.end), half, strict=True)]
    centred = [s - m for s, m in zip(spanning, clouds.means, strict=True)]
    return torch.linalg.qr(torch.cat(centred).mT).Q
