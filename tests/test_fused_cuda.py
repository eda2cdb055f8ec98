"""The loops for CUDA devices: in Triton's interpreter, which needs none, and on a device."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch

import pfc
from pfc import fused
from pfc.labels import BatchLabels
from pfc.moments import ClassMoments, SegmentMoments
from pfc.nearest import project
from pfc.span import MeansSpan
from tests import problems
from tests.models import Plain, batched, samples, seeded
from tests.oracles import naive_moments

F64 = torch.float64


@pytest.fixture(scope="module")
def cuda():
    """The loops in the interpreter, on tensors of the processor."""
    pytest.importorskip("triton", reason="no triton here, whose interpreter runs the loops")
    if torch.cuda.is_available():
        pytest.skip("the loops are compiled for the device here")
    return importlib.import_module("pfc.fused.cuda")


@pytest.fixture
def interpreted(cuda, monkeypatch):
    for place in ("pfc.moments.loops_for", "pfc.nearest.loops_for"):
        monkeypatch.setattr(place, lambda batch: cuda)
    return cuda


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", fused.processor.TYPES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments_equal_their_naive_twin(dtype, offset):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (40,), generator=g)
    H = (torch.randn(40, 133, generator=g) + offset).to(dtype)
    found = ClassMoments.empty(4, 133)
    for rows in torch.arange(40).split(11):
        found.update(H[rows], BatchLabels.of(y[rows]))
    count, mean, scatter = naive_moments(H.double(), y, 4)
    np.testing.assert_array_equal(found.count, count)
    np.testing.assert_allclose(found.mean + found.mean_error, mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_segments_are_those_of_the_slow_twin(interpreted, monkeypatch, depth):
    H, y = problems.features(3, N=20, D=21, K=3)
    layers = [H * (l + 1) ** 0.5 + l for l in range(depth)]
    layers[0] = layers[0].mT.contiguous().mT
    layers[1] = layers[1].float()

    def moments():
        found = SegmentMoments.empty(depth, 3, 21)
        grams = [
            found.update([layer[part] for layer in layers], BatchLabels.of(y[part]))
            for part in (slice(0, 13), slice(13, 20))
        ]
        return [*grams, found.cross, found.steps, *(layer.scatter for layer in found.layers)]

    by_loops = moments()
    monkeypatch.setattr("pfc.moments.loops_for", lambda batch: None)
    for found, known in zip(by_loops, moments(), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("K", [2, 5, 9])
def test_projections_are_those_of_the_slow_twin(interpreted, monkeypatch, K):
    H, y = problems.features(4, N=30, D=140, K=K)
    H = (H + 50).half()
    span = MeansSpan.of(ClassMoments.of(H, y))
    found = project(H, span, span.basis)
    monkeypatch.setattr("pfc.nearest.loops_for", lambda batch: None)
    torch.testing.assert_close(found, project(H, span, span.basis), rtol=1e-11, atol=1e-11)


def test_a_whole_profile(interpreted, monkeypatch):
    net, data = seeded(Plain), batched(*samples(30), 16)

    def columns():
        return pfc.measure(net, data, layers=["stem", "blocks.*"], progress=False).columns

    found = columns()
    for place in ("pfc.moments.loops_for", "pfc.nearest.loops_for"):
        monkeypatch.setattr(place, lambda batch: None)
    for name, known in columns().items():
        assert found[name] == pytest.approx(known, rel=1e-10, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize(
    "wrong",
    [
        lambda project, H, centre, flat, z: project(H, centre, flat, z).float().double(),
        lambda project, H, centre, flat, z: project(H, centre, flat),
    ],
    ids=["rounds", "overwrites"],
)
def test_a_device_that_does_not_come_to_the_same_is_refused(cuda, monkeypatch, wrong):
    cuda.check("cpu")
    monkeypatch.setattr(cuda, "project", partial(wrong, cuda.project))
    with pytest.raises(ArithmeticError, match="off by"):
        cuda.check("cpu")


def test_where_a_device_fails_torch_serves(cuda, monkeypatch):
    def fails(device):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(cuda, "check", fails)
    fused._tried.cache_clear()
    with pytest.warns(UserWarning, match=r"torch serves instead \(RuntimeError: no such instruction\)"):
        assert fused._on_cuda() is None
    fused._tried.cache_clear()


def test_many_layers_at_once_are_left_to_torch(cuda, monkeypatch):
    monkeypatch.setattr(fused, "_tried", lambda: cuda)
    assert fused._on_cuda(cuda.DEEPEST) is cuda
    assert fused._on_cuda(cuda.DEEPEST + 1) is None


@pytest.mark.gpu
def test_on_a_device_the_numbers_are_those_of_the_processor():
    H, y = problems.features(5, N=300, D=1000, K=6)
    for dtype in (torch.float32, torch.bfloat16):
        layers = {"a": H.to(dtype), "b": H.sin().to(dtype)}
        assert fused._on_cuda() is not None
        there = {name: X.cuda() for name, X in layers.items()}
        found, known = (pfc.measure_features(X, y, progress=False).columns for X in (there, layers))
        for name, values in known.items():
            assert found[name] == pytest.approx(values, rel=1e-9, abs=1e-11, nan_ok=True), name
