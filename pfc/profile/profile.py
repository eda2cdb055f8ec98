"""What measuring found: a frozen profile that prints, saves and loads itself."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pfc import metrics
from pfc.files import read_json, read_tensors, reading, refuse_pickle, write_json, write_tensors
from pfc.line import ENDS, End
from pfc.moments import ClassMoments
from pfc.profile.prediction import Prediction
from pfc.profile.segment import KINDS, Position, Segment
from pfc.schema import (
    COUNT,
    EXPONENT,
    FRACTION,
    NUMBER,
    POSITIVE,
    TEXT,
    Array,
    check_arrays,
    list_of,
    object_of,
    one_of,
    optional,
)
from pfc.theory.geodesic import Agreement, agreement
from pfc.theory.separation import Law, fit

if TYPE_CHECKING:
    import pandas as pd

    from pfc.theory.transport import Gap

FORMAT = "pfc-profile-1"
COLUMNS = (
    *("position", "pfc1", "pfc2", "pfc3", "nc1", "fuzziness"),
    *("nc2_norm", "nc2_angle", "nc2_max_angle", "nc3", "nc4", "cdnv"),
)
MAIN = (*COLUMNS[:5], "nc3", "nc4", "cdnv")  # as text; the rest is in the table
SCHEMA = object_of(  # what the JSON file must hold; all else is free
    {
        "about": object_of(
            {
                **{"model": TEXT, "chosen": TEXT, "samples": POSITIVE, "classes": POSITIVE},
                **{"weighting": one_of("class", "sample"), "accuracy": optional(FRACTION)},
            },
            optional={"data": optional(TEXT), "pool": TEXT, "exponents": object_of({}, others=EXPONENT)},
        ),
        "layers": list_of(TEXT),
        "shapes": list_of(list_of(POSITIVE)),
        "columns": object_of(
            {}, optional={"pfc3": list_of(FRACTION), "nc4": list_of(FRACTION)}, others=list_of(NUMBER)
        ),
        "segments": list_of(
            object_of({"start": COUNT, "layers": list_of(TEXT)}, optional={"sampled": COUNT})
        ),
        "arrays": TEXT,
    }
)
MOMENTS = {"count": Array("K"), "mean": Array("K D"), "scatter": Array("K"), "low": Array("K D")}
RISES = {"pfc1": False, "pfc2": False, "pfc3": True}  # the direction of collapse


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
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    columns: Mapping[str, tuple[float, ...]]
    moments: Mapping[str, ClassMoments]
    segments: tuple[Segment, ...]
    about: Mapping[str, Any]

    def table(self) -> "pd.DataFrame":
        """One row a layer, in the order of the forward pass, one column a metric."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns), index=pd.Index(self.layers, name="layer"))

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
                "(consecutive layers of one shape, measured with segments=True)"
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
            raise ValueError(f"{column} was not measured; it needs passes=2")
        return self.columns[column]

    @property
    def accuracy(self) -> float | None:
        """Fraction of the samples that the classifier answers rightly; `None` if it has none."""
        accuracy: float | None = self.about["accuracy"]
        return accuracy

    def steps_back(self, column: str, i: int = -1) -> list[str]:
        """Layers of a segment at which a PFC metric is less collapsed than at the layer before.

        Args:
            column: `"pfc1"`, `"pfc2"` or `"pfc3"`.
            i: Which segment.

        Returns:
            Their names; empty if the metric is monotone over the segment.

        Raises:
            ValueError: If it is no PFC metric, or there is no such segment.
        """
        if column not in RISES:
            raise ValueError(f"column must be one of {', '.join(RISES)}, got {column!r}")
        segment = self.segment(i)
        sign = -1 if RISES[column] else 1
        values = [sign * v for v in self._of_segment(column, segment)]
        return [
            name
            for name, a, b in zip(segment.layers[1:], values, values[1:], strict=False)
            if not b <= a
        ]

    def tau(self, column: str, i: int = -1) -> float:
        """Kendall's rank correlation of a metric with depth over a segment; NaN if it is constant.

        Args:
            column: A metric's name.
            i: Which segment.

        Returns:
            A number in [-1, 1]: -1 if the metric falls at every layer, 1 if it rises.
        """
        from scipy.stats import kendalltau

        values = self._of_segment(column, self.segment(i))
        if len(set(values)) < 2:
            return math.nan
        return float(kendalltau(range(len(values)), values).statistic)

    def law(self, column: str = "fuzziness", i: int = -1) -> Law:
        """The law of data separation of He and Su, fitted to a metric over the layers of a segment.

        Args:
            column: `"fuzziness"`, of which the law speaks, or another metric such as `"pfc1"`.
            i: Which segment.

        Returns:
            Its rate a layer, correlation and half-life.
        """
        return fit(self._of_segment(column, self.segment(i)))

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
            for metric in RISES
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
        segment = self.segment(i)
        return Prediction(
            layers=segment.layers,
            certificates={end: segment.certify(end) for end in ENDS},
            agreement={kind: self.agreement(kind, i=i) for kind in KINDS},
            classes=len(segment.count),
            path=segment.path(),
            laws={c: self.law(c, i) for c in ("fuzziness", "pfc1") if c in self.columns},
            transport=transport,
        )

    def _of_segment(self, column: str, segment: Segment) -> tuple[float, ...]:
        return self._measured(column)[segment.start : segment.start + len(segment.layers)]

    def verdict(self, i: int = -1, eps: float = 0.01) -> str:
        """Two plain sentences: does progressive feedforward collapse hold, and from where is it decided.

        Args:
            i: Which segment.
            eps: The NCC error that the second sentence tolerates.

        Returns:
            The sentences.
        """
        segment = self.segment(i)
        span = f"from {segment.layers[0]} to {segment.layers[-1]}"
        if why := self._nothing_to_judge(segment):
            judged = f"Of progressive feedforward collapse nothing can be said {span}"
            return f"{judged}: {why}.\n{self._decided(eps)}"
        told, back = [], []
        for column in RISES:
            values = self._of_segment(column, segment)
            told.append(f"{column.upper()} goes from {values[0]:.3g} to {values[-1]:.3g}")
            if steps := self.steps_back(column, i):
                back.append(f"{column.upper()} steps back at {', '.join(steps)}")
        holds = f"does not hold at every layer {span} ({'; '.join(back)})" if back else f"holds {span}"
        return f"Progressive feedforward collapse {holds}: {', '.join(told)}.\n{self._decided(eps)}"

    def _nothing_to_judge(self, segment: Segment) -> str:
        """Why PFC cannot be judged; empty if it can."""
        if segment.path().length == 0:
            return "nothing moves between these layers"
        told = []
        for column in RISES:
            values = zip(segment.layers, self._of_segment(column, segment), strict=True)
            if unknown := [name for name, value in values if math.isnan(value)]:
                told.append(f"{column.upper()} is undefined at {', '.join(unknown)}")
        return "; ".join(told)

    def _decided(self, eps: float) -> str:
        least = f"at least {100 * (1 - eps):g} % of the samples are nearest to their own class mean"
        depth = self.effective_depth(eps)
        if depth is None:
            best = max(self._measured("pfc3"))
            return f"At no layer {least}; at most {100 * best:.2f} % are."
        wrong = round((1 - self._measured("pfc3")[-1]) * self.about["samples"])
        return (
            f"From {self.layers[depth]} (layer {depth + 1} of {len(self.layers)}) on, {least}; "
            f"at {self.layers[-1]} {'all are' if not wrong else f'all but {wrong} are'}."
        )

    def __str__(self) -> str:
        shown = [c for c in MAIN if c in self.columns]
        return f"{self._headline()}\n{self.table()[shown].to_string(float_format=_short, na_rep='-')}"

    def _headline(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.4f}"
        return (
            f"{self.about['model']}: {self.about['samples']} samples, {self.about['classes']} classes"
            f"{accuracy}, weighting by {self.about['weighting']}, layers: {self.about['chosen']}"
        )

    def _repr_html_(self) -> str:
        table: str = self.table().to_html(float_format=_short)
        return f"<p>{self._headline()}</p>{table}"

    def save(self, path: str | Path, *, means: bool = True) -> None:
        """Write the numbers as JSON to `path` and the arrays as safetensors beside it.

        Args:
            path: Ends in `.json`.
            means: Keep `moments`: the class means are K x D numbers a layer, all else is small.

        Raises:
            ValueError: If the path has another ending.
        """
        path = _json_path(path)
        arrays = {
            f"segment/{i}/{name}": array
            for i, segment in enumerate(self.segments)
            for name, array in segment.arrays().items()
        }
        for name, moments in self.moments.items() if means else ():
            arrays |= {f"layer/{name}/{part}": getattr(moments, part) for part in MOMENTS}
        content = {
            "format": FORMAT,
            "about": dict(self.about),
            "layers": list(self.layers),
            "shapes": [list(shape) for shape in self.shapes],
            "columns": dict(self.columns),
            "segments": [segment.told() for segment in self.segments],
        }
        _write_both(path, content, arrays)


def _write_both(path: Path, content: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    """Write a profile's two files: at every moment the JSON file and its own arrays are there.

    The arrays wait under another name until the JSON file is replaced, and take their place then.
    """
    beside, coming = _places(path)
    if coming.exists() and path.exists() and _digest(coming) in path.read_text(errors="replace"):
        coming.replace(beside)  # a killed process had replaced the JSON file only
    try:
        write_tensors(coming, arrays, format=FORMAT)
        write_json(path, {**content, "arrays": _digest(coming)})
    except BaseException:
        coming.unlink(missing_ok=True)
        raise
    coming.replace(beside)


def _places(path: Path) -> tuple[Path, Path]:
    """Where the arrays of a profile stand, and where they wait for its JSON file."""
    beside = path.with_suffix(".safetensors")
    return beside, beside.with_name(f"{beside.name}.next")


def _digest(path: Path) -> str:
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: str | Path) -> Profile:
    """Read a profile that `Profile.save` wrote.

    Args:
        path: The JSON file; its safetensors file stands beside it.

    Returns:
        The profile, with everything that was saved.

    Raises:
        ValueError: If a file is missing, damaged, of another format, or the two do not belong together.
    """
    refuse_pickle(Path(path))
    path = _json_path(path)
    content = read_json(path, FORMAT, SCHEMA)
    return _restored(content, _arrays(path, content["arrays"]), path)


def _arrays(path: Path, digest: str) -> dict[str, Tensor]:
    """The arrays of a profile: of its two places, from the one that has what the JSON file names."""
    beside, coming = _places(path)
    if coming.exists() and _digest(coming) == digest:
        beside = coming
    refuse_pickle(beside)
    if _digest(beside) != digest:
        raise ValueError(f"{beside} does not belong to {path}; measure again")
    return read_tensors(beside, FORMAT)[0]


def _restored(content: Mapping[str, Any], arrays: Mapping[str, Tensor], path: Path) -> Profile:
    about, layers = content["about"], tuple(content["layers"])
    shapes = tuple(tuple(shape) for shape in content["shapes"])
    columns = {name: tuple(map(float, values)) for name, values in content["columns"].items()}
    lengths = {len(layers), len(shapes), *map(len, columns.values())}
    if len(lengths) > 1 or len(set(layers)) < len(layers) or not layers:
        raise ValueError(
            f"{path}: layers, shapes and columns must be as many, each layer of its own name"
        )
    return Profile(
        layers=layers,
        shapes=shapes,
        columns=columns,
        moments={
            name: _moments(f"layer/{name}/", prod(shape), about["classes"], arrays, path)
            for name, shape in zip(layers, shapes, strict=True)
            if f"layer/{name}/mean" in arrays
        },
        segments=tuple(
            Segment.restored(told, layers, about, arrays, f"segment/{i}/", path)
            for i, told in enumerate(content["segments"])
        ),
        about=about,
    )


def _moments(
    prefix: str, features: int, classes: int, arrays: Mapping[str, Tensor], path: Path
) -> ClassMoments:
    parts = {name: arrays[prefix + name] for name in MOMENTS if prefix + name in arrays}
    check_arrays(parts, MOMENTS, {"K": classes, "D": features}, f"{path}: {prefix}")
    return ClassMoments(**parts)


def _short(x: float) -> str:
    return f"{x:.4g}"


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"a profile's path ends in .json, got {path}")
    return path
