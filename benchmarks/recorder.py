"""Benchmark G: what `pfc.Recorder` costs beside the measuring itself, on the digits.

`python benchmarks/recorder.py` trains two networks for some epochs and keeps, in percent of an epoch's
training steps, medians over the epochs: what the measuring costs (`pfc.measure` with two passes, inside
the recorder's call), and what the rest of the call costs, without a folder and with one; and how many
forward passes a call makes beyond those of `pfc.measure`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from record import cpu_seconds, keep, one_thread
from watching import RECIPE, Training

import pfc
from pfc.integrations import recorder as recording

EPOCHS, AIM = 6, 1.0  # percent of an epoch; ours
measured = recording.measure_network


class Timed:
    """`measure` as the recorder calls it, with the CPU seconds that it took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> pfc.Profile:
        """Measure."""
        started = time.process_time()
        try:
            return measured(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - started


def costs(training: Training, folder: str | None) -> dict[str, float]:
    """Medians over the epochs, in percent of the training steps."""
    logged: list[object] = []
    recorder = pfc.Recorder(
        training.data.batches(),
        folder=folder,
        log=lambda numbers, epoch: logged.append((epoch, numbers)),
        scalars="all",
    )
    recorder.check(training.net)
    recording.measure_network = timed = Timed()
    inside, beside, seconds = [], [], []
    for epoch in range(1, EPOCHS + 1):
        batches = training.batches(epoch)
        steps = cpu_seconds(lambda b=batches: training.epoch(b, None))
        timed.seconds = 0.0
        whole = cpu_seconds(lambda e=epoch: recorder(training.net, e))
        inside.append(100 * timed.seconds / steps)
        seconds.append(whole - timed.seconds)
        beside.append(100 * seconds[-1] / steps)
    recording.measure_network = measured
    return {
        "measuring": round(median(inside), 1),
        "beside it": round(median(beside), 2),
        "beside it, milliseconds": round(1e3 * median(seconds), 2),
    }


def forward_passes(training: Training, run: Callable[[], object]) -> int:
    """How often the network runs meanwhile."""
    calls: list[int] = []
    handle = training.net.register_forward_hook(lambda *_: calls.append(1))
    run()
    handle.remove()
    return len(calls)


def more_passes(training: Training) -> int:
    """Forward passes of a call beyond those of `measure`; the trial is before."""
    data, net = training.data.batches(), training.net
    recorder = pfc.Recorder(data)
    recorder.check(net)
    called = forward_passes(training, lambda: recorder(net, 0))
    return called - forward_passes(training, lambda: pfc.measure(net, data, progress=False))


def main() -> None:
    """Train, measure and write the record."""
    one_thread()
    data = pfc.data.load("digits")
    nets = {
        "perceptron of the recipe, width 64": None,
        "convolutions, 32 and 64 channels": pfc.ConvResNet(1, (8, 8), 10, blocks=(2, 2), width=32),
    }
    found: dict[str, object] = {}
    for name, net in nets.items():
        with tempfile.TemporaryDirectory() as folder:
            training = Training(data, net)
            found[name] = {
                "forward passes beyond those of measure": more_passes(training),
                "without a folder": costs(training, None),
                "with a folder": costs(training, folder),
            }
    what = f"{RECIPE.name}: {len(data)} samples, {EPOCHS} epochs; percent of the training steps, medians"
    keep(__file__, {"what": what, "aim, beside the measuring": AIM, "percent": found})


if __name__ == "__main__":
    sys.exit(main())
