"""Benchmark B: what measuring adds to the forward passes of a network of ResNet-18's size.

`python benchmarks/network.py FOLDER` takes test images of CIFAR-10 from a folder of parquet (or the hub
name uoft-cs/cifar10), taps all eight blocks, flattened, and compares with bare forward passes.
"""

import sys
from collections.abc import Callable

import torch
from record import keep, one_thread, ratios, side_by_side

import pfc

BATCH, BATCHES, REPEATS = 128, 3, 3


def main(spec: str) -> None:
    """Measure and write the record."""
    one_thread()
    data = pfc.data.load(spec, split="test", limit=BATCH * BATCHES)
    torch.manual_seed(0)
    net = pfc.ConvResNet(3, (32, 32), 10, blocks=(2, 2, 2, 2), width=64, zero_start=False).eval()
    batches = list(data.batches(BATCH))

    def bare() -> None:
        with torch.no_grad():
            for x, _ in batches:
                net(x)

    def measured(passes: int, segments: bool) -> Callable[[], pfc.Profile]:
        return lambda: pfc.measure(
            net,
            batches,
            layers="stages.*.blocks.*",
            passes=passes,
            segments=segments,
            progress=False,
        )

    bare()
    runs = {
        "bare forward": bare,
        "one pass": measured(1, False),
        "one pass with segments": measured(1, True),
        "two passes, all metrics": measured(2, True),
    }
    seconds = side_by_side(runs, REPEATS)
    parameters = sum(p.numel() for p in net.parameters())
    record = {
        "what": f"{parameters / 1e6:.1f}M weights, 8 blocks flattened, {BATCHES} batches of {BATCH}",
        "cpu_seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
        "ratio": ratios(seconds, "bare forward"),
        "aim": {"one pass": 1.15, "one pass with segments": 1.25, "two passes, all metrics": 2.3},
    }
    keep(__file__, record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/network.py FOLDER")
    main(sys.argv[1])
