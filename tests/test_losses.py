"""The costs against plain loops over samples, their laws, and what they refuse."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfc
from pfc.losses import LayerCollapse, TransportCost


def seen(net, x, cost):
    with cost:
        net(x)
    return cost


def net_and_batch(dtype=torch.float64):
    torch.manual_seed(0)
    net = pfc.ConvResNet(2, (8, 8), 3, blocks=(2, 3), width=4, zero_start=False).to(dtype)
    return net, torch.randn(7, 2, 8, 8, dtype=dtype), torch.tensor([0, 1, 2, 0, 1, 2, 2])


def test_the_transport_cost_is_its_sum_over_samples_and_layers():
    net, x, _ = net_and_batch()
    features, _ = pfc.features(net.eval(), [(x, torch.zeros(7, dtype=torch.int64))], progress=False)
    expected = 0.0
    for stage in net.stage_taps:
        layers = [features[name].flatten(1).double() for name in stage]
        start = sum(float(row @ row) for row in layers[0]) / 7
        for a, b in pairwise(layers):
            expected += sum(float((v - u) @ (v - u)) for u, v in zip(a, b, strict=True)) / 7 / start
    assert seen(net, x, TransportCost(net))().item() == pytest.approx(expected, rel=1e-10)


def test_it_is_the_energy_of_the_measured_path():
    """T = energy / (L mean |h_0|^2), of all samples that weigh the same."""
    torch.manual_seed(1)
    net = pfc.FCResNet(12, 3, width=9, blocks=4, zero_start=False).double().eval()
    x, y = torch.randn(20, 12, dtype=torch.float64), torch.tensor([0] * 9 + [1] * 6 + [2] * 5)
    profile = pfc.measure(net, [(x[:8], y[:8]), (x[8:], y[8:])], weighting="sample", progress=False)
    features, _ = pfc.features(net, [(x, y)], ["stem"], progress=False)
    size = features["stem"].double().square().sum(1).mean()
    energy = profile.segment().path().energy
    assert seen(net, x, TransportCost(net))().item() == pytest.approx(
        energy / 4 / float(size), rel=1e-10
    )


def test_neither_width_nor_scale_changes_it_but_the_origin_does():
    stack = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False).double())
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    cost = TransportCost(stack, layers=["0", "1"])
    plain = seen(stack, x, cost)()
    assert torch.allclose(seen(stack, 1e3 * x, cost)(), plain)
    twice = torch.block_diag(stack[1].weight, stack[1].weight).detach()
    wide = nn.Sequential(nn.Identity(), nn.Linear(6, 6, bias=False).double())
    wide[1].weight = nn.Parameter(twice)
    assert torch.allclose(seen(wide, x.repeat(1, 2), TransportCost(wide, layers=["0", "1"]))(), plain)
    assert not torch.allclose(seen(stack, x + 1, cost)(), plain)


def test_the_start_is_detached_in_the_denominator_alone():
    stack = nn.Sequential(nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double())
    for layer, w in zip(stack, (2.0, 3.0), strict=True):
        layer.weight.data.fill_(w)
    seen(stack, torch.ones(1, 1, dtype=torch.float64), TransportCost(stack, ["0", "1"]))().backward()
    # T = (a b - a)^2 / (2)^2 with a = 2, b = 3: dT/da = 2 a (b - 1)^2 / 4, dT/db = 2 a^2 (b - 1) / 4
    assert stack[0].weight.grad.item() == pytest.approx(4.0)
    assert stack[1].weight.grad.item() == pytest.approx(4.0)


def test_gradients_are_those_of_finite_differences():
    net, x, y = net_and_batch()
    net.eval()  # batch normalisation by constants
    cost, near = TransportCost(net), LayerCollapse(net, momentum=0.0)
    weight = net.stages[1].blocks[0].f[0].weight  # behind all that is detached

    def total():
        with cost, near:
            logits = net(x)
        return F.cross_entropy(logits, y) + 0.5 * cost() + 2.0 * near(y)

    near.momentum = 0.9
    total()  # the means stand still from here on
    kept = dict(near.means)
    near._moved = lambda name, h, y: kept[name]
    total().backward()
    for place in ((0, 0, 0, 0), (1, 2, 1, 1)):
        with torch.no_grad():
            weight[place] += 1e-6
            above = total()
            weight[place] -= 2e-6
            below = total()
            weight[place] += 1e-6
        assert weight.grad[place].item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-5)


def test_nowhere_to_start_from_is_undefined():
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    assert seen(net, torch.zeros(3, 2), TransportCost(net, ["0", "1"]))().isnan()


def running_means(batches, momentum):
    """Class means of batches, sample by sample, and how they move."""
    means = {}
    for H, y in batches:
        for k in sorted({*y.tolist()}):
            rows = [h for h, label in zip(H, y.tolist(), strict=True) if label == k]
            mean = sum(rows) / len(rows)
            means[k] = momentum * means[k] + (1 - momentum) * mean if k in means else mean
    return means


def test_layer_collapse_is_the_cross_entropy_of_the_nearest_running_mean():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)).double()
    cost = LayerCollapse(net, ["0", "1"], momentum=0.7)
    batches = [
        (torch.randn(6, 3).double(), torch.tensor(y)) for y in ([0, 0, 2, 2, 2, 0], [1, 0, 2, 1, 1, 0])
    ]
    for number, (x, y) in enumerate(batches, 1):
        found = seen(net, x, cost)(y)
        expected = []
        for depth in (1, 2):
            features = [(net[:depth](a).detach(), b) for a, b in batches[:number]]
            means = running_means(features, 0.7)
            for h, label in zip(features[-1][0], y.tolist(), strict=True):
                near = {k: -float((h - m).square().mean()) for k, m in means.items()}
                total = torch.tensor(list(near.values())).double().logsumexp(0)
                expected.append(float(total) - near[label])
        assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-10)


def test_collapsed_layers_far_apart_cost_nothing_and_equal_ones_cost_log_k():
    net = nn.Sequential(nn.Identity(), nn.Identity())
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    far = seen(net, 1e3 * F.one_hot(y).float(), LayerCollapse(net, ["0"]))(y)
    same = seen(net, torch.ones(6, 3), LayerCollapse(net, ["0"]))(y)
    assert far.item() == 0.0
    assert same.item() == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-6)


def test_a_recipe_trains_with_the_transport_cost(tmp_path):
    """Twin: the loop written out; resumed, it ends with the same bits; its path is shorter."""
    digits = pfc.data.load("digits", limit=200)
    plain = pfc.Recipe(
        name="t", data="digits", width=16, blocks=(3,), epochs=3, batch_size=50, weight_decay=0.0
    )
    recipe = replace(plain, transport=0.3, momentum=0.0, milestones=())
    nets = {}
    for name, cut in (("whole", None), ("cut", 2)):
        nets[name] = recipe.build(digits, 0)
        steps = pfc.train(nets[name], digits, recipe, folder=tmp_path / name, progress=False)
        for epoch in steps:
            if epoch.epoch == cut:
                break
        steps.close()
    nets["cut"] = recipe.build(digits, 0)
    list(pfc.train(nets["cut"], digits, recipe, folder=tmp_path / "cut", resume=True, progress=False))
    twin = recipe.build(digits, 0)
    for epoch in (1, 2, 3):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(50):
            layers = [twin.stem(digits.normalised(index).flatten(1))]
            for block in twin.blocks:
                layers.append(block(layers[-1]))
            moved = sum((b - a).square().sum() for a, b in pairwise(layers))
            loss = F.cross_entropy(twin.classifier(layers[-1]), digits.labels[index])
            loss = loss + 0.3 * moved / layers[0].detach().square().sum()
            twin.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in twin.parameters():
                    p -= recipe.learning_rate * p.grad
    for a, b, c in zip(*(n.parameters() for n in (nets["whole"], twin, nets["cut"])), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert a.equal(c)
    assert pfc.Run(tmp_path / "whole").recipe.transport == 0.3


def test_what_can_not_be_watched_is_refused():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="no layer matches 'blocks"):
        TransportCost(net, "blocks.*")
    with pytest.raises(ValueError, match="no forward pass was seen: run the net inside `with cost:`"):
        TransportCost(net, ["1", "2"])()
    with pytest.raises(ValueError, match="layer '0' was overwritten in place by what comes after it"):
        seen(net, x, TransportCost(net, ["0", "2"]))()
    with pytest.raises(ValueError, match=r"two consecutive layers of one shape, got 2 of \[3\]"):
        seen(net, x, TransportCost(net, "2"))()
    with pytest.raises(ValueError, match="no output of layer 2: run the net in the with block"):
        seen(net[0], x, TransportCost(net, ["0", "2"]))
    with pytest.raises(ValueError, match="layer '2' ran twice in one forward pass"):
        seen(lambda x: net[2](net(x)), x, TransportCost(net, ["2"]))
    cost = seen(net, x, LayerCollapse(net, ["2"]))
    with pytest.raises(ValueError, match=r"of shape \(3,\) do not fit layer '2' of shape \(4, 3\)"):
        cost(y[:3])
    with cost:
        with pytest.raises(ValueError, match="watched already: leave its with block first"):
            cost.__enter__()
        net(x)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        LayerCollapse(net, ["2"], momentum=1.0)
    assert not any(module._forward_hooks for module in net.modules())


def test_transport_and_compilation_do_not_go_together():
    digits = pfc.data.load("digits", limit=50)
    recipe = replace(pfc.RECIPES["digits"], transport=0.1, epochs=1, width=8, blocks=(2,))
    steps = pfc.train(recipe.build(digits), digits, recipe, compile=True, progress=False)
    with pytest.raises(ValueError, match="transport needs the layers' outputs"):
        next(steps)


def test_autocast_and_offsets_cost_the_nearest_means_no_digits():
    """As in most mixed-precision loops: the cost is called where autocast is on."""
    torch.manual_seed(0)
    net, y = nn.Sequential(nn.Identity()), torch.arange(12) % 3
    x = torch.randn(12, 8) + torch.nn.functional.one_hot(y, 8)
    plain = seen(net, x, LayerCollapse(net, ["0"]))(y)
    for offset in (0.0, 30.0, 1000.0):
        cost = LayerCollapse(net, ["0"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = seen(net, x + offset, cost)(y)
        assert found.item() == pytest.approx(plain.item(), rel=1e-3)


def test_neither_bad_samples_nor_validation_move_the_means():
    net, y = nn.Sequential(nn.Identity()), torch.tensor([0, 1, 0, 1])
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    cost = LayerCollapse(net, ["0"])
    seen(net, x, cost)(y)
    before = cost.means["0"][0].clone()
    with torch.no_grad():
        seen(net, x + 9, cost)(y)
    assert cost.means["0"][0].equal(before)
    assert seen(net, torch.tensor([[torch.nan], [1.0], [1.0], [3.0]]), cost)(y).isnan()
    assert cost.means["0"][0].tolist() == [[pytest.approx(1.0)], [pytest.approx(2.0)]]
    assert seen(net, x, cost)(y).isfinite()


def test_labels_of_any_kind_are_taken_or_refused_in_words():
    net, x = nn.Sequential(nn.Identity()), torch.randn(4, 2)
    cost = seen(net, x, LayerCollapse(net, ["0"]))
    costs = [cost(y).item() for y in ([0, 1, 1, 0], torch.tensor([0, 1, 1, 0], dtype=torch.uint8))]
    assert costs[0] == pytest.approx(costs[1])
    with pytest.raises(ValueError, match="labels must not be negative, got -100; count classes from 0"):
        cost(torch.tensor([0, 1, -100, 0]))
    with pytest.raises(ValueError, match="labels must be integer class indices"):
        cost(torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_networks_that_do_not_name_their_layers_need_them_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"Sequential does not name its layers \(it has no `taps`\)"):
        TransportCost(net)
    row = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0), nn.Identity())
    cost = seen(row, torch.ones(3, 2), TransportCost(row, ["1", "2"]))
    assert cost().item() == 0, "layers of one number a sample"
