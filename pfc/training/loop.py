"""The loop that trains: a generator that yields after every epoch."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfc.data import Images
from pfc.device import device_of
from pfc.files import expanded
from pfc.lock import locked
from pfc.nets import one_of
from pfc.processes import together
from pfc.progress import shown
from pfc.theory.coefficients import at_least
from pfc.training.config import trained_config
from pfc.training.folder import RunFolder, gathered_random
from pfc.training.recipes import Recipe
from pfc.training.speed import ForwardPrecision, PrecisionChoice, fast_precision
from pfc.training.trainer import Epoch, Trainer


def measured_epochs(epochs: int, every: int | None = None) -> list[int]:
    """Epochs at which a run is measured: 0, about ten in geometric steps, the last.

    Args:
        epochs: Passes in all.
        every: Measure each so many epochs instead, and the last.

    Returns:
        The epochs in ascending order, without repetition.

    Raises:
        ValueError: If `every` is below 1.

    Examples:
        >>> measured_epochs(350)
        [0, 1, 2, 4, 7, 14, 26, 50, 95, 183, 350]
    """
    if every is not None:
        at_least(1, measure_every=every)
        return sorted({*range(0, epochs, every), epochs})
    return sorted({0, *(round(epochs ** (i / 9)) for i in range(10)), epochs})


def train(
    net: nn.Module,
    data: Images,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: PrecisionChoice = "float32",
    threads: int | None = None,
    compile: bool = False,
    measure_every: int | None = None,
    group: Any = None,
    progress: bool = True,
) -> Iterator[Epoch]:
    """Train a network in place by a recipe; yields epoch 0 and then every epoch done.

    Weights of convolutions are laid out in memory with the channels last, which is faster.

    The order of the samples in epoch e depends on (seed, e) alone. With a `folder` the run is kept
    there: configuration, history, profiles, weights, and after every epoch a state from which
    `resume=True` continues to the same bits on the same machine. The folder is locked until the last
    epoch, or until the generator is closed or dropped, or its process dies.

    In an initialised process group of `torch.distributed` every process makes the same call, with the
    whole data, and each takes its part of every batch: the batches and their order are those of one
    process, and gradients and steps too, to rounding, but batch normalisation sees each process's own
    part of a batch (`torch.nn.SyncBatchNorm.convert_sync_batchnorm` beforehand changes that on GPUs).
    The first process keeps the run; any number of them, one alone as well, resumes it.

    Args:
        net: Any classifier of these images; `recipe.build(data)` makes the paper's.
        data: The training images; they are moved to the device once, as uint8.
        recipe: How to train.
        folder: Where the run is kept, or `None` to keep nothing.
        resume: Continue the run in `folder`; starts it if nothing is there yet.
        seed: Of the order of the samples.
        device: Where to train; the net's own place if `None`.
        precision: `"bfloat16"` runs forward passes under autocast. `"auto"` takes it on a
            processor that multiplies bfloat16 by itself (its flag amx_bf16 or avx512_bf16 in
            /proc/cpuinfo, so on Linux alone), on a GPU for networks of ours that nobody listens to,
            whose steps are recorded and launched as a whole, and what a kept run began with.
        threads: Processor threads; chosen by the size of a step if `None`, because small layers run
            many times slower on two busy threads than on one. Small steps on a processor are traced
            and repeated to the same bits, for networks of ours that nobody listens to or changes.
        compile: Compile the network for training by `torch.compile`, which takes a minute at the start.
            A resumed run has the same bits only if it does as before.
        measure_every: Measure each so many epochs instead of the geometric steps.
        group: The processes that train together; `None` for all of an initialised process group,
            `False` for this one alone.
        progress: Show a progress bar with loss, accuracy and time left.

    Yields:
        One `Epoch` after each pass; a resumed run begins with the pass after the kept one.

    Raises:
        ValueError: If an argument has no meaning, the folder holds another run or is in use, or the
            loss is no longer finite.
    """
    if recipe.limit is not None and len(data) > recipe.limit:
        raise ValueError(
            f"recipe {recipe.name!r} is for {recipe.limit:,} images, got {len(data):,}: load them with "
            f"limit={recipe.limit}, or change the recipe's limit"
        )
    due = measured_epochs(recipe.epochs, measure_every)
    with together(group) as ranks:
        ranks.use_device(device_of(device, net))
        path = None if folder is None else expanded(folder)
        taken = _precision(precision, path, net, device_of(device, net))
        chosen = {"seed": seed, "precision": taken, "measured": due, "recipe": str(recipe)}
        ranks.agree(**chosen, samples=len(data), data=data.fingerprint)
        run = Trainer(net, data, recipe, seed, device, taken, threads, ranks, compile=compile)
        home = None if path is None else RunFolder(path, run.about(measure_every))
        mine = home if ranks.is_main else None  # only the first process writes
        bar = shown(f"train {recipe.name}", recipe.epochs, enabled=progress and ranks.is_main)
        with locked(mine.path) if mine else nullcontext(), bar as step:
            done = mine.open(run, resume=resume) if mine else -1
            done = _follow(run, home, done)
            for number in range(done + 1, recipe.epochs + 1):
                ranks.exchange(f"epoch {number}")  # none goes on that waits for one that has left
                epoch = run.epoch(number, profiled=number in due)
                states = gathered_random(run) if home else []
                if mine:
                    kept = number in {0, recipe.epochs // 2, recipe.epochs}
                    in_full = number in {0, middle_of(due), recipe.epochs}
                    mine.keep(run, epoch, states, keep_weights=kept, in_full=in_full)
                if number:
                    step(number, f"loss {epoch.loss:.3g} accuracy {epoch.accuracy:.4f}")
                yield epoch


def _precision(
    choice: PrecisionChoice, folder: Path | None, net: nn.Module, device: torch.device
) -> ForwardPrecision:
    """The precision that is meant: of `"auto"` that of the kept run, or the faster one."""
    one_of(PrecisionChoice, precision=choice)
    if choice != "auto":
        return choice
    if folder is not None and (folder / "config.json").exists():
        kept: ForwardPrecision = trained_config(folder)["precision"]
        return kept
    return fast_precision(net, device)


def middle_of(epochs: list[int]) -> int:
    """The measured epoch that is the nearest to half of all."""
    return min(epochs, key=lambda epoch: abs(2 * epoch - epochs[-1]))


def _follow(run: Trainer, home: RunFolder | None, done: int) -> int:
    """Bring the other processes to the state that the first one found; its epoch."""
    done = run.ranks.exchange("state", done)[0]
    if home and done >= 0 and not run.ranks.is_main:
        home.restore(run)
    return done
