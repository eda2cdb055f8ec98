"""Memory formats, autocast, compilers: the numbers are those of the features as they come."""

from contextlib import contextmanager
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from pfc.measuring import opening
from tests.models import Plain, batched, randomised, samples, seeded
from tests.oracles import naive_row

IMAGES = batched(*samples(35, (3, 16, 16)), 12)
POINTS = batched(*samples())
Y = torch.cat([y for _, y in IMAGES])
LAST = torch.channels_last


def measured(model, data, **options):
    return pfc.measure(model, data, progress=False, **options)


def conv_resnet():
    return seeded(lambda: randomised(pfc.ConvResNet(3, (16, 16), 3, blocks=(2, 1), width=2)))


def in_channels_last(batches):
    return [(x.to(memory_format=LAST), y) for x, y in batches]


class Shown(nn.Module):
    """Images, and something made of them, in a memory format."""

    def __init__(self, memory_format):
        super().__init__()
        self.a, self.b, self.memory_format = nn.Identity(), nn.Identity(), memory_format

    def forward(self, x):
        x = self.a(x.contiguous(memory_format=self.memory_format))
        self.b((x * x.abs()).contiguous(memory_format=self.memory_format))


def test_the_memory_format_of_features_changes_no_number():
    contiguous, last = (measured(Shown(f), IMAGES) for f in (torch.contiguous_format, LAST))
    np.testing.assert_allclose(last.table(), contiguous.table(), rtol=1e-12)
    for name in last.layers:
        assert last.moments[name].mean.equal(contiguous.moments[name].mean)
    assert last.segment().line(0.5).pfc3.equal(contiguous.segment().line(0.5).pfc3)


def test_a_network_in_channels_last_gives_the_same_numbers():
    formats = []
    model = conv_resnet().double().to(memory_format=LAST)
    data = [(x.double(), y) for x, y in IMAGES]
    model.stages[0].register_forward_hook(lambda _m, _x, out: formats.append(out.is_contiguous()))
    got = measured(model, in_channels_last(data)).table()
    assert not any(formats)
    np.testing.assert_allclose(got, measured(conv_resnet().double(), data).table(), rtol=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_under_autocast_the_numbers_are_those_of_its_features(precision):
    """Against plain hooks under the user's own autocast, in the naive formulas."""
    model, dtypes = conv_resnet(), set()
    profile = measured(model, IMAGES, precision=precision)
    kept = {name: [] for name in profile.layers[:-1]}  # the last is the classifier's input
    for name, rows in kept.items():
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _m, _x, out, rows=rows: rows.append(out.flatten(1)))
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision)):
        for x, _ in IMAGES:
            model.eval()(x)
    for name, rows in kept.items():
        dtypes.update(row.dtype for row in rows)
        row = naive_row(torch.cat(rows).double().numpy(), Y.numpy())
        for column in ("pfc1", "pfc2", "pfc3", "nc1", "nc2_angle", "cdnv"):
            got = profile.table().loc[name, column]
            assert got == pytest.approx(row[column], rel=1e-9), (name, column)
    assert getattr(torch, precision) in dtypes
    assert profile.about["precision"] == precision
    plain = measured(conv_resnet(), IMAGES)
    assert plain.about["precision"] is None
    assert 1e-6 < np.nanmax((profile.table()["pfc1"] / plain.table()["pfc1"] - 1).abs()) < 0.05


def test_precision_is_said_by_the_call_and_not_by_what_is_around_it():
    want = measured(conv_resnet(), IMAGES, precision="bfloat16").table()
    with torch.autocast("cpu", torch.float16):
        assert measured(conv_resnet(), IMAGES, precision="bfloat16").table().equals(want)
        assert torch.get_autocast_dtype("cpu") == torch.float16


def test_an_autocast_of_the_networks_own_stays():
    class Own(pfc.ConvResNet):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    own = Own(3, (16, 16), 3, blocks=(2, 1), width=2)
    own.load_state_dict(conv_resnet().state_dict())
    want = measured(conv_resnet(), IMAGES, precision="bfloat16").table()
    assert measured(own, IMAGES).table().equals(want)


def test_features_are_collected_in_the_precision_that_was_measured():
    model = conv_resnet()
    found, _ = pfc.features(model, IMAGES, precision="bfloat16", progress=False)
    assert {H.dtype for H in found.values()} >= {torch.bfloat16}
    profile = measured(model, IMAGES, precision="bfloat16")
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    pfc.measuring.transport(model, IMAGES, profile, exact=20, progress=False)
    assert seen
    assert all(seen)


def test_an_unknown_precision_is_refused(monkeypatch):
    # the types are checked in tests only, and would refuse it before pfc does
    monkeypatch.setattr(opening, "undisturbed", contextmanager(unwrap(opening.undisturbed)))
    monkeypatch.setattr(opening.Asked, "__init__", unwrap(opening.Asked.__init__))
    with pytest.raises(ValueError, match="precision must be None, 'bfloat16' or 'float16', got 'half'"):
        unwrap(pfc.measure)(conv_resnet(), IMAGES, precision="half", progress=False)


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["whole", "child", "in place"])
def test_compiled_networks_give_the_same_bits(backend, part):
    """Whole, a child alone, or in place; before and after the first compiled call."""
    torch._dynamo.reset()
    plain, model = seeded(Plain).eval(), seeded(Plain).eval()
    if part == "whole":
        model = torch.compile(model, backend=backend)
    elif part == "child":
        model.blocks[1] = torch.compile(model.blocks[1], backend=backend)
    else:
        model.compile(backend=backend)
    want = measured(plain, POINTS).table()
    assert measured(model, POINTS).table().equals(want)
    with torch.no_grad():
        torch.testing.assert_close(model(POINTS[0][0]), plain(POINTS[0][0]))
    assert measured(model, POINTS).table().equals(want)
    torch._dynamo.reset()
