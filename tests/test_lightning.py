"""Lightning's callback: the same bits with it and without, and numbers for others to monitor."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfc
from tests.models import Net, batched, samples, seeded
from tests.ranks import free_port

pytest.importorskip("lightning")
with warnings.catch_warnings(action="ignore"):
    import lightning.pytorch as pl
    import pytorch_lightning

    from pfc.integrations import lightning as integration

Collapse = integration.Collapse
X, Y = samples(30)
POINTS = batched(X, Y)
CODE = Path(integration.__file__)
pytestmark = pytest.mark.filterwarnings("ignore")


def network():
    """With dropout and batch statistics."""
    parts = {"a": nn.Linear(6, 8), "norm": nn.BatchNorm1d(8), "drop": nn.Dropout(0.3)}
    return Net({**parts, "b": nn.Linear(8, 8)})


class Module(pl.LightningModule):
    """A module of that network."""

    def __init__(self):
        super().__init__()
        self.net = seeded(network)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, number):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, number):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fitted(callbacks, folder, module=None, data=None, trainer=pl.Trainer, epochs=2, **options):
    """The trainer after a fit."""
    pl.seed_everything(3, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    trainer = trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir=folder, **quiet | options)
    data = DataLoader(TensorDataset(X, Y), 10, shuffle=True) if data is None else data
    trainer.fit(Module() if module is None else module, data, DataLoader(TensorDataset(X, Y), 30))
    return trainer


def bits(trainer):
    return {name: t.clone() for name, t in trainer.lightning_module.state_dict().items()}


def same(found, known):
    assert found.keys() == known.keys()
    for name, tensor in known.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("data", [None, POINTS], ids=["its own", "given"])
def test_training_ends_with_the_same_bits(tmp_path, data, precision):
    known = bits(fitted([], tmp_path, precision=precision))
    collapse = Collapse(data)
    same(bits(fitted([collapse], tmp_path, precision=precision)), known)
    recorder = collapse.recorder
    assert list(recorder.profiles) == [1, 2]
    about = recorder.profiles[2].about
    assert (about["samples"], about["passes"]) == (30, 1 if data is None else 2)
    assert about["precision"] == {"32-true": None, "bf16-mixed": "bfloat16"}[precision]


@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_a_checkpoint_monitors_a_layer_of_the_network(tmp_path, package):
    """Of both packages; TensorBoard has the same numbers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Own(package.LightningModule):
        training_step, forward = Module.training_step, Module.forward
        configure_optimizers = Module.configure_optimizers

    module = Own()
    module.net = seeded(network)
    best = package.callbacks.ModelCheckpoint(
        tmp_path, monitor="pfc/pfc1/b", save_top_k=1, save_on_train_epoch_end=True
    )
    collapse = Collapse(POINTS, network="net")
    logger = package.loggers.TensorBoardLogger(tmp_path / "logs")
    trainer = fitted(
        [best, collapse],
        tmp_path,
        module,
        trainer=package.Trainer,
        logger=logger,
        enable_checkpointing=True,
    )
    pfc1 = {epoch: p.table().pfc1["b"] for epoch, p in collapse.recorder.profiles.items()}
    assert float(best.best_model_score) == pytest.approx(min(pfc1.values()), rel=1e-6)
    assert float(trainer.callback_metrics["pfc/pfc1"]) == pytest.approx(pfc1[2], rel=1e-6)
    (events,) = Path(logger.log_dir).glob("events*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert [s.value for s in read.Scalars("pfc/pfc1/b")] == pytest.approx([*pfc1.values()], rel=1e-6)


def test_the_first_due_and_last_epochs_are_measured_and_no_sanity_check(tmp_path):
    class Counts(Collapse):
        checked = 0

        def on_sanity_check_end(self, trainer, module):
            Counts.checked = len(self.recorder.profiles)

    collapse = Counts(POINTS, every=3, network=lambda module: module.net, layers=["a", "b"])
    fitted([collapse], tmp_path, epochs=5, num_sanity_val_steps=2)
    assert list(collapse.recorder.profiles) == [1, 3, 5]
    by_steps = Collapse(POINTS, every=9)
    fitted([by_steps], tmp_path, epochs=-1, max_steps=6)
    assert list(by_steps.recorder.profiles) == [1, 2]
    assert Counts.checked == 0
    assert collapse.recorder.profiles[5].layers == ("a", "b")


def test_what_fails_in_measuring_costs_a_warning_and_no_bit(tmp_path, recwarn):
    known = bits(fitted([], tmp_path))

    class Breaks(Module):
        def forward(self, x):
            if not self.training and len(x) == 10 and self.current_epoch == 1:
                raise RuntimeError("the device was lost")
            return super().forward(x)

    collapse = Collapse(POINTS)
    warnings.simplefilter("always")
    same(bits(fitted([collapse], tmp_path, Breaks())), known)
    assert list(collapse.recorder.profiles) == [1]
    assert any("epoch 2 was not measured" in str(each.message) for each in recwarn.list)


@pytest.mark.parametrize("refused", [True, False])
def test_no_callback_acts_on_the_numbers_of_an_older_epoch(tmp_path, refused):
    monitors = pl.callbacks.ModelCheckpoint, pl.callbacks.EarlyStopping
    how = {"monitor": "pfc/pfc1"}
    if refused:
        for make in monitors:
            with pytest.raises(ValueError, match=r"monitors 'pfc/pfc1' at epochs that every=2 does not"):
                fitted([Collapse(POINTS, every=2), make(**how)], tmp_path, enable_checkpointing=True)
        return
    how |= {"every_n_epochs": 2, "save_on_train_epoch_end": True, "save_top_k": -1, "dirpath": tmp_path}
    kept, collapse = monitors[0](**how), Collapse(POINTS, every=2)
    others = monitors[1]("val", patience=9)
    fitted([collapse, kept, others], tmp_path, epochs=4, enable_checkpointing=True)
    known = [collapse.recorder.profiles[n].scalars()["pfc/pfc1"] for n in (2, 4)]
    assert [float(v) for v in kept.best_k_models.values()] == pytest.approx(known, rel=1e-6)


def test_the_last_epoch_of_a_training_that_stops_early_is_measured(tmp_path):
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch == 3

    logger = pl.loggers.CSVLogger(tmp_path)
    collapse = Collapse(POINTS, every=3, folder=tmp_path / "pfc")
    fitted([collapse, Stops()], tmp_path, epochs=9, logger=logger)
    assert list(collapse.recorder.profiles) == [1, 3, 4]
    assert list(pfc.load(tmp_path / "pfc").profiles) == [1, 3, 4]
    lines = pd.read_csv(Path(logger.log_dir) / "metrics.csv")["pfc/pfc1"].dropna()
    known = [p.scalars()["pfc/pfc1"] for p in collapse.recorder.profiles.values()]
    assert lines.tolist() == pytest.approx(known, rel=1e-6)


def test_wrong_use_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"pfc.measure has no argument 'layer'"):
        Collapse(layer="a")
    for collapse, message in (
        (Collapse(POINTS, layers="conv*"), "conv"),
        (Collapse(POINTS, network="model"), "network= names nothing in Module: .*'model'"),
    ):
        module = Module()
        before = {name: t.clone() for name, t in module.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            fitted([collapse], tmp_path, module)
        same(module.state_dict(), before)
    loaders = {name: DataLoader(TensorDataset(X, Y), 10) for name in "ab"}
    with pytest.raises(ValueError, match="several training loaders: give Collapse the data"):
        fitted([Collapse()], tmp_path, data=loaders)


def test_without_lightning_it_is_said_what_to_install(monkeypatch):
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.pytorch", None)
    with pytest.raises(
        ImportError, match=r"^Lightning is not installed: pip install 'pfc\[lightning\]'$"
    ):
        runpy.run_path(str(CODE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ImportError", "from lightning.pytorch import Trainer"),  # at others Lightning itself stops
        ("RuntimeError", "pass"),  # transformers' Trainer stops at any; the callback has no part in it
    ],
)
def test_a_torchvision_that_is_broken_is_not_missed(tmp_path, error, code):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise {error}('no operator nms')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    module = "huggingface" if code == "pass" else "lightning"
    code = f"{code}; from pfc.integrations.{module} import Collapse; print(Collapse().recorder.profiles)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "{}\n", done.stderr[-2000:]


PROCESSES = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from tests.test_lightning import Collapse, bits, fitted
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
how = {"devices": 2, "num_sanity_val_steps": 0}
found, seen = [], []
for collapse in (None, Collapse()):
    strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=TorchElasticEnvironment())
    callbacks = [] if collapse is None else [collapse]
    trainer = fitted(callbacks, sys.argv[1], strategy=strategy, **how)
    found.append(bits(trainer))
    seen = sorted(key for key in trainer.callback_metrics if key.startswith("pfc/"))
plain, measured = found
assert all(torch.equal(measured[name], tensor) for name, tensor in plain.items())
print([p.about["samples"] for p in collapse.recorder.profiles.values()], len(seen), seen[0])
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_bits_and_the_same_keys(tmp_path):
    """DistributedDataParallel with batch statistics that differ, of the trainer's own divided loader."""
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    env |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, str(tmp_path)],
            **{"env": {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert all(process.returncode == 0 for process in started), [err[-3000:] for _, err in said]
    first, second = (out.splitlines()[-1] for out, _ in said)
    assert first == second
    assert first.startswith("[30, 30]"), first
