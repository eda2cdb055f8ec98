"""The paper's way to solve UFM and MUFM: plain gradient descent with a fixed step, written by hand.

It is kept to be compared with: each metric along the iterations (Figure 4 of arXiv 2405.00985), and how
far from the minimum so many steps end.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from pfc.device import one_thread
from pfc.progress import shown
from pfc.samples import ArrayLike, in_float64
from pfc.theory.coefficients import at_least, positive
from pfc.theory.joint import Joint, Loss, read, softmax, tensors
from pfc.theory.minimum import STARTS, Vector
from pfc.theory.trace import Trace as Trace
from pfc.warning import moved

STEP = 0.1  # Tirer and Bruna 2022, from memory; the paper's own is lost
STEPS = 100_000  # inferred; the paper's own number is lost
RECORDS = 60  # ours
CHUNK = 1000  # steps between two updates of the progress bar; ours

Start = Literal["normal", "data"]


def on_ufm(
    classes: int,
    features: int,
    per_class: int,
    *,
    weight_decay: float = 0.005,
    feature_decay: float = 0.005,
    loss: Loss = "mse",
    step: float = STEP,
    steps: int = STEPS,
    seed: int = 0,
    records: int = RECORDS,
    progress: bool = True,
) -> Trace:
    """Plain gradient descent on UFM, Eq. 2 of arXiv 2405.00985.

    Args:
        classes: Number of classes.
        features: Dimensions of a feature.
        per_class: Samples of each class.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        feature_decay: Of the features; likewise.
        loss: `"mse"` or `"ce"`.
        step: The fixed step; the default is theirs, too.
        steps: How many; the default is inferred.
        seed: Of the start, which is standard normal as in the paper.
        records: At most how many points to record besides the start, 2 or more.
        progress: Show a progress bar.

    Returns:
        The metrics along the way; PFC1 and PFC2 go to 0 and PFC3 to 1.

    Raises:
        ValueError: If a number is out of range, the loss is unknown, or the step is too large.
    """
    at_least(2, classes=classes)
    at_least(1, features=features, per_class=per_class)
    at_least(0, seed=seed)
    positive(weight_decay=weight_decay, feature_decay=feature_decay)
    how: Any = {"pull": feature_decay, "weight_decay": weight_decay, "loss": loss}
    problem = Joint.without_data(classes, features, per_class, **how)
    start = problem.normal_start(np.random.default_rng([seed, STARTS]))
    return run(problem, start, step=step, steps=steps, records=records, progress=progress)


def on_mufm(
    X: ArrayLike,
    y: ArrayLike,
    *,
    lam: float,
    weight_decay: float = 0.005,
    loss: Loss = "mse",
    start: Start = "normal",
    step: float = STEP,
    steps: int = STEPS,
    seed: int = 0,
    records: int = RECORDS,
    progress: bool = True,
) -> Trace:
    """Plain gradient descent on MUFM, Eq. 13 of arXiv 2405.00985, in classifier and features together.

    With a small `lam` the features are slow to leave the start: the default number of steps is far from
    enough at 1e-4.

    Args:
        X: The data, N x D, one sample a row.
        y: Class of each sample.
        lam: How strongly the features are drawn to the data.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        loss: `"mse"` or `"ce"`.
        start: Where the features begin: `"normal"`, the standard normal distribution as in the paper,
            or at the `"data"`.
        step: The fixed step; the default is that of Tirer and Bruna 2022, from memory.
        steps: How many; the default is inferred.
        seed: Of the start.
        records: At most how many points to record besides the start, 2 or more.
        progress: Show a progress bar.

    Returns:
        The metrics along the way.

    Raises:
        ValueError: If the data or a number are out of range, the loss or the start is unknown, or the
            step is too large.
    """
    data, labels = in_float64(X, y)
    positive(lam=lam, weight_decay=weight_decay)
    at_least(0, seed=seed)
    if start not in ("normal", "data"):
        raise ValueError(f"start must be 'normal' or 'data', got {start!r}")
    problem = Joint.of(data, labels, pull=lam, weight_decay=weight_decay, loss=loss)
    theta = problem.normal_start(np.random.default_rng([seed, STARTS]))
    if start == "data":
        problem.split(theta)[1][:] = problem.X
    return run(problem, theta, step=step, steps=steps, records=records, progress=progress)


__getattr__ = moved(__name__, {name: f"{__name__}:on_{name}" for name in ("ufm", "mufm")})


def run(
    problem: Joint, theta: Vector, *, step: float, steps: int, records: int, progress: bool
) -> Trace:
    """Descend in place from `theta`, which becomes the end, and record on the way."""
    positive(step=step)
    at_least(1, steps=steps)
    at_least(2, records=records)
    marks = np.unique(np.geomspace(1, steps, records).round().astype(int))
    done, rows = 0, [_record(problem, theta)]
    with one_thread(problem.X.size), shown("descent", steps, enabled=progress) as tell:
        for mark in marks:
            while done < mark:
                count = min(CHUNK, int(mark) - done)
                _advance(problem, theta, step, count)
                done += count
                tell(done)
            rows.append(_record(problem, theta))
            if not np.isfinite(rows[-1][1]):
                raise ValueError(f"descent overflowed within {done} steps; take a step below {step}")
    W, H, b = tensors(problem, theta)
    return Trace.of(np.concatenate([[0], marks]), rows, W, b, H)


def _record(problem: Joint, theta: Vector) -> list[float]:
    """Objective, gradient norm, PFC1-3 and cosine; the first two after an overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        f, g = problem.value(theta)
        size = float(np.linalg.norm(g))
    if not np.isfinite(size):
        return [f, size]
    return [f, size, *read(problem, tensors(problem, theta)[1])]


def _advance(problem: Joint, theta: Vector, step: float, count: int) -> None:
    """Take `count` steps in place, without allocating in the loop."""
    from scipy.linalg.blas import dgemm  # c <- beta c + alpha a b in one reading, of columns: transposed

    W, H, b = problem.split(theta)
    errors, G = _errors(problem, theta, step)
    before = np.empty_like(W)
    Wt, Ht, Gt, before_t = W.T, H.T, G.T, before.T
    keep_W, keep_H = 1 - step * problem.weight_decay, 1 - step * problem.pull
    keep_b = 1 - step * (problem.bias or 0.0)
    pull = step * problem.pull * problem.X if problem.X.any() else None
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is told at the next record
        for _ in range(count):
            errors()
            np.copyto(before, W)
            dgemm(-1.0, Ht, Gt, keep_W, Wt, trans_a=1, overwrite_c=1)
            dgemm(-1.0, Gt, before_t, keep_H, Ht, trans_b=1, overwrite_c=1)
            if pull is not None:
                H += pull
            if len(b):
                b *= keep_b
                b -= G.sum(1)


def _errors(problem: Joint, theta: Vector, step: float) -> tuple[Callable[[], None], np.ndarray]:
    """What computes the errors at `theta`, times the step over the samples, and where it leaves them."""
    from scipy.linalg.blas import dgemm

    W, H, b = problem.split(theta)
    Y, size = problem.Y, step / problem.Y.shape[1]
    G = np.empty_like(Y)
    Wt, Ht, Gt = W.T, H.T, G.T

    def squared() -> None:
        np.copyto(G, Y)
        dgemm(size, Ht, Wt, -size, Gt, overwrite_c=1)
        if len(b):
            np.add(G, size * b[:, None], out=G)

    def crossed() -> None:
        np.matmul(W, H, out=G)
        if len(b):
            np.add(G, b[:, None], out=G)
        softmax(G, out=G)
        np.subtract(G, Y, out=G)
        np.multiply(G, size, out=G)

    return (crossed if problem.loss == "ce" else squared), G
