"""On a device the work of a batch is only queued: nothing is asked of it and no feature leaves it.

Without a device this is seen twice: the accumulators run on `meta`, which has no numbers to answer with,
and the whole of `measure` runs on the CPU as it does on a device, watched for every look at a number.
"""

import math
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pfc
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import processor
from pfc.labels import BatchLabels
from pfc.line import LineCrossings
from pfc.measuring import passes
from pfc.measuring.decisions import Answers, Decisions
from pfc.measuring.layout import Layout
from pfc.measuring.loader import MeasuredBatches
from pfc.measuring.scale import Scale
from pfc.moments import ClassMoments, SegmentMoments
from pfc.nearest import NearestMean, project
from pfc.span import MeansSpan
from pfc.theory.path import PathSample
from tests import problems
from tests.models import Net, Plain, batched, samples, seeded

POINTS = batched(*samples())
META = torch.device("meta")
# What can't be queued: the host needs the answer, or the shape of it.
LOOKS = (
    *("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"),
    *("unique_dim", "unique_consecutive", "allclose", "bincount", "repeat_interleave.Tensor"),
)
ASKS = ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__array__", "__index__")


class Looks(TorchDispatchMode):
    """Operations on tensors that wait for their numbers."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        masks = name.startswith("aten.index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for i in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        moved = name.startswith("aten._to_copy") and kwargs.get("device") not in (None, args[0].device)
        if masks or moved or any(name.startswith(f"aten.{look}") for look in LOOKS):
            self.found.append(name)
        return func(*args, **kwargs)


class Asks(TorchFunctionMode):
    """Calls that hand a tensor's numbers to Python, on the CPU too, where they cost nothing."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if name in ASKS or (name == "to" and "cpu" in [a for a in args if isinstance(a, str)]):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched():
    """Names of what was asked."""
    found = []
    with Asks() as asks, Looks() as looks:
        yield found
    found.extend([*asks.found, *looks.found])


@pytest.fixture
def queued(monkeypatch):
    """The CPU is treated as a device with a queue, and without compiled loops."""
    monkeypatch.setattr(processor, "loops", dict)
    SYNCHRONOUS_DEVICES.discard("cpu")
    yield
    SYNCHRONOUS_DEVICES.add("cpu")


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.unique(x),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: float(x[0]),
        lambda x: x.index_put_((x > 0,), torch.tensor(1.0)),
    ],
)
def test_every_way_to_ask_is_seen(ask):
    with watched() as found:
        ask(torch.ones(3))
    assert found


def test_queued_work_is_no_question():
    with watched() as found:
        x = torch.ones(3, 2)
        x.index_add_(0, torch.tensor([0, 1]), torch.ones(2, 2)).isfinite()
        torch.where(x > 0, x, 0)[torch.tensor([1, 2])].argmin(1)
    assert not found


# On meta, where every question is an error


def on_meta(thing):
    return type(thing)(**{
        f.name: v.to(META) if isinstance(v := getattr(thing, f.name), Tensor) else v
        for f in fields(thing)
    })


def test_labels_tell_all_from_the_host():
    y = torch.tensor([2, 0, 2, 5])
    labels = BatchLabels.of(y, META)
    assert {t.device for f in fields(labels) if isinstance(t := getattr(labels, f.name), Tensor)} == {
        META
    }
    assert labels.numbers == (0, 2, 5)
    assert labels.one_hot.shape == (3, 4)


def test_moments_ask_nothing():
    H, y = problems.features(1)
    segment, paths = SegmentMoments.empty(3, 4, 7, META), PathSample()
    for _ in range(2):
        gram = segment.update([H.to(META)] * 3, BatchLabels.of(y, META))
        paths.update(gram, BatchLabels.of(y, META).y)
    assert gram.shape == (60, 2, 2)
    assert segment.layers[0].mean.device == META


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_means_and_what_is_to_be_decided_ask_nothing(dtype):
    H, y = problems.features(1)
    spans = [MeansSpan.of(ClassMoments.of(H * s, y)) for s in (1, 2)]
    first, last = map(on_meta, spans)
    for there, span in zip((first, last), spans, strict=True):  # asked once a layer
        there.__dict__["central"] = span.central
        there.prototypes.__dict__["crowded"] = span.prototypes.crowded
    decisions, labels = about(dict(zip("ab", (first, last), strict=True))), BatchLabels.of(y, META)
    for number in range(2):
        with decisions.batch(labels, number) as seen:
            for name, s in (("a", 1), ("b", 2)):
                seen.see(name, H.to(META, dtype) * s)
            seen.answers = labels.y
        NearestMean.empty(first).update(H.to(META, dtype), labels.y)
    (line,) = decisions.lines.values()
    assert line.samples == 0
    assert not line.found


def about(spans):
    """No decisions yet about the means of two layers of one segment."""
    place = spans["a"].place
    return Decisions(
        layout=Layout({name: (7,) for name in spans}, classifier_row="b", outputs=len(place)),
        nearest={name: NearestMean.empty(span) for name, span in spans.items()},
        lines={("a", "b"): LineCrossings(spans["a"], spans["b"])},
        scales={name: Scale() for name in spans},
        classes=torch.arange(len(place), device=place.device),
        known=frozenset(range(len(place))),
        answers=Answers(torch.zeros(3, dtype=torch.int64, device=place.device)),
        influences={},
    )


# The whole, on the CPU as on a device


class Marked:
    """Batches that say when the first of them is over."""

    classes = 3

    def __init__(self, batches, seen):
        self.batches, self.seen = batches, seen

    def __iter__(self):
        self.seen.append("pass")
        for number, batch in enumerate(self.batches):
            if number == 1:
                self.seen.append("steady")
            yield batch
        self.seen.append("over")


def asked(monkeypatch, model, **options):
    """What is asked of tensors from the second batch of a pass to its last, reading labels aside."""
    found, seen, original = [], [], MeasuredBatches.__iter__

    def apart(self):
        batches = original(self)
        while (batch := next(batches, None)) is not None:
            with watched() as asks:
                yield batch
            if "steady" in seen[len(seen) - seen[::-1].index("pass") :]:
                found.extend(asks)

    monkeypatch.setattr(MeasuredBatches, "__iter__", apart)
    pfc.measure(model, Marked(POINTS, seen), progress=False, **options)
    assert seen == ["pass", "steady", "over"] * options.get("passes", 2)
    return found


OPTIONS = [{}, {"segments": False}, {"passes": 1}, {"weighting": "sample"}]


@pytest.mark.usefixtures("queued")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_batch_asks_anything(options, monkeypatch):
    assert not asked(monkeypatch, seeded(Plain).eval(), **options)


class Doubled(Plain):
    """Features of float64, whose sizes are watched."""

    def forward(self, x):
        return super().forward(x.double())


@pytest.mark.usefixtures("queued")
def test_no_batch_of_float64_features_asks_anything(monkeypatch):
    assert not asked(monkeypatch, seeded(Doubled).double().eval())


def test_on_the_cpu_the_same_test_sees_what_is_asked(monkeypatch):
    with watched() as asks:
        bool(torch.ones(()))
    assert "__bool__" in asks
    everything = {"aten._local_scalar_dense.default", "__float__", "tolist"}
    assert everything == {*asked(monkeypatch, seeded(Plain).eval())}
    monkeypatch.undo()
    assert {"__float__", "tolist"} <= {*asked(monkeypatch, seeded(Doubled).double().eval())}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_queued_numbers_are_the_same(options, queued):
    late = [POINTS[3], *POINTS[:3], *POINTS[4:]]
    queued_profile = pfc.measure(seeded(Plain), late, progress=False, **options)
    SYNCHRONOUS_DEVICES.add("cpu")
    profile = pfc.measure(seeded(Plain), late, progress=False, **options)
    assert queued_profile.table().equals(profile.table())
    assert queued_profile.accuracy == profile.accuracy
    for a, b in zip(queued_profile.segments, profile.segments, strict=True):
        for name, array in a.arrays().items():
            torch.testing.assert_close(array, b.arrays()[name], rtol=0, atol=0, equal_nan=True)


def test_what_waits_on_a_device_is_decided_before_it_is_much(queued, monkeypatch):
    H, y = problems.features(1)
    spans = {name: MeansSpan.of(ClassMoments.of(H * s, y)) for name, s in (("a", 1), ("b", 2))}
    decisions, labels = about(spans), BatchLabels.of(y)
    (line,) = decisions.lines.values()
    known = LineCrossings(*spans.values())
    monkeypatch.setattr(
        "pfc.measuring.decisions.QUEUED",
        2 * len(y) * sum(span.basis.shape[1] * 2 for span in spans.values()),
    )
    found = []
    for number in range(3):
        with decisions.batch(labels, number) as seen:
            seen.see("a", H)
            seen.see("b", H * 2)
        found.append(line.samples // len(y))
    assert found == [0, 0, 2]
    decisions.settle()
    SYNCHRONOUS_DEVICES.add("cpu")
    z = [project(H * s, span, known.bases) for s, span in zip((1, 2), spans.values(), strict=True)]
    for _ in range(3):
        known.update(*z, y)
    for end, curve in known.curves().items():
        assert line.curves()[end].starts.equal(curve.starts)
        assert line.curves()[end].samples == curve.samples


class Breaks(nn.Module):
    """Infinite at samples that hold a mark."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def forward(self, x):
        return x.where(x != self.mark, math.inf)


@pytest.mark.usefixtures("queued")
@pytest.mark.parametrize("look", [1, 2, 64])
def test_what_is_not_finite_is_told_late_but_by_its_layer_and_batch(look, monkeypatch):
    """Layer a breaks on batch 3, and so all after it; the last layer alone has broken on batch 1."""
    monkeypatch.setattr(passes, "LOOK", look)
    parts = {"a": Breaks(77), "b": nn.Identity(), "c": Breaks(78)}
    data = [(x.clone(), y) for x, y in POINTS]
    data[3][0][4, 5], data[1][0][0, 0] = 77, 78
    with pytest.raises(ValueError, match=r"layer 'c' gave NaN or infinite features on batch 1"):
        pfc.measure(seeded(lambda: Net(parts, width=6)), data, progress=False)


# On a device


class Strict:
    """Batches between the first and the last of which a wait for the device is an error."""

    classes = 3

    def __iter__(self):
        try:
            for number, batch in enumerate(POINTS):
                if number == 1:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_batch_waits_for_the_device(options):
    model = seeded(Plain).cuda()
    got = pfc.measure(model, Strict(), progress=False, **options).table()
    want = pfc.measure(model, POINTS, progress=False, **options).table()
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.gpu
def test_tensor_float_32_touches_features_alone(monkeypatch):
    """Statistics of stored features are the CPU's, whatever float32 products may round to."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(500, 64, generator=g).cuda() for _ in range(2))
    rounded = (a @ b.mT).double() - a.double() @ b.double().mT
    if rounded.abs().max() < 1e-4:
        pytest.skip("this device has no TensorFloat-32")
    data = batched(*samples(300, (64,)), 50)
    for dtype in (torch.float32, torch.bfloat16):
        rows = [(torch.round(x * 64).to(dtype) / 64, y) for x, y in data]  # exact in every type
        net = nn.Sequential(nn.Identity(), nn.ReLU())
        there = pfc.measure(net, rows, device="cuda", progress=False).table()
        np.testing.assert_allclose(
            there, pfc.measure(net, rows, device="cpu", progress=False).table(), rtol=1e-11
        )
