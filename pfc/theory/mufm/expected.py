"""MUFM with squared loss in closed form, for balanced orthogonal means and isotropic noise."""

from dataclasses import dataclass

from pfc.theory.coefficients import at_least, positive


@dataclass(frozen=True)
class Optimum:
    r"""The minimum for data of given second moments: W and the means of H are multiples of the identity.

    Args:
        objective: The value of the problem.
        certificate: Least eigenvalue of lW I - lam P Q P over lW: from 0 on this is proven to be the
            global minimum. Below, it is the least of all $W = w [I, 0]$, and a stationary point.
        w: The classifier's scale.
        h: Norm of the class means of H, which stay orthogonal.
        pfc1: Within-class over between-class variance of H.
        pfc2: Distance of the class means of H from a simplex equiangular tight frame, 0.
        cosine: Between H and the data X.
        direction_distance: | H/|H| - X/|X| |.
        relative_displacement: |H - X| / |X|.
        norm_ratio: |H| / |X|.
    """

    objective: float
    certificate: float
    w: float
    h: float
    pfc1: float
    pfc2: float
    cosine: float
    direction_distance: float
    relative_displacement: float
    norm_ratio: float


def optimum(
    classes: int,
    features: int,
    per_class: int,
    *,
    lam: float,
    weight_decay: float = 0.005,
    norm: float = 1.0,
    sigma: float = 0.5,
) -> Optimum:
    r"""The minimum of MUFM with squared loss for orthogonal class means and isotropic noise.

    With means $r e_k$, noise of variance $\sigma^2$ in each of D dimensions and $\beta = N \lambda$ the
    classifier is $w [I, 0]$, where w is the least point of

    $$ f(w) = \frac K2 \Big[ \beta \frac{w^2 (\sigma^2 + r^2/K) - 2 w r / K + 1/K}{w^2 + \beta}
       + \lambda_W w^2 \Big], \qquad h = \frac{\beta r + w}{w^2 + \beta}. $$

    The noise is shrunk in the K dimensions that the classifier sees and stays in the D - K others, so
    that PFC1 goes to 0 only like $\sqrt\lambda$. Second moments of a sample are replaced by their
    expectations; the noise is uncorrelated with the labels. Derived for this package, not in
    arXiv 2405.00985.

    Args:
        classes: K.
        features: D, at least K.
        per_class: Samples of each class.
        lam: Coefficient of the change of the data.
        weight_decay: Coefficient of W; 0.005 is that of Tirer and Bruna 2022, from memory.
        norm: Of the class means, r.
        sigma: Standard deviation of the noise in each dimension.

    Returns:
        The minimum. PFC1 is above 0 at every `lam`.

    Raises:
        ValueError: If a number is out of range, or there are fewer features than classes.

    Examples:
        >>> found = optimum(4, 10, 25, lam=1e-6)
        >>> round(found.pfc1, 4), found.pfc2, found.certificate > 0
        (0.1228, 0.0, True)
    """
    at_least(2, classes=classes)
    at_least(1, per_class=per_class)
    at_least(classes, features=features)
    positive(lam=lam, weight_decay=weight_decay, norm=norm, sigma=sigma)
    K, beta, noise = classes, classes * per_class * lam, sigma**2
    a, b = noise + norm**2 / K, norm / K
    w = _scale(beta, a, b, 1 / K, weight_decay)
    size = w**2 + beta
    lost = w**2 / size  # of the noise that the classifier sees
    # where f' = 0, 1 - w r is this; no digit of it cancels, nor of what follows from it
    short = K * w * (noise * beta + weight_decay * size * (1 + w**2 / beta)) / (w + norm * beta)
    misfit, grown = w**2 * noise + short**2 / K, w * short / size
    kept, h = beta / size, norm + grown
    spread, idle = K * noise, (features - K) * noise
    X, H = norm**2 + spread + idle, h**2 + kept**2 * spread + idle
    cosine = (norm * h + kept * spread + idle) / (H**0.5 * X**0.5)
    # |X|^2 |H|^2 sin^2, by Lagrange's identity
    across = spread * (norm * lost + grown) ** 2 + idle * (grown**2 + spread * lost**2)
    return Optimum(
        objective=K / 2 * (kept * misfit + weight_decay * w**2),
        certificate=1 - kept * misfit / size / weight_decay,
        w=w,
        h=h,
        pfc1=(kept**2 * spread + idle) / ((K - 1) * h**2 / K),
        pfc2=0.0,
        cosine=min(cosine, 1.0),
        direction_distance=(across / H / X * 2 / (1 + cosine)) ** 0.5,
        relative_displacement=((grown**2 + lost**2 * spread) / X) ** 0.5,
        norm_ratio=(H / X) ** 0.5,
    )


def _scale(beta: float, a: float, b: float, c: float, weight_decay: float) -> float:
    """The only positive root of f'(w) (w^2 + beta)^2 / beta, whose coefficients change sign once."""
    from scipy.optimize import brentq

    def slope(w: float) -> float:
        pull = b * w**2 + (a * beta - c) * w - b * beta
        return pull + weight_decay * w * (w**2 + beta) * (1 + w**2 / beta)

    top = b / a
    while slope(top) < 0:
        top *= 2
    while slope(top / 2) > 0:
        top /= 2
    return float(brentq(slope, top / 2, top, xtol=1e-300, rtol=1e-15))
