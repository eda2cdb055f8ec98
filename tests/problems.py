"""Labelled features with known answers, and random ones, for hypothesis and by hand."""

import torch
from hypothesis import strategies as st
from torch import Tensor

# Known answers O1: three classes of two samples in the plane.
O1_H = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 4], [-1, -1], [-3, -1]], dtype=torch.float64)
O1_Y = torch.tensor([0, 0, 1, 1, 2, 2])
O1_W = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)


def features(
    seed: int, N: int = 60, D: int = 7, K: int = 4, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gaussian classes around Gaussian means, every class with at least one sample, unbalanced."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(K), torch.randint(0, K, (N - K,), generator=g) ** 2 // K])
    y = y[torch.randperm(N, generator=g)]
    means = torch.randn(K, D, generator=g, dtype=torch.float64)
    return means[y] + spread * torch.randn(N, D, generator=g, dtype=torch.float64), y


def simplex(K: int, D: int) -> Tensor:
    """Means that form a simplex equiangular tight frame, one a row."""
    means = torch.zeros(K, D, dtype=torch.float64)
    means[:, :K] = torch.eye(K, dtype=torch.float64) - 1 / K
    return means


def orthogonal(D: int, seed: int) -> Tensor:
    """A random orthogonal matrix."""
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q


seeds = st.integers(0, 2**31 - 1)
