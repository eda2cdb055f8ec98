"""What measuring costs before it begins: bytes of state, and bytes that processes exchange.

Counted from the shapes alone, and tested against what a measurement really exchanged
(`profile.about["exchanged"]`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from pfc.nearest import MOST_PAIRED
from pfc.screening import PAIRS

FLOAT = 8  # bytes of a float64 number
MOST = 300  # samples whose coordinates are kept; ours
SKETCH = 8192  # numbers to which the features of two classes are reduced at most for that; ours


@dataclass(frozen=True)
class Cost:
    """Bytes of one process.

    Args:
        state: Kept through both passes: of each layer the means, what rounding took from them, and the
            basis of their span, three times K x D float64 numbers; of a segment with the second pass as
            much again, of few features a dozen times that, for the line between its ends; and much less
            besides.
        peak: `state`, and four times the largest layer's means while the first process finds a basis.
        exchanged: Given into exchanges with the other processes, three times K x D float64 numbers a
            layer and much less besides; a ring sends about twice as much. Not counted: what is of single
            samples, see `of_samples`.
        of_samples: Given into exchanges of single samples: 16 bytes each, to know repeated ones, and for
            the paths at most 24 + 16 L bytes each and for each segment of L increments, of 131,072
            samples at most; 300 samples' coordinates, 16 bytes a layer each, of two classes 64 KiB. The
            line takes 16 bytes more for each time at which a sample changes sides,
            of which there are few.
        batch: Features kept for the length of a batch, a sample: all layers of the largest segment, in
            float32.
    """

    state: int
    peak: int
    exchanged: int
    of_samples: int
    batch: int


def cost(
    shapes: Sequence[tuple[int, ...]],
    classes: int,
    *,
    processes: int = 1,
    samples: int = 0,
    passes: int = 2,
    segments: bool = True,
    intervals: bool = False,
    probe: bool = False,
) -> Cost:
    """What `measure` will keep and exchange.

    Args:
        shapes: Shape of a sample at each layer, in the order of the forward pass; neighbours of one
            shape form a segment.
        classes: Number of classes.
        processes: That measure together.
        samples: Of each process.
        passes: 2 for all metrics, 1 without those of the second pass.
        segments: Whether cross-layer statistics of layers of one shape are accumulated.
        intervals: Whether the samples' influences are summed in the second pass.
        probe: Whether linear probes are fitted, which takes D x D numbers of pooled features a layer.

    Returns:
        Bytes.

    Examples:
        >>> stages = [(256,)] * 3 + [(512,)] * 4 + [(1024,)] * 6 + [(2048,)] * 3  # ResNet-50, pooled
        >>> pooled = cost(stages, 1000, processes=8)
        >>> round(pooled.state / 2**20), round(pooled.exchanged / 2**20)
        (898, 605)
    """
    K, R = classes, processes
    runs = [[prod(shape) for shape in run] for _, run in groupby(shapes)] if segments else []
    runs = [run for run in runs if len(run) > 1]
    features = [prod(shape) for shape in shapes]
    ranks = [min(K - 1, D) for D in features] if passes == 2 else [0] * len(features)
    steps = sum(K * (len(run) - 1) ** 2 for run in runs)
    spans = sum(D * r + r + K * r for D, r in zip(features, ranks, strict=True))
    state = sum(2 * K * D + 2 * K + 2 * D for D in features) + steps + spans
    state += sum(_line(K, run[0]) for run in runs) if passes == 2 else 0
    pairs = K * K * len(features) if K <= MOST_PAIRED else 0
    state += pairs + sum(2 * K + 2 * K * r for r in ranks) if passes == 2 else 0
    state += sum(2 * K * D + 3 * K for D in features) if intervals else 0
    state += probe_bytes(shapes, K) // FLOAT if probe else 0
    exchanged = (
        _exchanged(K, R, features, ranks, runs, spans + 2 * sum(features) + pairs, passes)
        if R > 1
        else 0
    )
    exchanged += 2 * K * len(features) if intervals and R > 1 else 0
    kept = min(samples, 2**17)
    of_paths = sum(FLOAT * kept * (2 * len(run) + 1) for run in runs)
    across = sum(min(D, SKETCH) for D in features) if K == 2 else 0
    of_subset = FLOAT * min(samples, MOST) * (3 + 2 * len(features) + across) if passes == 2 else 0
    return Cost(
        state=FLOAT * state,
        peak=FLOAT * (state + 4 * K * max(features)),
        exchanged=FLOAT * exchanged,
        of_samples=of_paths + of_subset + 2 * FLOAT * samples if R > 1 else 0,
        batch=4 * max((sum(run) for run in runs), default=0),
    )


def _line(K: int, D: int) -> int:
    """Numbers kept of a segment's line: bases of its ends, class points in both, the same coarsely."""
    r, frame = min(K - 1, D), D >= K - 1
    form = K * (r + 5) // 2  # in single precision
    pairs = K * K if K * K <= PAIRS else 0
    of_ends = (1 + frame) * (2 * r * K + 3 * form + pairs)
    return 2 * r * D + 2 * r * K + form + of_ends + frame * r * K


def probe_width(shape: tuple[int, ...]) -> int:
    """Numbers of a sample that a probe reads: of tokens (T, D) and maps (C, H, W) the mean."""
    return shape[-1] if len(shape) == 2 else next(iter(shape), 1)


def probe_bytes(shapes: Sequence[tuple[int, ...]], classes: int = 0) -> int:
    """Bytes of the second moments of what a probe reads."""
    widths = map(probe_width, shapes)
    return FLOAT * sum(D * D + classes * D for D in widths)


def _exchanged(
    K: int, R: int, features: list[int], ranks: list[int], runs: list[list[int]], spans: int, passes: int
) -> int:
    """Numbers of 8 bytes that a process gives into exchanges."""
    alone = len(features) - sum(map(len, runs))
    inputs = R + 3 * K
    first = sum(2 * K * D + K for D in features) + K * alone + inputs
    first += sum(2 * K + K * (len(run) - 1) ** 2 + 4 * R + 1 for run in runs)
    if passes == 1:
        return first
    second = spans + sum(1 + 2 * K + 2 * K * r + R + 2 for r in ranks)
    subset = R * (3 + len(features) * (2 if K == 2 else 1))
    return first + second + inputs + subset + 4 + sum(1 + 6 * R for _ in runs)
