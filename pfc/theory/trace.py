"""Trace: the metrics along the iterations of a solver, for Figure 4 of arXiv 2405.00985."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """What a solver passed through, at iterations that grow geometrically.

    Args:
        steps: Iterations done, from 0 on.
        objective: The objective then.
        gradient_norm: Euclidean norm of its gradient in all variables of the solver.
        pfc1: Within-class over between-class variance of the features.
        pfc2: Distance of their class means from a simplex equiangular tight frame.
        pfc3: Fraction of them nearest to their own class mean; NaN without the samples.
        cosine: Alignment with the data; NaN where there are none.
        W: The classifier at the end.
        b: Its bias; zero without one.
        H: The features at the end, one sample a row; `None` where the solver does not form them.
    """

    steps: Int64[Tensor, " T"]
    objective: Float64[Tensor, " T"]
    gradient_norm: Float64[Tensor, " T"]
    pfc1: Float64[Tensor, " T"]
    pfc2: Float64[Tensor, " T"]
    pfc3: Float64[Tensor, " T"]
    cosine: Float64[Tensor, " T"]
    W: Float64[Tensor, "K D"]
    b: Float64[Tensor, " K"]
    H: Float64[Tensor, "N D"] | None = None

    @classmethod
    def of(cls, steps: np.ndarray, rows: list[list[float]], *end: Tensor) -> "Trace":
        """The trace of what was recorded at some steps, from the objective on, and of where it ended."""
        return cls(
            torch.from_numpy(steps),
            *torch.tensor(rows, dtype=torch.float64, device="cpu").unbind(1),
            *end,
        )

    def features(self) -> Float64[Tensor, "N D"]:
        """The features at the end, one sample a row.

        Returns:
            H in float64.

        Raises:
            ValueError: If the solver did not form them.
        """
        if self.H is None:
            raise ValueError("the features at the end were not formed; take mufm.solve(X, y, ...)")
        return self.H
