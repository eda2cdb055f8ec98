"""Many processes made one: what each measured of its own part of the data, the same in all of them.

Statistics are summed where they lie, by the merge of each, so that nothing of K x D is copied.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from pfc.evaluation import is_sharded
from pfc.foreign import attribute, told
from pfc.layers import module_names
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import SAME, Fingerprint, reference_of, with_room
from pfc.measuring.layout import Layout
from pfc.measuring.loader import EMPTY, Batch, MeasuredBatches
from pfc.measuring.sums import Sums
from pfc.measuring.survey import Request, Survey, survey
from pfc.metrics import Weighting
from pfc.moments import SLICE, ClassMoments
from pfc.processes import Processes, alike
from pfc.span import MeansSpan
from pfc.taps import gathered
from pfc.theory.path import PathSample
from pfc.warning import warn

NEAR = 1e-12  # of the largest mark: marks of one input, in batches of another size; ours


def weights_digest(model: nn.Module) -> list[float]:
    """Checksum of a network's weights: their sum and their norms."""
    return _digest(gathered(p.detach()) for p in model.parameters())


def _digest(tensors: Iterable[Tensor]) -> list[float]:
    floats = (t for t in tensors if t.is_floating_point())
    sums = [(t.sum(dtype=torch.float64), t.norm(dtype=torch.float64)) for t in floats]
    return [float(sum(float(part[i]) for part in sums)) for i in (0, 1)]


def share_buffers(model: nn.Module, ranks: Processes) -> None:
    """Give all processes the buffers of the first, such as batch statistics, till they are put back."""
    buffers = dict(model.named_buffers())
    shapes = {name: [*buffer.shape] for name, buffer in buffers.items()}
    each = ranks.exchange("buffers", [shapes, _digest(buffers.values())] if ranks.size > 1 else None)
    if all(alike(own, each[0]) for own in each):
        return
    if any(own[0] != each[0][0] for own in each):
        raise ValueError("the processes hold buffers of other names or shapes: every one needs the same")
    for buffer in buffers.values():
        ranks.broadcast(buffer)
    if ranks.is_main:
        warn(
            "the processes hold different buffers, such as batch statistics: those of process 0 are "
            "measured, and each has its own again afterwards"
        )


def own_limit(limit: int | None, data: Any, ranks: Processes) -> int | None:
    """This process's part of a limit, and no sample that a sampler repeats to make the parts even."""
    if limit is not None and ranks.size > 1:
        if limit < ranks.size:
            raise ValueError(f"limit must be at least 1 for each of {ranks.size} processes, got {limit}")
        limit = (limit + ranks.size - 1 - ranks.rank) // ranks.size
    return min((n for n in (limit, _own_samples(data)) if n is not None), default=None)


def _own_samples(data: Any) -> int | None:
    """Samples of a loader before the first that its `DistributedSampler` repeats; `None` without one."""
    sampler = attribute(attribute(data, "batch_sampler"), "sampler") or attribute(data, "sampler")
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    # it takes every size-th place of one order, in which those that are repeated come last
    with told("the length of the sampler's dataset failed"):
        return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def agreed_survey(request: Request, first: Batch | None, ranks: Processes) -> Survey:
    """What all processes measure, also those that have no batch to look at."""
    looked = None if first is None else survey(request, first)
    each = ranks.exchange("layers", None if looked is None else looked.layout.to_dict())
    layouts = {rank: layout for rank, layout in enumerate(each) if layout is not None}
    if not layouts:
        raise ValueError(EMPTY)
    one, layout = next(iter(layouts.items()))
    for rank, other in layouts.items():
        differ = (name for name in layout if name != "lying" and other[name] != layout[name])
        if name := next(differ, None):
            raise ValueError(
                f"process {rank} measures {Layout.from_dict(other)}, process {one} "
                f"{Layout.from_dict(layout)}: every process needs the same network and layers "
                f"({name} is {other[name]!r} and {layout[name]!r})"
            )
    agreed = Layout.from_dict(layout)
    found = looked or Survey.of(agreed, request.model, request.pool, request.tokens)
    found = replace(found, layout=replace(found.layout, lying=agreed.lying))
    return found if len(layouts) == len(each) else _with_weight(found, looked is not None, one, ranks)


def _with_weight(found: Survey, seen: bool, one: int, ranks: Processes) -> Survey:
    """Who has no batch cannot see how the weight of a functional classifier is made, and is told it."""
    if isinstance(module_names(found.model).get(found.layout.classifier or ""), nn.Linear):
        return found
    own = found.weight if seen else None
    W = ranks.exchange("weight", None if own is None else own.tolist())[one]
    return (
        found
        if seen or W is None
        else replace(found, weigh=lambda: torch.tensor(W, dtype=torch.float64, device="cpu"))
    )


def read_the_same(first: Batch | None, ranks: Processes) -> bool:
    """Whether the first batch of every process is the same one, so that none has a part of its own."""
    x = None if first is None or ranks.size == 1 else first.inputs
    own = None
    if x is not None and first is not None:
        inputs = Fingerprint((0, 0.0, 0.0))
        inputs.update(first)
        own = [first.y.tolist(), inputs.sums.tolist()]
    each = ranks.exchange("first batch", own)
    return own is not None and all(alike(own, other) for other in each)


def divide(batches: MeasuredBatches, request: Request, limit: int | None, ranks: Processes) -> None:
    """Let each process take its part of the batches that all of them read."""
    if is_sharded(request.model):
        raise ValueError(
            f"each of the {ranks.size} processes was given the same batches: with sharded weights each "
            "needs its own part, of as many batches, such as by a DistributedSampler"
        )
    batches.limit, batches.part = limit, (ranks.rank, ranks.size)
    if ranks.is_main:
        warn(
            f"each of the {ranks.size} processes was given the same batches: each takes one "
            f"of every {ranks.size}; a DistributedSampler would spare reading the others"
        )


def check_divided(batches: MeasuredBatches, ranks: Processes) -> None:
    """Refuse divided batches of which one process has read others than another."""
    each = ranks.exchange("divided", [*batches.read]) if batches.part[1] > 1 else []
    for rank, own in enumerate(each):
        if own != each[0]:
            raise ValueError(
                f"processes 0 and {rank} begin with the same batch and then read other data "
                f"({each[0][0]} and {own[0]} samples): give each its own part, or the same data to all"
            )


def polled(batches: Iterable[Batch], ranks: Processes) -> Iterator[Batch]:
    """The batches, as long as no other process has stopped."""
    for batch in batches:
        ranks.check_peers()
        yield batch


def fingerprint(batch: Batch | None, ranks: Processes) -> Fingerprint:
    """An empty fingerprint, whose reference is the first input of the first process that has one."""
    if ranks.size == 1:
        return Fingerprint()
    x = None if batch is None else batch.inputs
    each = ranks.exchange("inputs", None if x is None else reference_of(x))
    reference = next((tuple(found) for found in each if found is not None), None)
    return Fingerprint(reference, keep_marks=True)


def shared_labels(found: Int64[Tensor, " K"], ranks: Processes) -> Int64[Tensor, " K"]:
    """The labels that occur in any process, ascending."""
    return found if ranks.size == 1 else torch.cat(ranks.gather(found)).unique()


def number_samples(sums: Sums, ranks: Processes) -> None:
    """Tell apart the samples of processes, each of which counts its own from 0."""
    for group in sums.groups:
        group.paths.stream = ranks.rank


def merge_sums(sums: Sums, dataset_size: int | None, largest_batch: int, ranks: Processes) -> None:
    """Make the sums those of all processes, in place; refuse a few samples more than there are."""
    if ranks.size == 1:
        return
    own = {"seen": int(sums.count.sum()), "dataset": dataset_size, "batch": largest_batch}
    each = ranks.exchange("pass 1", {**own, "classes": len(sums.count)})
    _refuse_repeated(each)
    sums.grow(max(other["classes"] for other in each))
    for group in sums.groups:
        shift = group.scale.merge(ranks.exchange(f"scale {group.names[0]}", group.scale.to_dict()))
        if shift:
            group.rescale(-shift)
        group.moments.merge(total=ranks.all_reduce)
        if group.moments.paired:
            group.paths = _merged_paths(group.paths, len(group.names) - 1, ranks)


def _refuse_repeated(each: Sequence[Mapping[str, int | None]]) -> None:
    """Refuse what a sampler that is not known repeated to make the processes' parts even."""
    seen, sizes, batch = ([int(one[name] or 0) for one in each] for name in ("seen", "dataset", "batch"))
    together, N = sum(seen), sizes[0]
    if set(sizes) == {N} and max(seen) < N < together <= N + sum(batch):
        raise ValueError(
            f"{len(each)} processes saw {together} samples of a dataset of {N}: their sampler repeats "
            f"some to make the parts even; let it drop the last {together - N}, or use "
            "torch.utils.data.DistributedSampler, whose repeated samples are known and counted once"
        )


def _merged_paths(sample: PathSample, L: int, ranks: Processes) -> PathSample:
    """The path numbers of all processes' samples, of paths of L increments."""
    seen = ranks.gather(torch.tensor([sample.seen], device="cpu"))
    merged = PathSample()
    for n, *parts in zip(seen, *map(ranks.gather, sample.kept_parts(L)), strict=True):
        merged.merge(PathSample.restored(int(n), tuple(parts)))
    return merged


def merge_fingerprint(inputs: Fingerprint, classes: int, ranks: Processes) -> None:
    """Make the fingerprint that of all processes, in place; refuse the same samples in all of them."""
    if ranks.size == 1:
        return
    ours = with_room(inputs.sums.cpu(), classes)
    parts = torch.stack(ranks.gather(ours[None])).flatten(0, 1)
    equal = torch.isclose(parts, parts[0], rtol=SAME, atol=0.0).all()
    if bool(equal & parts[..., 1:].any()):  # inputs of no known form leave no mark
        raise ValueError(
            f"each of the {ranks.size} processes was given the same {int(ours[:, 0].sum())} samples: "
            "give each its own part, such as by a DistributedSampler, or pass group=False to measure "
            "in each process alone"
        )
    inputs.sums = parts.sum(0)
    if inputs.marks is not None:
        _warn_of_shared(inputs.marks, ranks)
        inputs.marks = None


def _warn_of_shared(marks: Sequence[Float64[Tensor, "B 2"]], ranks: Processes) -> None:
    """Warn of samples that are in more than one process."""
    ours = torch.cat([
        torch.zeros(0, 2, dtype=torch.float64, device="cpu"),
        *(each.cpu() for each in marks),
    ])
    if shared := _shared(ranks.gather(ours)):
        warn(
            f"{shared} sample(s) of a process are in another too and count in both: if a sampler "
            "repeats them, give measure the DataLoader with its DistributedSampler"
        )


def _shared(marks: Sequence[Float64[Tensor, "N 2"]]) -> int:
    """How many samples have the class and the mark of another process's."""
    rank = torch.cat([torch.full((len(each),), i, device="cpu") for i, each in enumerate(marks)])
    y, mark = torch.cat([*marks]).unbind(1)
    order = torch.from_numpy(np.lexsort((mark.numpy(), y.numpy())))
    rank, y, mark = rank[order], y[order], mark[order]
    near = mark.diff().abs() <= NEAR * mark.abs().max()
    return int((near & (y.diff() == 0) & (rank.diff() != 0)).sum()) if bool(mark.any()) else 0


def shared_span(
    moments: ClassMoments,
    weighting: Weighting,
    ranks: Processes,
    weights: Float64[Tensor, " K"] | None = None,
) -> MeansSpan:
    """The span of the merged means as the first process finds it: in another a basis may turn."""
    found = MeansSpan.of(moments, weighting, weights) if ranks.is_main else None
    if ranks.size == 1 and found is not None:
        return found
    rank = int(ranks.broadcast(torch.tensor([0 if found is None else len(found.values)], device="cpu")))
    span = MeansSpan.room(moments, rank) if found is None else found
    for part in (span.centre, span.centre_error, span.basis.mT, span.values, span.points, span.floor):
        rows = torch.atleast_1d(part)
        for piece in rows.split(max(1, SLICE // max(1, rows[:1].numel()))):
            ranks.broadcast(piece)
    return span


def merge_decisions(decisions: Decisions, ranks: Processes) -> None:
    """Make the decisions those of all processes, in place."""
    if ranks.size > 1:
        ranks.exchange("pass 2")
        decisions.merge(ranks.all_reduce, ranks.gather)
