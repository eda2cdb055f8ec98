r"""The path of the residual stream: length, straightness, energy, angles and curvature of a segment.

The increments $D_l = H_{l+1} - H_l$ of a segment and their inner products say all of it. A sample's own
numbers come from its own Gram matrix of increments; the path of the whole data set, seen as one point
that moves, has the weighted mean of these matrices. Weight decay is said to straighten this path (arXiv
2405.00985, Sec. II-C); a straight one at constant speed has energy = length^2 = chord^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.metrics import Weighting, class_weights
from pfc.warning import renamed

Kept = tuple[Int64[Tensor, " B"], Int64[Tensor, " B"], Float[Tensor, "B C"]]
KEPT = 2**16  # samples whose own numbers are kept, all of them up to here; ours
LEVELS = tuple(i / 100 for i in range(101))  # quantiles that are kept; ours
WHOLE = ("length", "chord", "straightness", "energy", "speed", "direction", "line_shape")
AT_BLOCKS = ("steps", "angles", "curvature")
UNITS = {"length": 1, "chord": 1, "energy": 2, "steps": 1, "energies": 2, "curvature": -1}


@dataclass(frozen=True, eq=False)
class PathNumbers:
    r"""The numbers of some paths of L increments each, and what follows from them.

    Args:
        steps: Length of each increment, $\|D_l\|$.
        angles: Angle between neighbouring increments, in radians, [0, pi]; NaN at an increment of zero.
            It comes from inner products, so that angles below 2e-8 can't be told from 0.
        chord: Distance from the first layer to the last.
        line_shape: Line-shape score of Gai and Zhang, as other code quotes it: the number of increments
            over the length of the sum of their directions, those of zero left out; 1 if all are
            parallel, whatever their lengths, else more.
    """

    steps: Float[Tensor, "B L"]
    angles: Float[Tensor, "B A"]
    chord: Float[Tensor, " B"]
    line_shape: Float[Tensor, " B"]

    @classmethod
    def of(cls, gram: Float64[Tensor, "B L L"]) -> "PathNumbers":
        """The numbers of paths with these Gram matrices of increments."""
        steps = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        cosines = gram / (steps[:, :, None] * steps[:, None, :])
        turn = cosines.diagonal(1, dim1=1, dim2=2)
        towards = cosines.nan_to_num(nan=0.0).sum((1, 2)).clamp(min=0).sqrt()
        return cls(
            steps=steps,
            angles=2 * torch.atan2((1 - turn).clamp(min=0).sqrt(), (1 + turn).clamp(min=0).sqrt()),
            chord=gram.sum((1, 2)).clamp(min=0).sqrt(),
            line_shape=(steps > 0).sum(1) / towards,
        )

    @property
    def length(self) -> Float[Tensor, " B"]:
        """Sum of the lengths of the increments."""
        return self.steps.sum(1)

    @property
    def straightness(self) -> Float[Tensor, " B"]:
        """Chord over length: in [0, 1], 1 on a straight line; NaN where nothing moves."""
        return self.chord / self.length

    @property
    def energy(self) -> Float[Tensor, " B"]:
        """L times the sum of the squared increments: at least length^2, which is at least chord^2."""
        return self.steps.shape[1] * self.steps.square().sum(1)

    @property
    def speed(self) -> Float[Tensor, " B"]:
        """Energy over length^2: 1 at constant speed, else more."""
        return self.energy / self.length.square()

    @property
    def direction(self) -> Float[Tensor, " B"]:
        """Length^2 over chord^2: 1 on a straight line, else more; speed times it is energy / chord^2."""
        return (self.length / self.chord).square()

    @property
    def curvature(self) -> Float[Tensor, "B A"]:
        """Menger curvature at each inner layer, 1/R on a circle of radius R; NaN where nothing moves."""
        a, b = self.steps[:, :-1], self.steps[:, 1:]
        across = (a.square() + b.square() + 2 * a * b * self.angles.cos()).clamp(min=0).sqrt()
        return 2 * self.angles.sin() / across


@dataclass(eq=False)
class PathSample:
    """The path numbers of each sample; above 65,536 samples of a fixed subset of so many.

    The subset is seeded: each sample has a fixed pseudo-random rank by its number in its stream, and the
    lowest ranks are kept. So it depends neither on the batches nor on the order of merging: a monoid.

    Args:
        stream: Tells apart the sources, such as processes, whose samples are counted from 0.
        kept: Samples kept at most.
        seen: Samples seen so far.
    """

    stream: int = 0
    kept: int = KEPT
    seen: int = 0
    _parts: list[tuple[np.ndarray, Tensor, Tensor]] = field(default_factory=list)

    def update(self, gram: Float64[Tensor, "B L L"], y: Int64[Tensor, " B"]) -> None:
        """Add a batch: Gram matrices of the samples' increments, and their classes."""
        numbers = PathNumbers.of(gram)
        columns = (numbers.steps, numbers.angles, numbers.chord[:, None], numbers.line_shape[:, None])
        rank = _ranks(self.stream, self.seen, len(y))
        self._parts.append((rank, y, torch.cat(columns, dim=1)))
        self.seen += len(y)
        self._prune(2 * self.kept)

    def merge(self, other: "PathSample") -> None:
        """Add `other`, which is of another stream, in place."""
        self._parts += other._parts
        self.seen += other.seen
        self._prune(2 * self.kept)

    def scale(self, factor: float) -> None:
        """Multiply all lengths, in place."""
        for _, _, rows in self._parts:
            L = (rows.shape[1] - 1) // 2
            rows[:, :L] *= factor
            rows[:, 2 * L - 1] *= factor

    def kept_parts(self, L: int) -> Kept:
        """All that is kept of paths of L increments, for `merge` elsewhere: ranks, classes, numbers."""
        if not self._parts:
            nothing = torch.empty(0, dtype=torch.int64, device="cpu")
            return nothing, nothing, torch.empty(0, 2 * L + 1, dtype=torch.float64, device="cpu")
        rank, y, rows = self._joined()
        return torch.from_numpy(rank.view(np.int64)), y, rows

    @classmethod
    def restored(cls, seen: int, parts: Kept) -> "PathSample":
        """What `kept_parts` gave of so many samples."""
        rank, y, rows = parts
        return cls(seen=seen, _parts=[(rank.numpy().view(np.uint64), y, rows)])

    def _prune(self, above: int) -> None:
        """Keep the lowest ranks once there are more than `above`."""
        if sum(len(rank) for rank, _, _ in self._parts) <= above:
            return
        rank, y, rows = self._joined()
        chosen = np.sort(np.argpartition(rank, self.kept)[: self.kept])
        at = torch.from_numpy(chosen).to(y.device)
        self._parts = [(rank[chosen], y[at], rows[at])]

    def _joined(self) -> tuple[np.ndarray, Tensor, Tensor]:
        ranks, labels, rows = zip(*self._parts, strict=True)
        return np.concatenate(ranks), torch.cat(labels), torch.cat(rows)

    def quantiles(self, weighting: Weighting) -> Float64[Tensor, "C Q"]:
        """Weighted quantiles at `LEVELS`, rows in the order of `names`; NaN where undefined."""
        self._prune(self.kept)
        _, y, rows = self._joined()
        y, values = y.cpu(), rows.cpu()
        L = (values.shape[1] - 1) // 2
        steps, angles, chord, line_shape = values.split([L, L - 1, 1, 1], dim=1)
        numbers = PathNumbers(steps, angles, chord[:, 0], line_shape[:, 0])
        count = torch.bincount(y).double()
        w = (class_weights(count, weighting) / count.clamp(min=1))[y].numpy()
        blocks = (column for name in AT_BLOCKS for column in getattr(numbers, name).unbind(1))
        columns = (*(getattr(numbers, name) for name in WHOLE), *blocks)  # in the order of `names`
        return torch.from_numpy(np.stack([_quantiles(c.numpy(), w) for c in columns]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Path:
    """The path of a segment: of the whole data set as one moving point, and quantiles over samples.

    Lengths are root mean squares over the samples, energies mean squares, weighted as covariances are:
    all are per sample, in the features' unit, and energy >= length^2 >= chord^2.

    Args:
        layers: Names of the L + 1 layers it goes through.
        length: Sum of the lengths of the increments.
        chord: Distance from the first layer to the last.
        straightness: Chord over length, in [0, 1]; 1 on a straight line.
        energy: L times the sum of the squared increments.
        speed: Energy over length^2, at least 1; 1 at constant speed.
        direction: Length^2 over chord^2, at least 1; 1 on a straight line.
        line_shape: Line-shape score, at least 1; 1 if all increments are parallel.
        steps: Length of each increment, one a block.
        energies: Part of each block in the energy.
        angles: Angle at each inner layer between the increments before and after it, in radians.
        curvature: Menger curvature at each inner layer.
        quantiles: Over samples, at `LEVELS`, in the order of `names`; `None` if they were not kept.
        sampled: Samples behind the quantiles.
    """

    layers: tuple[str, ...]
    length: float
    chord: float
    straightness: float
    energy: float
    speed: float
    direction: float
    line_shape: float
    steps: tuple[float, ...]
    energies: tuple[float, ...]
    angles: tuple[float, ...]
    curvature: tuple[float, ...]
    quantiles: Float64[Tensor, "C Q"] | None = None
    sampled: int = 0

    def over_samples(self, name: str, q: float | int = 0.5) -> float:
        """A quantile over samples.

        Args:
            name: One of `names(L)`: `"straightness"`, or such as `"angles.0"` for the first inner layer.
            q: The level, a multiple of 0.01 in [0, 1].

        Returns:
            The least value that at least that part of the weight does not exceed; NaN if not kept.

        Raises:
            ValueError: If the name or the level is unknown.
        """
        known = names(len(self.steps))
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
        level = round(100 * q)
        if not 0 <= level <= 100 or abs(100 * q - level) > 1e-9:
            raise ValueError(f"q must be a multiple of 0.01 in [0, 1], got {q}")
        kept = self.quantiles
        return float("nan") if kept is None else float(kept[known.index(name), level])

    def scaled(self, exponent: int) -> "Path":
        """The path of features that are larger by this power of two."""
        if not exponent:
            return self
        names_, kept = names(len(self.steps)), self.quantiles
        if kept is not None:
            units = [UNITS.get(name.partition(".")[0], 0) for name in names_]
            rows = [times(row, exponent * unit) for row, unit in zip(kept.numpy(), units, strict=True)]
            kept = torch.from_numpy(np.stack(rows))
        changed: dict[str, Any] = {"quantiles": kept}
        for name, unit in UNITS.items():
            value = times(np.array(getattr(self, name)), exponent * unit).tolist()
            changed[name] = tuple(value) if isinstance(value, list) else value
        return replace(self, **changed)

    def to_dict(self) -> dict[str, float | list[float] | int]:
        """The numbers of the whole, and the median over samples of each as `NAME.median`."""
        whole: dict[str, float | list[float] | int] = {name: getattr(self, name) for name in WHOLE}
        blocks = {name: list(getattr(self, name)) for name in (*AT_BLOCKS, "energies")}
        medians = {f"{name}.median": self.over_samples(name) for name in WHOLE}
        return {**whole, **blocks, **medians, "sampled": self.sampled}

    told = renamed("Path.told", "Path.to_dict")


def names(L: int) -> tuple[str, ...]:
    """Names of the numbers that a path of L increments has over samples."""
    at = {"steps": L, "angles": L - 1, "curvature": L - 1}
    return (*WHOLE, *(f"{name}.{i}" for name, n in at.items() for i in range(n)))


def path_of(
    layers: Sequence[str],
    gram: Float64[Tensor, "L L"],
    quantiles: Float64[Tensor, "C Q"] | None = None,
    sampled: int = 0,
) -> Path:
    """The path with this weighted mean Gram matrix of increments.

    Args:
        layers: Names of the L + 1 layers.
        gram: Mean inner products of the increments.
        quantiles: Over samples, as `PathSample.quantiles` gives them.
        sampled: Samples behind them.

    Returns:
        The path.

    Examples:
        >>> D = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # (0, 0), (1, 0), (1, 1)
        >>> path = path_of(("a", "b", "c"), D @ D.T)
        >>> path.length, round(path.chord, 6), path.energy, round(path.angles[0] / torch.pi, 6)
        (2.0, 1.414214, 4.0, 0.5)
    """
    numbers = PathNumbers.of(gram[None])
    energies = tuple((len(gram) * numbers.steps[0].square()).tolist())
    known: dict[str, Any] = {name: float(getattr(numbers, name)) for name in WHOLE}
    known |= {name: tuple(getattr(numbers, name)[0].tolist()) for name in AT_BLOCKS}
    return Path(layers=tuple(layers), energies=energies, quantiles=quantiles, sampled=sampled, **known)


def times(values: np.ndarray, exponent: int) -> np.ndarray:
    """Times a power of two, which is exact; infinite or 0 beyond float64."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, exponent))


def _quantiles(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    there = ~np.isnan(values)
    if not there.any():
        return np.full(len(LEVELS), np.nan)
    found = np.quantile(values[there], LEVELS, weights=w[there], method="inverted_cdf")
    return np.asarray(found, dtype=np.float64)


def _ranks(stream: int, start: int, size: int) -> np.ndarray:
    """Fixed pseudo-random numbers of samples: splitmix64 of Steele, Lea and Flood 2014."""
    with np.errstate(over="ignore"):
        z = np.arange(start + 1, start + size + 1, dtype=np.uint64) + np.uint64(stream << 40)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
