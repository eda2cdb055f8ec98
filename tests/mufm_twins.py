"""Slow, obviously right twins of the unconstrained features model with data, and its toy data."""

from decimal import Decimal, localcontext
from fractions import Fraction

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


def exact(W, X, y, lam, weight_decay=LW, *, centre=False, free=False):
    """F(W) in rational numbers: lam/2 tr(P Q) + lW/2 |W|^2, of data less their mean if asked for."""
    K, N = len(W), len(X)
    W, rows = ([[Fraction(v) for v in row] for row in part.tolist()] for part in (W, X))
    Y = [[Fraction(int(k == label)) for k in range(K)] for label in y.tolist()]
    rows = (
        [[v - m for v, m in zip(row, _mean(rows), strict=True)] for row in rows]
        if centre or free
        else rows
    )
    Y = [[v - m for v, m in zip(row, _mean(Y), strict=True)] for row in Y] if free else Y
    R = [[_dot(w, x) - t[k] for k, w in enumerate(W)] for x, t in zip(rows, Y, strict=True)]
    beta = N * Fraction(lam)
    left = [[_dot(W[i], W[j]) + beta * (i == j) for j in range(K)] for i in range(K)]
    fit = sum(_dot(r, _solved(left, r)) for r in R)
    return (Fraction(lam) * fit + Fraction(weight_decay) * sum(_dot(w, w) for w in W)) / 2


def _dot(a, b):
    return sum((x * z for x, z in zip(a, b, strict=True)), Fraction(0))


def _mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _solved(A, b):
    """A^{-1} b by elimination, for a positive definite A."""
    rows = [[*row, v] for row, v in zip(A, b, strict=True)]
    for i in range(len(rows)):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [v - rows[j][i] * u for v, u in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def exact_entropy(W, H, X, y, lam, weight_decay=LW):
    """Problem (13) with cross-entropy at W and H, in decimal numbers of 60 digits."""
    with localcontext(prec=60):
        W, H, X = ([[Decimal(v) for v in row] for row in part.tolist()] for part in (W, H, X))
        loss = Decimal(0)
        for h, k in zip(H, y.tolist(), strict=True):
            logits = [sum(a * b for a, b in zip(w, h, strict=True)) for w in W]
            top = max(logits)
            loss += top - logits[k] + sum((z - top).exp() for z in logits).ln()
        moved = sum((a - b) ** 2 for h, x in zip(H, X, strict=True) for a, b in zip(h, x, strict=True))
        decay = sum(v**2 for w in W for v in w)
        return loss / len(X) + (Decimal(weight_decay) * decay + Decimal(lam) * moved) / 2
