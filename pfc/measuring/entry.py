"""From a model and a loader to a profile, to features, or to a transport gap."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.device import device_of
from pfc.evaluation import Precision, undisturbed
from pfc.layers import Layers
from pfc.measuring import shards
from pfc.measuring.assembly import assemble
from pfc.measuring.costs import cost
from pfc.measuring.decisions import Decisions
from pfc.measuring.head import Classifier
from pfc.measuring.loader import MeasuredBatches, StatisticsPlace, statistics_device
from pfc.measuring.passes import first_pass, second_pass
from pfc.measuring.sums import Sums
from pfc.measuring.survey import Request, Survey, survey
from pfc.metrics import Weighting, class_weights
from pfc.processes import ALONE, Processes, together
from pfc.profile.profile import Profile
from pfc.progress import Step, shown
from pfc.taps import Pool, unwrapped

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
    classifier: Classifier = None,
    statistics: StatisticsPlace | None = None,
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
            known nets, else a list of modules of one class that feed each other, else every direct
            child, opening what only wraps a network; before the blocks of a transformer stands what
            makes its tokens, at the end the classifier's input. Logits are never a layer.
        classes: Number of classes; by default the classifier's outputs, else the data's own number,
            else one more than the largest label.
        weighting: Class weights in covariances: `"class"`, equal, or `"sample"`, proportional to
            counts.
        passes: 2 for all metrics, 1 to leave out those of the second pass.
        segments: Also accumulate cross-layer statistics of layers of one shape: positions, path and
            straight line.
        pool: How to reduce tokens or pixels to one vector per sample: `"flatten"`, `"mean"`, `"cls"`
            or a callable.
        limit: Use at most this many samples, of all processes together. With n of a class PFC1 is too
            small, as the means scatter by 1/n of the spread within, and PFC3 too large, as each sample
            draws its own mean near: of an untrained network on the digits PFC1 is 1.43 and PFC3 0.87 of
            all 1,797 samples, 1.13 and 0.94 of 10 a class, 0.26 and 1 of 2 a class
            (`benchmarks/watching.py`). The wider the layer, the more samples it takes.
        device: Where to run; the model's own device if `None`.
        classifier: What gives the logits, by name or as a module, or its weight K x D or a pair (W, b);
            found by itself if `None`, where a product with a weight gives what the model returns:
            a linear layer, a 1 x 1 convolution, a tied embedding, cosines.
        statistics: Keep the K x D statistics on the `"device"`, or in the `"host"`'s memory, to which
            the features are then moved batch by batch; where they fit if `None`.
        group: The processes that measure together; `None` for all of an initialised process group,
            `False` for this one alone.
        precision: `"bfloat16"` or `"float16"` to run the forward passes under autocast, as a network
            trained so is used; `None` computes in the model's own types, also inside an autocast. The
            statistics are float64 either way, of the features as they came.
        progress: Show a progress bar on the standard error.

    Returns:
        The profile: a row of metrics for each layer in the order of the forward pass.

    Raises:
        ValueError: If an argument has no meaning, a layer is unknown, never runs, runs twice or not on
            every batch, the data are empty, mislabelled, of one class or not finite, shapes change
            between batches, or the second pass sees different samples from the first.
    """
    request = Request(model, layers, classifier, pool, segments)
    with together(group) as ranks, ExitStack() as stack:
        device = _checked(model, device, passes, classes, weighting)
        ranks.use_device(device)
        ranks.agree(
            passes=passes,
            classes=classes,
            weighting=weighting,
            segments=segments,
            limit=limit,
            precision=precision,
            pool=pool if isinstance(pool, str) else "callable",
            network=shards.weights_digest(model) if ranks.size > 1 else None,
        )
        stack.enter_context(undisturbed(unwrapped(model), device, precision))
        own = shards.own_limit(limit, data, ranks)
        batches = MeasuredBatches(data, own, device, may_be_empty=ranks.size > 1)
        total = None if batches.total is None else passes * batches.total
        with shown("measure", total, enabled=progress and ranks.is_main) as step:
            looked, sums, decisions = _measured(
                request, batches, classes, weighting, passes, statistics, ranks, step
            )
        about = {
            "data": batches.name,
            "precision": precision,
            "processes": ranks.size,
            "exchanged": ranks.exchanged,
        }
        return assemble(sums, decisions, weighting, W=looked.weight, about=about)


def _measured(
    request: Request,
    batches: MeasuredBatches,
    classes: int | None,
    weighting: Weighting,
    passes: int,
    statistics: StatisticsPlace | None,
    ranks: Processes,
    step: Step,
) -> tuple[Survey, Sums, Decisions | None]:
    """Look at the first batch, then run the passes; merge each over the processes."""
    rest = iter(batches)
    first = next(rest, None)
    looked = shards.agreed_survey(request, first, ranks)
    K = classes or looked.layout.classes or batches.classes
    least = 1 if first is None else first.labels.numbers[-1] + 1
    size = cost([*looked.layout.shapes.values()], K or least).peak
    sums = Sums.empty(looked.layout, K, statistics_device(batches.device, statistics, size))
    shards.number_samples(sums, ranks)
    inputs = shards.fingerprint(first, ranks) if passes == 2 or ranks.size > 1 else None
    head = [] if first is None else [first]
    done = first_pass(looked, shards.polled(chain(head, rest), ranks), sums, inputs, step)
    shards.merge_sums(sums, batches.dataset_size, batches.largest, ranks)
    if inputs is not None:
        shards.merge_fingerprint(inputs, len(sums.count), ranks)
    sums.check()
    if inputs is None or passes == 1:
        return looked, sums, None
    spans = {name: shards.shared_span(m, weighting, ranks) for name, m in sums.moments.items()}
    decisions, again = Decisions.about(sums, spans), inputs.fresh()
    second_pass(looked, shards.polled(batches, ranks), decisions, again, step, done)
    shards.merge_decisions(decisions, ranks)
    shards.merge_fingerprint(again, len(sums.count), ranks)
    inputs.compare(again)
    decisions.check()
    return looked, sums, decisions


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
        model: Any torch classifier, as for `measure`.
        data: Batches, as for `measure`.
        layers: Which layers, as for `measure`.
        limit: Use at most this many samples.
        pool: How to reduce tokens or pixels to one vector per sample.
        device: Where to run; the model's own device if `None`.
        precision: Of the forward passes, as for `measure`.
        progress: Show a progress bar on the standard error.

    Returns:
        Features of each layer by name, one row a sample, and the labels.

    Raises:
        ValueError: If a layer is unknown or does not run, or the data are empty.
    """
    request = Request(model, layers, None, pool)
    device = _place(model, device)
    rows: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    looked: Survey | None = None

    def keep(name: str, H: Tensor) -> None:
        rows.setdefault(name, []).append(H.clone())

    batches = MeasuredBatches(data, shards.own_limit(limit, data, ALONE), device)
    quiet = undisturbed(unwrapped(model), device, precision)
    with quiet, shown("collect", batches.total, enabled=progress) as step:
        for batch in batches:
            looked = looked or survey(request, batch)
            looked.forward(batch, torch.device("cpu"), keep)
            labels.append(batch.labels.y)
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
        data: What it was measured on, or a stratified sample of it.
        profile: What was measured: names the segment, the weighting and the pooling.
        i: Which segment.
        exact: Samples of the exact part, as for `pfc.theory.transport.gap`.
        device: Where to run; the model's own device if `None`.
        progress: Show a progress bar on the standard error.

    Returns:
        Cost, exact optimal transport, and bounds, weighted as the profile is.

    Raises:
        ValueError: If there is no such segment, or its outputs were pooled by a callable.
    """
    from pfc.theory.transport import gap

    chosen, pool = profile.segment(i), profile.about.get("pool", "flatten")
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


def _place(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return device_of(device, model)
