"""A recorder measures in a training that ends with the same bits, whatever fails meanwhile."""

import math
import os
import shutil
import subprocess
import sys
import warnings
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pfc
from pfc import Recorder, files
from pfc.cli import main
from pfc.figures import album
from pfc.integrations.apart import Beginning, apart
from pfc.report.sources import sources
from pfc.training.recorded import RecordedFolder
from tests.models import Net, batched, randomised, samples, seeded
from tests.test_taps import state

X, Y = samples(30)
POINTS = batched(X, Y)


def fc_resnet():
    return seeded(lambda: randomised(pfc.FCResNet(6, 3, width=8, blocks=2)))


class Fails(nn.Module):
    """Passes its input on, until it is told to fail in evaluation mode at a call."""

    at = math.inf

    def forward(self, x):
        if not self.training:
            self.at -= 1
            if self.at < 0:
                raise RuntimeError("the device was lost")
        return x


class Part(nn.Module):
    """A layer whose activations are computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def network():
    """Batch statistics, dropout, checkpointed activations, and a layer that may fail."""

    def make():
        parts = {"a": nn.Linear(6, 8), "norm": nn.BatchNorm1d(8), "drop": nn.Dropout(0.3)}
        return Net({**parts, "b": Part(), "fails": Fails(), "c": nn.Linear(8, 8)})

    return seeded(make)


class Noisy(Dataset):
    """Samples with noise of torch and numpy, new at each reading.

    None of Python's `random`: from that beartype draws, which checks the types in the tests.
    """

    classes = ("a", "b", "c")

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(6) + 0.1 * float(np.random.rand()), Y[i]


def loader(**options):
    return DataLoader(Noisy(), 10, shuffle=True, generator=torch.Generator().manual_seed(4), **options)


def trained(record, data, model=None, precision=None):
    """All that a training leaves: losses, and everything that measuring might disturb."""
    model = network() if model is None else model
    losses = steps(record, data, model, precision=precision)
    return losses, {k: v for k, v in state(model).items() if k not in {"identities", "hooks"}}


def steps(record, data, model, epochs=3, precision=None):
    """Train in place; the losses."""
    np.random.seed(1), torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(1, epochs + 1):
        for x, y in data:
            optimizer.zero_grad()
            with torch.autocast("cpu", precision, enabled=precision is not None):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        record(model, epoch)
    return losses


def nothing(model, epoch):
    pass


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_training_ends_with_the_same_bits(workers, precision):
    """Of the training's own loader, shuffled by its own generator, augmented, with living workers."""
    options = {"num_workers": workers, "persistent_workers": bool(workers)}
    known = trained(nothing, loader(**options), precision=precision)
    data = loader(**options)
    recorder = Recorder(data, passes=1, precision=precision and "bfloat16")
    assert trained(recorder, data, precision=precision) == known
    assert list(recorder.profiles) == [1, 2, 3]
    assert recorder.profiles[3].about["samples"] == len(Y)


def test_an_exception_in_the_middle_of_measuring_costs_a_warning_and_no_bit():
    known = trained(nothing, loader())
    data, model = loader(), network()
    recorder, wanted = Recorder(data, passes=1), "epoch 2 was not measured, and the training goes on: "

    def record(net, epoch):
        net.fails.at = {2: 3}.get(epoch, math.inf)
        assert (recorder(net, epoch) is None) == (epoch == 2)

    with pytest.warns(RuntimeWarning, match=f"{wanted}.*the device was lost"):
        assert trained(record, data, model) == known
    assert list(recorder.profiles) == [1, 3]


def test_errors_are_raised_where_that_is_asked_for():
    model, recorder = network(), Recorder(POINTS, on_error="raise")
    recorder(model, 0)
    model.fails.at = 3
    with pytest.raises(ValueError, match="the device was lost"):
        recorder(model, 1)
    assert model.training


def test_its_profiles_are_those_of_measure():
    model, how = fc_resnet(), {"layers": "blocks.*", "limit": 25, "weighting": "sample"}
    profile = Recorder(POINTS, **how)(model, 7)
    known = pfc.measure(model, POINTS, progress=False, **how)
    assert profile.table().equals(known.table())


def test_only_what_is_due_is_measured():
    calls, model = [], fc_resnet()
    recorder = Recorder(POINTS, every=2)
    recorder.check(model)
    model.register_forward_hook(lambda *_: calls.append(1))
    found = [recorder(model, epoch) is not None for epoch in range(4)]
    assert found == [True, False] * 2
    assert list(recorder.profiles) == [0, 2]
    # a call costs the forward passes of `measure` and no other
    measured = []
    model.register_forward_hook(lambda *_: measured.append(1))
    pfc.measure(model, POINTS, progress=False)
    assert len(calls) - len(measured) == 2 * len(measured)


def test_class_means_are_kept_of_the_newest_profile_alone():
    recorder, model = Recorder(POINTS), fc_resnet()
    for epoch in (0, 1, 5):
        recorder(model, epoch)
    assert [bool(p.moments) for p in recorder.profiles.values()] == [False, False, True]
    table = recorder.profiles[0].classes("blocks.1")
    assert table.equals(recorder.profiles[5].classes("blocks.1")), "of a network that rests"


# Loggers


def logged(**options):
    kept = []
    Recorder(POINTS, log=lambda numbers, step: kept.append((step, numbers)), **options)(fc_resnet(), 4)
    return kept


def test_loggers_are_told_the_numbers_of_the_last_layer_and_of_those_that_are_named():
    ((step, last),) = logged()
    profile = pfc.measure(fc_resnet(), POINTS, progress=False)
    assert (step, last) == (4, profile.scalars())
    ((_, some),) = logged(scalars=["blocks.0"], prefix="train/")
    known = profile.scalars("train/") | profile.scalars("train/", "blocks.0")
    assert some == known
    assert some["train/blocks.0/pfc1"] == profile.table().pfc1["blocks.0"]


def test_tensorboard_has_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        recorder, model = Recorder(POINTS, log=writer), fc_resnet()
        profiles = {epoch: recorder(model, epoch) for epoch in (0, 2)}
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(profiles[0].scalars())
    for key, value in profiles[2].scalars().items():
        first, second = events.Scalars(key)
        assert (first.step, second.step) == (0, 2)
        assert second.value == pytest.approx(value, rel=1e-6), key


def test_a_logger_that_fails_costs_a_warning():
    def log(numbers, step):
        raise ConnectionError("no network")

    recorder = Recorder(POINTS, log=log)
    with pytest.warns(RuntimeWarning, match="of epoch 0 was not logged.*: ConnectionError: no network"):
        assert recorder(fc_resnet(), 0) is not None


# Bad calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "a"}, "pfc.measure has no argument 'layer'; it has layers, classes, weighting"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise', got 'ignore'"),
        ({"log": 3}, "log must be called with a dict and a step, or be a SummaryWriter, got int"),
        ({"log": lambda numbers: None}, "log must take a dict and a step: too many positional"),
        ({"folder": ""}, "an empty text is no path"),
    ],
)
def test_arguments_without_a_meaning_are_refused_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        unwrap(Recorder.__init__)(Recorder.__new__(Recorder), POINTS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "conv*"}, "conv"),
        ({"passes": 3}, "passes must be 1 or 2, got 3"),
        ({"scalars": "conv*"}, r"no layer matches 'conv\*'; measured are"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_bad_calls_are_raised_at_the_first_call_though_none_is_due(options, message):
    """In the first second, also where errors are only to be warned of."""
    recorder = Recorder(POINTS, every=10, **options)
    with pytest.raises(ValueError, match=message):
        recorder(fc_resnet(), 1)


def test_bad_calls_are_raised_later_too():
    recorder = Recorder(POINTS)
    recorder(fc_resnet(), 0)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        recorder(fc_resnet(), -1)
    with pytest.raises(ValueError, match="nothing to measure on: give batches to Recorder"):
        Recorder()(fc_resnet(), 0)
    assert Recorder()(fc_resnet(), 0, POINTS).about["samples"] == 30


def test_augmented_data_need_one_pass_and_that_is_said_at_the_start():
    with pytest.raises(ValueError, match="second pass"):
        Recorder(loader()).check(network())
    shuffled = DataLoader(TensorDataset(X, Y), 10, shuffle=True)
    assert Recorder(shuffled)(network(), 0).about["passes"] == 2


def test_a_trial_says_nothing_of_data_in_the_order_of_their_classes():
    order = torch.argsort(Y, stable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "few samples a class")
        profile = Recorder(batched(X[order], Y[order], 4))(fc_resnet(), 0)
    assert profile.about["classes"] == 3


def test_a_trial_reads_two_batches_of_any_data():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TensorDataset(X, Y))

    for data in (POINTS, DataLoader(TensorDataset(X, Y), 10), DataLoader(Stream(), 10)):
        first = Beginning(data)
        assert [len(y) for _, y in first] == [10, 10]
        assert all(torch.equal(a, x) for (a, _), (x, _) in zip(first, POINTS, strict=False))


def test_what_is_read_apart_leaves_a_loader_as_it_was():
    data = loader(num_workers=1, persistent_workers=True)
    next(iter(data))
    workers, before = data._iterator, data.generator.get_state()
    with apart(data) as own:
        assert own is not data
        list(own)
    assert data._iterator is workers
    assert torch.equal(data.generator.get_state(), before)
    assert data.persistent_workers


def test_of_a_loader_of_accelerate_the_inner_one_is_read():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    data = accelerator.prepare(DataLoader(TensorDataset(X, Y), 10))
    references = list(accelerator.gradient_state.dataloader_references)
    assert Recorder(data)(fc_resnet(), 0).about["samples"] == 30
    assert accelerator.gradient_state.dataloader_references == references
    with apart(data) as own:
        assert own is data.base_dataloader


# Folders


def test_a_folder_is_read_as_a_run(tmp_path):
    model, recorder = fc_resnet(), Recorder(POINTS, folder=tmp_path / "run", layers="blocks.*")
    for epoch in (0, 1, 2):
        profile = recorder(model, epoch)
    run = pfc.load(tmp_path / "run")
    assert run.folder == tmp_path / "run"
    assert list(run.profiles) == [0, 1, 2]
    assert run.profiles[2].table().equals(profile.table())
    assert [bool(p.moments) for p in run.profiles.values()] == [False, False, True]
    assert [p.sample is not None for p in run.profiles.values()] == [True, False, True]
    assert (run.config["recipe"], run.config["data"], run.history) == (None, None, [])
    assert run.config["recorded"] == {"layers": "blocks.*"}
    (source,) = sources([tmp_path / "run"])
    assert (source.seed, list(source.profiles), source.transport) == (None, [0, 1, 2], None)


def test_figures_of_a_folder_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(album, "OF_PROFILE", {})  # those of a profile have tests of their own
    recorder = Recorder(POINTS, folder=tmp_path)
    for epoch in (0, 1):
        recorder(fc_resnet(), epoch)
    main(["figures", str(tmp_path), "--no-theory"])
    assert (tmp_path / "figures" / "training.png").exists()


ALONE = r"was recorded by pfc.Recorder, which keeps profiles alone: it has no recipe, no data and no we"


def test_what_a_folder_lacks_is_said_in_a_line(tmp_path, capsys):
    recorder = Recorder(POINTS, folder=tmp_path)
    recorder(fc_resnet(), 0)
    run = pfc.Run(tmp_path)
    for ask in (lambda: run.recipe, run.data, run.network):
        with pytest.raises(ValueError, match=ALONE):
            ask()
    del recorder
    before = sorted(tmp_path.rglob("*"))
    for command in (["measure"], ["train", "digits", "--limit", "60", "--resume", "--out"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, str(tmp_path)])
        assert "pfc.Recorder, which keeps profiles alone" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_recording_goes_on_in_its_folder(tmp_path):
    model = fc_resnet()
    for epochs in ((0, 1), (1, 2)):
        recorder = Recorder(POINTS, folder=tmp_path, limit=20)
        for epoch in epochs:
            recorder(model, epoch)
    profiles = pfc.Run(tmp_path).profiles
    assert list(profiles) == [0, 1, 2]
    assert [bool(p.moments) for p in profiles.values()] == [False, False, True]
    with pytest.raises(ValueError, match=r"was recorded with limit=20, not None: choose another folder"):
        Recorder(POINTS, folder=tmp_path).check(model)


def test_a_folder_of_something_else_is_refused_before_training(tmp_path):
    def check(folder):
        Recorder(POINTS, folder=folder).check(fc_resnet())

    (tmp_path / "file").write_text("a")
    with pytest.raises(ValueError, match="is a file: choose another folder"):
        check(tmp_path / "file")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ValueError, match=r"holds something else than what pfc.Recorder keeps: choose"):
        check(tmp_path / "model")
    (tmp_path / "other" / "profiles").mkdir(parents=True)
    (tmp_path / "other" / "profiles" / "epoch-0000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds profiles and no config.json, so they are not pfc.Rec"):
        check(tmp_path / "other")
    main(["train", "digits", *"--epochs 1 --limit 60 --width 6 --blocks 1 --out".split(), str(tmp_path)])
    with pytest.raises(ValueError, match="holds a run of pfc train: choose another folder"):
        check(tmp_path)


def test_a_disk_that_is_full_for_a_while_costs_a_warning(tmp_path, monkeypatch):
    recorder, model = Recorder(POINTS, folder=tmp_path), fc_resnet()
    recorder(model, 0)

    def full(path, write):
        raise OSError(28, f"no room on the disk for {path}")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace_file", full)
        with pytest.warns(RuntimeWarning, match="1 was not kept.*no room"):
            assert recorder(model, 1) is not None
    recorder(model, 2)
    assert list(pfc.Run(tmp_path).profiles) == [0, 2]
    assert pfc.Run(tmp_path).profiles[2].moments


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    Recorder(POINTS, folder=tmp_path)(fc_resnet(), 0)
    torn = tmp_path / "profiles" / ".epoch-0001.json.abcdefgh"
    torn.mkdir()
    Recorder(POINTS, folder=tmp_path).check(fc_resnet())
    assert not torn.exists()


def test_a_recorder_removes_nothing_that_is_not_its_own(tmp_path):
    own = (".tmp/precious/thesis.txt", ".notes.json.bak", "weights/.tmp_best.pt", "figures/.fig.png.swp")
    for name in own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    for _ in range(2):
        Recorder(POINTS, folder=tmp_path).check(fc_resnet())
    assert all((tmp_path / name).read_text() == "mine" for name in own)


def test_a_training_that_starts_again_writes_its_later_epochs_anew(tmp_path):
    model = fc_resnet()
    recorder = Recorder(POINTS, folder=tmp_path)
    for epoch in range(4):
        recorder(model, epoch)
    again = Recorder(POINTS, folder=tmp_path, passes=2)  # which is what was meant
    with pytest.warns(UserWarning, match=r"epoch 1 is recorded anew, so those after it, \[2, 3\], are"):
        again(model, 1)
    assert sorted(pfc.Run(tmp_path).profiles) == [0, 1]
    other = pfc.FCResNet(features=X[0].numel(), classes=3, width=8, blocks=5)
    with pytest.raises(ValueError, match="was recorded of another network: it has the layers"):
        Recorder(POINTS, folder=tmp_path).check(other)


def test_a_folder_is_of_one_process(tmp_path):
    recorder = Recorder(POINTS, folder=tmp_path)
    recorder.check(fc_resnet())
    Recorder(POINTS, folder=tmp_path).check(fc_resnet())  # in one process, as cells run again
    code = "from pfc.lock import locked; from pathlib import Path\n"
    code += f"with locked(Path({str(tmp_path)!r})): pass"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()}" in told.stderr
    del recorder
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_data_that_can_not_be_read_twice_are_refused_at_once(tmp_path):
    model, dataset = fc_resnet(), [(x, int(k)) for x, k in zip(X, Y, strict=True)]
    for data in (iter(POINTS), map(tuple, POINTS)):
        with pytest.raises(ValueError, match="one-shot iterator"):
            Recorder(data).check(model)
    replaced = torch.utils.data.RandomSampler(dataset, replacement=True)
    for how, why in (
        ({"sampler": replaced}, "a RandomSampler with replacement"),
        ({"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 30, 9)}, "a Weighted"),
        ({"shuffle": True, "drop_last": True, "batch_size": 29}, "shuffled, with drop_last"),
    ):
        loader = torch.utils.data.DataLoader(dataset, **how)
        with pytest.raises(ValueError, match=rf"gives other samples each time \({why}"):
            Recorder(loader).check(model)
    with pytest.raises(ValueError, match="scalars must be 'last', 'all', or names"):
        unwrap(Recorder.__init__)(object.__new__(Recorder), scalars=None)


def test_a_folder_that_is_removed_is_made_again_and_a_damaged_profile_left(tmp_path):
    model, recorder = fc_resnet(), Recorder(POINTS, folder=tmp_path / "kept")
    recorder(model, 0)
    shutil.rmtree(tmp_path / "kept")
    recorder(model, 1)
    assert list(pfc.load(tmp_path / "kept").profiles) == [1]
    (tmp_path / "kept" / "profiles" / "epoch-0001.json").write_text("{")
    again = RecordedFolder(tmp_path / "kept", {})
    again.open()
    with pytest.warns(UserWarning, match="the profile of epoch 1 is left as it is"):
        again.keep(2, recorder.profiles[1])
    assert (tmp_path / "kept" / "profiles" / "epoch-0002.json").exists()
