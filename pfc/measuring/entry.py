"""Two forward passes over a classifier: from a model and a loader to the profile of every layer."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc import metrics
from pfc.device import device_of
from pfc.measuring.loader import Batches, Home
from pfc.measuring.passes import FirstPass, SecondPass
from pfc.measuring.survey import Survey, survey
from pfc.metrics import Weighting, class_weights
from pfc.moments import ClassMoments
from pfc.nearest import MeansSpan, NearestMean
from pfc.processes import together
from pfc.profile.profile import COLUMNS, Profile
from pfc.profile.segment import Segment
from pfc.progress import shown
from pfc.taps import Layers, Pool, Precision, undisturbed, unwrapped
from pfc.warning import warn

if TYPE_CHECKING:
    from pfc.theory.transport import Gap


def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = None,
    classes: int | None = None,
    weighting: Weighting = "class",
    passes: int = 2,
    segments: bool = True,
    pool: Pool = "flatten",
    limit: int | None = None,
    device: str | torch.device | None = None,
    classifier: str | nn.Module | None = None,
    statistics: Home | None = None,
    group: Any = None,
    precision: Precision | None = None,
    progress: bool = True,
) -> Profile:
    """Measure progressive feedforward collapse at every chosen layer of a classifier.

    Two forward passes in evaluation mode, without gradients; statistics are float64 and
    exact, in memory O(K D) a layer. The model's modes, hooks, gradients, random state and outputs are
    left as they were, also after an exception.

    In an initialised process group of `torch.distributed` every process makes the same call, each with
    its own part of the data, and all get the profile of the whole: equal to one process's to rounding
    (above 65,536 samples the path's quantiles are of another fixed subset). What a `DistributedSampler`
    repeats to make the parts even is counted once. An error in one process stops all.

    Args:
        model: Any torch classifier; wrappers (parallel, compiled) are looked through.
        data: A re-iterable of batches: `(x, y)` pairs, or dicts with `labels` whose other entries are
            the model's named arguments.
        layers: Names, globs such as `"blocks.*"`, or modules; `"classifier.input"` names the
            classifier's input. `None` chooses the net's own tap points, else the residual blocks of
            known nets, else every direct child, and adds the classifier's input.
        classes: Number of classes; by default the classifier's outputs, else the data's own number,
            else one more than the largest label.
        weighting: What a class counts in covariances of unbalanced data: `"class"`, all the same, or
            `"sample"`, by its samples.
        passes: 2 for all metrics, 1 to leave out those of the second pass.
        segments: Also gather what pairs layers of one shape: positions, path and straight line.
        pool: What becomes of outputs with more than one axis a sample: `"flatten"`, `"mean"`, `"cls"`
            or a callable.
        limit: Stop after so many samples, of all processes together. With n of a class PFC1 is too
            small, as the means scatter by 1/n of the spread within, and PFC3 too large, as each sample
            draws its own mean near: of an untrained network on the digits PFC1 is 1.43 and PFC3 0.87 of
            all 1,797 samples, 1.13 and 0.94 of 10 a class, 0.26 and 1 of 2 a class
            (`benchmarks/watching.py`). The wider the layer, the more samples it takes.
        device: Where to run; the model's own place if `None`.
        classifier: The last linear layer by name or as a module; found by itself if `None`.
        statistics: Keep the K x D statistics on the `"device"`, or in the `"host"`'s memory, to which
            the features are then moved batch by batch; where they fit if `None`.
        group: The processes that measure together; `None` for all of an initialised process group,
            `False` for this one alone.
        precision: `"bfloat16"` or `"float16"` to run the forward passes under autocast, as a network
            trained so is used; `None` computes in the model's own types, also inside an autocast. The
            statistics are float64 either way, of the features as they came.
        progress: Show progress on the standard error.

    Returns:
        The profile: a row of metrics for each layer in the order of the forward pass.

    Raises:
        ValueError: If an argument has no meaning, a layer is unknown, never runs, runs twice or not on
            every batch, the data are empty, mislabelled, of one class or not finite, shapes change
            between batches, or the second pass sees other samples than the first.
    """
    with together(group) as ranks, ExitStack() as stack:
        place = _checked(model, device, passes, classes, weighting)
        ranks.at(place)
        ranks.agree(
            passes=passes,
            classes=classes,
            weighting=weighting,
            segments=segments,
            limit=limit,
            precision=precision,
            pool=pool if isinstance(pool, str) else "callable",
            network=_digest(model) if ranks.size > 1 else None,
        )
        stack.enter_context(undisturbed(unwrapped(model), place, precision))
        batches = Batches(data, limit, place, ranks, statistics)
        total = None if batches.total is None else passes * batches.total
        with shown("measure", total, enabled=progress and ranks.first) as step:
            first = FirstPass(
                model,
                layers,
                classifier,
                pool,
                classes,
                segments=segments,
                again=passes == 2,
                ranks=ranks,
            )
            done = first.run(batches, step)
            second = SecondPass(first, weighting) if passes == 2 else None
            if second is not None:
                second.run(batches, step, done)
        return assemble(first, second, weighting, batches.name, precision)


def features(
    model: nn.Module,
    data: Iterable[Any],
    layers: Layers = None,
    *,
    limit: int | None = None,
    pool: Pool = "flatten",
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    progress: bool = True,
) -> tuple[dict[str, Float[Tensor, "N D"]], Int64[Tensor, " N"]]:
    """Collect the features of chosen layers in full, on the CPU: for few samples or few layers.

    Args:
        model: As for `measure`.
        data: As for `measure`.
        layers: As for `measure`.
        limit: Stop after so many samples.
        pool: As for `measure`.
        device: As for `measure`.
        precision: As for `measure`.
        progress: As for `measure`.

    Returns:
        Features of each layer by name, one row a sample, and the labels.

    Raises:
        ValueError: If a layer is unknown or does not run, or the data are empty.
    """
    place = _place(model, device)
    rows: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    looked: Survey | None = None
    batches = Batches(data, limit, place)
    quiet = undisturbed(unwrapped(model), place, precision)
    with quiet, shown("collect", batches.total, enabled=progress) as step:
        for batch in batches:
            looked = looked or survey(model, batch, layers, None, pool)
            looked.forward(batch, lambda name, H: rows.setdefault(name, []).append(H.cpu().clone()))
            labels.append(batch.labels.y.cpu())
            step(batch.number + 1)
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.cat(labels)


def transport(
    model: nn.Module,
    data: Iterable[Any],
    profile: Profile,
    i: int = -1,
    *,
    exact: int = 2000,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> "Gap":
    """Is the map from the first to the last layer of a segment an optimal transport map?

    Collects the features of the two layers in full (N x D numbers each, on the CPU).

    Args:
        model: The one that was measured.
        data: What it was measured on, or a fair sample of it.
        profile: What was measured: names the segment, the weighting and the pooling.
        i: Which segment.
        exact: As for `pfc.theory.transport.gap`.
        device: As for `measure`.
        progress: As for `measure`.

    Returns:
        Cost, exact optimal transport, and bounds, weighted as the profile is.

    Raises:
        ValueError: If there is no such segment, or its outputs were pooled by a callable.
    """
    from pfc.theory.transport import gap

    chosen, pool = profile.segment(i), profile.about["pool"]
    if pool not in {"flatten", "mean", "cls"}:
        raise ValueError(f"outputs were pooled by {pool}: give their features to theory.transport.gap")
    ends = [chosen.layers[0], chosen.layers[-1]]
    precision = profile.about.get("precision")
    found, y = features(
        model, data, ends, pool=pool, device=device, precision=precision, progress=progress
    )
    start, end = (found[name] for name in ends)
    return gap(start, end, y, weighting=chosen.weighting, exact=exact, progress=progress)


def _checked(
    model: nn.Module,
    device: str | torch.device | None,
    passes: int,
    classes: int | None,
    weighting: Weighting,
) -> torch.device:
    """Where to compute, if all arguments have a meaning."""
    if passes not in {1, 2}:
        raise ValueError(f"passes must be 1 or 2, got {passes}")
    if classes is not None and classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    class_weights(torch.ones(2, dtype=torch.float64), weighting)
    return _place(model, device)


def _digest(model: nn.Module) -> list[float]:
    """Knows the weights and batch statistics of a network again: their sum and their norms."""
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    sums = [(t.sum(dtype=torch.float64), t.norm(dtype=torch.float64)) for t in tensors]
    return [float(sum(float(part[i]) for part in sums)) for i in (0, 1)]


def _place(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return device_of(device, model)


def assemble(
    first: FirstPass,
    second: SecondPass | None,
    weighting: Weighting,
    data: str | None,
    precision: Precision | None = None,
) -> Profile:
    """The profile of two passes, or of the first alone."""
    looked = first.survey
    columns: dict[str, dict[str, float]] = {}
    for name, moments in first.moments.items():
        nearest = second.nearest[name] if second else None
        span = nearest.span if nearest else MeansSpan.of(moments, weighting)
        row = _of_means(name, moments.present(), span, weighting)
        if nearest:
            row |= _of_pass_two(moments.present(), nearest, weighting)
        if name == looked.at_head and looked.head is not None and first.answered:
            row["nc3"] = _self_duality(moments, looked.head)
            if math.isnan(row["nc3"]) and len(span.values):
                why = "the classifier's weights are zero or no numbers"
                warn(f"layer {name!r}: nc3 is undefined, for {why}")
            if second and not second.unknown:
                row["nc4"] = second.disagree / second.samples
        columns[name] = row
    names = list(columns)
    segments = tuple(
        Segment.of(
            names.index(run[0]),
            run,
            moments,
            weighting,
            second.crossings[run[0], run[-1]].curves() if second else {},
            first.paths[run[-1]],
            first.scales[run[0]].exponent,
        )
        for run, moments in first.segments
    )
    for segment in segments:
        for name, position in zip(segment.layers, segment.position("path"), strict=True):
            columns[name]["position"] = position
    return Profile(
        layers=tuple(names),
        shapes=tuple(looked.shapes[name] for name in names),
        columns={
            c: tuple(columns[name].get(c, float("nan")) for name in names)
            for c in COLUMNS
            if second or c not in {"pfc3", "nc1", "fuzziness", "nc4"}
        },
        moments={name: moments.cpu() for name, moments in first.moments.items()},
        segments=segments,
        about={"data": data, "precision": precision, **_about(first, second, weighting)},
    )


def _of_means(
    name: str, moments: ClassMoments, span: MeansSpan, weighting: Weighting
) -> dict[str, float]:
    """What the first pass tells; `moments` without the classes that have no sample."""
    M = span.points
    flat = ClassMoments(
        moments.count, M, moments.scatter, torch.zeros_like(M)
    )  # coinciding means are one
    full = min(len(M) - 1, moments.mean.shape[1])
    if len(span.values) < full:
        warn(
            f"layer {name!r}: the class means span {len(span.values)} dimensions, not {full}: "
            "they coincide or are collinear"
        )
    values = {
        "pfc1": metrics.scatter_ratio(flat, weighting),
        "pfc2": metrics.etf_distance(M),
        "nc2_norm": metrics.equinorm(M),
        "nc2_angle": metrics.equiangle(M),
        "nc2_max_angle": metrics.maximal_angle_distance(M),
        "cdnv": metrics.class_distance_variance(M, moments.scatter / moments.count),
    }
    row = {column: float(value) for column, value in values.items()}
    unknown = [column for column, value in row.items() if math.isnan(value)]
    if unknown and len(span.values):
        warn(f"layer {name!r}: {' and '.join(unknown)} undefined, for a class mean is the mean of all")
    return row


def _of_pass_two(moments: ClassMoments, nearest: NearestMean, weighting: Weighting) -> dict[str, float]:
    squares = nearest.squares * (moments.scatter > 0)[:, None]  # of a collapsed class only rounding
    fuzziness = float(metrics.collapse_trace(squares, moments.count, nearest.span.values, weighting))
    return {
        "pfc3": float(metrics.nearest_mean_accuracy(nearest.hits, nearest.count)),
        "nc1": fuzziness / len(moments.count),
        "fuzziness": fuzziness,
    }


def _self_duality(moments: ClassMoments, head: nn.Linear) -> float:
    """NC3 over the classes that have samples."""
    seen = (moments.count > 0).nonzero().flatten()
    W = head.weight.detach().to(moments.mean)[seen]
    equal = torch.full_like(seen, 1, dtype=torch.float64) / len(seen)
    return float(metrics.self_duality(M=moments.present().centred(equal), W=W))


def _about(first: FirstPass, second: SecondPass | None, weighting: Weighting) -> dict[str, Any]:
    looked = first.survey
    count = next(iter(first.moments.values())).count
    pool = looked.pool if isinstance(looked.pool, str) else getattr(looked.pool, "__name__", "callable")
    return {
        "model": type(looked.model).__name__,
        "chosen": looked.chosen,
        "pool": pool,
        "weighting": weighting,
        "passes": 2 if second else 1,
        "processes": first.ranks.size,
        "exchanged": first.ranks.exchanged,
        "statistics": str(count.device.type),
        "samples": int(count.sum()),
        "classes": len(count),
        "classifier": looked.classifier,
        "at_classifier": looked.at_head,
        "accuracy": second.right / second.samples
        if second and second.samples and not second.unknown
        else None,
        "exponents": {name: scale.exponent for name, scale in first.scales.items() if scale.exponent},
        "torch": torch.__version__,
    }
