"""The linear probe of each layer: what it reads, that it is streamed, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from pfc.cli import main
from pfc.measuring import cost, probe
from tests import problems
from tests.models import Net, batched, samples, seeded
from tests.oracles import naive_probe
from tests.test_cli import refused


class Maps(nn.Module):
    """Gives maps of three channels, then their mean."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.taps = ("conv",)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def maps():
    x, y = samples(n=61, shape=(1, 5, 5), dtype=torch.float64)
    return seeded(Maps).double(), (x[:40], y[:40]), (x[40:], y[40:])


def test_maps_are_averaged_and_batches_of_any_size_give_the_same():
    model, train, apart = maps()
    found = [
        pfc.measure(
            model, batched(*train, size), layers="conv", probe=batched(*apart, 8), progress=False
        )
        for size in (7, 40)
    ]
    with torch.no_grad():
        H, X = (model.conv(x).mean((2, 3)).numpy() for x, _ in (train, apart))
    known = naive_probe(H, train[1].numpy(), X, apart[1].numpy())
    assert [p.columns["probe"] for p in found] == [(known,), (known,)]
    assert found[0].about["probe"] == "other data, 21 samples"
    assert found[0].about["penalties"]["conv"] in probe.PENALTIES
    assert "probe" in str(found[0]).splitlines()[1]


def test_tokens_are_averaged_over_their_length():
    x, y = samples(n=50, shape=(4, 6), dtype=torch.float64)
    net = seeded(lambda: Net({"mix": nn.Linear(6, 5), "flat": nn.Flatten()}, width=20)).double()
    data, apart = batched(x[:35], y[:35]), batched(x[35:], y[35:])
    found = pfc.measure(net, data, layers=["mix"], probe=apart, progress=False)
    with torch.no_grad():
        H = net.mix(x).mean(1).numpy()
    known = naive_probe(H[:35], y[:35].numpy(), H[35:], y[35:].numpy())
    assert found.columns["probe"] == (known,)


def test_without_data_there_is_no_column_and_why_is_said(tmp_path):
    model, train, apart = maps()
    plain = pfc.measure(model, batched(*train), progress=False)
    assert "probe" not in plain.columns
    assert "probe" not in plain.about
    with pytest.raises(ValueError, match="probe was not measured; it needs held-out data, as probe="):
        plain.tau("probe")
    probed = pfc.measure(model, batched(*train), probe=batched(*apart), progress=False)
    for name, values in plain.columns.items():
        np.testing.assert_array_equal(probed.columns[name], values)
    probed.save(tmp_path / "p.json")
    assert pfc.load(tmp_path / "p.json").columns["probe"] == probed.columns["probe"]


def test_a_class_without_samples_is_never_answered():
    H, y = problems.features(1, N=40, D=3, K=3)
    y = torch.where(y == 1, 3, y)
    with pytest.warns(match="no sample"):
        found = pfc.measure_features({"h": H}, y, probe=({"h": H + 1e-6}, y), progress=False)
    dense = torch.unique(y, return_inverse=True)[1]
    known = naive_probe(H.numpy(), dense.numpy(), H.numpy() + 1e-6, dense.numpy())
    assert found.columns["probe"][0] == known


def test_features_beyond_float64s_squares_are_probed():
    H, y = problems.features(4, N=50, D=4, K=3)
    apart = (H[:20] + 0.1, y[:20])
    near, far = (
        pfc.measure_features({"h": s * H}, y, probe=({"h": s * apart[0]}, apart[1]), progress=False)
        for s in (1.0, 2.0**600)
    )
    assert near.columns["probe"] == far.columns["probe"]


def test_data_that_can_not_be_held_out_are_refused():
    model, train, apart = maps()

    def refuse(match, held=apart, **how):
        with pytest.raises(ValueError, match=match):
            pfc.measure(model, batched(*train), probe=batched(*held), progress=False, **how)

    refuse("40 of 40 samples of probe= are among the measured ones: give held-out samples", train)
    refuse("9 of 9 samples of probe= are among", (train[0][:9], train[1][:9]))
    refuse(
        f"9 of {9 + len(apart[1])} samples of probe= are among",
        (torch.cat([train[0][:9], apart[0]]), torch.cat([train[1][:9], apart[1]])),
    )
    refuse("has samples of class 7, of which the measured data have none", (apart[0], apart[1] * 0 + 7))
    profile = pfc.measure(model, batched(*train), progress=False)
    refuse("probe= goes without means=", means=profile)
    refuse("probe= goes without pool='tokens'", pool="tokens")
    H, y = problems.features(0)
    for held, match in (
        (({"g": H}, y), "must be of the same layers and shapes, 'h'; got 'g'"),
        (({"h": H[:, :3]}, y), "must be of the same layers and shapes"),
    ):
        with pytest.raises(ValueError, match=match):
            pfc.measure_features({"h": H}, y, probe=held, progress=False)


def test_data_that_do_not_fit_are_refused_before_all_are_measured():
    model, train, apart = maps()
    read = []
    data = [(x, y) for x, y in batched(*train, 10)]

    class Counted:
        def __iter__(self):
            for batch in data:
                read.append(1)
                yield batch

    for held, match in (
        ((part for part in ()), "one-shot iterator"),
        ([], "no batch"),
        ([(apart[0][:, :, :2], apart[1])], "failed in layer 'conv' on batch 0"),
        ([(apart[0], apart[1] - 5)], "must not be negative"),
    ):
        read.clear()
        with pytest.raises(ValueError, match=match):
            pfc.measure(model, Counted(), probe=held, progress=False)
        assert len(read) <= 1, "no more than the first look"
    bad = apart[0].clone()
    bad[3] = torch.nan
    with pytest.raises(ValueError, match="'conv' gave NaN or infinite features on batch 0 of probe="):
        pfc.measure(model, data, probe=[(bad, apart[1])], layers="conv", progress=False)


def test_layers_too_wide_and_many_processes_are_refused():
    from pfc.measuring.layout import Layout

    wide = Layout({"a": (64, 8, 8), "b": (30_000,)})
    with pytest.raises(ValueError, match=r"6.71 GiB, .* 'b' has 30000 numbers a sample after pooling"):
        probe.check_room(wide)
    probe.check_room(Layout({"maps": (2048, 100, 100)}))
    with pytest.raises(ValueError, match="probe= is for one process, and 3 measure"):
        probe.check_room(wide, 3)


def test_its_cost_is_that_of_its_state():
    shapes, K = [(6, 4, 4), (5, 7), (9,)], 3
    more = cost(shapes, K, probe=True).state - cost(shapes, K).state
    assert more == 8 * sum(D * D + K * D for D in (6, 7, 9))


def test_the_command_probes_on_the_split_kept_apart(tmp_path, capsys):
    small = ["--epochs", "1", "--width", "8", "--blocks", "2", "--limit", "200"]
    main(["train", "digits", "--split", "fit", "--out", str(tmp_path / "run"), *small])
    out = tmp_path / "p.json"
    main(["measure", str(tmp_path / "run"), "--probe", "--out", str(out)])
    kept = pfc.load(out)
    assert kept.about["probe"] == "digits (held-out), 359 samples"
    assert kept.columns["probe"][-1] > 0.5
    assert "probe" not in pfc.load(tmp_path / "p-held-out.json").columns
    said = refused(capsys, "measure", tmp_path / "run", "--split", "held-out", "--probe")
    assert "--probe needs a split that is kept apart, and there is none beside 'held-out'" in said
    said = refused(capsys, "measure", tmp_path / "run", "--means", "held-out", "--probe")
    assert "--probe goes without --means" in said
    np.savez(tmp_path / "f.npz", a=np.eye(4), y=np.arange(4) % 2)
    said = refused(capsys, "measure", tmp_path / "f.npz", "--labels", "y", "--probe")
    assert "--probe belongs to a model and its data" in said
