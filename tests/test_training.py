"""Recipes and the training loop: what the paper says, and runs that survive anything."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfc
from pfc.files import read_tensors
from pfc.training import RECIPES, Recipe, Run, measured_epochs
from pfc.training.trainer import Trainer, objective

TINY = Recipe(
    name="tiny",
    data="digits",
    width=16,
    blocks=(2,),
    epochs=6,
    batch_size=64,
    weight_decay=1e-3,
)


@pytest.fixture(scope="module")
def digits():
    return pfc.data.load("digits", limit=200)


def trained(digits, folder=None, stop=None, recipe=TINY, **options):
    """Train from the start; returns the net and the epochs."""
    net = recipe.build(digits, 0)
    epochs = pfc.train(net, digits, recipe, folder=folder, progress=False, **options)
    return net, list(epochs if stop is None else islice(epochs, stop))


def same_bits(a, b):
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_table_one():
    paper = {name: r for name, r in RECIPES.items() if name != "digits" and "-" not in name}
    assert {name: r.blocks for name, r in paper.items()} == {
        "mnist": (10,),
        "fashion_mnist": (5, 4),
        "cifar10": (2, 3, 4),
        "stl10": (5, 5, 5, 5),
        "cifar100": (3, 3, 4, 4),
    }
    for name in ("mnist", "fashion_mnist", "cifar10", "stl10", "cifar100"):
        r = RECIPES[name]
        assert (r.epochs, r.batch_size, r.momentum, r.weight_decay) == (350, 128, 0.9, 5e-4)
        assert r.loss == "cross-entropy"
        assert r.sources["blocks"] == "arXiv 2405.00985, Table I"
        assert r.sources["form"] == "ours; the paper does not say"
        assert set(r.sources) == set(vars(r)) - {"name", "data"}
    assert (RECIPES["mnist"].net, RECIPES["mnist"].width) == ("fc", 1000)
    assert RECIPES["digits"].sources["blocks"] == "ours; the paper does not say"
    assert replace(RECIPES["mnist"], momentum=0.5).sources["momentum"] == "ours; the paper does not say"


def test_learning_rate_falls_at_a_third_and_two_thirds():
    r = RECIPES["cifar10"]
    rates = [r.rate(e) / r.learning_rate for e in (1, 117, 118, 233, 234, 350)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_measured_epochs():
    assert measured_epochs(350) == [0, 1, 2, 4, 7, 14, 26, 50, 95, 183, 350]
    assert measured_epochs(1) == [0, 1]
    assert measured_epochs(7, every=3) == [0, 3, 6, 7]
    with pytest.raises(ValueError, match="measure_every must be at least 1, got 0"):
        measured_epochs(7, every=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"momentum": -0.1}, r"momentum must lie in \[0, 1\), got -0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"decay": -1.0}, r"decay must lie in \(0, 1\], got -1.0"),
        ({"milestones": (0.5, 2.0)}, r"milestones are fractions between 0 and 1, got \(0.5, 2.0\)"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"form": "relu(Wx)"}, "needs zero_start=False"),
        ({"weight_decay": -1.0}, "weight_decay must be a number from 0 on"),
        ({"blocks": (1, 2)}, r"one stage, got blocks=\(1, 2\)"),
        ({"net": "vit"}, "net must be 'fc' or 'conv', got 'vit'"),
        ({"loss": "hinge"}, "loss must be 'cross-entropy' or 'mse', got 'hinge'"),
    ],
)
def test_recipes_refuse_what_has_no_meaning(change, message):
    told = {**{f: getattr(TINY, f) for f in vars(TINY)}, **change}
    recipe = object.__new__(Recipe)  # without the type checker, as a user would have it
    for name, value in told.items():
        object.__setattr__(recipe, name, value)
    with pytest.raises(ValueError, match=message):
        recipe.__post_init__()


def test_objectives():
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(9, 4, generator=g), torch.randint(0, 4, (9,), generator=g)
    by_hand = sum(0.5 * ((z - torch.eye(4)[k]) ** 2).sum() for z, k in zip(logits, y, strict=True)) / 9
    torch.testing.assert_close(objective(logits, y, "mse"), by_hand)
    torch.testing.assert_close(objective(logits, y, "cross-entropy"), F.cross_entropy(logits, y))


def test_training_is_plain_momentum_sgd(digits):
    """Twin: the update written out, for two epochs of full-precision steps."""
    recipe = replace(TINY, epochs=2, normalise="none", milestones=(0.5,))
    net, _ = trained(digits, recipe=recipe, seed=3)
    twin = recipe.build(digits, 0)
    velocity = {}
    for epoch in (1, 2):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch))
        for index in order.split(recipe.batch_size):
            x, y = digits.normalised(index), digits.labels[index]
            twin.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            with torch.no_grad():
                for name, p in twin.named_parameters():
                    g = p.grad + recipe.weight_decay * p
                    velocity[name] = g if name not in velocity else 0.9 * velocity[name] + g
                    p -= recipe.learning_rate * (0.1 if epoch == 2 else 1) * velocity[name]
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_epochs_are_yielded_with_profiles_where_due(digits):
    _, epochs = trained(digits, measure_every=4)
    assert [e.epoch for e in epochs] == list(range(7))
    assert [e.epoch for e in epochs if e.profile is not None] == [0, 4, 6]
    assert epochs[0].loss is None
    assert epochs[6].loss < epochs[1].loss
    assert epochs[6].accuracy > epochs[1].accuracy
    assert epochs[1].learning_rate == TINY.learning_rate
    assert epochs[-1].profile.layers == ("stem", "blocks.0", "blocks.1")


def test_an_epoch_is_shown_in_a_line(digits):
    _, epochs = trained(digits, measure_every=4)
    assert re.fullmatch(r"Epoch\(0: \d+\.\d s, Profile\(FCResNet: .*\)\)", repr(epochs[0]))
    words = r"Epoch\(1: loss \S+, accuracy 0\.\d{4}, \d+\.\d s\)"
    assert re.fullmatch(words, repr(epochs[1]))
    assert max(len(repr(epoch)) for epoch in epochs) < 200


def test_order_depends_on_seed_and_epoch_alone(digits):
    trainer = Trainer(TINY.build(digits), digits, TINY, 1, None, "float32", 1)
    first = torch.cat(trainer._order(4))
    assert first.sort().values.equal(torch.arange(200))
    assert first.equal(torch.cat(trainer._order(4)))
    assert not first.equal(torch.cat(trainer._order(5)))


def test_a_last_batch_of_one_joins_the_one_before(digits):
    recipe = replace(TINY, batch_size=199)
    trainer = Trainer(recipe.build(digits), digits, recipe, 0, None, "float32", 1)
    assert [len(b) for b in trainer._order(1)] == [200]
    assert [len(b) for b in replace_batch(trainer, 90)._order(1)] == [90, 90, 20]


def replace_batch(trainer, size):
    trainer.recipe = replace(trainer.recipe, batch_size=size)
    return trainer


def test_training_leaves_global_state(digits):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    trained(digits, stop=2)
    assert torch.get_num_threads() == threads
    assert torch.get_rng_state().equal(state)
    tiny = torch.tensor([1e-40])
    assert (tiny * 1 != 0).item(), "denormals are numbers again"


def test_small_steps_take_one_thread(digits):
    assert Trainer(TINY.build(digits), digits, TINY, 0, None, "float32", None).threads == 1
    wide = replace(TINY, width=2048, blocks=(4,))
    net = wide.build(digits)
    assert Trainer(net, digits, wide, 0, None, "float32", None).threads == torch.get_num_threads()
    assert Trainer(net, digits, wide, 0, None, "float32", 3).threads == 3


def test_bfloat16_trains(digits):
    _, epochs = trained(digits, precision="bfloat16")
    assert epochs[-1].loss < epochs[1].loss


def test_auto_is_what_the_machine_multiplies_and_what_a_run_began_with(digits, tmp_path, monkeypatch):
    for flags, known in (
        ({"amx_bf16"}, "bfloat16"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"avx2"}, "float32"),
    ):
        monkeypatch.setattr("pfc.training.speed._flags", lambda flags=flags: flags)
        trained(digits, tmp_path / known, precision="auto", stop=2, resume=True)
        assert Run(tmp_path / known).config["precision"] == known
    trained(digits, tmp_path / "bfloat16", precision="auto", resume=True)  # on another machine
    assert Run(tmp_path / "bfloat16").config["precision"] == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_lie_channels_last_and_resume_to_the_same_bits(digits, tmp_path, precision):
    recipe = replace(TINY, net="conv", blocks=(1, 1), width=4)

    def nets(folder, **how):
        net = recipe.build(digits)
        epochs = pfc.train(
            net, digits, recipe, folder=folder, precision=precision, progress=False, **how
        )
        return net, epochs

    whole, epochs = nets(tmp_path / "whole")
    assert [epoch.epoch for epoch in epochs] == list(range(recipe.epochs + 1))
    assert whole.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    _, epochs = nets(tmp_path / "cut")
    assert [next(epochs).epoch for _ in range(3)] == [0, 1, 2]
    epochs.close()
    again, epochs = nets(tmp_path / "cut", resume=True)
    assert [epoch.epoch for epoch in epochs][-1] == recipe.epochs
    assert same_bits(again, whole)


def test_a_stopped_run_resumes_to_the_same_bits(digits, tmp_path):
    whole, epochs = trained(digits, tmp_path / "whole")
    trained(digits, tmp_path / "cut", stop=4)
    again, rest = trained(digits, tmp_path / "cut", resume=True)
    assert [e.epoch for e in rest] == [4, 5, 6]
    assert same_bits(again, whole)
    assert [e.loss for e in rest] == [e.loss for e in epochs[4:]]
    histories = [Run(tmp_path / name).history for name in ("whole", "cut")]
    for line in (line for history in histories for line in history):
        assert line.pop("seconds") > 0
        assert line.pop("measuring_seconds") > 0
    assert histories[0] == histories[1]
    assert [line["epoch"] for line in histories[0]] == list(range(1, 7))
    assert trained(digits, tmp_path / "cut", resume=True)[1] == []


def test_a_net_that_draws_random_numbers_resumes_to_the_same_bits(digits, tmp_path):
    def net():
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(), nn.Linear(16, 10))

    whole, cut, again = net(), net(), net()
    torch.manual_seed(1)
    list(pfc.train(whole, digits, TINY, folder=tmp_path / "whole", progress=False))
    torch.manual_seed(1)
    list(islice(pfc.train(cut, digits, TINY, folder=tmp_path / "cut", progress=False), 3))
    torch.manual_seed(2)
    list(pfc.train(again, digits, TINY, folder=tmp_path / "cut", resume=True, progress=False))
    assert same_bits(again, whole)


SCRIPT = """
import sys
import pfc
digits = pfc.data.load("digits", limit=200)
sizes = dict(width=16, blocks=(2,), epochs=40, batch_size=64, weight_decay=1e-3)
recipe = pfc.Recipe(name="tiny", data="digits", **sizes)
net = recipe.build(digits, 0)
for epoch in pfc.train(net, digits, recipe, folder=sys.argv[1], resume=True, progress=False):
    print("epoch", flush=True)
print("done", flush=True)
"""


def killed(folder, seconds):
    """Let a process train for some seconds, then kill it; tells whether it was still training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        assert run.stdout.readline() in {b"epoch\n", b"done\n"}
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
        return b"done" not in run.stdout.read()


def test_sigkill_at_any_moment_loses_nothing(digits, tmp_path):
    """Killed again and again at random moments, the run ends with the bits of an undisturbed one."""
    recipe = replace(TINY, epochs=40)
    whole, _ = trained(digits, tmp_path / "whole", recipe=recipe)
    dice = random.Random(4)
    unfinished = [killed(tmp_path / "killed", dice.uniform(0, 0.15)) for _ in range(2)]
    assert unfinished == [True, True]
    again, _ = trained(digits, tmp_path / "killed", recipe=recipe, resume=True)
    assert same_bits(again, whole)
    names = [
        sorted(p.name for p in (tmp_path / d).rglob("*") if p.is_file()) for d in ("whole", "killed")
    ]
    assert names[1] == names[0], "nothing torn is left behind"
    first, second = (
        [{k: v for k, v in line.items() if "seconds" not in k} for line in Run(tmp_path / d).history]
        for d in ("whole", "killed")
    )
    assert first == second
    a, b = (Run(tmp_path / d).profiles[40].table() for d in ("whole", "killed"))
    assert a.equals(b)


def test_what_a_run_leaves(digits, tmp_path):
    _, epochs = trained(digits, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert sorted(run.profiles) == [0, 1, 2, 3, 4, 5, 6]
    assert run.profiles[6].table().equals(epochs[6].profile.table())
    assert run.profiles[6].moments["stem"].mean.shape == (10, 16)
    assert run.profiles[5].moments == {}, "only the last profile keeps the class means"
    kept = sorted(p.name for p in (tmp_path / "run" / "weights").iterdir())
    assert kept == [f"epoch-{e:04d}.safetensors" for e in (0, 3, 6)]
    assert run.recipe == TINY
    assert run.data().images.equal(digits.images)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["sources"]["loss"] == "arXiv 2405.00985, Sec. IV-A"
    assert config["sources"]["epochs"] == "ours; the paper does not say"
    assert {"versions", "seed", "data", "device", "threads"} <= set(config)
    measured = pfc.measure(run.network(), run.data().batches(), progress=False).table()
    assert measured.equals(run.profiles[6].table())
    before = pfc.measure(run.network(0), run.data().batches(), progress=False).table()
    assert before.equals(run.profiles[0].table())
    assert same_bits(run.network(), run.network(6))


def test_states_hold_no_code(digits, tmp_path):
    trained(digits, tmp_path / "run", stop=2)
    tensors, about = read_tensors(tmp_path / "run" / "state.safetensors")
    assert about["epoch"] == "1"
    assert {name.split("/")[0] for name in tensors} == {"model", "momentum", "random"}


def test_errors_name_what_was_given(digits, tmp_path):
    trained(digits, tmp_path / "run", stop=2)
    with pytest.raises(ValueError, match="holds a run: resume it, or choose another folder"):
        trained(digits, tmp_path / "run")
    with pytest.raises(
        ValueError, match="holds another run: its seed is 0, not 1; choose another folder"
    ):
        trained(digits, tmp_path / "run", resume=True, seed=1)
    with pytest.raises(ValueError, match="training diverged: the loss of epoch 1 is"):
        trained(digits, recipe=replace(TINY, learning_rate=1e30, normalise="none"))
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        Run(tmp_path)
    with pytest.raises(ValueError, match=r"no weights of epoch 5; it has \[0\]"):
        Run(tmp_path / "run").network(5)
    (tmp_path / "run" / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        trained(digits, tmp_path / "run", resume=True)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace("pfc-run-1", "pfc-run-9"))
    with pytest.raises(ValueError, match=r"by a newer pfc \(pfc-run-9\); this one reads pfc-run-1"):
        Run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"by a newer pfc \(pfc-run-9\); this one reads pfc-run-1"):
        trained(digits, tmp_path / "run", resume=True)


def test_a_torn_last_line_of_the_history_is_cut(digits, tmp_path):
    trained(digits, tmp_path / "run", stop=4)
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    trained(digits, tmp_path / "run", resume=True)
    assert [line["epoch"] for line in Run(tmp_path / "run").history] == list(range(1, 7))


def test_what_a_killed_process_was_writing_is_swept_away(digits, tmp_path):
    trained(digits, tmp_path / "run", stop=2)
    places = (".state.safetensors", ".config.json", "figures/.layers.png")
    places += ("profiles/.epoch-0001.safetensors.next", "weights/.epoch-0001.safetensors")
    torn = [tmp_path / "run" / f"{place}.ab12_x9z" for place in places]
    own = [tmp_path / "run" / name for name in (".notes.json.bak", ".tmp/mine", ".config.json.mine")]
    for path in torn:
        path.mkdir(parents=True)
        (path / "half").write_bytes(b"half")
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("the user's")
    trained(digits, tmp_path / "run", resume=True)
    assert not any(path.exists() for path in torn)
    assert all(path.read_text() == "the user's" for path in own)


def test_progress_tells_loss_accuracy_and_time_left(digits, monkeypatch, capsys):
    monkeypatch.setattr("pfc.progress.QUIET_SECONDS", -1.0)
    list(pfc.train(TINY.build(digits), digits, TINY))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("train tiny: 3 of 6 loss ")
    assert "accuracy 0." in lines[2]
    assert "s left" in lines[2]


def test_tied_weights_and_nets_of_ones_own_are_kept(digits, tmp_path):
    def net():
        torch.manual_seed(2)
        one = nn.Linear(64, 64)
        return nn.Sequential(nn.Flatten(), one, nn.ReLU(), one, nn.Linear(64, 10))

    whole, again = net(), net()
    list(pfc.train(whole, digits, TINY, folder=tmp_path / "run", progress=False))
    list(islice(pfc.train(net(), digits, TINY, folder=tmp_path / "cut", progress=False), 3))
    list(pfc.train(again, digits, TINY, folder=tmp_path / "cut", resume=True, progress=False))
    assert same_bits(again, whole)
    with pytest.raises(ValueError, match="does not fit this network"):
        Run(tmp_path / "run").network()


def test_a_run_is_read_without_its_data(digits, tmp_path, monkeypatch):
    trained(digits, tmp_path / "run", stop=1)
    monkeypatch.setattr(pfc.data.loading, "_digits", None)
    assert Run(tmp_path / "run").network().taps == ("stem", "blocks.0", "blocks.1")


def test_paths_may_be_text(digits, tmp_path):
    trained(digits, str(tmp_path / "run"), stop=1)
    assert (Path(tmp_path) / "run" / "config.json").exists()


def test_epochs_that_a_damaged_history_has_lost_are_named(digits, tmp_path):
    trained(digits, tmp_path, stop=5)
    text = (tmp_path / "history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text(text[:-20])
    with pytest.warns(UserWarning, match=r"history.jsonl was damaged: .* epoch\(s\) 4 is lost"):
        trained(digits, tmp_path, resume=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_those_of_python(digits, precision, monkeypatch):
    """Sizes that end an epoch, rates that change, and a network that is measured on the way."""
    replayed, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(1), replay(graph))[1]
    )
    recipe = replace(TINY, net="conv", blocks=(1, 2), width=8, epochs=9, learning_rate=0.01)
    found = {}
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(pfc.training.speed.RecordedSteps, "may", lambda *_: False)
        how = {"recipe": recipe, "device": "cuda", "precision": precision}
        net, epochs = trained(digits, **how)
        found[recorded] = [(e.loss, e.accuracy) for e in epochs[1:]], net.state_dict()
    # the first three steps of a size, and the recording itself once a rate, launch kernel by kernel
    assert len(replayed) == 9 * 4 - 2 * 3
    (ours, w), (theirs, v) = found[True], found[False]
    close = 1e-4 if precision == "float32" else 2e-2
    assert torch.tensor(ours).sub(torch.tensor(theirs)).abs().max() < 10 * close
    assert all(
        (w[name].double() - v[name].double()).norm() <= close * (1 + v[name].double().norm())
        for name in w
    )


@pytest.fixture
def traces(monkeypatch):
    """How often a step was traced and replayed; all sizes are traced, from their fourth step on."""
    counted = {"traced": 0, "replayed": 0}

    def counting(step, batch):
        told, replay = traced(step, batch)
        counted["traced"] += 1

        def again(batch):
            counted["replayed"] += 1
            return replay(batch)

        return told, again

    traced = pfc.training.tracing.traced
    monkeypatch.setattr(pfc.training.tracing, "LONG", 1)
    monkeypatch.setattr(pfc.training.tracing, "traced", counting)
    return counted


def kept_state(folder):
    return read_tensors(folder / "state.safetensors", "pfc-run-1")[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"loss": "mse", "normalise": "none", "form": "relu(Wx)", "zero_start": False},
        {"net": "conv", "blocks": (1, 2), "width": 4, "momentum": 0.0},
        {"net": "conv", "blocks": (2,), "width": 4, "head": "flatten", "loss": "mse"},
    ],
)
def test_traced_steps_have_the_bits_of_python(digits, how, precision, traces, tmp_path, monkeypatch):
    """Sizes that end an epoch, rates that change, and a network that is measured on the way."""
    recipe, found = replace(TINY, learning_rate=0.01, **how), {}
    for name in ("traced", "plain"):
        folder = tmp_path / name
        net, epochs = trained(digits, folder, recipe=recipe, precision=precision, threads=1)
        found[name] = [(e.loss, e.accuracy) for e in epochs], net, kept_state(folder)
        monkeypatch.setattr(pfc.training.trainer, "SMALL_STEP", 0)  # so that none is small
    # three batches of 64 an epoch; three are plain, the fourth is traced, and the last of 8 is plain
    assert traces == {"traced": 1, "replayed": 6 * 3 - 4}
    (ours, a, kept), (theirs, b, known) = found.values()
    assert ours == theirs
    assert same_bits(a, b)
    assert all(p.grad.equal(q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert kept.keys() == known.keys()
    assert all(kept[name].equal(known[name]) for name in kept)


def frozen(net):
    for parameter in net.parameters():
        parameter.requires_grad_(not parameter.requires_grad)


CHANGES = {
    "frozen": frozen,
    "settings": lambda net: setattr(net.blocks[1].f[1], "eps", 0.1),
    "data": lambda net: setattr(net.stem[0].weight, "data", 2 * net.stem[0].weight.data),
    "strides": lambda net: setattr(net.blocks[0].f[0].weight, "data", net.blocks[0].f[0].weight.data.mT),
    "hook": lambda net: net.stem.register_forward_hook(lambda module, given, out: out / 2),
    "part": lambda net: net.blocks[0].f.__setitem__(2, nn.SiLU()),
    "average": lambda net: setattr(net.blocks[0].f[1], "momentum", None),
}


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_is_changed_trains_on_plainly(digits, change, at, traces, monkeypatch):
    found = {}
    for name in ("traced", "plain"):
        net, losses = TINY.build(digits, 0), []
        for parameter in net.blocks.parameters() if change == "frozen" else ():
            parameter.requires_grad_(False)
        for epoch in pfc.train(net, digits, TINY, progress=False, threads=1):
            if epoch.epoch == at:
                CHANGES[change](net)
            losses.append((epoch.loss, epoch.accuracy))
        found[name] = losses, net
        monkeypatch.setattr(pfc.training.trainer, "SMALL_STEP", 0)  # so that none is small
    (ours, a), (theirs, b) = found.values()
    assert ours == theirs
    assert same_bits(a, b)
    always = at == 0 and change in {"frozen", "settings", "data", "strides"}  # before the first pass
    assert traces["replayed"] == (14 if always else max(0, 3 * at - 4))


def test_a_run_resumed_amid_traced_steps_has_the_same_bits(digits, traces, tmp_path):
    whole, epochs = trained(digits, tmp_path / "whole")
    trained(digits, tmp_path / "parts", stop=4)
    parts, rest = trained(digits, tmp_path / "parts", resume=True)
    assert traces["traced"] == 3
    assert [e.loss for e in rest] == [e.loss for e in epochs[-len(rest) :]]
    assert same_bits(whole, parts)


def test_only_small_plain_steps_on_the_cpu_are_traced(digits, traces):
    recipe = replace(TINY, epochs=4)
    trained(digits, recipe=replace(recipe, transport=0.1))
    assert not traces["traced"]
    wide = replace(TINY, width=2048, blocks=(4,))
    kinds = {}
    for made in (TINY, wide):
        steps = Trainer(made.build(digits), digits, made, 0, None, "float32", 1).recorded
        kinds[made.width] = type(steps).__name__
    assert kinds == {16: "TracedSteps", 2048: "RecordedSteps"}
    may, net = pfc.training.tracing.TracedSteps.may, TINY.build(digits)
    assert may(net, torch.device("cpu"))
    assert not may(net, torch.device("cuda"))
    net.blocks[0].register_forward_hook(lambda *_: None)
    assert not may(net, torch.device("cpu"))


def test_a_short_training_is_not_traced(digits, monkeypatch):
    monkeypatch.setattr(pfc.training.tracing, "traced", None)
    trained(digits)


def test_only_known_networks_that_nobody_hears_are_recorded():
    may, gpu = pfc.training.speed.RecordedSteps.may, torch.device("cuda")
    net = TINY.build(pfc.data.load("digits", limit=20))
    assert may(net, gpu)
    assert not may(net, torch.device("cpu"))
    assert not may(nn.Linear(2, 2), gpu)
    part, weight = net.blocks[0], net.classifier.weight
    for listen in (
        lambda: part.register_forward_hook(lambda *_: None),
        lambda: part.register_forward_pre_hook(lambda *_: None),
        lambda: part.register_full_backward_hook(lambda *_: None),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
        lambda: weight.register_hook(lambda gradient: None),
        lambda: weight.register_post_accumulate_grad_hook(lambda _: None),
    ):
        handle = listen()
        assert not may(net, gpu)
        handle.remove()
        assert may(net, gpu)
    net.blocks[1] = Drawing()  # may do in Python what no recording would do again
    assert not may(net, gpu)
    net.blocks[1] = nn.Identity()
    assert may(net, gpu)
    net.blocks[1].forward = lambda x: x
    assert not may(net, gpu)


class Drawing(nn.Module):
    """Drops itself at random, as stochastic depth does."""

    def forward(self, x):
        return x if random.random() < 0.5 else 0 * x


class Imagined:
    """Stands for a recorded step: replays what was recorded, and counts."""

    def __init__(self, step, given):
        self.step, self.given, self.told, self.replayed = step, given, torch.zeros(1), 0

    def replay(self):
        self.replayed += 1
        self.told.copy_(self.step(self.given))


def test_steps_are_recorded_once_a_size_after_three_of_it(monkeypatch):
    seen = []

    def step(batch):
        seen.append(batch.tolist())
        return batch.sum().reshape(1)

    def record(self, batch):
        graph = Imagined(self.step, batch.clone())
        return graph, graph.given, graph.told

    monkeypatch.setattr(pfc.training.speed.RecordedSteps, "_record", record)
    steps = pfc.training.speed.RecordedSteps(step)
    batches = [torch.full((size,), i) for i, size in enumerate([3, 3, 2, 3, 3, 2, 3, 2, 2])]
    assert [float(steps(batch)) for batch in batches] == [float(batch.sum()) for batch in batches]
    assert seen == [batch.tolist() for batch in batches]
    assert {size: graph.replayed for size, (graph, *_) in steps.kept.items()} == {3: 2, 2: 1}
    steps.forget()
    assert float(steps(batches[0])) == 0.0  # recorded anew at once
    assert steps.kept[3][0].replayed == 1
