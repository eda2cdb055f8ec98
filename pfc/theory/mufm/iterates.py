"""The metrics along the iterations of the MUFM solver, for Figure 4."""

from typing import Literal

import numpy as np

from pfc.device import one_thread
from pfc.samples import ArrayLike
from pfc.theory.coefficients import at_least, positive
from pfc.theory.minimum import STARTS
from pfc.theory.mufm.search import Effort, settle
from pfc.theory.mufm.solution import metrics
from pfc.theory.mufm.source import Hidden, Source, checked
from pfc.theory.mufm.statistics import Statistics
from pfc.theory.trace import Trace

Start = Literal["normal", "ridge"]


def iterates(
    X: ArrayLike | Statistics,
    y: ArrayLike | None = None,
    *,
    lam: float,
    weight_decay: float = 0.005,
    start: Start = "normal",
    seed: int = 0,
    tolerance: float = 1e-12,
    iterations: int = 3000,
    records: int = 60,
) -> Trace:
    """Solve the MUFM with squared loss from one start and record the metrics along the iterations.

    Figure 4 of arXiv 2405.00985 for this solver. Data that are zero make the UFM, whose feature decay
    is `lam` then.

    Args:
        X: Samples N x ..., each flattened to a row, or what `gather` made of them.
        y: Class of each sample; `None` with statistics.
        lam: How strongly the features are drawn to the data.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        start: W from the standard normal distribution, as in the paper, or `"ridge"` regression, the
            solver's own first start.
        seed: Of the start.
        tolerance: Gradient norm to reach.
        iterations: At most.
        records: At most how many points to record besides the start, ever more sparsely.

    Returns:
        The metrics of each recorded W with the features that are best for it; the steps are those of
        L-BFGS, then of Newton's method. The features themselves are not formed.

    Raises:
        ValueError: If a number is not above zero, the start is unknown, or the data are unfit.
    """
    positive(lam=lam, weight_decay=weight_decay, tolerance=tolerance)
    at_least(1, iterations=iterations, records=records)
    at_least(0, seed=seed)
    if start not in ("normal", "ridge"):
        raise ValueError(f"start must be 'normal' or 'ridge', got {start!r}")
    source = Source.of(checked(X, y))
    problem, V = source.problem(lam=lam, weight_decay=weight_decay)
    normal = np.random.default_rng([seed, STARTS]).normal(size=problem.Z.shape)
    passed = [normal if start == "normal" else problem.ridge()]
    effort = Effort(restarts=0, iterations=iterations, tolerance=tolerance, seed=seed)
    with one_thread():
        settle(problem, passed[0], effort, balanced=source.statistics.balanced, see=passed.append)
    last = len(passed) - 1
    at = np.unique(np.concatenate([[0], np.geomspace(1, max(last, 1), records).round().astype(int)]))
    at = at[at <= last]
    rows = []
    for i in at:
        point = problem.at(passed[i])
        hidden = Hidden.of(source, point, V)
        found = metrics(source, hidden, point, "class")
        recorded = [found[name] for name in ("pfc1", "pfc2", "pfc3", "cosine")]
        rows.append([point.value, point.gradient_norm, *recorded])
    W = hidden.classifier  # of the last point
    return Trace.of(at, rows, W, W.new_zeros(len(W)))
