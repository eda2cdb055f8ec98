"""Slow, obviously right twins of the unconstrained features model with data, and its toy data."""

import numpy as np
import torch

LW = 0.005


def toy(seed=0, sigma=0.5, K=4, D=20, n=50):
    """Classes around unit vectors, as in Section 6 of the paper; sigma is inferred."""
    r = np.random.default_rng(seed)
    mu = r.normal(size=(D, K))
    mu /= np.linalg.norm(mu, axis=0)
    y = np.repeat(np.arange(K), n)
    X = mu[:, y] + sigma * r.normal(size=(D, K * n))
    return torch.from_numpy(np.ascontiguousarray(X.T)), torch.from_numpy(y)


def joint(W, H, X, y, lam, weight_decay=LW, b=None):
    """Problem (13), sample by sample, with a bias if given."""
    loss = 0.0
    for h, k in zip(H, y.tolist(), strict=True):
        out = W @ h + (0 if b is None else b)
        loss += ((out - torch.eye(len(W), dtype=out.dtype)[k]) ** 2).sum() / (2 * len(X))
    return loss + weight_decay / 2 * (W**2).sum() + lam / 2 * ((H - X) ** 2).sum()


def best_hidden(W, X, y, lam):
    """The H that is best for W, one linear system a sample."""
    beta, Y = len(X) * lam, torch.eye(len(W), dtype=X.dtype)[y]
    left = W.mT @ W + beta * torch.eye(X.shape[1], dtype=X.dtype)
    return torch.stack([
        torch.linalg.solve(left, W.mT @ t + beta * x) for x, t in zip(X, Y, strict=True)
    ])


def reduced(W, X, y, lam, weight_decay=LW):
    """The joint objective with the best H put in, in tensor operations for differentiation."""
    beta, Y = len(X) * lam, torch.eye(len(W), dtype=X.dtype)[y]
    H = torch.linalg.solve(
        W.mT @ W + beta * torch.eye(X.shape[1], dtype=X.dtype), (Y @ W + beta * X).mT
    ).mT
    fit = ((H @ W.mT - Y) ** 2).sum() / (2 * len(X))
    return fit + weight_decay / 2 * (W**2).sum() + lam / 2 * ((H - X) ** 2).sum()


def best_classifier_value(H, y, K, weight_decay=LW):
    """L(H): the loss and weight decay at the best W, (lW/2) tr Y (H^T H + N lW I)^{-1} Y^T."""
    Y = torch.eye(K, dtype=H.dtype)[y]
    N = len(H)
    inverse = torch.linalg.solve(H @ H.mT + N * weight_decay * torch.eye(N, dtype=H.dtype), Y)
    return weight_decay / 2 * (Y * inverse).sum()
