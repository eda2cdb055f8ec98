"""Solve the MUFM, problem (13) of arXiv 2405.00985, from samples or from their statistics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfc.device import one_thread
from pfc.progress import shown
from pfc.samples import ArrayLike
from pfc.schema import short
from pfc.theory.coefficients import at_least, positive, several
from pfc.theory.collapse import measured
from pfc.theory.mufm.proof import Proof
from pfc.theory.mufm.search import PROVEN, Effort, relaxed, search
from pfc.theory.mufm.solution import Solution, distances, metrics
from pfc.theory.mufm.source import Hidden, Source, checked
from pfc.theory.mufm.statistics import Samples, Statistics

WORK = 12e6  # numbers in W times iterations of L-BFGS, about half a second where the data are wide; ours


@dataclass(frozen=True)
class _Options:
    """The options of `solve` by name."""

    weight_decay: float = 0.005
    loss: str = "mse"
    bias: bool | str = False
    centre: bool = False
    weighting: Any = "class"
    restarts: int = 4
    seed: int = 0
    tolerance: float = 1e-12
    iterations: int | None = None
    relax: bool = False

    def __post_init__(self) -> None:
        """Refuse options that are out of range, unknown, or do not go together."""
        positive(weight_decay=self.weight_decay, tolerance=self.tolerance)
        if self.loss not in ("mse", "ce"):
            raise ValueError(f"loss must be 'mse' or 'ce', got {self.loss!r}")
        if self.bias is not False and self.bias != "free":
            raise ValueError(f"bias must be False or 'free', got {self.bias!r}")
        if self.loss == "ce" and self.bias:
            raise ValueError("loss='ce' has no bias; take bias=False")
        if self.weighting not in ("class", "sample"):
            raise ValueError(f"weighting must be 'class' or 'sample', got {self.weighting!r}")
        for name in ("centre", "relax"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} must be True or False, got {short(value)}")
        at_least(0, restarts=self.restarts, seed=self.seed)
        at_least(1, iterations=1 if self.iterations is None else self.iterations)

    def effort(self, size: int) -> Effort:
        """Limits of the search for a W of `size` numbers."""
        iterations = self.iterations or int(min(3000, max(300, WORK / size)))
        return Effort(self.restarts, iterations, self.tolerance, self.seed)


def solve(
    X: ArrayLike | Statistics,
    y: ArrayLike | None = None,
    *,
    lam: float,
    weight_decay: float = 0.005,
    loss: str = "mse",
    bias: bool | str = False,
    centre: bool = False,
    weighting: str = "class",
    restarts: int = 4,
    seed: int = 0,
    tolerance: float = 1e-12,
    iterations: int | None = None,
    relax: bool = False,
    progress: bool = False,
) -> Solution:
    r"""Solve the MUFM: the least, over W and H, of the loss, weight decay and the change of the data.

    $$ \frac1{2N}\|H W^\top - Y\|_F^2 + \frac{\lambda_W}{2}\|W\|_F^2 + \frac\lambda2\|H - X\|_F^2, $$

    Problem (13) of arXiv 2405.00985, or the same with mean cross-entropy; the constants are inferred.
    Rows of X and H are samples. With squared loss it is solved in W alone, from statistics. Either way
    it tells what it can prove.

    Args:
        X: Samples N x ... of any type, each flattened to a row, or what `gather` made of them.
        y: Class of each sample, in 0..K-1; `None` with statistics.
        lam: Coefficient of the change of the data.
        weight_decay: Coefficient of W; 0.005 is that of Tirer and Bruna 2022, from memory.
        loss: `"mse"` or `"ce"`.
        bias: `False`, or `"free"` for an unregularised one (squared loss only).
        centre: Subtract the mean of the data first. Without a bias the model sees where the origin is.
        weighting: Class weights in PFC1: equal (`"class"`) or proportional to the counts (`"sample"`);
            the problem itself always weighs samples equally.
        restarts: Random starts after the ridge start, left out where a proof needs none.
        seed: Of the random starts.
        tolerance: Gradient norm to reach; coarser than 1e-8 saves the polish by Newton's method.
        iterations: Of L-BFGS from each start; `None` for about half a second where the data are wide.
        relax: Solve the convex relaxation too, for a smaller `gap` where the certificate fails.
        progress: Show a progress bar.

    Returns:
        The best solution of all starts.

    Raises:
        ValueError: If a coefficient is not above zero, the data or labels are unfit, an option is
            unknown, or cross-entropy is asked for with statistics or a bias.

    Examples:
        >>> import numpy as np
        >>> solution = solve(np.eye(4), np.arange(4), lam=0.25)
        >>> round(solution.objective, 12), solution.pfc1
        (0.009628763479, 0.0)
    """
    options = _Options(
        weight_decay, loss, bias, centre, weighting, restarts, seed, tolerance, iterations, relax
    )
    data = checked(X, y)
    with one_thread(_size(data)):
        return _solve(_prepared(data, options), lam, options, progress=progress)


def sweep(
    X: ArrayLike | Statistics,
    y: ArrayLike | None,
    lams: Iterable[float],
    *,
    progress: bool = False,
    **options: Any,
) -> list[Solution]:
    """Solve for several values of lam, each from starts of its own; Figure 5 of arXiv 2405.00985.

    Args:
        X: Samples N x ... of any type, each flattened to a row, or what `gather` made of them; the
            eigendecomposition is computed once.
        y: Class of each sample; `None` with statistics.
        lams: Values of lam; they are solved in ascending order.
        progress: Show a progress bar.
        options: Of `solve`.

    Returns:
        Solutions, ascending in lam.

    Raises:
        ValueError: If there is no lam, or as `solve` does.
    """
    if not (lams := several("lams", lams)):
        raise ValueError("lams must hold at least one value of lam, got none")
    for lam in lams:
        positive(lam=lam)
    chosen = _Options(**options)
    data = checked(X, y)
    solutions: list[Solution] = []
    with one_thread(_size(data)), shown("values of lam", len(lams), enabled=progress) as step:
        prepared = _prepared(data, chosen)
        for lam in sorted(lams):
            solutions.append(_solve(prepared, lam, chosen))
            step(len(solutions), f"lam {lam:.3g}: {solutions[-1].proven}")
    return solutions


def _size(data: Samples | Statistics) -> int:
    """Numbers in the largest array of a problem."""
    return data.within[0].numel() if isinstance(data, Statistics) else data[0].numel()


def _prepared(data: Samples | Statistics, options: _Options) -> Source | Samples:
    """What of the data serves for every lam."""
    if options.loss == "mse":
        return Source.of(data, centre=options.centre, free=options.bias == "free")
    if isinstance(data, Statistics):
        raise ValueError("loss='ce' needs samples X and y: its H has no closed form; got statistics")
    X = data[0].double()
    return (X - X.mean(0) if options.centre else X, data[1])


def _solve(
    prepared: Source | Samples, lam: float, options: _Options, *, progress: bool = False
) -> Solution:
    positive(lam=lam)
    if not isinstance(prepared, Source):
        return _cross_entropy(prepared, lam, options, progress=progress)
    source = prepared
    problem, V = source.problem(lam=lam, weight_decay=options.weight_decay)
    effort = options.effort(problem.Z.size)
    with one_thread():
        found = search(problem, effort, balanced=source.statistics.balanced, progress=progress)
        best, hidden = found.best, Hidden.of(source, found.best, V)
        objective, upper = source.upper(best, hidden.W, V)
        lower, certificate = source.lower(best, V)
        if options.relax and upper - lower > PROVEN * upper:
            lower = max(lower, source.lower(relaxed(best, effort), V)[0])
    proof = Proof(
        gap=1 - lower / upper,
        certificate=certificate,
        gradient_norm=best.gradient_norm,
        residue=best.residue,
        starts=len(found.values),
        spread=found.spread,
    )
    proof.warn(square=source.features == len(source.statistics.count))
    numbers: Any = metrics(source, hidden, best, options.weighting)
    return Solution(
        loss="mse",
        lam=lam,
        weight_decay=options.weight_decay,
        objective=objective,
        **proof.to_dict(),
        W=hidden.classifier,
        bias=hidden.bias if source.free else None,
        **numbers,
        hidden=hidden,
        data=source.samples,
    )


def _cross_entropy(data: Samples, lam: float, options: _Options, *, progress: bool) -> Solution:
    """Solved jointly in W and H, and measured."""
    from pfc.theory.mufm import cross_entropy

    (X, y), decay = data, options.weight_decay
    how: Any = {name: getattr(options, name) for name in ("weight_decay", "restarts", "seed")}
    found = cross_entropy.solve_cross_entropy(X, y, lam=lam, progress=progress, **how)
    W, H, known = found.W.numpy(), found.H.numpy(), {"lam": lam, "weight_decay": decay}
    upper, lower, certificate = cross_entropy.proof(data, W, H, **known)
    proof = Proof(
        gap=1 - lower / upper,
        certificate=certificate,
        gradient_norm=found.gradient_norm,
        residue=2 * found.gradient_norm * (2 / (min(decay, lam) * found.objective)) ** 0.5,
        starts=found.starts,
        spread=found.spread / found.objective,
    )
    proof.warn(square=X.shape[1] == len(found.W))
    row = measured(found.H, y, options.weighting)
    numbers: Any = distances(X, found.H)
    return Solution(
        loss="ce",
        lam=lam,
        weight_decay=decay,
        objective=found.objective,
        **proof.to_dict(),
        W=found.W,
        bias=None,
        pfc1=row.pfc1,
        pfc2=row.pfc2,
        pfc3=row.pfc3,
        **numbers,
        hidden=found.H,
        data=data,
    )
