"""Benchmark B: what measuring adds to the forward passes of a network of ResNet-18's size.

`python benchmarks/network.py FOLDER` takes test images of CIFAR-10 from a folder of parquet (or the hub
name uoft-cs/cifar10), taps all eight blocks, flattened, and compares with bare forward passes, batch by
batch: of 768 images, and of four times as many, by which what is done once costs less. The allocator
keeps its memory, so that page faults do not hide what is compared. It takes 25 minutes. Where there is a
CUDA device it does so there too, in float32 and in bfloat16, timed by the device's events.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from record import cpu_seconds, keep, keep_memory, one_thread, ratios

import pfc

BATCH, BATCHES, REPEATS = 128, 6, 5
MORE = 24  # batches, of which what every measurement costs once is a smaller part
KINDS = {  # passes, and whether there are segments
    "one pass": (1, False),
    "one pass with segments": (1, True),
    "two passes": (2, False),
    "two passes with segments": (2, True),
}
MANY = 20  # times the batches, on a device that is done with them at once


def device_seconds(run: Callable[[], object]) -> float:
    """Seconds between two events of the device's queue around `run`."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def on_device(
    net: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, object]:
    """The same ratios on a CUDA device, by precision; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    net, many = net.cuda(), [(x.cuda(), y) for x, y in batches] * MANY
    found: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for precision in (None, "bfloat16"):

        def bare(dtype: str | None = precision) -> None:
            autocast = torch.autocast("cuda", torch.bfloat16, enabled=dtype is not None)
            with torch.no_grad(), autocast:
                for x, _ in many:
                    net(x)

        def measured(passes: int, segments: bool, dtype: str | None = precision) -> None:
            pfc.measure(
                net,
                many,
                layers="stages.*.blocks.*",
                passes=passes,
                segments=segments,
                precision=dtype,
                progress=False,
            )

        runs = {"bare forward": bare} | {name: partial(measured, *how) for name, how in KINDS.items()}
        for run in runs.values():
            run()  # kernels are chosen at the first run
        seconds = {name: [device_seconds(run) for _ in range(REPEATS)] for name, run in runs.items()}
        found[precision or "float32"] = {"seconds": seconds, "ratio": ratios(seconds, "bare forward")}
    return {"cuda": found}


class Beside:
    """Batches, before each of which a bare forward pass of the same batch is made and timed.

    Machines grow faster and slower by more than what is compared: so both meet it batch by batch.
    """

    def __init__(self, net: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.net, self.batches, self.seconds = net, batches, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in self.batches:
            with torch.no_grad():
                self.seconds += cpu_seconds(partial(self.net, x))
            yield x, y

    def measured(self, passes: int, segments: bool) -> tuple[float, float]:
        """CPU seconds of one bare pass, and of measuring."""
        self.seconds = 0.0
        how = {"passes": passes, "segments": segments, "progress": False}
        run = partial(pfc.measure, self.net, self, layers="stages.*.blocks.*", **how)
        both = cpu_seconds(run)
        return self.seconds / passes, both - self.seconds


def on_processor(
    net: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], repeats: int
) -> dict[str, object]:
    """Seconds on the processor and the ratios."""
    beside, seconds = Beside(net, batches), {name: list[tuple[float, float]]() for name in KINDS}
    beside.measured(1, segments=False)
    for _ in range(repeats):
        for name, how in KINDS.items():
            seconds[name].append(beside.measured(*how))
    rounded = {name: [[round(t, 2) for t in pair] for pair in pairs] for name, pairs in seconds.items()}
    ratio = {
        name: round(median(measured / bare for bare, measured in pairs), 3)
        for name, pairs in seconds.items()
    }
    return {"cpu_seconds of a bare pass, and of measuring": rounded, "ratio": ratio}


def main(spec: str) -> None:
    """Measure and write the record."""
    keep_memory()
    one_thread()
    data = pfc.data.load(spec, split="test", limit=BATCH * MORE)
    torch.manual_seed(0)
    net = pfc.ConvResNet(3, (32, 32), 10, blocks=(2, 2, 2, 2), width=64, zero_start=False).eval()
    more = list(data.batches(BATCH))
    batches, parameters = more[:BATCHES], sum(p.numel() for p in net.parameters())
    record = {
        "what": f"{parameters / 1e6:.1f}M weights, 8 blocks flattened, {BATCHES} batches of {BATCH}",
        **on_processor(net, batches, REPEATS),
        f"{MORE} batches": on_processor(net, more, 3),
        **on_device(net, batches),
        "aim": {
            "one pass": 1.03,
            "one pass with segments": 1.06,
            "two passes": 2.05,
            "two passes with segments": 2.05,
        },
    }
    keep(__file__, record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/network.py FOLDER")
    main(sys.argv[1])
