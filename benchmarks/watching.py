"""Benchmark F: the cheap ways to measure against `pfc.measure` after each epoch, on the digits.

`python benchmarks/watching.py` trains the recipe of the digits for some epochs and keeps, by epoch, PFC1
and PFC2 of the last layer as a monitor saw them in the epoch's own steps and as `measure` finds them
after it; what a monitor costs, in percent of the training steps; and what `measure(limit=)` gives of the
last epoch's network with few samples a class, against all of them.
"""

import copy
import sys
from statistics import median

import torch
from record import cpu_seconds, keep, one_thread
from torch import Tensor, nn
from torch.nn import functional as F

import pfc

EPOCHS, REPEATS = 12, 5
LIMITS = (20, 50, 100, 200, 500, 1_000)
RECIPE = pfc.RECIPES["digits"]


class Training:
    """A network, its optimizer and its shuffled batches."""

    def __init__(self, data: pfc.data.Images, net: nn.Module | None = None) -> None:
        self.data = data
        self.net = net or RECIPE.build(data, seed=0)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=RECIPE.learning_rate,
            momentum=0.9,
            weight_decay=RECIPE.weight_decay,
        )

    def batches(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """The epoch's batches, in an order of its own."""
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(epoch))
        rows = order.split(RECIPE.batch_size)
        return [(self.data.normalised(index), self.data.labels[index]) for index in rows]

    def epoch(self, batches: list[tuple[Tensor, Tensor]], monitor: pfc.Monitor | None) -> None:
        """One pass, seen by the monitor if there is one."""
        self.net.train()
        for x, y in batches:
            if monitor is None:
                logits = self.net(x)
            else:
                with monitor.batch(y):
                    logits = self.net(x)
            self.optimizer.zero_grad()
            loss(logits, y).backward()
            self.optimizer.step()


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """The recipe's."""
    return (logits - F.one_hot(y, logits.shape[1])).square().sum(1).mean() / 2


def rounded(profile: pfc.Profile, *columns: str) -> dict[str, float]:
    """Metrics of the last layer."""
    return {column: round(profile.columns[column][-1], 5) for column in columns}


def by_epoch(training: Training) -> list[dict[str, object]]:
    """What the monitor saw and what the network is, after each epoch."""
    rows, monitor = [], pfc.Monitor(training.net)
    for epoch in range(1, EPOCHS + 1):
        training.epoch(training.batches(epoch), monitor)
        seen = monitor.profile()
        found = pfc.measure(training.net, training.data.batches(), passes=1, progress=False)
        pair = {"monitor": rounded(seen, "pfc1", "pfc2"), "measure": rounded(found, "pfc1", "pfc2")}
        over = {c: round(pair["monitor"][c] / pair["measure"][c], 3) for c in ("pfc1", "pfc2")}
        rows.append({"epoch": epoch, **pair, "monitor over measure": over})
    return rows


def costs(training: Training) -> dict[str, float]:
    """CPU seconds of an epoch of each kind over those of a plain one: medians of ratios, in percent."""
    batches = training.batches(0)
    monitors = {
        "monitor": pfc.Monitor(training.net),
        "monitor without segments": pfc.Monitor(training.net, segments=False),
    }
    ratios: dict[str, list[float]] = {name: [] for name in (*monitors, "measure, one pass", "measure")}
    net, data = training.net, training.data.batches()
    for _ in range(REPEATS):
        plain = cpu_seconds(lambda: training.epoch(batches, None))
        for name, monitor in monitors.items():
            whole = cpu_seconds(lambda m=monitor: (training.epoch(batches, m), m.profile()))
            ratios[name].append(whole / plain)
        for name, passes in (("measure, one pass", 1), ("measure", 2)):
            extra = cpu_seconds(lambda p=passes: pfc.measure(net, data, passes=p, progress=False))
            ratios[name].append(1 + extra / plain)
    return {name: round(100 * (median(r) - 1), 1) for name, r in ratios.items()}


def few(net: nn.Module, data: pfc.data.Images) -> list[dict[str, object]]:
    """Metrics of the first samples alone; the set is in an order of its own, but here it is shuffled."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batches = [(data.normalised(i), data.labels[i]) for i in order.split(100)]
    columns = ("pfc1", "pfc2", "pfc3", "nc1")
    whole = pfc.measure(net, batches, progress=False)
    rows = [{"samples": len(data), **rounded(whole, *columns)}]
    for limit in LIMITS:
        found = pfc.measure(net, batches, limit=limit, progress=False)
        rows.append({"samples": limit, **rounded(found, *columns)})
    return rows


def main() -> None:
    """Train, measure and write the record."""
    one_thread()
    data = pfc.data.load("digits")
    training = Training(data)
    early = few(copy.deepcopy(training.net), data)
    rows = by_epoch(training)
    large = pfc.ConvResNet(1, (8, 8), 10, blocks=(2, 2), width=32)
    keep(
        __file__,
        {
            "what": f"{RECIPE.name}: {EPOCHS} epochs of {len(data)} samples, batches of "
            f"{RECIPE.batch_size}; the last layer",
            "epochs": rows,
            "cost_percent_of_the_training_steps": {
                "perceptron of the recipe, width 64": costs(training),
                "convolutions, 32 and 64 channels": costs(Training(data, large)),
            },
            "limit, trained": few(training.net, data),
            "limit, untrained": early,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
