"""From a model and a loader, or from arrays, to a profile."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pfc.evaluation import Precision
from pfc.layers import Layers
from pfc.measuring import shards
from pfc.measuring.arrays import ArraySource
from pfc.measuring.assembly import assemble
from pfc.measuring.head import Classifier
from pfc.measuring.loader import MeasuredBatches, StatisticsPlace
from pfc.measuring.opening import Asked, checked_how
from pfc.measuring.outlook import Outlook
from pfc.measuring.passes import run_passes
from pfc.measuring.probe import check_room, look, probe_layers
from pfc.measuring.reference import Reference
from pfc.measuring.tokens import Tokens
from pfc.metrics import Weighting
from pfc.processes import ALONE
from pfc.profile.profile import Profile
from pfc.progress import shown
from pfc.taps import Pool


def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = None,
    classes: int | None = None,
    weighting: Weighting = "class",
    passes: int = 2,
    segments: bool = True,
    intervals: bool = False,
    pool: Pool = "flatten",
    limit: int | None = None,
    device: str | torch.device | None = None,
    classifier: Classifier = None,
    means: Profile | None = None,
    probe: Iterable[Any] | None = None,
    shift: int = 0,
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
        intervals: Also keep the standard errors of PFC1 and PFC2, for `Profile.table(interval=0.95)`:
            the squared influences of the samples are summed in the second pass, which reads the
            features once more and keeps 2 x K x D numbers a layer besides.
        pool: How to reduce tokens or pixels to one vector per sample: `"flatten"`, `"mean"`, `"cls"`,
            `"last"` or a callable. The mean, the first and the last are of the tokens that an
            `attention_mask` in the batch does not mask. With `"tokens"` every token is a sample, the
            labels are of shape B x T with -100 for tokens that are left out, and the classes are the
            labels that occur.
        limit: Use at most this many samples, of all processes together. With n of a class PFC1 is too
            small, as the means scatter by 1/n of the spread within, and PFC3 too large, as each sample
            draws its own mean near: of an untrained network on the digits PFC1 is 1.43 and PFC3 0.87 of
            all 1,797 samples, 1.13 and 0.94 of 10 a class, 0.26 and 1 of 2 a class
            (`benchmarks/watching.py`). The wider the layer, the more samples it takes.
        device: Where to run; the model's own device if `None`.
        classifier: What gives the logits, by name or as a module, or its weight K x D or a pair (W, b);
            found by itself if `None`, where a product with a weight gives what the model returns:
            a linear layer, a 1 x 1 convolution, a tied embedding, cosines.
        means: A profile, such as of the training data, about whose class means these data are measured:
            distances to the nearest mean, PFC1, PFC3, NC1 and NC4 are about those, the geometry of the
            means (PFC2, NC2, NC3, CDNV) is the data's own; positions, line and theorems are left out.
            Then the layers are the profile's by default, and one class is enough.
        probe: Batches of held-out data, for the column `probe`: at each layer the share of them that a
            ridge classifier answers rightly, which is fitted to the measured data on one-hot labels,
            pixels and tokens averaged. Its penalty is chosen among 1e-4 to 10 times the mean variance
            by generalised cross-validation of the measured data. One more forward pass over each set,
            D x D numbers a layer, one process.
        shift: With `pool="tokens"`, how many tokens later the label of a token stands: 1 for the next
            token of a language model whose labels are its inputs.
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
    asked = Asked(
        layers=layers,
        classes=classes,
        weighting=weighting,
        passes=passes,
        segments=segments,
        intervals=intervals,
        pool=pool,
        limit=limit,
        device=device,
        classifier=classifier,
        means=means,
        shift=shift,
        statistics=statistics,
        group=group,
        precision=precision,
        probed=probe is not None,
    )
    reference = asked.reference
    if probe is not None:
        _refuse_probe(reference, asked.tokens)
    with asked.opened(model, data) as it:
        looked, batches, ranks = it.survey, it.batches, it.ranks
        total = None if batches.total is None else passes * batches.total
        held = None if probe is None else (looked, MeasuredBatches(probe, None, batches.device))
        if held is not None:
            check_room(looked.layout, ranks.size)
            look(held, batches.device)
        with shown("measure", total, enabled=progress and ranks.is_main) as step:
            told = it.outlook.watched(step) if it.first is not None and ranks.is_main else step
            found = run_passes(looked, it.first, it.rest, batches, it.how, ranks, told)
        shards.check_divided(batches, ranks)
        probed = probe_layers(looked, batches, held, found.sums, enabled=progress)
        tokens = batches.tokens
        about = {
            "data": batches.name,
            "precision": precision,
            "processes": ranks.size,
            "exchanged": ranks.exchanged,
            **({} if reference is None or layers is not None else {"chosen": reference.about["chosen"]}),
            **({} if tokens is None else {"shift": shift, "labels": tokens.vocabulary.tolist()}),
            **({} if probed is None else probed.about),
        }
        return assemble(
            found, weighting, W=looked.weight, reference=reference, probed=probed, about=about
        )


def measure_features(
    features: Mapping[str, Any],
    y: Any,
    *,
    classifier: Any = None,
    classes: int | None = None,
    weighting: Weighting = "class",
    passes: int = 2,
    segments: bool = True,
    intervals: bool = False,
    means: Profile | None = None,
    probe: tuple[Mapping[str, Any], Any] | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Profile:
    """Measure progressive feedforward collapse of features at hand, from wherever they come.

    What `measure` finds of a model's features, without the model; arrays are read in blocks, twice, so
    that a memory-mapped file may be larger than the memory.

    Args:
        features: For each layer, in the order of the forward pass, an array of shape N x ... with one
            sample a row: of numpy (memory-mapped ones too), torch, or what speaks `__array__` or DLPack.
        y: Class of each of the N samples, as integers from 0 on.
        classifier: What gives the logits from the last layer that it fits, for accuracy, NC3 and NC4: a
            module, a pair (W, b) or W of shape K x D.
        classes: Number of classes; the classifier's outputs, else one more than the largest label if
            `None`.
        weighting: As for `measure`.
        passes: As for `measure`.
        segments: As for `measure`.
        intervals: As for `measure`.
        means: As for `measure`.
        probe: Features of held-out data at the same layers and their labels, as for `measure`.
        name: What the data are called.
        progress: Show a progress bar on the standard error.

    Returns:
        The profile, as `measure` gives it; one process computes it.

    Raises:
        ValueError: If an array is no array of numbers, its length is not that of the labels, it is not
            finite, the classifier fits no layer, or the labels are of one class.

    Examples:
        >>> H, y = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), [0, 0, 1, 1]
        >>> measure_features({"h": H}, y, progress=False).table().pfc1["h"].item()
        0.25
    """
    reference = Reference.of(means)
    source = ArraySource(features, y, classifier, segments=segments and reference is None)
    how = checked_how(passes, classes, weighting, None, reference, intervals=intervals)
    if reference is not None:
        reference.check(source.layout)
    held = None if probe is None else _held_out(source, probe, reference)
    rest = iter(source)
    first = next(rest)
    outlook = Outlook.of(source.layout, first, source, len(source), how, of_model=False)
    bar = shown("measure", passes * len(source), enabled=progress)
    with bar as step, source.checked_late():
        found = run_passes(source, first, rest, source, how, ALONE, outlook.watched(step))
    W = None if source.head is None else source.head.weight
    probed = probe_layers(source, source, held, found.sums, enabled=progress)
    about = {"data": name, "precision": None, "processes": 1, "exchanged": 0}
    about |= {} if probed is None else probed.about
    return assemble(found, weighting, W=W, reference=reference, probed=probed, about=about)


def _held_out(
    source: ArraySource, probe: tuple[Mapping[str, Any], Any], reference: Reference | None
) -> tuple[ArraySource, ArraySource]:
    """Features held out for a probe, as a source and as batches, if they are of the same layers."""
    _refuse_probe(reference)
    if not isinstance(probe, tuple) or len(probe) != 2:
        raise ValueError(f"probe must be a pair (features, labels), got {type(probe).__name__}")
    held = ArraySource(*probe, None, segments=False)
    if dict(held.layout.shapes) != dict(source.layout.shapes):
        ours, theirs = (", ".join(map(repr, each.layout.shapes)) for each in (source, held))
        raise ValueError(
            f"the features of probe= must be of the same layers and shapes, {ours}; got {theirs}"
        )
    check_room(source.layout)
    return held, held


def _refuse_probe(reference: Reference | None, tokens: Tokens | None = None) -> None:
    """Refuse a probe where there are no samples about their own class means."""
    if reference is not None or tokens is not None:
        what = "pool='tokens'" if reference is None else "means="
        raise ValueError(f"probe= goes without {what}: it is of samples about their own class means")
