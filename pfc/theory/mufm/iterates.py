"""What the solver passes through on its way: each metric along its iterations, for Figure 4."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from pfc.device import one_thread
from pfc.samples import at_least, positive
from pfc.theory.minimum import STARTS
from pfc.theory.mufm.search import Effort, settle
from pfc.theory.mufm.solution import alignment, collapse
from pfc.theory.mufm.source import Hidden, Source
from pfc.theory.mufm.statistics import Statistics

Start = Literal["normal", "ridge"]


@dataclass(frozen=True, eq=False)
class Iterates:
    """The solver's points, each with the features H that are best for its W.

    Args:
        steps: Iterations done, from 0 on: of L-BFGS, then of Newton's method.
        objective: Then.
        gradient_norm: Of the gradient in W.
        pfc1: Within-class over between-class variance of H.
        pfc2: Distance of its class means from a simplex equiangular tight frame.
        pfc3: Fraction of it nearest to its own class mean; NaN without the samples.
        cosine: Between H and the data.
    """

    steps: Int64[Tensor, " T"]
    objective: Float64[Tensor, " T"]
    gradient_norm: Float64[Tensor, " T"]
    pfc1: Float64[Tensor, " T"]
    pfc2: Float64[Tensor, " T"]
    pfc3: Float64[Tensor, " T"]
    cosine: Float64[Tensor, " T"]


def iterates(
    X: Float[Tensor, "N D"] | Statistics,
    y: Int[Tensor, " N"] | None = None,
    *,
    lam: float,
    weight_decay: float = 0.005,
    start: Start = "normal",
    seed: int = 0,
    tolerance: float = 1e-12,
    iterations: int = 3000,
    records: int = 60,
) -> Iterates:
    """Solve the MUFM with squared loss from one start and keep what the solver passes through.

    Figure 4 of arXiv 2405.00985 for this solver. Data that are zero make the UFM, whose feature decay
    is `lam` then.

    Args:
        X: Samples or statistics, as for `solve`.
        y: Labels; `None` with statistics.
        lam: As for `solve`.
        weight_decay: As for `solve`.
        start: W from the standard normal distribution, as in the paper, or `"ridge"` regression, the
            solver's own first start.
        seed: Of the start.
        tolerance: Gradient norm to reach.
        iterations: At most.
        records: Points kept, at most, besides the start: the first ones and then geometrically fewer.

    Returns:
        The points.

    Raises:
        ValueError: If a number is not above zero, the start is unknown, or the data are unfit.
    """
    positive(lam=lam, weight_decay=weight_decay, tolerance=tolerance)
    at_least(1, iterations=iterations, records=records)
    if start not in {"normal", "ridge"}:
        raise ValueError(f"start must be 'normal' or 'ridge', got {start!r}")
    source = Source.of(X, y)
    problem, V = source.problem(lam=lam, weight_decay=weight_decay, centre=False, free=False)
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
        hidden = Hidden.of(source, point, V, centre=False, free=False)
        pfc1, pfc2 = collapse(source.statistics, hidden, problem.beta, "class")
        samples = source.samples
        pfc3 = hidden.hits(*samples) / len(samples[0]) if samples else float("nan")
        cosine = alignment(source.statistics, point, free=False).cosine
        rows.append([point.value, point.gradient_norm, pfc1, pfc2, pfc3, cosine])
    return Iterates(torch.from_numpy(at), *torch.tensor(rows, dtype=torch.float64).unbind(1))
