"""Pruning: cuts and classifiers by hand, plain networks, and what is refused."""

import copy
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pfc
from pfc.acting.cutting import removals
from pfc.acting.heldout import dealt
from pfc.acting.pruning import PENALTIES
from pfc.cli import main
from tests.acting import batches, hooks_of, parts, resnet, trained, vit
from tests.models import Residual, seeded

EPS = 0.035  # which allows some cuts of the dense network, not all


def naive_ridge(H, y, penalty):
    """Least squares on one-hot labels by the normal equations, with a free bias."""
    X, Y = H - H.mean(0), torch.eye(10, dtype=H.dtype)[y]
    cov = X.mT @ X / len(X)
    s = cov.diag().mean()
    W = torch.linalg.solve(cov + penalty * s * torch.eye(len(cov), dtype=H.dtype), X.mT @ Y / len(X)).mT
    return W, Y.mean(0) - W @ H.mean(0)


def features(net, x, blocks):
    """What the classifier reads in a dense network of so many blocks."""
    with torch.no_grad():
        return net.blocks[:blocks](net.stem(x.flatten(1)))


def whole(images):
    return images.normalised().double(), images.labels


@pytest.fixture(scope="module")
def dense():
    net, profile = trained()
    fit, held = parts()
    found = pfc.prune(net, profile, batches(held), fit=batches(fit), eps=EPS, progress=False)
    return net, profile, found


def test_every_cut_is_the_one_made_by_hand(dense):
    net, _, found = dense
    (X, y), (x, labels) = map(whole, parts())
    choose, report = dealt(labels, 2, seed=0)
    with torch.no_grad():
        before = net(x).argmax(1) == labels
    for blocks, each in enumerate(found.candidates):
        heads = [naive_ridge(features(net, X, blocks), y, penalty) for penalty in PENALTIES]
        H = features(net, x, blocks)
        right = [(H @ W.mT + b).argmax(1) == labels for W, b in heads]
        counts = [int(each[choose].sum()) for each in right]
        best = max(range(len(counts)), key=lambda k: (counts[k], k))
        assert each.penalty == PENALTIES[best]
        assert (each.chosen.before, each.chosen.after) == (
            before[choose].double().mean().item(),
            right[best][choose].double().mean().item(),
        )
        assert each.reported.after == right[best][report].double().mean().item()
        assert each.operations == 2 * (64 * 24 + blocks * 2 * 24 * 24 + 240)


def test_the_whole_network_with_a_fitted_classifier_stands_beside_the_cuts(dense):
    _, _, found = dense
    whole, table = found.refitted, found.table()
    assert found.candidates[-1] is whole
    assert [each.removed for each in found.candidates] == [4, 3, 2, 1, 0]
    assert table.removed.tolist() == [4, 3, 2, 1, 0, 0]
    assert table["head"].tolist() == ["ridge"] * 5 + ["own"]
    assert table.index.tolist()[-2:] == ["blocks.3", "blocks.3"]
    assert table.accuracy.tolist()[-2:] == [whole.reported.after, found.change.before]
    assert table.share.tolist()[-2:] == [1, 1]
    assert f"uncut with the classifier 'ridge' fitted: accuracy {whole.reported.after:.4f}" in str(found)
    assert f"{len(found.removed)} of 4 layers are gone" in str(found)


def test_a_fitted_classifier_alone_is_no_cut():
    net, profile = trained()
    fit, held = parts()
    found = pfc.prune(
        net, profile, batches(held), fit=batches(fit), head="means", eps=0.0, progress=False
    )
    x = whole(held)[0]
    assert found.removed == found.steps == ()
    assert torch.equal(found.network(x), net(x))
    nearest = [c for c in found.candidates if not c.removed]
    assert nearest == [found.refitted]
    assert "uncut with the classifier 'means' fitted" in str(found)
    own = pfc.prune(net, profile, batches(held), head="own", eps=0.0, progress=False)
    assert own.refitted is None
    assert "uncut" not in str(own)


def test_the_first_sure_cut_is_built_with_its_classifier(dense):
    net, profile, found = dense
    sure = [each.layer for each in found.candidates if each.chosen.low >= -EPS]
    assert found.layer == sure[0]
    assert 0 < len(found.removed) < 4
    blocks = len(found.network.blocks)
    assert profile.segment().layers[blocks] == found.layer
    (X, y), (x, labels) = map(whole, parts())
    W, b = naive_ridge(features(net, X, blocks), y, found.candidates[blocks].penalty)
    torch.testing.assert_close(found.network.classifier.weight.detach(), W, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.network.classifier.bias.detach(), b, rtol=1e-10, atol=1e-10)
    report = dealt(labels, 2, seed=0)[1]
    with torch.no_grad():
        after = (found.network(x).argmax(1) == labels)[report].double().mean().item()
    assert found.change.after == after == found.candidates[blocks].reported.after
    assert found.operations[0] == 2 * (64 * 24 + 4 * 2 * 24 * 24 + 240)
    assert found.operations[1] == found.candidates[blocks].operations
    assert found.fitted == len(y)
    assert [*found.latency] == [1, 64]
    assert all(0 < seconds < 1 for pair in found.latency.values() for seconds in pair)


def test_what_was_given_is_left_and_what_is_made_is_plain(dense):
    net, _, found = dense
    assert type(found.network) is type(net)
    assert not found.network.training
    assert len(net.blocks) == 4
    assert hooks_of(net) == hooks_of(found.network) == 0
    assert not any(type(m).__module__.startswith("pfc.acting") for m in found.network.modules())
    theirs = {p.data_ptr() for p in net.parameters()}
    assert not any(p.data_ptr() in theirs for p in found.network.parameters())
    assert found.network.taps == ("stem", *(f"blocks.{b}" for b in range(len(found.network.blocks))))
    fresh, _ = trained()
    assert all(map(torch.equal, net.state_dict().values(), fresh.state_dict().values()))


def test_the_files_rebuild_it_without_pfc(dense, tmp_path):
    net, _, found = dense
    weights, beside = found.save(tmp_path / "pruned.safetensors")
    told = json.loads(beside.read_text())
    rebuilt = copy.deepcopy(net)
    for line in told["steps"]:
        exec(line, {"net": rebuilt, "torch": torch})
    rebuilt.double().load_state_dict(load_file(weights))
    x = whole(parts()[1])[0]
    assert torch.equal(rebuilt(x), found.network(x))
    assert told["layer"] == found.layer
    assert told["change"]["low"] == found.change.low
    assert len(told["candidates"]) == 5
    assert told["weights"] == "pruned.safetensors"
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        found.save(tmp_path / "pruned.pt")


def test_without_fit_a_third_of_the_held_out_data_is_for_the_classifier():
    net, profile = trained()
    x, labels = whole(parts()[1])
    found = pfc.prune(net, profile, batches(parts()[1]), eps=0.5, head="means", seed=3, progress=False)
    fit, choose, report = dealt(labels, 3, seed=3)
    assert found.parts == {"fit": len(fit), "choose": len(choose), "report": len(report)}
    assert found.layer == "stem"
    assert found.fitted == len(fit)
    H = features(net, x, 0)
    M = torch.stack([H[fit][labels[fit] == k].mean(0) for k in range(10)])
    nearest = torch.cdist(H, M, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(found.network(x).argmax(1), nearest)
    assert found.change.after == (nearest == labels)[report].double().mean().item()


def test_nothing_can_go():
    net, profile = trained()
    found = pfc.prune(net, profile, batches(parts()[1]), head="own", eps=0.0, progress=False)
    assert (found.layer, found.removed, found.steps) == ("blocks.3", (), ())
    x = whole(parts()[1])[0]
    assert torch.equal(found.network(x), net(x))
    assert found.change.lost == found.change.won == 0
    assert found.operations[0] == found.operations[1]
    assert "nothing can go: no cut before blocks.3" in str(found)
    assert "samples to choose by are sure to 0.021 at best" in str(found)
    assert found.table().index.tolist() == ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def test_maps_are_pooled_by_the_network_itself():
    net, profile = trained("conv")
    fit, held = parts()
    found = pfc.prune(net, profile, batches(held), fit=batches(fit), eps=0.9, progress=False)
    assert found.layer == "stages.1.reduce"
    assert found.network.taps == ("stem", "stages.0.blocks.0", "stages.1.reduce")
    assert found.network.classifier.weight.shape == (10, 8)
    again = pfc.measure(found.network, batches(held), progress=False)
    assert again.layers[-2:] == ("stages.1.reduce", "classifier.input")


@pytest.mark.parametrize("make", [vit, resnet])
def test_networks_of_transformers_load_again_by_themselves(make, tmp_path):
    net = make()
    fit, held = parts()
    profile = pfc.measure(net, fit.batches(), progress=False)
    found = pfc.prune(net, profile, held.batches(), eps=0.9, progress=False)
    assert len(found.removed) == len(profile.segment().layers) - 1
    found.network.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path).eval()
    x = held.normalised(slice(20))
    assert torch.equal(again(x).logits, found.network(x).logits)
    assert net.config != found.network.config


class Children(nn.Module):
    """Blocks that are attributes, called one by one."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(64, 8), Residual(), Residual()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.two(self.one(self.stem(x.flatten(1)))))


@pytest.mark.parametrize("chain", [False, True])
def test_attributes_become_identities_and_chains_become_shorter(chain):
    parts_of = (nn.Flatten(), nn.Linear(64, 8), Residual(), Residual(), nn.Linear(8, 10))
    net = seeded(lambda: nn.Sequential(*parts_of) if chain else Children()).eval()
    names = ["1", "2", "3"] if chain else ["stem", "one", "two"]
    fit, held = parts()
    profile = pfc.measure(net, fit.batches(), layers=names, progress=False)
    found = pfc.prune(net, profile, held.batches(), eps=0.9, progress=False)
    assert found.layer == names[0]
    if chain:
        assert len(found.network) == 3
    else:
        assert isinstance(found.network.one, nn.Identity)
        assert isinstance(found.network.two, nn.Identity)
    rebuilt = copy.deepcopy(net)
    for line in found.steps:
        exec(line, {"net": rebuilt, "torch": torch})
    rebuilt.load_state_dict(found.network.state_dict())
    x = held.normalised(slice(9))
    assert torch.equal(rebuilt(x), found.network(x))


def test_layers_that_were_not_measured_go_with_those_around_them():
    net, _ = trained()
    fit, held = parts()
    profile = pfc.measure(net, batches(fit), layers=["stem", "blocks.1", "blocks.3"], progress=False)
    found = pfc.prune(net, profile, batches(held), head="own", eps=0.99, progress=False)
    assert found.layer == "stem"
    assert len(found.network.blocks) == 0


class ByNumber(nn.Module):
    """Blocks that are called by their numbers."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(64, 8), nn.ModuleList([Residual(), Residual()])
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.blocks[1](self.blocks[0](self.stem(x.flatten(1)))))


def test_a_network_that_needs_its_blocks_is_refused_by_their_names():
    net = ByNumber().eval()
    fit, held = parts()
    profile = pfc.measure(net, fit.batches(), layers=["stem", "blocks.*"], progress=False)
    with pytest.raises(ValueError, match=r"can't be cut after 'stem': without blocks\.0, blocks\.1"):
        pfc.prune(net, profile, held.batches(), progress=False)
    assert len(net.blocks) == 2


def test_a_classifier_that_is_not_linear_stays():
    class Deep(Children):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1))

        def forward(self, x):
            return torch.cat([super().forward(x)] * 2, 1)

    net = Deep().eval()
    fit, held = parts()
    profile = pfc.measure(net, fit.batches(), layers=["stem", "one", "two"], progress=False)
    with pytest.raises(ValueError, match="names nothing; give the classifier"):
        pfc.prune(net, profile, held.batches(), progress=False)


class Compiled(nn.Module):
    """Wraps a module as `torch.compile` does."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner

    def forward(self, x):
        return self._orig_mod(x)


def test_arguments_without_meaning_are_refused():
    net, profile = trained()
    fit, held = parts()
    data, prune = batches(held), inspect.unwrap(pfc.prune)

    def refused(match, *args, **how):
        with pytest.raises(ValueError, match=match):
            prune(*(args or (net, profile, data)), progress=False, **how)

    refused("profile must be a Profile", net, "profile", data)
    refused("head must be 'ridge', 'means', 'own', got 'best'", head="best")
    refused(r"eps must be in \[0, 1\), got 1", eps=1.0)
    refused("eps must be in .* got nan", eps=float("nan"))
    refused("seed must be a whole number, got 1.5", seed=1.5)
    refused(f"seed must fit into 64 bits, got {2**64}", seed=2**64)
    x, y = whole(held)
    broken = torch.where(torch.arange(len(x))[:, None, None, None] == 7, float("nan"), x)
    for own in ("own", "ridge"):
        unfit = [(x[:5], y[:5]), (broken, y)]
        refused("FCResNet gave numbers that are NaN, .* on batch 1 of", net, profile, unfit, head=own)
    refused("X of batch 0 must be finite", fit=[(batches(fit)[0][0] * float("nan"), batches(fit)[0][1])])
    refused("model must be a torch.nn.Module", None, profile, data)
    single = pfc.measure(net, data, layers="stem", progress=False)
    refused("no segment -1", net, single, data)
    refused("among those given as fit=", fit=data)
    one = [(x[y == 3], y[y == 3]) for x, y in data]
    refused("are of one class, 3", net, profile, one)
    beyond = [(x, y + 5) for x, y in data]
    refused("have the label 14, but the network answers 10", net, profile, beyond)
    fewer = [(x[y < 9], y[y < 9]) for x, y in batches(fit)]
    refused("is fitted to 9 classes, but the network answers 10", fit=fewer)
    x, y = whole(held)
    shuffled = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=100, shuffle=True
    )
    refused("in another order, or are others, at each reading", net, profile, shuffled)
    other = pfc.measure(Children().eval(), held.batches(), layers=["stem", "one"], progress=False)
    refused("layer 'one' of the profile is none of FCResNet's", net, other, data)
    net.blocks = Compiled(net.blocks)
    refused("'blocks.0' is of a compiled module: prune the network, then compile it")


def test_the_block_around_the_layer_that_is_kept_stays():
    net, _ = trained()
    gone = removals(net, ["blocks.1.f", "blocks.2", "blocks.3"], 0)
    assert [each.line() for each in gone] == ["del net.get_submodule('blocks')[2:4]"]
    gone = removals(net, ["blocks.1.f", "blocks.1", "blocks.2"], 0)
    assert [each.line() for each in gone] == ["del net.get_submodule('blocks')[2:3]"]
    chain = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), nn.Linear(2, 2))
    gone = removals(chain, ["0.0", "1"], 0)
    assert [each.line() for each in gone] == ["del net.get_submodule('')[1:2]"]


def test_a_module_that_a_list_repeats_counts_at_each_place():
    act = nn.ReLU()
    wide = [part for _ in range(3) for part in (nn.Linear(8, 8), act)]
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), act, *wide, nn.Linear(8, 10)))
    names = ["1", "3", "5", "7"]
    gone = [each.line() for i in range(3) for each in removals(net, names, i)]
    assert gone == [f"del net.get_submodule('')[{start}:8]" for start in (2, 4, 6)]
    fit, held = parts()
    profile = pfc.measure(net.eval(), fit.batches(), layers=names, progress=False)
    found = pfc.prune(net, profile, held.batches(), fit=fit.batches(), eps=0.9, progress=False)
    assert [type(part).__name__ for part in found.network] == ["Flatten", "Linear", "ReLU", "Linear"]
    assert found.operations[1] == 2 * (64 * 8 + 8 * 10)


def test_the_command_prunes_a_run(tmp_path, capsys):
    small = ["--epochs", "2", "--width", "16", "--blocks", "2", "--limit", "300"]
    main(["train", "digits", "--split", "fit", "--out", str(tmp_path / "fit"), *small])
    capsys.readouterr()
    out = tmp_path / "pruned.safetensors"
    main(["prune", str(tmp_path / "fit"), "--eps", "0.2", "--out", str(out)])
    said = capsys.readouterr().out
    assert "cut after " in said
    assert "chosen_low" in said
    assert out.exists()
    assert out.with_suffix(".json").exists()
    main(["prune", str(tmp_path / "fit"), "--eps", "0.2", "--json"])
    told = json.loads(capsys.readouterr().out)
    kept = json.loads(out.with_suffix(".json").read_text())
    assert told["change"] == kept["change"]
    assert told["about"]["data"] == "digits (held-out)"
    with pytest.raises(SystemExit):
        main(["prune", str(tmp_path / "fit"), "--out", "pruned.pt"])
    assert "must end in .safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prune", str(tmp_path / "fit"), "--split", "fit"])
    assert "has no held-out data beside split 'fit'" in capsys.readouterr().err
