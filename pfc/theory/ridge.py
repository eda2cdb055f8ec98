"""The ridge classifier of labelled features, in closed form from their second moments."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.theory.coefficients import not_negative
from pfc.theory.mufm.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear classifiers by least squares on one-hot labels, one for each penalty.

    With the mean taken over the N samples, `at(penalty)` is the minimum over W and b of
    mean |W x + b - e_y|^2 + penalty * s * |W|_F^2, where s is the mean eigenvalue of the covariance of
    the features: the penalty has no unit. The bias is free. The features are decomposed once.

    Args:
        statistics: Of the features and their labels, such as `pfc.theory.mufm.gather` gives.

    Examples:
        >>> from pfc.theory.mufm import gather
        >>> W, b = Ridge(gather([([[1.0], [3.0]], [0, 1])])).at(0.0)
        >>> W, b
        (tensor([[-0.5000],
                [ 0.5000]], dtype=torch.float64), tensor([ 1.5000, -0.5000], dtype=torch.float64))
    """

    statistics: Statistics

    @cached_property
    def _coordinates(self) -> Float64[Tensor, "K D"]:
        """The products of the labels with the centred features, in the basis of their covariance."""
        st = self.statistics
        cross = st.centred.mean * (st.count / st.samples)[:, None]
        return cross @ st.centred.spectrum.vectors

    def gcv(self, penalty: float) -> float:
        r"""How well a penalty would do on new samples, by generalised cross-validation.

        $$ \frac{\frac{1}{N} \sum_i |W x_i + b - e_{y_i}|^2}{(1 - d / N)^2}, \qquad
           d = 1 + \sum_j \frac{\lambda_j}{\lambda_j + \mathrm{penalty} \cdot s}, $$

        with the eigenvalues $\lambda_j$ of the covariance, whose mean is s (Golub, Heath and Wahba,
        1979). Neither a sample is left out nor the data read again.

        Args:
            penalty: At least 0.

        Returns:
            A number from 0 on, the less the better; NaN where as many parameters as samples are free.

        Raises:
            ValueError: If the penalty is negative or not finite.
        """
        not_negative(penalty=penalty)
        st, values = self.statistics, self.statistics.centred.spectrum.values / self.statistics.samples
        damping = penalty * values.mean()
        damped = torch.where(values + damping > 0, values + damping, torch.inf)
        explained = self._coordinates.square() * (values + 2 * damping) / damped.square()
        share = st.count / st.samples
        error = (1 - share.square().sum() - explained.sum()).clamp(min=0)
        free = 1 - (1 + (values / damped).sum()) / st.samples
        return float(torch.where(free > 0, error / free.square(), torch.nan))

    def at(self, penalty: float) -> tuple[Float64[Tensor, "K D"], Float64[Tensor, " K"]]:
        """Weight and bias of the classifier.

        Args:
            penalty: At least 0; of 0 the weight is the smallest of those that fit best.

        Returns:
            Weight K x D and bias of length K.

        Raises:
            ValueError: If the penalty is negative or not finite.
        """
        not_negative(penalty=penalty)
        st, spectrum = self.statistics, self.statistics.centred.spectrum
        values = spectrum.values / st.samples
        damped = values + penalty * values.mean()
        weight = torch.where(damped > 0, self._coordinates / damped, 0.0) @ spectrum.vectors.mT
        return weight, st.count / st.samples - weight @ st.centre
