"""Metrics of progressive feedforward collapse and its kin: pure functions of moments and means.

Rows are samples or classes: `M` is K x D and holds the class means, in any orthonormal coordinates.
`weighting` says what a class counts in covariances of unbalanced data: `"class"`, all the same, or
`"sample"`, by its samples. Undefined mathematics gives NaN.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pfc.moments import ClassMoments
from pfc.pairs import blocks, squared_distances

Weighting = Literal["class", "sample"]


def class_weights(count: Float64[Tensor, " K"], weighting: Weighting) -> Float64[Tensor, " K"]:
    """Weight of each class in covariances; zero for a class without samples.

    Args:
        count: Samples of each class.
        weighting: `"class"` or `"sample"`.

    Returns:
        Weights that sum to 1.

    Raises:
        ValueError: If the weighting is unknown.
    """
    if weighting not in ("class", "sample"):
        raise ValueError(f"weighting must be 'class' or 'sample', got {weighting!r}")
    weight = (count > 0).to(count) if weighting == "class" else count
    return weight / weight.sum()


def within_trace(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, ""]:
    """Trace of the within-class covariance, the numerator of PFC1."""
    pi = class_weights(moments.count, weighting)
    return (pi * moments.scatter / moments.count.clamp(min=1)).sum()


def between_trace(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, ""]:
    """Trace of the between-class covariance, the denominator of PFC1."""
    pi = class_weights(moments.count, weighting)
    return (pi * moments.centred(pi).square().sum(1)).sum()


def scatter_ratio(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, ""]:
    r"""Within-class over between-class variance (PFC1), $Tr \Sigma_W / Tr \Sigma_B$.

    Eq. 7 of arXiv 2405.00985, its formula restored from its words and the source it names.

    Args:
        moments: Of one layer.
        weighting: What a class counts in both covariances.

    Returns:
        A number in [0, inf]: 0 at perfect collapse, inf if only the means coincide, NaN if all
        features coincide. Translating, rotating and scaling the features changes nothing.

    Raises:
        ValueError: If fewer than two classes have samples.

    Examples:
        >>> H = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> float(scatter_ratio(ClassMoments.of(H, torch.tensor([0, 0, 1, 1]))))
        0.25
    """
    _two_classes(int((moments.count > 0).sum()))
    return within_trace(moments, weighting) / between_trace(moments, weighting)


def unbiased_scatter_ratio(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, ""]:
    r"""PFC1 as a ratio of unbiased estimates: of few samples a class, the means' own noise taken out.

    $$ \frac{\sum_c \pi_c S_c / (n_c - 1)}
            {\mathrm{Tr}\,\Sigma_B - \sum_c \pi_c (1 - \pi_c) S_c / (n_c (n_c - 1))}, $$

    with the scatter $S_c$ of the $n_c$ samples of a class about their mean.

    Args:
        moments: Of one layer.
        weighting: What a class counts in both covariances; taken as given, not as drawn.

    Returns:
        A number in [0, inf]: inf where the means lie no further apart than noise would put them; NaN if
        a class has one sample, or all features coincide.

    Raises:
        ValueError: If fewer than two classes have samples.
    """
    _two_classes(int((moments.count > 0).sum()))
    within, noise = _unbiased(moments.present(), weighting)
    between = between_trace(moments, weighting)
    return torch.where(between > noise, within / (between - noise), within / 0.0)


def noise_share(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, ""]:
    """Share of the between-class variance that the class means' sampling noise accounts for.

    Args:
        moments: Of one layer.
        weighting: What a class counts.

    Returns:
        A number from 0 on, above 1 if noise alone would put the means further apart; NaN if a class has
        one sample, or the means coincide.
    """
    return _unbiased(moments.present(), weighting)[1] / between_trace(moments, weighting)


def _unbiased(
    moments: ClassMoments, weighting: Weighting
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Unbiased: the variance within classes, and what noise of the means adds to that between."""
    pi, n = class_weights(moments.count, weighting), moments.count
    variance = torch.where(n > 1, moments.scatter / (n - 1), torch.nan)
    return (pi * variance).sum(), (pi * (1 - pi) * variance / n).sum()


def etf_distance(M: Float[Tensor, "*T K D"]) -> Float[Tensor, "*T"]:
    r"""Distance of the class means from a simplex equiangular tight frame (PFC2).

    $$ \left\| \frac{G}{\|G\|_F} - \frac{1}{\sqrt{K-1}} \Big(I_K - \tfrac1K 11^\top\Big)
       \right\|_F, \qquad G = \tilde M \tilde M^\top, $$

    where row $k$ of $\tilde M$ is class mean $k$ minus the unweighted mean of the class means, whatever
    the weighting elsewhere. Eq. 8 of arXiv 2405.00985, restored from its words and sources.

    Args:
        M: Class means, of one layer or of several at once: translating, rotating or scaling them
            changes nothing.

    Returns:
        A number a layer in $[0, \sqrt2)$: 0 exactly at a simplex ETF, so always 0 for K = 2. NaN if all
        the means coincide, since nothing then has a direction.

    Raises:
        ValueError: If there are fewer than two classes.

    Examples:
        >>> triangle = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]])
        >>> bool(etf_distance(triangle) < 1e-6)
        True
    """
    _two_classes(M.shape[-2])
    M = _centred(M)
    G = _gram(M)
    size = torch.linalg.matrix_norm(G)
    return torch.where(size > 0, _off_frame(G / size[..., None, None], M), torch.nan)


def _gram(M: Float[Tensor, "*T K D"]) -> Float[Tensor, "*T S S"]:
    """The smaller of the two Gram matrices of centred means, whose eigenvalues above 0 are the same."""
    return M @ M.mT if M.shape[-2] <= M.shape[-1] else M.mT @ M


def _off_frame(G: Float[Tensor, "*T S S"], M: Float[Tensor, "*T K D"]) -> Float[Tensor, "*T"]:
    """Distance of the Gram matrix of means, of norm 1, from that of a simplex ETF, of norm 1."""
    # the frame's is one number on all its K - 1 directions: times the identity in D < K - 1 coordinates,
    # which miss what it has in the others
    K, S = M.shape[-2], G.shape[-1]
    centre = 1 / K if S == K else 0.0
    frame = (torch.eye(S, device="cpu").to(M) - centre) / (K - 1) ** 0.5
    missed = max(0, K - 1 - S) / (K - 1)
    return torch.hypot(torch.linalg.matrix_norm(G - frame), frame.new_tensor(missed**0.5))


def etf_distance_gradient(M: Float64[Tensor, "K D"]) -> Float64[Tensor, "K D"]:
    """How PFC2 changes with each centred class mean; 0 for two classes, NaN at a simplex ETF of more."""
    over, M = _over(M), _centred(M)
    if len(M) == 2:
        return torch.zeros_like(M)
    G, frame = _gram(M), (len(M) - 1) ** -0.5  # the frame's Gram matrix is a number times the means
    size = torch.linalg.matrix_norm(G)
    G = G / size
    turned = G @ M if len(M) <= M.shape[1] else M @ G
    along = frame * (M - G.trace() * turned) / (size * _off_frame(G, M))
    return -2 * over * along


def participation_ratio(M: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    """Effective rank of the centred class means, (Tr G)^2 / |G|_F^2; K - 1 exactly at a simplex ETF.

    PFC2 is sqrt(2 - 2 sqrt(ratio / (K - 1))) and so says the same.

    Args:
        M: Class means.

    Returns:
        A number in [1, K - 1]; NaN if all the means coincide.
    """
    G = _gram(_centred(M))
    return G.trace().square() / G.square().sum()


def nearest_mean_accuracy(
    hits: Float64[Tensor, " K"], count: Float64[Tensor, " K"]
) -> Float64[Tensor, ""]:
    """Fraction of the samples whose nearest class mean is their own (PFC3), Eq. 9 of arXiv 2405.00985.

    Args:
        hits: Samples of each class that are nearest to its mean; ties go to the lowest class.
        count: Samples of each class.

    Returns:
        A number in [0, 1]; 1 means the layer is NCC separable. Every sample counts the same in
        either weighting, as in the definition.
    """
    return hits.sum() / count.sum()


def collapse_trace(
    squares: Float64[Tensor, "K R"],
    count: Float64[Tensor, " K"],
    values: Float64[Tensor, " R"],
    weighting: Weighting = "class",
) -> Float64[Tensor, ""]:
    r"""Separation fuzziness $Tr(\Sigma_W \Sigma_B^+)$ of He and Su; NC1 is this divided by K.

    Args:
        squares: For each class the summed squares of its residuals along the singular directions of
            the weighted, centred class means.
        count: Samples of each class.
        values: The singular values; how many are above zero is the rank of the means.
        weighting: What a class counts in both covariances.

    Returns:
        A number in [0, inf); 0 at perfect collapse, NaN if the means coincide.
    """
    seen = values > 0
    if not seen.any():
        return squares.new_tensor(float("nan"))
    pi = class_weights(count, weighting)
    Sigma_W = (pi / count.clamp(min=1)) @ squares[:, seen]  # its diagonal in these directions
    return (Sigma_W / values[seen] / values[seen]).sum()


def equinorm(M: Float[Tensor, "K D"], ddof: int = 1) -> Float[Tensor, ""]:
    """Coefficient of variation of the norms of the centred class means (NC2); 0 at perfect collapse.

    Args:
        M: Class means.
        ddof: 1, as Papyan, Han and Donoho 2020 have it, or 0.

    Returns:
        A number in [0, inf); NaN if all the means coincide.
    """
    norms = _centred(M).norm(dim=1)
    return norms.std(correction=ddof) / norms.mean()


def angles(M: Float[Tensor, "K D"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`equiangle` and `maximal_angle_distance` at once, which see the same K (K - 1) / 2 cosines."""
    K, M = len(M), _centred(M)
    norms = M.norm(dim=1)
    norms = torch.where(norms > K * torch.finfo(M.dtype).eps * norms.max(), norms, torch.nan)
    U, pairs = M / norms[:, None], K * (K - 1) / 2
    mean = (U.sum(0).square().sum() - K) / (2 * pairs)
    sums = U.new_zeros(3)
    for rows, rest in blocks(U):
        cosines = U[rows] @ U[rest].mT
        off = (cosines - mean).triu_(1)
        far = cosines.add_(1 / (K - 1)).triu_(1)
        sums += torch.stack([off.sum(), off.square_().sum(), far.abs_().sum()])
    first, second, distance = torch.where(norms.isnan().any(), torch.nan, sums / pairs)
    return (second - first.square()).clamp(min=0).sqrt(), distance


def _centred(M: Float[Tensor, "*T K D"]) -> Float[Tensor, "*T K D"]:
    """Means less their mean, at a size whose squares neither overflow nor vanish."""
    M = M * _over(M)
    return M - M.mean(-2, keepdim=True)


def _over(M: Float[Tensor, "*T K D"]) -> Float[Tensor, "*T 1 1"]:
    """The power of two that brings the largest entry near 1: to multiply by it is exact."""
    if not M.numel():
        return M.new_ones(*M.shape[:-2], 1, 1)
    size = M.detach().abs().amax((-2, -1), keepdim=True)
    largest = round(-math.log2(torch.finfo(M.dtype).tiny))
    exponent = torch.frexp(size.nan_to_num()).exponent.long().clamp(-largest, largest)
    return ((1023 - exponent) << 52).view(torch.float64).to(M.dtype)  # its bits: pow() might round


def equiangle(M: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    """Standard deviation of the cosines between centred class means (NC2); 0 at perfect collapse."""
    return angles(M)[0]


def maximal_angle_distance(M: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    """Mean distance of those cosines from the simplex ETF's -1/(K-1) (NC2); 0 at perfect collapse.

    Papyan, Han and Donoho 2020; the field calls it the maximal angle.

    Args:
        M: Class means.

    Returns:
        A number in [0, 2]; NaN if a mean is the mean of the means.
    """
    return angles(M)[1]


def self_duality(*, M: Float[Tensor, "K D"], W: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    """Distance of the classifier from the centred class means, both at unit norm (NC3).

    Args:
        M: Class means.
        W: Rows of the classifier, in the same coordinates.

    Returns:
        A number in [0, 2], not squared; 0 at perfect collapse, NaN if either is zero.
    """
    M, W = _centred(M), W * _over(W)
    return torch.linalg.norm(W / torch.linalg.norm(W) - M / torch.linalg.norm(M))


def class_distance_variance(M: Float[Tensor, "K D"], variance: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Class-distance normalised variance, CDNV of Galanti et al. 2021: mean over pairs of classes.

    Args:
        M: Class means.
        variance: Mean squared distance of each class's samples to its mean.

    Returns:
        A number in [0, inf]; 0 at perfect collapse.
    """
    over, K = _over(M), len(M)
    M, variance = M * over, variance * over[0] * over[0]
    total = M.new_zeros(())
    for rows, rest, square in squared_distances(M):
        total += ((variance[rows, None] + variance[rest]) / square).triu(1).sum()
    return total / (K * (K - 1))


def effective_depth(errors: Sequence[float], eps: float = 0.01) -> int | None:
    """First layer from which on the NCC error stays within `eps`; `None` if the last does not.

    Args:
        errors: 1 - PFC3 of each layer, in the order of the forward pass.
        eps: The tolerated error, in [0, 1].

    Returns:
        An index into `errors`, or `None`.

    Raises:
        ValueError: If `eps` is out of range.

    Examples:
        >>> effective_depth([0.2, 0.005, 0.02, 0.01, 0.0])
        3
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], got {eps}")
    good = [error <= eps + 1e-12 for error in errors]  # 1 - 0.99 is more than 0.01
    if not good or not good[-1]:
        return None
    return max((l + 1 for l, fine in enumerate(good) if not fine), default=0)


def _two_classes(K: int) -> None:
    if K < 2:
        raise ValueError(f"need samples of at least 2 classes, got {K}")
