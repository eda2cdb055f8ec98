"""Slow, obviously right twins of the package's formulas: loops over samples and classes in float64."""

from itertools import pairwise

import numpy as np

LONG = np.longdouble  # 64 bits of mantissa: the judge of float64 sums


def naive_moments(H, y, K):
    """Counts, class means and scatters, two passes in extended precision."""
    H, y = np.asarray(H, dtype=LONG), np.asarray(y)
    count, mean, scatter = np.zeros(K), np.zeros((K, H.shape[1]), LONG), np.zeros(K, LONG)
    for k in range(K):
        rows = H[y == k]
        count[k] = len(rows)
        if len(rows):
            mean[k] = rows.mean(axis=0)
            scatter[k] = ((rows - mean[k]) ** 2).sum()
    return count, mean, scatter


def weights(y, weighting):
    """Weight of each sample: they sum to 1."""
    y = np.asarray(y)
    present, counts = np.unique(y, return_counts=True)
    size = dict(zip(present, counts, strict=True))
    if weighting == "sample":
        return np.full(len(y), 1 / len(y))
    return np.array([1 / (len(present) * size[k]) for k in y])


def covariances(H, y, weighting="class"):
    """Sigma_W, Sigma_B and Sigma_T as D x D matrices, sample by sample."""
    H, y = np.asarray(H, dtype=np.float64), np.asarray(y)
    w = weights(y, weighting)
    means = {k: H[y == k].mean(axis=0) for k in np.unique(y)}
    pi = {k: w[y == k].sum() for k in means}
    g = sum(pi[k] * means[k] for k in means)
    D = H.shape[1]
    within, between, total = np.zeros((3, D, D))
    for h, k, weight in zip(H, y, w, strict=True):
        within += weight * np.outer(h - means[k], h - means[k])
        total += weight * np.outer(h - g, h - g)
    for k in means:
        between += pi[k] * np.outer(means[k] - g, means[k] - g)
    return within, between, total


def naive_row(H, y, weighting="class", W=None, b=None, held=None):
    """All metrics of one layer by their definitions, only classes that occur."""
    H, y = np.asarray(H, dtype=np.float64), np.asarray(y)
    within, between, _ = covariances(H, y, weighting)
    classes = np.unique(y)
    K = len(classes)
    Mu = np.stack([H[y == k].mean(axis=0) for k in classes])
    M = Mu - Mu.mean(axis=0)
    G = M @ M.T
    E = np.eye(K) - 1 / K
    fuzziness = np.trace(within @ np.linalg.pinv(between, rcond=1e-12, hermitian=True))
    nearest = np.array([classes[np.argmin([((h - m) ** 2).sum() for m in Mu])] for h in H])
    norms = np.linalg.norm(M, axis=1)
    pairs = [(j, k) for j in range(K) for k in range(K) if j != k]
    cosines = np.array([M[j] @ M[k] / (norms[j] * norms[k]) for j, k in pairs])
    variance = [((H[y == k] - m) ** 2).sum(axis=1).mean() for k, m in zip(classes, Mu, strict=True)]
    n = np.array([(y == k).sum() for k in classes])
    pi = np.full(K, 1 / K) if weighting == "class" else n / len(y)
    S = np.array([((H[y == k] - m) ** 2).sum() for k, m in zip(classes, Mu, strict=True)])
    row = {
        "pfc1": np.trace(within) / np.trace(between),
        "pfc1_unbiased": naive_unbiased(S, n, pi, np.trace(between)),
        "pfc2": np.linalg.norm(G / np.linalg.norm(G) - E / np.sqrt(K - 1)),
        "pfc3": np.mean(nearest == y),
        "fuzziness": fuzziness,
        "nc1": fuzziness / K,
        "nc2_norm": norms.std(ddof=1) / norms.mean(),
        "nc2_angle": cosines.std(),
        "nc2_max_angle": np.abs(cosines + 1 / (K - 1)).mean(),
        "cdnv": np.mean([
            (variance[j] + variance[k]) / (2 * ((Mu[j] - Mu[k]) ** 2).sum()) for j, k in pairs
        ]),
    }
    if W is not None:
        W, b = np.asarray(W, np.float64), np.asarray(b, np.float64)
        rows = W[classes]
        row["nc3"] = np.linalg.norm(rows / np.linalg.norm(rows) - M / np.linalg.norm(M))
        row["nc4"] = np.mean((H @ W.T + b).argmax(axis=1) != nearest)
    if held is not None:
        row["probe"] = naive_probe(H, y, *held)
    return row


def naive_probe(H, y, X, z):
    """Held-out accuracy of least squares with the penalty that the hat matrix's diagonal prefers."""
    N, D = H.shape
    ones, Y = np.hstack([H, np.ones((N, 1))]), np.eye(y.max() + 1)[y]
    scale, best = np.linalg.eigvalsh(np.cov(H.T, bias=True).reshape(D, D)).mean(), (np.inf, None)
    for penalty in (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4):
        A = ones.T @ ones / N + np.diag([penalty * scale] * D + [0.0])
        B = np.linalg.solve(A, ones.T @ Y / N)
        hat = ones @ np.linalg.solve(A, ones.T / N)
        error = ((ones @ B - Y) ** 2).sum() / N / (1 - np.trace(hat) / N) ** 2
        best = min(best, (error, B), key=lambda pair: pair[0])
    return np.mean((np.hstack([X, np.ones((len(X), 1))]) @ best[1]).argmax(axis=1) == z)


def naive_unbiased(S, n, pi, between):
    """The ratio of unbiased estimates (11.3); infinite where noise explains the means."""
    if (n == 1).any():
        return np.nan
    within = sum(pi[k] * S[k] / (n[k] - 1) for k in range(len(n)))
    noise = sum(pi[k] * (1 - pi[k]) * S[k] / (n[k] * (n[k] - 1)) for k in range(len(n)))
    return within / (between - noise) if between > noise else np.inf


def naive_positions(layers, y, weighting="class"):
    """Length of the path so far over the whole length, root mean squares over the samples (1.6)."""
    w = weights(y, weighting)
    steps = [np.sqrt(w @ ((b - a) ** 2).sum(axis=1)) for a, b in pairwise(layers)]
    return np.cumsum([0.0, *steps]) / sum(steps)


def naive_table(layers, y, weighting, W, b, held):
    """Every column at layers of one shape, the last of which is the classifier's input."""
    layers = [np.asarray(H, dtype=np.float64) for H in layers]
    last = {"W": W, "b": b}
    held = [(np.asarray(X, dtype=np.float64), np.asarray(held[1])) for X in held[0].values()]
    rows = [
        naive_row(H, y, weighting, held=apart, **(last if H is layers[-1] else {}))
        for H, apart in zip(layers, held, strict=True)
    ]
    for row, position in zip(rows, naive_positions(layers, y, weighting), strict=True):
        row["position"] = position
    return rows
