"""A monitor reads the training steps' own features, exactly, and training does not notice."""

import math
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfc
from pfc import Monitor
from pfc.measuring import monitor as monitoring
from tests.models import Net, Plain, batched, randomised, samples, seeded
from tests.oracles import naive_moments
from tests.test_taps import hooks, lived_in, state

X, Y = samples(60)
POINTS = batched(X, Y)
IMAGES = batched(*samples(35, (3, 16, 16)), 12)


def fc_resnet():
    return seeded(lambda: randomised(pfc.FCResNet(6, 3, width=8, blocks=3)))


def conv_resnet():
    return seeded(lambda: randomised(pfc.ConvResNet(3, (16, 16), 3, blocks=(2, 1), width=2)))


def step(monitor, model, x, y, times=1):
    with monitor.batch(y):
        for _ in range(times):
            model(x)


def run(monitor, model, data):
    for x, y in data:
        step(monitor, model, x, y)
    return monitor.profile()


def trained(model, data, monitor=None, epochs=2, precision=None):
    """Train in place; the losses, and the profile of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, profiles = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for _ in range(epochs):
            for x, y in data:
                optimizer.zero_grad()
                with torch.autocast("cpu", precision, enabled=precision is not None):
                    if monitor is None:
                        logits = model(x)
                    else:
                        with monitor.batch(y):
                            logits = model(x)
                loss = F.cross_entropy(logits.float(), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            profiles += [] if monitor is None else [monitor.profile()]
    return losses, profiles


@pytest.mark.parametrize("make", [fc_resnet, conv_resnet])
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("weighting", ["class", "sample"])
@pytest.mark.parametrize("group", [1, 200, 2**20], ids=["alone", "some", "all"])
def test_of_a_resting_network_it_is_one_pass_of_measure(make, segments, weighting, group, monkeypatch):
    """To the bit where no step waits for another, else to rounding."""
    monkeypatch.setattr(monitoring, "GROUP", group)
    exact = 0 if group == 1 else 1e-12
    model = make().eval()
    data = POINTS if make is fc_resnet else IMAGES
    options = dict(segments=segments, weighting=weighting)
    profile = run(Monitor(model, **options), model, data)
    known = pfc.measure(model, data, passes=1, progress=False, **options)
    np.testing.assert_allclose(profile.table(), known.table(), rtol=exact)
    assert profile.about == {**known.about, "watched": True}
    for name in known.layers:
        a, b = profile.moments[name].scatter, known.moments[name].scatter
        torch.testing.assert_close(a, b, rtol=exact, atol=0)
    for a, b in zip(profile.segments, known.segments, strict=True):
        for name, array in a.arrays().items():
            mine, its = array, b.arrays()[name]
            if name == "means" and exact:  # in coordinates that rounding may turn
                mine, its = (M.flatten(0, 1) @ M.flatten(0, 1).mT for M in (mine, its))
            torch.testing.assert_close(mine, its, rtol=10 * exact, atol=10 * exact, equal_nan=True)


@pytest.mark.parametrize("make", [lived_in, fc_resnet])
def test_training_does_not_notice(make):
    """Same losses, weights, running statistics and dropout, bit for bit; no hook is left."""
    plain, watched = seeded(make).train(), seeded(make).train()
    known, _ = trained(plain, POINTS)
    losses, profiles = trained(watched, POINTS, Monitor(watched))
    assert losses == known
    assert state(watched)["tensors"] == state(plain)["tensors"]
    assert state(watched)["grads"] == state(plain)["grads"]
    assert hooks(watched) == hooks(plain)
    assert [p.about["samples"] for p in profiles] == [len(Y)] * 2
    assert watched.training


def test_the_features_are_the_steps_own():
    """Of a network whose weights move, in training mode: what plain hooks saw in the same steps."""
    model, rows = seeded(lived_in).train(), {"a": [], "norm": [], "drop": [], "b": []}
    for name, kept in rows.items():
        model.get_submodule(name).register_forward_hook(
            lambda _m, _x, out, kept=kept: kept.append(out.detach().clone()) if model.training else None
        )
    _, (first, second) = trained(model, POINTS, Monitor(model, layers=[*rows]))
    half = len(POINTS)
    for profile, batches in ((first, slice(0, half)), (second, slice(half, None))):
        for name, kept in rows.items():
            count, mean, scatter = naive_moments(torch.cat(kept[batches]), Y, 3)
            np.testing.assert_array_equal(profile.moments[name].count, count)
            np.testing.assert_allclose(profile.moments[name].mean, mean.astype(float), rtol=1e-10)
            np.testing.assert_allclose(profile.moments[name].scatter, scatter.astype(float), rtol=1e-10)


def test_under_autocast_the_features_are_read_as_they_come():
    model, rows = fc_resnet(), []
    model.blocks[0].f[0].register_forward_hook(lambda _m, _x, out: rows.append(out.detach().clone()))
    monitor = Monitor(model, layers="blocks.0.f.0")
    _, (profile,) = trained(model, POINTS, monitor, epochs=1, precision=torch.bfloat16)
    kept = rows[1:]  # without the first look, which is under no autocast
    assert {H.dtype for H in kept} == {torch.bfloat16}
    _, mean, _ = naive_moments(torch.cat(kept).double(), Y, 3)
    np.testing.assert_allclose(profile.moments["blocks.0.f.0"].mean, mean.astype(float), rtol=1e-12)


def test_the_first_look_is_the_only_extra_work():
    calls, model = [], fc_resnet()
    model.register_forward_hook(lambda _m, x, _out: calls.append(len(x[0])))
    monitor = Monitor(model)
    run(monitor, model, POINTS)
    run(monitor, model, POINTS)
    assert calls == [2, *[len(y) for _, y in POINTS] * 2]


def test_an_input_that_is_written_over_is_left_alone_by_the_first_look():
    class Doubles(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    model = seeded(lambda: Net({"a": Doubles(), "b": nn.Tanh()}, width=6)).eval()
    x = X[:10].clone()
    with Monitor(model).batch(Y[:10]):
        model(x)
    assert x.equal(2 * X[:10])


def test_forward_passes_outside_a_block_are_not_seen():
    model = fc_resnet().eval()
    monitor = Monitor(model)
    for x, y in POINTS:
        with monitor.batch(y):
            model(x)
        model(x + 1)
        assert not hooks(model)
    known = pfc.measure(model, POINTS, passes=1, progress=False)
    np.testing.assert_allclose(monitor.profile().table(), known.table(), rtol=1e-12)


def test_labels_may_be_lists_and_classes_may_come_late():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())).eval()
    order = torch.argsort(Y)
    data = [(x, y.tolist()) for x, y in batched(X[order], Y[order])]
    profile = run(Monitor(model), model, data)
    assert profile.about["classes"] == 3
    known = pfc.measure(model, batched(X[order], Y[order]), passes=1, progress=False)
    np.testing.assert_allclose(profile.table(), known.table(), rtol=1e-12)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="aot_eager")])
def test_wrapped_and_compiled_networks_are_looked_through(wrap):
    torch._dynamo.reset()
    plain = seeded(Plain).eval()
    model = wrap(seeded(Plain).eval())
    profile = run(Monitor(model), model, POINTS)
    assert profile.table().equals(run(Monitor(plain), plain, POINTS).table())
    torch._dynamo.reset()


def test_a_batch_that_fails_loses_what_was_gathered_and_nothing_else():
    model = seeded(lived_in)
    monitor = Monitor(model)
    with monitor.batch(POINTS[0][1]):
        model(POINTS[0][0])
    with pytest.raises(ValueError, match="ran twice"):
        step(monitor, model, *POINTS[1], times=2)
    assert not hooks(model)
    with pytest.raises(ValueError, match="no batch was seen since the last profile: run the network"):
        monitor.profile()
    for x, y in POINTS[:2]:
        with monitor.batch(y):
            model(x)
    assert monitor.profile().about["samples"] == 20


class Breaks(nn.Module):
    """Gives no number at samples that hold a mark."""

    def forward(self, x):
        return x.where(x != 77, math.nan)


@pytest.mark.parametrize("group", [1, 700, 2**20], ids=["alone", "some", "all"])
def test_what_is_not_finite_is_told_at_the_profile(group, monkeypatch):
    """A number that is not finite shall not end a training run."""
    monkeypatch.setattr(monitoring, "GROUP", group)
    model = seeded(lambda: Net({"a": nn.Identity(), "breaks": Breaks()}, width=6))
    data = [(x.clone(), y) for x, y in POINTS]
    data[3][0][4, 5] = 77
    monitor = Monitor(model)
    with pytest.raises(ValueError, match=r"layer 'breaks' gave NaN or infinite features on batch 3"):
        run(monitor, model, data)
    assert run(monitor, model, POINTS).about["samples"] == len(Y)


def test_wrong_use_is_refused():
    model = fc_resnet()
    x, y = POINTS[0]
    monitor = Monitor(model)
    with pytest.raises(ValueError, match="the network did not run in the block of batch 0"):
        step(monitor, model, x, y, times=0)
    with pytest.raises(ValueError, match=r"layer 'stem' ran twice in one forward pass"):
        step(monitor, model, x, y, times=2)
    step(monitor, model, x, y)
    with pytest.raises(ValueError, match="the network did not run in the block of batch 1"):
        step(monitor, model, x, y, times=0)
    with pytest.raises(ValueError, match=r"gave shape \(10, 8\) on batch 0 of 7 samples"):
        step(monitor, model, x, y[:7])
    with pytest.raises(ValueError, match="labels of batch 0 must be integer class indices"):
        step(monitor, model, x, y.float())
    with pytest.raises(ValueError, match="batch 0 has the label 3, but there are 3 classes"):
        step(monitor, model, x, y + 1)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        Monitor(model, classes=1)
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got str"):
        unwrap(Monitor.__init__)(monitor, "net")
    with pytest.raises(ValueError, match="need samples of at least 2 classes, got 1"):
        run(monitor, model, [(x, 0 * y)])
    assert not hooks(model)


def batch_5_is_refused():
    """Its float64 features are too large to be squared beside those before."""
    model = seeded(lambda: Net({"a": nn.Identity()}, width=6)).double()
    data = [(x.double(), y) for x, y in batched(X, Y, 7)]
    data[5] = (data[5][0] * 1e170, data[5][1])
    match = r"layer 'a' gave features of .*e\+170 on batch 5, the first were near 1: float64 cannot"
    with pytest.raises(ValueError, match=match):
        run(Monitor(model, segments=False), model, data)


@pytest.mark.parametrize("group", [1, 700, 2**20], ids=["alone", "some", "all"])
def test_the_batch_that_is_named_is_the_one_that_was_bad(group, monkeypatch):
    """Float64 features that grow beyond what squares can hold, in a step that waited for others."""
    monkeypatch.setattr(monitoring, "GROUP", group)
    batch_5_is_refused()


@pytest.mark.parametrize("group", [1, 2**20], ids=["alone", "all"])
def test_on_a_device_with_a_queue_the_batch_and_the_cause_are_right_too(group, monkeypatch):
    """The CPU is treated as one: nothing is asked of it before the profile."""
    monkeypatch.setattr(monitoring, "GROUP", group)
    for module in ("device", "labels", "measuring.scale"):
        monkeypatch.setattr(f"pfc.{module}.SYNCHRONOUS_DEVICES", set())
    batch_5_is_refused()
