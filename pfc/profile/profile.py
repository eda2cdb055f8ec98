"""What measuring found: a frozen profile that prints, saves and loads itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pfc import metrics
from pfc.line import End
from pfc.moments import ClassMoments
from pfc.profile import verdict
from pfc.profile.classes import ClassGeometry, SamplePoints
from pfc.profile.columns import COLUMNS, PFC, Column
from pfc.profile.prediction import Prediction
from pfc.profile.segment import Position, Segment
from pfc.profile.storage import read, write
from pfc.profile.tables import as_html, as_text, intervals_of, scalars_of, side_by_side
from pfc.theory.geodesic import Agreement, agreement
from pfc.theory.separation import Law, fit
from pfc.warning import renamed

if TYPE_CHECKING:
    import pandas as pd

    from pfc.theory.transport import Gap


@dataclass(frozen=True, eq=False)
class Profile:
    """Metrics of progressive feedforward collapse at each measured layer.

    Args:
        layers: Names in the order of the forward pass.
        shapes: Shape of one sample at each layer.
        columns: Each metric's value at every layer; NaN where it has no meaning.
        moments: Counts, class means and scatters of each layer; of one that `about["exponents"]`
            names, those of its features over 2 to that power.
        segments: Runs of at least two consecutive layers of one shape.
        about: How it was measured: weighting, samples, classes, classifier, accuracy and more.
        geometry: Of each layer, what is known of each class.
        sample: Where at most 300 samples, those of least input hash, lie at each layer; `None` after
            one pass, and where it was not kept.
        errors: Standard errors of PFC1 and PFC2 at every layer, where measured with `intervals=True`.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    columns: Mapping[str, tuple[float, ...]]
    moments: Mapping[str, ClassMoments]
    segments: tuple[Segment, ...]
    about: Mapping[str, Any]
    geometry: Mapping[str, ClassGeometry] = field(default_factory=dict)
    sample: SamplePoints | None = None
    errors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def table(self, interval: float | None = None) -> "pd.DataFrame":
        """One row a layer, in the order of the forward pass, one column a metric.

        Args:
            interval: Also an interval of this level, in (0, 1), for each of PFC1-3, as columns such as
                `pfc1_low` and `pfc1_high`: where the metric would lie if other samples of the same
                classes had been drawn. Of PFC1 it is normal in the logarithm, of PFC2 in the number
                itself, of PFC3 Wilson's, about the class means as they are. It tells nothing of the
                bias of few samples a class, which `pfc1_unbiased` shows, nor of other networks; and it
                takes samples as independent, which the tokens of one text are not.

        Returns:
            The numbers.

        Raises:
            ValueError: If the level is not in (0, 1), or the profile was measured without intervals.

        Examples:
            >>> import pfc
            >>> X, y = [[k % 7, k % 5 + k % 2] for k in range(70)], [0, 1] * 35
            >>> profile = pfc.measure_features({"x": X}, y, intervals=True, progress=False)
            >>> row = profile.table(interval=0.95).loc["x"]
            >>> bool(row.pfc3_low < row.pfc3 < row.pfc3_high)
            True
        """
        import pandas as pd

        columns = dict(self.columns) | ({} if interval is None else intervals_of(self, interval))
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def classes(self, layer: str) -> "pd.DataFrame":
        """One row a class that has samples, at a layer; of tokens by the label of the class.

        Args:
            layer: Its name.

        Returns:
            `count`, samples; `scatter`, their summed squared distances to the class mean; `norm` of the
            class mean less the unweighted mean of the means; `nearest`, the other class whose mean is
            nearest, and the `cosine` of the angle between the two; `accuracy`, the fraction of the
            samples that are nearest to their own class mean, NaN after one pass.

        Raises:
            ValueError: If there is no such layer, or an earlier version measured without its means.

        Examples:
            >>> import pfc
            >>> H = [[1.0, 0], [3, 0], [0, 2], [0, 4], [-1, -1], [-3, -1]]
            >>> profile = pfc.measure_features({"h": H}, [0, 0, 1, 1, 2, 2], progress=False)
            >>> profile.classes("h").accuracy.tolist()
            [1.0, 1.0, 1.0]
        """
        exponent = self.about.get("exponents", {}).get(layer, 0)
        return self._geometry(layer).table(exponent, self.about.get("labels"))

    def _geometry(self, layer: str) -> ClassGeometry:
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r}; the profile has {', '.join(self.layers)}")
        if layer not in self.geometry:
            raise ValueError(f"nothing is kept of the classes at {layer!r}; measure again")
        return self.geometry[layer]

    def coordinates(self, layer: str) -> "pd.DataFrame":
        """Where a fixed sample of the data lies at a layer, in the plane of two directions.

        They are the first two singular directions of the centred class means; of two classes the second
        is the leading direction of what lies across the line of their means.

        Args:
            layer: Its name.

        Returns:
            One row for each of at most 300 samples, those of least input hash and so the same at every
            layer and epoch: `x`, `y` and `class`.

        Raises:
            ValueError: If there is no such layer, or the coordinates were not kept.
        """
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r}; the profile has {', '.join(self.layers)}")
        if self.sample is None:
            raise ValueError(
                "no coordinates are kept: they take passes=2, and a run keeps them at its first, "
                "middle and last epoch"
            )
        exponent = self.about.get("exponents", {}).get(layer, 0)
        return self.sample.table(layer, exponent, self.about.get("labels"))

    def beside(self, other: "Profile", names: Sequence[str] | None = None) -> "pd.DataFrame":
        """Two profiles side by side, such as those of training and test data.

        Args:
            other: Of layers of the same names.
            names: What the two are called; by default what they were measured on.

        Returns:
            One row for each layer that both have; the columns are pairs of a metric and a name.

        Raises:
            ValueError: If they have no layer in common, or the names are not two different ones.

        Examples:
            >>> import pfc
            >>> X, y = [[k % 7, k % 5 + k % 2] for k in range(70)], [0, 1] * 35
            >>> a, b = (pfc.measure_features({"x": X[i:]}, y[i:], progress=False) for i in (0, 2))
            >>> a.beside(b, ("a", "b"))["pfc1"].columns.tolist()
            ['a', 'b']
        """
        return side_by_side(self, other, names)

    def segment(self, i: int = -1) -> Segment:
        """A run of layers of one shape, the last by default.

        Args:
            i: Its index; negative ones count from the last.

        Returns:
            The segment.

        Raises:
            ValueError: If there is no such segment.
        """
        if not -len(self.segments) <= i < len(self.segments):
            raise ValueError(
                f"no segment {i}: the profile has {len(self.segments)} "
                "(consecutive layers of one shape, measured with segments=True about their own means)"
            )
        return self.segments[i]

    def effective_depth(self, eps: float = 0.01) -> int | None:
        """Index of the first layer from which on the NCC error stays within `eps`; `None` if none.

        Args:
            eps: The tolerated fraction of samples that are not nearest to their own class mean.

        Returns:
            An index into `layers`, or `None`.

        Raises:
            ValueError: If `eps` is not in [0, 1], or PFC3 was not measured.
        """
        return metrics.effective_depth([1 - p for p in self._measured("pfc3")], eps)

    def _measured(self, column: str) -> tuple[float, ...]:
        if column not in COLUMNS:
            raise ValueError(f"column must be one of {', '.join(COLUMNS)}, got {column!r}")
        if column not in self.columns:
            raise ValueError(f"{column} was not measured; {self._why_unmeasured(COLUMNS[column])}")
        return self.columns[column]

    def _why_unmeasured(self, column: Column) -> str:
        if self.about.get("means") and column.needs == "own":
            return "it needs the data's own class means, not those of others"
        if column.needs == "probe":
            return "it needs held-out data, as probe="
        late = column.passes > self.about.get("passes", 2)
        return "it needs passes=2" if late else "an earlier version measured, which had it not"

    @property
    def accuracy(self) -> float | None:
        """Fraction of the samples that the classifier answers rightly; `None` if it has none."""
        accuracy: float | None = self.about["accuracy"]
        return accuracy

    def non_monotone_layers(self, column: str, i: int | None = None) -> list[str]:
        """Layers at which a PFC metric is less collapsed than at the layer before.

        Args:
            column: `"pfc1"`, `"pfc2"` or `"pfc3"`.
            i: Over which segment; over all measured layers if `None`.

        Returns:
            Their names, also of those that NaN keeps from being compared; empty if the metric is
            monotone, to rounding.

        Raises:
            ValueError: If it is no PFC metric or was not measured, or there is no such segment.
        """
        if column not in PFC:
            raise ValueError(f"column must be one of {', '.join(PFC)}, got {column!r}")
        at = self._span(i)
        found = verdict.non_monotone(PFC[column], self._measured(column)[at])
        return [self.layers[at][l] for l in found]

    steps_back = renamed("Profile.steps_back", "Profile.non_monotone_layers")

    def tau(self, column: str, i: int | None = None) -> float:
        """Kendall's rank correlation of a metric with depth.

        Args:
            column: A metric's name.
            i: Over which segment; over all measured layers if `None`.

        Returns:
            A number in [-1, 1]: -1 if the metric falls at every layer, 1 if it rises; NaN if it is
            constant, to rounding, or undefined at a layer.

        Raises:
            ValueError: If it was not measured, or there is no such segment.
        """
        values = self._measured(column)[self._span(i)]
        if all(verdict.same(COLUMNS[column], values[0], value) for value in values):
            return math.nan
        return verdict.tau(values)

    def law(self, column: str = "fuzziness", i: int | None = None) -> Law:
        """The law of data separation of He and Su, fitted to a metric over the layers.

        Args:
            column: `"fuzziness"`, of which the law speaks, or another metric such as `"pfc1"`.
            i: Over which segment; over all measured layers if `None`.

        Returns:
            Its rate a layer, correlation and half-life.

        Raises:
            ValueError: If it was not measured, or there is no such segment.
        """
        return fit(self._measured(column)[self._span(i)])

    def _span(self, i: int | None) -> slice:
        """Rows of a segment, or all."""
        if i is None:
            return slice(None)
        segment = self.segment(i)
        return slice(segment.start, segment.start + len(segment.layers))

    def agreement(self, kind: Position = "path", end: End = "measured", i: int = -1) -> Agreement:
        """How far the measured layers of a segment are from its straight line.

        Args:
            kind: Where a layer stands, as for `Segment.position`.
            end: What stands at the line's end, as for `Segment.line`.
            i: Which segment.

        Returns:
            The difference of each metric at each layer, and one number a metric.
        """
        segment = self.segment(i)
        nothing = (math.nan,) * len(self.layers)
        values = {
            metric: self.columns.get(metric, nothing)[
                segment.start : segment.start + len(segment.layers)
            ]
            for metric in PFC
        }
        return agreement(segment.ends(end), segment.position(kind), values)

    def prediction(self, i: int = -1, transport: "Gap | None" = None) -> Prediction:
        """What theory says of a segment: theorems, agreement with the line, path, law.

        Args:
            i: Which segment.
            transport: What `pfc.theory.transport.gap` found for its first and last layer, if anything.

        Returns:
            Verdicts with their numbers, and a plain sentence each.
        """
        return Prediction.of(self, i, transport)

    def verdict(self, i: int | None = None, eps: float = 0.01) -> str:
        """Two plain sentences: does progressive feedforward collapse hold, and from where is it decided.

        Args:
            i: The first sentence is of this segment; of all measured layers if `None`. The second is
                always of all.
            eps: The NCC error that the second sentence tolerates.

        Returns:
            The sentences.

        Raises:
            ValueError: If PFC3 was not measured, there is no such segment, or `eps` is not in [0, 1].
        """
        at = self._span(i)
        layers = self.layers[at]
        still = any(s.layers == layers and s.path().length == 0 for s in self.segments)
        columns = {metric: self._measured(metric)[at] for metric in PFC}
        decided = verdict.decision(self.layers, self._measured("pfc3"), self.about["samples"], eps)
        return f"{verdict.collapse(layers, columns, still=still)}\n{decided}"

    def scalars(
        self,
        prefix: str = "pfc/",
        layers: str | Sequence[str] = "last",
        by: Literal["layer", "metric"] = "layer",
    ) -> dict[str, float]:
        """The numbers as a flat dict, which any logger takes.

        Args:
            prefix: What each key begins with.
            layers: `"last"` for the last measured layer, whose keys are `pfc/pfc1` and so on; `"all"`,
                or names or globs such as `blocks.*`, for keys such as `pfc/blocks.0/pfc1`.
            by: What comes first in such a key: with `"metric"` it is `pfc/pfc1/blocks.0`, so that a
                logger shows the layers of a metric together.

        Returns:
            Each metric of each chosen layer, accuracy, and effective depth (an index into
            `Profile.layers`). What is NaN or not known is left out.

        Raises:
            ValueError: If a name or glob matches no measured layer, or `by` is something else.

        Examples:
            >>> import pfc, torch
            >>> digits, _ = pfc.data.load("digits", limit=40), torch.manual_seed(0)
            >>> net = pfc.FCResNet(features=64, classes=10, width=8, blocks=2)
            >>> profile = pfc.measure(net, digits.batches(), progress=False)
            >>> sorted(profile.scalars())[:4]  # for wandb.log(profile.scalars(), step=epoch)
            ['pfc/accuracy', 'pfc/cdnv', 'pfc/fuzziness', 'pfc/nc1']
            >>> [key for key in profile.scalars("", "blocks.*") if key.endswith("pfc1")]
            ['blocks.0/pfc1', 'blocks.1/pfc1']
        """
        return scalars_of(self, prefix, layers, by)

    def __repr__(self) -> str:
        last = [f"{m.upper()} {self.columns[m][-1]:.4g}" for m in PFC if m in self.columns]
        about = self.about
        return (
            f"Profile({about['model']:.30}: {about['samples']} samples, {about['classes']} classes, "
            f"{len(self.layers)} layers, at {self.layers[-1]:.40}: {', '.join(last)})"
        )

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def save(
        self, path: str | Path, *, means: bool = True, pairs: bool = True, sample: bool = True
    ) -> None:
        """Write the numbers as JSON to `path` and the arrays as safetensors beside it.

        Args:
            path: Ends in `.json`.
            means: Keep `moments`: the class means are K x D numbers a layer, all else is small.
            pairs: Keep the inner products of the centred class means and the confusion of nearest means,
                K x K numbers a layer each, for up to 200 classes.
            sample: Keep the coordinates of the sample.

        Raises:
            ValueError: If the path has another ending.
        """
        kept = {"moments": self.moments if means else {}, "sample": self.sample if sample else None}
        write(path, **{**vars(self), **kept}, pairs=pairs)


def load(path: str | Path) -> Profile:
    """Read a profile that `Profile.save` wrote.

    Args:
        path: The JSON file; its safetensors file stands beside it.

    Returns:
        The profile, with everything that was saved.

    Raises:
        ValueError: If a file is missing, damaged, of another format, or the two do not belong together.
    """
    return Profile(**read(path))
