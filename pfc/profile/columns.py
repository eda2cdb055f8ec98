"""THE table of metrics: what each column of a profile is, how it is formed, and which way is collapse.

Assembly, files, figures, the README's table and the tests read it. A new metric is a formula in
`pfc.metrics`, a row here, its line in the README, and its oracle and invariances in the tests.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from pfc import metrics
from pfc.metrics import Weighting
from pfc.moments import ClassMoments
from pfc.nearest import NearestMean

Needs = Literal["segment", "means", "scatter", "own", "nearest", "classifier", "answers", "probe"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one layer. Only classes that have samples are included.

    Where the means are those of other data, the scatters about them and the nearest of them are, too.

    Args:
        count: Samples of each class.
        scatter: Summed squared distances of each class's samples to their mean.
        M: Centred class means, in an orthonormal basis of their span. Means that coincide up to
            rounding are identical.
        weighting: Class weights in covariances.
        nearest: Nearest class means; `None` after one pass.
        classifier: At the classifier's input its weight's rows, and the centred class means in the
            features' own coordinates; `None` elsewhere.
        disagreement: Fraction of samples whose answer differs from the nearest mean's class; NaN if not
            known.
        position: Where the layer stands in its segment; NaN without one.
        probe: Accuracy of a linear probe on data held out; NaN where none was asked for.
        reference: Moments about the means of other data, these in an orthonormal basis of their span;
            `None` where the means are the data's own.
    """

    count: Float64[Tensor, " K"]
    scatter: Float64[Tensor, " K"]
    M: Float64[Tensor, "K R"]
    weighting: Weighting
    nearest: NearestMean | None = None
    classifier: tuple[Float64[Tensor, "K D"], Float64[Tensor, "K D"]] | None = None
    disagreement: float = math.nan
    position: float = math.nan
    probe: float = math.nan
    reference: ClassMoments | None = None

    @property
    def decided(self) -> NearestMean:
        """Nearest class means, where they are known."""
        assert self.nearest is not None, "a column that needs them asks for them"
        return self.nearest

    @property
    def moments(self) -> ClassMoments:
        """Moments about the class means, or about those of other data."""
        own = ClassMoments(self.count, self.M, self.scatter, torch.zeros_like(self.M))
        return own if self.reference is None else self.reference

    @cached_property
    def angles(self) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
        """Of the cosines between class means: their variation, and their distance from a frame's."""
        return metrics.angles(self.M)

    def has(self, needs: Needs) -> bool:
        """Whether a column's need is met."""
        several = len(self.count) > 1
        known = {
            "segment": not math.isnan(self.position),
            "means": several,
            "scatter": several,
            "own": several and self.reference is None,
            "nearest": self.nearest is not None,
            "classifier": self.classifier is not None,
            "answers": not math.isnan(self.disagreement),
            "probe": not math.isnan(self.probe),
        }
        return known[needs]


@dataclass(frozen=True)
class Column:
    """A metric as a column of a profile.

    Args:
        name: Of the column.
        formula: What it is of a layer's evidence.
        words: A short description, without a full stop.
        needs: What it is computed from: a place in a segment, the data's own class means, the scatter
            about the means, that about the data's own alone, nearest class means, the classifier's
            weight, or its answers, or data held out for a probe. NaN where that is not known.
        highest: The largest value it may have; the least is 0. Files are checked against it.
        collapsed: Its value at perfect collapse, by default 0; `None` if it has no fixed one.
        main: Whether `print(profile)` shows it.
        title: What figures call it; its words if empty.
        tex: Its formula for figures.
    """

    name: str
    formula: Callable[[Evidence], float | Tensor]
    words: str
    needs: Needs = "means"
    highest: float = math.inf
    collapsed: float | None = 0.0
    main: bool = True
    title: str = ""
    tex: str = ""

    @property
    def passes(self) -> int:
        """After how many passes it is known."""
        return 2 if self.needs in {"nearest", "answers"} else 1

    @property
    def rises(self) -> bool:
        """Whether the metric rises towards collapse."""
        return self.collapsed == self.highest

    def of(self, evidence: Evidence) -> float:
        """The metric of a layer; NaN where it has no meaning."""
        return float(self.formula(evidence)) if evidence.has(self.needs) else math.nan


def _fuzziness(e: Evidence) -> Float64[Tensor, ""]:
    squares = e.decided.squares * (e.moments.scatter > 0)[:, None]  # of a collapsed class only rounding
    return metrics.collapse_trace(squares, e.count, e.decided.span.values, e.weighting)


def _self_duality(e: Evidence) -> Float64[Tensor, ""]:
    assert e.classifier is not None, "a column that needs it asks for it"
    W, M = e.classifier
    return metrics.self_duality(M=M, W=W) if len(M) > 1 else M.new_tensor(math.nan)


# fmt: off
_ROWS = (
    Column("position", lambda e: e.position,
           "place on the path from the first to the last layer of its shape",
           needs="segment", highest=1.0, collapsed=None,
           title="place on the path"),
    Column("pfc1", lambda e: metrics.scatter_ratio(e.moments, e.weighting),
           "within-class over between-class variance", needs="scatter",
           title="scatter ratio", tex=r"$\mathrm{Tr}\,\Sigma_W\,/\,\mathrm{Tr}\,\Sigma_B$"),
    Column("pfc1_unbiased", lambda e: metrics.unbiased_scatter_ratio(e.moments, e.weighting),
           "the same as a ratio of unbiased estimates, for few samples a class",
           needs="own", main=False),
    Column("pfc2", lambda e: metrics.etf_distance(e.M),
           "distance of the class means from a simplex equiangular tight frame", highest=math.sqrt(2),
           title="distance to simplex ETF", tex=r"$\|G/\|G\|_F - G_\mathrm{ETF}\|_F$"),
    Column("pfc3", lambda e: metrics.nearest_mean_accuracy(e.decided.hits, e.decided.count),
           "fraction of samples nearest to their own class mean",
           needs="nearest", highest=1.0, collapsed=1.0,
           title="nearest-mean accuracy", tex="fraction of samples"),
    Column("nc1", lambda e: _fuzziness(e) / len(e.count),
           "within-class covariance over the between-class one, Tr(Sigma_W Sigma_B^+) / K",
           needs="nearest",
           title="within over between covariance", tex=r"$\mathrm{Tr}\,\Sigma_W\Sigma_B^+\,/\,K$"),
    Column("fuzziness", _fuzziness,
           "separation fuzziness of He and Su, Tr(Sigma_W Sigma_B^+)", needs="nearest", main=False,
           title="separation fuzziness", tex=r"$\mathrm{Tr}\,\Sigma_W\Sigma_B^+$"),
    Column("nc2_norm", lambda e: metrics.equinorm(e.M),
           "coefficient of variation of the norms of the centred class means", main=False,
           title="variation of the means' norms", tex="standard deviation over mean"),
    Column("nc2_angle", lambda e: e.angles[0],
           "standard deviation of the cosines between centred class means", highest=1.0, main=False,
           title="variation of the means' cosines", tex="standard deviation"),
    Column("nc2_max_angle", lambda e: e.angles[1],
           "mean distance of these cosines from -1/(K-1), the simplex ETF's", highest=2.0, main=False,
           title="cosines' distance from ETF", tex="mean absolute distance"),
    Column("nc3", _self_duality,
           "distance of the classifier from the class means", needs="classifier", highest=2.0,
           title="classifier's distance from means"),
    Column("nc4", lambda e: e.disagreement,
           "fraction of samples whose nearest class mean is not the classifier's answer",
           needs="answers", highest=1.0,
           title="answers other than nearest mean", tex="fraction of samples"),
    Column("cdnv", lambda e: metrics.class_distance_variance(e.M, e.scatter / e.count),
           "class-distance normalised variance",
           title="distance-normalised variance"),
    Column("probe", lambda e: e.probe,
           "accuracy of a ridge classifier of the layer on held-out data, where these were given",
           needs="probe", highest=1.0, collapsed=1.0,
           title="linear probe's accuracy", tex="fraction of held-out samples"),
)
# fmt: on
COLUMNS: dict[str, Column] = {column.name: column for column in _ROWS}
PFC = {name: COLUMNS[name] for name in ("pfc1", "pfc2", "pfc3")}  # what the paper's claim is about


def measured(passes: int, *, own: bool = True, probe: bool = False) -> list[Column]:
    """The columns available after that many passes, about the data's own means or about others."""
    lacks = {need for need, given in (("own", own), ("probe", probe)) if not given}
    return [c for c in COLUMNS.values() if c.passes <= passes and c.needs not in lacks]


def markdown() -> str:
    """The table of columns as the README has it."""
    rows = [
        f"| `{c.name}` | {c.words} | {'' if c.collapsed is None else f'{c.collapsed:g}'} |"
        for c in COLUMNS.values()
    ]
    return "\n".join(["| column | what it is | collapsed |", "| --- | --- | --- |", *rows])
