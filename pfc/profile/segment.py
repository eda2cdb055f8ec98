"""Consecutive layers of one shape, and their cross-layer statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.line import End, StepCurve
from pfc.metrics import Weighting, class_weights
from pfc.moments import SegmentMoments
from pfc.span import near_means
from pfc.theory.geodesic import Certificate, Line, OnLine
from pfc.theory.path import Path, PathSample, path_of
from pfc.warning import renamed

Position = Literal["path", "chord", "proj", "index"]
KINDS: tuple[Position, ...] = ("path", "chord", "proj", "index")


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive layers of one shape and their cross-layer statistics; theory reads nothing else.

    Args:
        start: Index of the first layer in the profile.
        layers: Names of the layers, L + 1 of them.
        weighting: What a class counts in covariances.
        count: Samples of each class (only classes that have some).
        scatter: At the first and the last layer, the summed squared residuals of each class.
        cross: The summed inner products of a sample's residuals at the first and the last layer.
        means: Class means of the first and the last layer, each centred by the unweighted mean of the
            means, in one orthonormal basis of their common span, or of all where that is hardly more:
            all their inner products.
        steps: Per class, the summed Gram matrices of the L increments between neighbouring layers.
        curves: Exact PFC3 along the straight line, for each of its ends; empty after one pass.
        quantiles: Of the path's numbers over samples, as `PathSample.quantiles` gives them; `None` if an
            earlier version measured.
        sampled: Samples behind the quantiles.
        exponent: The features are larger by this power of two than the numbers here say.
    """

    start: int
    layers: tuple[str, ...]
    weighting: Weighting
    count: Float64[Tensor, " K"]
    scatter: Float64[Tensor, "2 K"]
    cross: Float64[Tensor, " K"]
    means: Float64[Tensor, "2 K R"]
    steps: Float64[Tensor, "K L L"]
    curves: Mapping[End, StepCurve] = field(default_factory=dict)
    quantiles: Float64[Tensor, "C Q"] | None = None
    sampled: int = 0
    exponent: int = 0

    @classmethod
    def of(
        cls,
        start: int,
        layers: Sequence[str],
        moments: SegmentMoments,
        weighting: Weighting,
        curves: Mapping[End, StepCurve],
        sample: PathSample | None = None,
        exponent: int = 0,
    ) -> "Segment":
        """Read a segment from its moments, the second pass's curves, and its samples' own paths."""
        seen = moments.layers[0].count > 0
        ends = [moments.layers[i].present() for i in (0, -1)]
        M = near_means(ends, class_weights(ends[0].count, "class"))
        return cls(
            start=start,
            layers=tuple(layers),
            weighting=weighting,
            count=ends[0].count.cpu(),
            scatter=torch.stack([end.scatter for end in ends]).cpu(),
            cross=moments.cross[seen].cpu(),
            means=M.reshape(2, len(M) // 2, -1).cpu(),
            steps=moments.steps[seen].cpu(),
            curves=curves,
            quantiles=None if sample is None else sample.quantiles(weighting),
            sampled=0 if sample is None else min(sample.seen, sample.kept),
            exponent=exponent,
        )

    @property
    def gram(self) -> Float64[Tensor, "L L"]:
        """Mean inner products of the increments, weighted as covariances are."""
        w = class_weights(self.count, self.weighting) / self.count
        return torch.einsum("k,klm->lm", w, self.steps)

    def path(self) -> Path:
        """The path from the first layer to the last: length, straightness, energy, angles, curvature."""
        path = path_of(self.layers, self.gram, self.quantiles, self.sampled)
        return path.scaled(self.exponent)

    def position(self, kind: Position = "path") -> list[float]:
        """Where each layer stands between the first and the last.

        Args:
            kind: `"path"`, length so far over the whole length (always in [0, 1] and rising, the
                default); `"chord"`, distance from the first layer over the ends' distance; `"proj"`,
                the nearest point of the straight line; `"index"`, the layer's number. The paper's own
                formula is lost, `"path"` is inferred from its words.

        Returns:
            One number a layer, 0 at the first and 1 at the last; NaN where nothing moves.

        Raises:
            ValueError: If the kind is unknown.
        """
        L, S = len(self.layers) - 1, self.gram
        if kind == "index":
            return [l / L for l in range(L + 1)]
        if kind == "path":
            s = torch.cat([S.new_zeros(1), S.diagonal().clamp(min=0).sqrt().cumsum(0)])
        elif kind == "chord":
            s = torch.stack([S[:l, :l].sum().clamp(min=0).sqrt() for l in range(L + 1)])
        elif kind == "proj":
            s = torch.stack([S[:l].sum() for l in range(L + 1)])
        else:
            raise ValueError(f"kind must be 'path', 'chord', 'proj' or 'index', got {kind!r}")
        return [float(x) for x in s / s[-1]]

    def line(
        self, t: float | Sequence[float | int] | Float64[Tensor, " T"], end: End = "measured"
    ) -> OnLine:
        """The metrics along the straight line from the first to the last layer's features.

        Args:
            t: Points in [0, 1]: 0 is the first layer, 1 the end.
            end: What stands at the end: the features as `"measured"`, their class `"means"`, or the
                simplex equiangular tight frame nearest to these, `"etf"`.

        Returns:
            PFC1, PFC2 and PFC3 at each t.

        Raises:
            ValueError: If a t lies outside [0, 1] or the end is unknown.
        """
        points = torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(-1)
        if not bool(((points >= 0) & (points <= 1)).all()):
            raise ValueError(f"t must lie in [0, 1], got {t}")
        return self.ends(end).at(points)

    def certify(self, end: End = "measured") -> Certificate:
        """Theorems 1 and 2 on this segment, as verdicts with their numbers.

        Args:
            end: What stands at the end, as for `line`; the theorems themselves speak of `"etf"`.

        Returns:
            Where PFC1 and PFC2 turn on the line, decided and not sampled.
        """
        return self.ends(end).certify()

    def ends(self, end: End = "measured") -> Line:
        """The statistics of the two ends of the straight line, all that `line` and `certify` need."""
        return Line.of(
            count=self.count,
            scatter=self.scatter,
            cross=self.cross,
            means=self.means,
            weighting=self.weighting,
            end=end,
            curve=self.curves.get(end),
            exponent=self.exponent,
        )

    def __repr__(self) -> str:
        span = f"{self.layers[0]:.40} to {self.layers[-1]:.40}"
        return f"Segment({span}: {len(self.layers)} layers, {len(self.count)} classes)"

    def to_dict(self) -> dict[str, Any]:
        """What is kept as words and numbers beside the arrays."""
        return {"start": self.start, "layers": list(self.layers), "sampled": self.sampled}

    told = renamed("Segment.told", "Segment.to_dict")

    def arrays(self) -> dict[str, Tensor]:
        """All that is kept in a file beside the names."""
        kept = {name: getattr(self, name) for name in ("count", "scatter", "cross", "means", "steps")}
        for end, curve in self.curves.items():
            kept |= {f"curve/{end}/starts": curve.starts, f"curve/{end}/stops": curve.stops}
        return kept if self.quantiles is None else {**kept, "quantiles": self.quantiles}
