"""What many processes measured, each its own part of the data, made one: the same in all of them.

Statistics are summed where they lie, in slices of a bounded size, so that nothing of K x D is copied.
A mean is summed from the processes' shares, and then what that sum rounded away: Chan's merge of all
processes at once, which no common offset costs a digit.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.line import LineCrossings
from pfc.measuring.scale import Scale
from pfc.metrics import Weighting
from pfc.moments import ClassMoments, SegmentMoments, exact_sum
from pfc.nearest import MeansSpan, NearestMean
from pfc.processes import Processes
from pfc.theory.path import PathSample

SLICE = 2**22  # float64 numbers that are exchanged at once: 32 MiB; ours


def merge_layers(
    layers: Sequence[ClassMoments], ranks: Processes, segment: SegmentMoments | None = None
) -> None:
    """Merge the moments of one or more layers of one shape over all processes, in place.

    With n samples in all and S the sum of the shares (n_r / n) mean_r, a process's mean is delta_r from
    S, the mean of all is S + step, step = sum (n_r / n) delta_r, and the scatter is
    sum (scatter_r + n_r |delta_r|^2) - n |step|^2; the cross scatter of two layers likewise.

    Args:
        layers: Their moments, of as many classes in every process.
        ranks: The processes.
        segment: What pairs the layers.
    """
    if ranks.size == 1:
        return
    own = layers[0].count
    n = ranks.total(own.clone())
    lost = [torch.zeros_like(own) for _ in layers]
    lost_cross = torch.zeros_like(own)
    for columns in _slices(layers[0].mean):
        moved = [_merge_means(layer, n, columns, ranks) for layer in layers]
        for layer, gone, (delta, step) in zip(layers, lost, moved, strict=True):
            layer.scatter += own * delta.square().sum(1)
            gone += n * step.square().sum(1)
        if segment is not None:
            (delta_A, step_A), (delta_B, step_B) = moved[0], moved[-1]
            segment.cross += own * (delta_A * delta_B).sum(1)
            lost_cross += n * (step_A * step_B).sum(1)
    for layer, gone in zip(layers, lost, strict=True):
        ranks.total(layer.scatter).sub_(gone)
        layer.count = n.clone()
    if segment is not None:
        ranks.total(segment.cross).sub_(lost_cross)
        ranks.total(segment.steps)


def one_scale(
    scale: Scale,
    name: str,
    layers: Sequence[ClassMoments],
    ranks: Processes,
    segment: SegmentMoments | None = None,
    sample: PathSample | None = None,
) -> None:
    """Bring what was measured over different powers of two over the largest of these, in place.

    Args:
        scale: Of a segment or a layer by itself.
        name: Of its first layer.
        layers: Their moments.
        ranks: The processes.
        segment: What pairs the layers.
        sample: Their samples' paths.
    """
    shift = scale.merge(ranks.meet(f"scale {name}", scale.told()))
    if not shift:
        return
    once, twice = 2.0**-shift, 4.0**-shift
    parts = [(part, once) for layer in layers for part in (layer.mean, layer.low)]
    parts += [(layer.scatter, twice) for layer in layers]
    if segment is not None:
        parts += [(segment.cross, twice), (segment.steps, twice)]
    for part, factor in parts:
        part *= factor
    if sample is not None:
        sample.scale(once)


def _slices(M: Float64[Tensor, "K D"]) -> Iterator[slice]:
    width = max(1, SLICE // len(M))
    return (slice(start, start + width) for start in range(0, M.shape[1], width))


def _merge_means(
    layer: ClassMoments, n: Float64[Tensor, " K"], columns: slice, ranks: Processes
) -> tuple[Float64[Tensor, "K C"], Float64[Tensor, "K C"]]:
    """Merge some columns of the means; how far our own were from S, and the means of all are."""
    share = (layer.count / n.clamp(min=1))[:, None]
    mean, low = layer.mean[:, columns], layer.low[:, columns]
    S = ranks.total(share * mean)
    delta = (mean - S) + low
    step = ranks.total(share * delta)
    layer.mean[:, columns], layer.low[:, columns] = exact_sum(S, step)
    return delta, step


def one_span(moments: ClassMoments, weighting: Weighting, ranks: Processes) -> MeansSpan:
    """The span of the merged means as the first process finds it: in another a basis may turn.

    Args:
        moments: Of the layer, merged.
        weighting: What a class counts.
        ranks: The processes.

    Returns:
        The same span in all processes.
    """
    found = MeansSpan.of(moments, weighting) if ranks.first else None
    if ranks.size == 1 and found is not None:
        return found
    rank = int(ranks.lead(torch.tensor([0 if found is None else len(found.values)])))
    span = MeansSpan.room(moments, rank) if found is None else found
    for part in (span.centre, span.low, span.basis.mT, span.values, span.points):
        _slicewise(part, ranks)
    return span


def _slicewise(x: Tensor, ranks: Processes) -> None:
    flat = x.view(-1)
    for start in range(0, len(flat), SLICE):
        ranks.lead(flat[start : start + SLICE])


def merge_nearest(nearest: NearestMean, ranks: Processes) -> None:
    """Sum over all processes what the second pass gathered of one layer, in place."""
    for part in (nearest.count, nearest.hits, nearest.sums, nearest.squares):
        ranks.total(part)
    rounding = torch.tensor([nearest.rounding], dtype=torch.float64)
    nearest.rounding = max(float(part) for part in ranks.gather(rounding))


def merge_crossings(line: LineCrossings, ranks: Processes) -> None:
    """Bring together where all samples change sides along a line."""
    if ranks.size == 1:
        return
    line.fetch()
    line.samples = int(ranks.total(torch.tensor([line.samples])))
    for end, points in line.points.items():
        if points is not None:
            parts = line.found.get(end, [])
            ours = [np.concatenate([part[i] for part in parts] or [np.empty(0)]) for i in (0, 1)]
            starts, stops = (ranks.gather(torch.from_numpy(events)) for events in ours)
            line.found[end] = [(a.numpy(), b.numpy()) for a, b in zip(starts, stops, strict=True)]


def merge_paths(sample: PathSample, L: int, ranks: Processes) -> PathSample:
    """The path numbers of all processes' samples.

    Args:
        sample: This process's, of a stream of its own.
        L: Increments of the path.
        ranks: The processes.

    Returns:
        Those of all.
    """
    if ranks.size == 1:
        return sample
    seen = ranks.gather(torch.tensor([sample.seen]))
    merged = PathSample()
    for n, *parts in zip(seen, *map(ranks.gather, sample.kept_parts(L)), strict=True):
        merged.merge(PathSample.restored(int(n), tuple(parts)))
    return merged
