"""Early exits: margins and answers by loops, what is computed and what is not, calibration, refusals."""

import copy
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pfc
from pfc.acting.exits import EarlyExit
from pfc.acting.heldout import dealt
from pfc.intervals import of_change
from tests.acting import batches, hooks_of, parts, resnet, trained, vit

THRESHOLDS = (0.0, 0.2, 0.5, 0.9)


@pytest.fixture(scope="module", params=["dense", "conv"])
def early(request):
    net, profile = trained(request.param)
    return EarlyExit(net, profile)


def held():
    images = parts()[1]
    return images.normalised().double(), images.labels


def naive(early, x):
    """Margins, nearest classes and negated squared distances at each exit, and the network's logits."""
    rows, _ = pfc.features(
        early.network, [(x, torch.zeros(len(x)).long())], early.layers, progress=False
    )
    found = []
    for name in early.layers:
        M = early.profile.moments[name].mean
        distances = ((rows[name].flatten(1)[:, None] - M) ** 2).sum(2)
        two, k = distances.sort(1)
        margin = (two[:, 1] - two[:, 0]) / (two[:, 1] + two[:, 0])
        found.append((margin, k[:, 0], -distances))
    with torch.no_grad():
        return found, early.network(x)


def naive_logits(found, final, threshold):
    """Sample by sample: the first exit whose margin exceeds the threshold, else the network."""
    logits, places = [], []
    for i, own in enumerate(final):
        at = next((l for l, (m, _, _) in enumerate(found) if m[i] > threshold), len(found))
        logits.append(own if at == len(found) else found[at][2][i])
        places.append(at)
    return torch.stack(logits), torch.tensor(places)


def test_an_infinite_threshold_gives_the_network_to_the_last_bit(early):
    x, _ = held()
    early.threshold = math.inf
    assert torch.equal(early(x), early.network(x))


@pytest.mark.parametrize("make", [vit, resnet])
def test_of_networks_of_transformers_it_gives_the_logits(make):
    net, few = make(), parts()[1].normalised(slice(9))
    profile = pfc.measure(net, parts()[0].rows(torch.arange(60)).batches(), progress=False)
    assert torch.equal(EarlyExit(net, profile)(few), net(few).logits)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_each_sample_exits_where_a_loop_says(early, threshold):
    x, _ = held()
    found, final = naive(early, x)
    logits, places = naive_logits(found, final, threshold)
    early.threshold = threshold
    with torch.no_grad():
        torch.testing.assert_close(early(x), logits, rtol=1e-10, atol=1e-10)
        alone = torch.cat([early(x[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(alone, logits[:12], rtol=1e-10, atol=1e-10)
    seen = early._watched(batches(parts()[1]), progress=False)
    assert torch.equal(seen.place(threshold, torch.arange(len(x))), places)
    for l, (margin, k, _) in enumerate(found):
        torch.testing.assert_close(seen.margins[:, l], margin, rtol=1e-9, atol=1e-10)
        assert torch.equal(seen.nearest[:, l], k)


def test_it_really_stops():
    net, profile = trained()
    early, (x, _) = EarlyExit(net, profile, 0.3), held()
    found, final = naive(early, x)
    places = naive_logits(found, final, 0.3)[1]
    rows = {}
    for name in ("blocks.0", "blocks.3"):
        net.get_submodule(name).register_forward_hook(
            lambda _, args, __, name=name: rows.setdefault(name, []).append(len(args[0]))
        )
    early(x[:2])  # tried, once
    rows.clear()
    early(x)
    assert rows == {
        "blocks.0": [int((places > 0).sum())],
        "blocks.3": [int((places > 3).sum())],
    }
    rows.clear()
    first = int((places == 0).nonzero()[0])
    early(x[first : first + 1])
    assert rows == {}


def test_the_curve_is_what_running_gives(early):
    x, y = held()
    table = early.curve(batches(parts()[1]), [*THRESHOLDS, math.inf], progress=False)
    for threshold, row in table.iterrows():
        early.threshold = threshold
        with torch.no_grad():
            right = early(x).argmax(1) == y
        assert row.accuracy == right.double().mean().item()
        own = early.network(x).argmax(1) == y
        lost, won = int((own & ~right).sum()), int((right & ~own).sum())
        known = (0, 0) if math.isinf(threshold) else of_change(lost, won, len(y))
        assert (row.low, row.high) == known
    assert table.loc[math.inf, ["share", "early", "change"]].tolist() == [1, 0, 0]
    assert table.share[0.0] < table.share[0.9]
    assert table.early[0.0] == 1


def flops(net, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def test_operations_are_counted_by_running_each_sample(early):
    x, y = held()
    x, y = x[:8], y[:8]
    early.threshold = 0.4
    spent = sum(flops(early, x[i : i + 1]) for i in range(8)) / 8
    table = early.curve([(x, y)], [0.4], progress=False)
    assert table.share[0.4] == pytest.approx(spent / flops(early.network, x[:1]), rel=1e-12)


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.5])
def test_the_threshold_falls_while_one_half_allows_it(eps):
    (_, y), data = held(), batches(parts()[1])
    early = EarlyExit(*trained())
    found = early.calibrate(data, eps, seed=1, progress=False)
    choose, report = dealt(y, 2, seed=1)
    seen = early._watched(data, progress=False)
    threshold = math.inf
    for each in reversed(seen.thresholds(choose)):
        change = seen.change(each, choose)
        if change.low < -eps:
            break
        threshold = each
    assert found.threshold == early.threshold == threshold
    assert found.change == seen.change(threshold, report)
    assert found.chosen.low >= -eps
    assert found.share == seen.share(threshold, report)
    assert found.to_dict()["exits"].keys() == {*early.layers}
    assert ("no exit is" in str(found)) == math.isinf(threshold)
    assert (found.to_dict()["threshold"] is None) == math.isinf(threshold)
    assert ("180 samples to choose by are sure to 0.021 at best" in str(found)) == (eps == 0.02)
    if eps == 0.5:
        assert threshold == 0
        assert sum(found.exits.values()) == pytest.approx(1)


def test_it_falls_to_the_largest_margins_quantiles_only():
    net, profile = trained()
    seen = EarlyExit(net, profile)._watched(batches(parts()[1]), progress=False)
    every = torch.arange(len(seen.y))
    known = np.quantile(seen.margins.amax(1).numpy(), np.linspace(0, 1, 101))
    found = seen.thresholds(every)
    assert found[0] == 0
    assert found[-1] == math.inf
    np.testing.assert_allclose(found[1:-1], known, rtol=1e-12)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_transformers_exit_by_their_tokens(pool):
    net, x = vit(), parts()[1].normalised()
    profile = pfc.measure(net, parts()[0].batches(), pool=pool, progress=False)
    early = EarlyExit(net, profile, 0.1)
    out = early(x)
    rows, _ = pfc.features(net, [(x, parts()[1].labels)], [*early.layers], pool=pool, progress=False)
    found = []
    for name in early.layers:
        distances = torch.cdist(rows[name].double(), profile.moments[name].mean)
        two, k = distances.square().sort(1)
        found.append(((two[:, 1] - two[:, 0]) / (two[:, 1] + two[:, 0]), k[:, 0]))
    at = torch.stack([m for m, _ in found], 1) > 0.1
    first = at.byte().argmax(1)
    gone = at.any(1) & ((torch.stack([m for m, _ in found], 1) - 0.1).abs().amin(1) > 1e-4)
    answers = torch.stack([k for _, k in found], 1).gather(1, first[:, None])[:, 0]
    assert 20 < int(gone.sum()) < len(x)
    assert torch.equal(out.argmax(1)[gone], answers[gone])


def test_what_was_given_is_left(early):
    x, _ = held()
    early.threshold = 0.3
    before, hooks = copy.deepcopy(early.network.state_dict()), hooks_of(early.network)
    early(x)
    early.curve([(x[:50], held()[1][:50])], progress=False)
    with pytest.raises(RuntimeError):
        early(x[:, :, :3, :3].repeat(1, 2, 1, 1))
    assert hooks_of(early.network) == hooks == 0
    assert all(map(torch.equal, early.network.state_dict().values(), before.values()))
    again = EarlyExit(copy.deepcopy(early.network), early.profile, 0.3)
    again.load_state_dict(early.state_dict())
    assert torch.equal(again(x), early(x))


class Masked(nn.Module):
    """Blocks that read, beside their input, a tensor of all samples."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(64, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = x.flatten(1)
        gate, h = x[:, :1], self.stem(x)
        for block in self.blocks:
            h = h + torch.tanh(block(h)) * gate
        return self.fc(h)


def test_networks_whose_blocks_need_the_whole_batch_are_refused_by_name():
    net, x = Masked().eval(), parts()[1].normalised()
    profile = pfc.measure(net, parts()[0].batches(), layers=["stem", "blocks.*"], progress=False)
    early = EarlyExit(net, profile, 0.0)
    with pytest.raises(ValueError, match=r"Masked can't compute some .* exit at 'stem', the rest fail"):
        early(x)
    with pytest.raises(ValueError, match="give it one sample at a time"):
        early.calibrate(parts()[1].batches(), progress=False)
    assert early(x[:1]).shape == (1, 10)

    class Silent(Masked):
        def forward(self, x):
            return super().forward(x) + x.mean()  # of the whole batch, in the end

    class Mixed(Masked):
        def forward(self, x):
            h = self.stem(x.flatten(1))
            for block in self.blocks:
                h = h + block(h) + h.mean(0)
            return self.fc(h)

    mixed = Mixed().eval()
    profile = pfc.measure(mixed, parts()[0].batches(), layers=["stem", "blocks.*"], progress=False)
    with pytest.raises(ValueError, match="their logits change by"):
        EarlyExit(mixed, profile, 0.0)(x)


def test_arguments_without_meaning_are_refused(early):
    net, profile = early.network, early.profile

    def refused(match, *args, **how):
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(EarlyExit.__init__)(object.__new__(EarlyExit), *args, **how)

    refused("profile must be a Profile, as measure gives it, got str", net, "p")
    refused("keeps no class means", net, replace(profile, moments={}))
    for name, value, match in [
        ("means", "digits", "is itself about the means of digits"),
        ("pool", "tokens", "reduced by pool='tokens'"),
    ]:
        refused(match, net, replace(profile, about={**profile.about, name: value}))
    refused("none of Linear's", nn.Linear(2, 2), profile)
    refused("has 1 layer", net, replace(profile, layers=profile.layers[:1]))
    refused("threshold must be at least 0", net, profile, -0.1)
    refused("threshold must be at least 0", net, profile, math.nan)
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        early.threshold = -1.0
    with pytest.raises(ValueError, match=r"thresholds must be at least 0, got \[-1\.0\]"):
        early.curve(batches(parts()[1]), [-1.0], progress=False)
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\), got 1"):
        early.calibrate(batches(parts()[1]), 1.0, progress=False)
    x, y = held()
    with pytest.raises(ValueError, match="are of one class, 3"):
        early.calibrate([(x[y == 3], y[y == 3])], progress=False)
    training = EarlyExit(copy.deepcopy(net).train(), profile, 0.5)
    with pytest.raises(ValueError, match="evaluation mode alone"):
        training(x)
    narrow = copy.deepcopy(net)
    narrow.classifier = nn.Linear(narrow.classifier.in_features, 7).double()
    with pytest.raises(ValueError, match=r"logits of the profile's 10 classes, .* got shape \(\d+, 7\)"):
        EarlyExit(narrow, profile)(x)


@pytest.mark.parametrize("read", ["calibrate", "curve"])
def test_held_out_data_that_say_nothing_are_refused(read):
    (net, profile), (x, y) = trained(), held()
    early = EarlyExit(net, profile)

    def refused(match, *data, make=early):
        with pytest.raises(ValueError, match=match):
            getattr(make, read)([*data], progress=False)

    broken = torch.where(torch.arange(len(x))[:, None, None, None] == 7, math.nan, x)
    refused("layer 'stem' gave numbers that are NaN, .* on batch 1 of", (x[:5], y[:5]), (broken, y))
    refused("FCResNet failed in layer 'stem.0' on batch 1 of 359 samples: Ru", (x, y), (x[:, :, 1:], y))
    refused("are of one class, 3", (x[y == 3], y[y == 3]))
    refused("the label 10, but the network answers 10 classes", (x, y + 1))
    refused("are among the data that the profile was measured on", *batches(parts()[0]))
    hollow = copy.deepcopy(net)
    hollow.classifier.weight.data[:] = math.nan
    refused("FCResNet gave numbers that are NaN", (x, y), make=EarlyExit(hollow, profile))
    assert early.threshold == math.inf


def test_another_networks_profile_is_told_by_its_width(early):
    x, _ = held()
    wide = pfc.FCResNet(64, 10, width=16, blocks=4).double().eval()
    told = r"layer 'stem' has 16 numbers a sample, its class means have 24: the profile is another"
    other = EarlyExit(wide, trained()[1], 0.5)
    for size in (1, 5):
        with pytest.raises(ValueError, match=told):
            other(x[:size])
    with pytest.raises(ValueError, match=told):
        other.calibrate(batches(parts()[1]), progress=False)


def test_no_samples_give_no_logits(early):
    early.threshold = 0.3
    assert early(held()[0][:0]).shape == (0, 10)


def test_thresholds_that_are_none_or_no_numbers_are_refused():
    early, setter = EarlyExit(*trained()), inspect.unwrap(EarlyExit.threshold.fset)
    for value in (None, "a", True):
        with pytest.raises(ValueError, match=f"threshold must be at least 0, .* got {value!r}"):
            setter(early, value)
    for values, match in (
        ([], "thresholds are none: give one or more"),
        ([None], r"thresholds must be at least 0, got \[None\]"),
        ("a", "thresholds must be a sequence of numbers, got 'a'"),
    ):
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(EarlyExit.curve)(early, batches(parts()[1]), values, progress=False)


class Scaled(nn.Module):
    """Blocks that take away the mean of the batch, and logits of any size."""

    def __init__(self, scale, *, mixed):
        super().__init__()
        self.stem, self.blocks = nn.Linear(64, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.fc, self.scale, self.mixed = nn.Linear(8, 10), scale, mixed

    def forward(self, x):
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h) - (h.mean(0) if self.mixed else 0)
        return self.fc(h) * self.scale


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_trial_sees_in_the_units_of_the_logits(scale, kind):
    x = parts()[1].normalised().to(kind)
    for mixed in (True, False):
        torch.manual_seed(0)
        net = Scaled(scale, mixed=mixed).eval().to(kind)
        data = [(parts()[0].normalised().to(kind), parts()[0].labels)]
        profile = pfc.measure(net, data, layers=["stem", "blocks.*"], progress=False)
        early = EarlyExit(net, profile, 0.1)
        if mixed:
            with pytest.raises(ValueError, match="their logits change by"):
                early(x)
        else:
            assert early(x).shape == (len(x), 10)


def test_a_trial_of_nan_is_made_again():
    (net, profile), (x, _) = trained(), held()
    early = EarlyExit(net, profile, 0.2)
    early(x * math.nan)
    assert not early._tried
    early(x)
    assert early._tried


def test_the_threshold_is_kept_with_the_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    net, profile = trained()
    early = EarlyExit(net, profile, 0.3).float()
    for threshold in (0.3, math.inf):
        early.threshold = threshold
        save_file(early.state_dict(), tmp_path / "early.safetensors")
        again = EarlyExit(copy.deepcopy(net), profile, 0.9).float().bfloat16()
        again.load_state_dict(load_file(tmp_path / "early.safetensors"))
        assert again.threshold == threshold
    old = early.state_dict()
    del old["_extra_state"]
    for module in (again, nn.Sequential(again), copy.deepcopy(again)):
        again.threshold = 0.7
        known = {f"0.{k}": v for k, v in old.items()} if isinstance(module, nn.Sequential) else old
        module.load_state_dict(known)
    assert again.threshold == 0.7


def test_it_computes_in_the_precision_of_the_profile():
    fit, apart = parts()
    torch.manual_seed(0)
    net, x = pfc.FCResNet(64, 10, width=24, blocks=3, zero_start=False).eval(), apart.normalised()
    profile = pfc.measure(net, fit.batches(), precision="bfloat16", progress=False)
    early = EarlyExit(net, profile)
    assert torch.equal(early(x), net(x))
    early.threshold = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        known = net(x)
    assert torch.equal(early(x), known)
    early.threshold = 0.3
    table = early.curve(apart.batches(), [0.3], progress=False)
    assert 0 < table.early[0.3] < 1
    assert table.accuracy[0.3] == (early(x).argmax(1) == apart.labels).double().mean().item()


def test_figures_of_pruning_and_exits(tmp_path):
    net, profile = trained()
    data = batches(parts()[1])
    tables = {
        head: pfc.prune(net, profile, data, head=head, progress=False).table()
        for head in ("means", "own")
    }
    figure = pfc.figures.depth(tables)
    (ax,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["means", "own"]
    assert ax.lines[0].get_ydata().tolist() == tables["means"].accuracy.tolist()[:-1]
    dotted = {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"}
    assert dotted == {table.accuracy.iloc[-1] for table in tables.values()}
    curve = EarlyExit(net, profile).curve(data, progress=False)
    drawn = pfc.figures.operations({"early exits": curve, "pruned": tables["own"]})
    line = drawn.axes[0].lines[0]
    assert line.get_xdata().tolist() == sorted(curve.share)
    assert all(path.stat().st_size > 5000 for path in pfc.figures.save(drawn, tmp_path / "operations"))
    for draw in (pfc.figures.depth, pfc.figures.operations):
        with pytest.raises(ValueError, match="need at least one table, got none"):
            draw({})
        plain = inspect.unwrap(draw)
        with pytest.raises(ValueError, match=r"by what they are called, such as .* got DataFrame"):
            plain(tables["own"])
        for table, match in (
            (tables["own"][["change"]], r"'a' must be a table of .*, and has no column"),
            (tables["own"].iloc[:0], "'a' has no rows"),
            ("x", "'a' must be a table of .* got str"),
        ):
            with pytest.raises(ValueError, match=match):
                plain({"a": table})
    with pytest.raises(ValueError, match=r"table of Pruned.table\(\), and has no column 'removed'"):
        pfc.figures.depth({"early exits": curve})
    with pytest.raises(ValueError, match="tables are of different layers"):
        pfc.figures.depth({"a": tables["own"], "b": tables["own"].iloc[1:]})


def test_a_ring_marks_what_was_chosen():
    net, profile = trained()
    data = batches(parts()[1])
    found = EarlyExit(net, profile).calibrate(data, 0.05, progress=False)
    cut, whole = (
        pfc.prune(net, profile, data, head="means", eps=eps, progress=False) for eps in (0.1, 0.0)
    )
    tables = {"exits": found.curve, "cut": cut.table(), "whole": whole.table()}
    (ax,) = pfc.figures.operations(tables).axes
    rings = [line.get_xydata().tolist() for line in ax.lines if line.get_markersize() == 9]
    share = cut.operations[1] / cut.operations[0]
    assert rings == [[[found.share, found.change.after]], [[share, cut.change.after]], []]
    band = ax.collections[0].get_paths()[0].vertices  # without the slit of certainty at a share of 1
    assert len(band) == 2 * (len(found.curve) - 1) + 3
