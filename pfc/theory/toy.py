"""The synthetic data of the paper's Figures 4 and 5: Gaussian classes around means on a sphere."""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.theory.coefficients import at_least, positive


def toy(
    classes: int = 4, features: int = 20, per_class: int = 50, sigma: float = 0.5, seed: int = 0
) -> tuple[Float64[Tensor, "N D"], Int64[Tensor, " N"]]:
    r"""Balanced data $x = \mu_k + \sigma\epsilon$, $\mu_k$ uniform on the unit sphere.

    Figures 4 and 5 of arXiv 2405.00985. Its numbers are lost: 4 classes, 20 features and 50 samples a
    class are those of Tirer and Bruna 2022, from memory; sigma is inferred, at least 0.3 being needed
    for data whose nearest class means err, as the paper's do. The generator is ours.

    Args:
        classes: Number of classes.
        features: Dimensions of the data.
        per_class: Samples of each class.
        sigma: Standard deviation of the noise.
        seed: Of the random numbers.

    Returns:
        The data, one sample a row, and their classes, in the order of the classes.

    Raises:
        ValueError: If there are fewer than two classes, no features or no samples, or if sigma is not
            positive.

    Examples:
        >>> X, y = toy()
        >>> X.shape, round(float(X[0, 0]), 12)
        (torch.Size([200, 20]), 0.126480769295)
    """
    at_least(2, classes=classes)
    at_least(1, features=features, per_class=per_class)
    at_least(0, seed=seed)
    positive(sigma=sigma)
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=(features, classes))
    mu /= np.linalg.norm(mu, axis=0)
    y = np.repeat(np.arange(classes), per_class)
    X = mu[:, y] + sigma * rng.normal(size=(features, classes * per_class))
    return torch.from_numpy(X.T.copy()), torch.from_numpy(y)
