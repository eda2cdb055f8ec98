"""Benchmark: what many classes cost, with all metrics and segments against `segments=False`.

`python benchmarks/classes.py` measures two layers of 20,000 samples with 10 to 10,000 classes, in turn
with and without segments, each case in a process of its own; then networks of ImageNet's shape
(ResNet-50's 16 blocks pooled, 1,000 classes) and of tokens (8 layers of width 256, five tokens a class),
whose random features are made batch by batch. `--only WORDS` takes a part. Seconds are CPU time on one
thread; memory is the growth of the resident set at its high-water mark. `--images N` and `--tokens N`
set the samples: the passes' seconds are a multiple of them, what is of pairs of classes does not depend
on them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from record import cpu_seconds, keep, kept, one_thread, peak_memory, side_by_side
from torch import Tensor, nn

import pfc

SAMPLES, BATCH = 20_000, 500
CASES = [(10, 16), (100, 16), (1_000, 16), (1_000, 256), (1_000, 2_048), (10_000, 256)]
SLOW = ("1000 classes, 2048 features", "10000 classes, 256 features")  # last
WHAT = f"both passes, all metrics; two layers of {SAMPLES} samples, and networks"
RESNET = [256] * 3 + [512] * 4 + [1_024] * 6 + [2_048] * 3


class Widths(nn.Module):
    """Layers that show the first columns of their input, moved further from layer to layer."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.blocks = nn.ModuleList(nn.Identity() for _ in widths)

    def forward(self, x: Tensor) -> Tensor:
        """The last layer."""
        for depth, (width, block) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x_l = block(x[..., :width] + depth / 10 * x[..., :width].tanh())
        return x_l


class Made:
    """Batches of noisy class means that are made when they are read, always the same."""

    def __init__(self, samples: int, classes: int, width: int, tokens: int = 0) -> None:
        self.samples, self.classes, self.tokens = samples, classes, tokens
        self.means = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.samples // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            g = torch.Generator().manual_seed(number + 1)
            y = torch.arange(number * BATCH, (number + 1) * BATCH) % self.classes
            x = self.means[y] + torch.randn(BATCH, self.means.shape[1], generator=g)
            yield (
                (x.view(-1, self.tokens, x.shape[1]), y.view(-1, self.tokens)) if self.tokens else (x, y)
            )


def two_layers(classes: int, features: int) -> dict[str, object]:
    """Seconds and MB with and without segments, and the ratio."""
    g = torch.Generator().manual_seed(0)
    y, means = torch.arange(SAMPLES) % classes, torch.randn(classes, features, generator=g)
    X = {
        name: size * means[y] + torch.randn(SAMPLES, features, generator=g)
        for name, size in (("first", 0.5), ("last", 1.0))
    }
    runs: dict[str, Callable[[], object]] = {
        name: partial(pfc.measure_features, X, y, segments=segments, progress=False)
        for name, segments in (("segments=False", False), ("default", True))
    }
    memory = {name: peak_memory(run) for name, run in runs.items()}
    seconds = side_by_side(runs, 3 if classes * features < 2**20 else 1)
    ratio = median(b / a for a, b in zip(*seconds.values(), strict=True))
    short = {name: [round(t, 2) for t in times] for name, times in seconds.items()}
    return {"cpu_seconds": short, "ratio": round(ratio, 2), "extra_memory_mb": memory}


def network(
    widths: list[int], samples: int, classes: int, tokens: int, segments: bool
) -> dict[str, object]:
    """Seconds of both passes, those of bare forward passes, and MB."""
    net, data = Widths(widths), Made(samples, classes, max(widths), tokens)
    options = {"pool": "tokens"} if tokens else {}
    run = partial(pfc.measure, net, data, segments=segments, progress=False, **options)
    with torch.no_grad():
        bare = 2 * cpu_seconds(lambda: [net(x) for x, _ in data])
    found: list[float] = []
    memory = peak_memory(lambda: found.append(cpu_seconds(run)))
    return {
        "samples": samples,
        "classes": classes,
        "cpu_seconds": round(found[0], 1),
        "of_which_two_forward_passes": round(bare, 1),
        "extra_memory_mb": memory,
    }


def case(kind: str, *given: object) -> None:
    """A case in this process; prints what was found."""
    one_thread()
    warm = {name: torch.randn(128, 1024) for name in "ab"}
    pfc.measure_features(warm, torch.arange(128) % 2, progress=False)  # loads the libraries
    print(json.dumps({"layers": two_layers, "network": network}[kind](*given)))


def measured(*given: object) -> dict[str, object]:
    """A case in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--case", json.dumps(given)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main(images: int, tokens: int, only: str) -> None:
    """Measure the cases that are asked for, the quick ones first, and write the record after each."""
    both = (("segments=False", False), ("default", True))
    cases = {f"{K} classes, {D} features": ("layers", K, D) for K, D in CASES}
    for name, segments in both:
        cases[f"ImageNet's shape, {name}"] = ("network", RESNET, images, 1_000, 0, segments)
        few = min(20_000, tokens // 5)
        cases[f"tokens, {name}"] = ("network", [256] * 8, tokens, few, 100, segments)
    found: dict[str, dict[str, object]] = kept(__file__).get("cases", {}) if only else {}
    for name in sorted((name for name in cases if only in name), key=lambda name: name in SLOW):
        found[name] = measured(*cases[name])
        keep(__file__, {"what": WHAT, "cases": found, "aim": {"ratio at 1000 classes": 2.0}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--only", default="", help="cases with this in their name; the others stay")
    parser.add_argument("--case", type=json.loads)
    given = parser.parse_args()
    if given.case:
        case(*given.case)
    else:
        main(given.images, given.tokens, given.only)
