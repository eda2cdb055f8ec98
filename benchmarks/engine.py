"""Benchmark A: exact statistics of 5 layers of 60,000 x 1,000 float32 features against the floor.

`python benchmarks/engine.py` compares `pfc.measure` on stored features with the least that any tool
must do, in float32: read the features twice, one class-sum product, one product with K columns. As plain
products these are not the fastest: beside this floor stands one of class sums row by row and a product
in the better order. Then what a layer costs where batches are small, and what compiling the loops takes
that a machine's first measurement calls.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from statistics import median

import torch
from record import keep, one_thread, peak_memory, ratios, side_by_side
from torch import Tensor, nn
from torch.nn import functional as F

import pfc

N, D, K, LAYERS, BATCH, REPEATS = 60_000, 1_000, 10, 5, 1_000, 5
SHAPES = [(1000,), (500, 2), (250, 4), (125, 8), (100, 10)]  # of one size, but no two layers pair
SMALL, WIDTH, DEEP, SAMPLES = 128, 512, 16, 12_800  # of small batches
FIRST = """
import time, torch, pfc
x, y = torch.randn(600, 1000), torch.arange(600) % 10
layers = {name: x * size for name, size in (("a", 1), ("b", 2), ("c", 3))}
for _ in range(2):
    before = time.process_time()
    pfc.measure_features(layers, y, progress=False)
    print(time.process_time() - before)
"""


class Stored(nn.Module):
    """Hands out stored features in batches cut beforehand; there is no forward pass to pay for."""

    def __init__(self, features: list[Tensor], shapes: list[tuple[int, ...]], size: int) -> None:
        super().__init__()
        self.layers, self.size = nn.ModuleList(nn.Identity() for _ in features), size
        layers = (H.view(-1, *shape) for H, shape in zip(features, shapes, strict=True))
        self.batches = [*zip(*(H.split(size) for H in layers), strict=True)]

    def forward(self, rows: Tensor) -> None:
        """Show each layer its rows."""
        number, inside = divmod(int(rows[0]), self.size)
        assert not inside, "rows of a batch that was cut otherwise"
        for layer, H in zip(self.layers, self.batches[number], strict=True):
            layer(H if len(H) == len(rows) else H[: len(rows)])


class Rows:
    """Numbers of the rows, and their labels, in batches."""

    classes = K

    def __init__(self, y: Tensor, size: int) -> None:
        self.y, self.size = y, size

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.arange(len(self.y))
        return zip(rows.split(self.size), self.y.split(self.size), strict=True)


def floor(features: list[Tensor], y: Tensor) -> None:
    """What cannot be avoided, in float32 and one piece."""
    one_hot = F.one_hot(y, K).float()
    columns = torch.ones(D, K)
    for H in features:
        for _ in range(2):
            H.sum()
        one_hot.T @ H
        H @ columns


def fastest_floor(features: list[Tensor], y: Tensor) -> None:
    """The same in the order of rows and columns that is the fastest here."""
    rows = torch.ones(K, D)
    for H in features:
        for _ in range(2):
            H.sum()
        torch.zeros(K, D).index_add_(0, y, H)
        rows @ H.mT


def errors(profile: pfc.Profile, features: list[Tensor], y: Tensor) -> float:
    """Largest relative error of PFC1 against two passes over one float64 copy."""
    worst = 0.0
    for found, H in zip(profile.table()["pfc1"], features, strict=True):
        H = H.double()
        mean = torch.stack([H[y == k].mean(0) for k in range(K)])
        within = sum((H[y == k] - mean[k]).square().sum(1).mean() for k in range(K)) / K
        known = within / (mean - mean.mean(0)).square().sum(1).mean()
        worst = max(worst, abs(float(found / known) - 1))
    return worst


def small_batches() -> dict[str, float]:
    """CPU milliseconds of a layer and batch where batches are small."""
    g = torch.Generator().manual_seed(0)
    y, means = torch.arange(SAMPLES) % K, torch.randn(K, WIDTH, generator=g)
    features = [means[y] + torch.randn(SAMPLES, WIDTH, generator=g) for _ in range(DEEP)]
    model, rows = Stored(features, [(WIDTH,)] * DEEP, SMALL), Rows(y, SMALL)

    def measured(passes: int, segments: bool) -> Callable[[], object]:
        how = {"layers": "layers.*", "passes": passes, "segments": segments, "progress": False}
        return lambda: pfc.measure(model, rows, **how)

    seconds = side_by_side(
        {
            "one pass": measured(1, False),
            "one pass with segments": measured(1, True),
            "two passes": measured(2, False),
            "two passes with segments": measured(2, True),
        },
        REPEATS,
    )
    each = 1e3 / DEEP / len(rows)
    return {name: round(median(times) * each, 3) for name, times in seconds.items()}


def compiling() -> list[float]:
    """CPU seconds by which the first measurement on a machine takes longer than the next."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", FIRST],
                env={**kept, "PFC_CACHE": folder, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
        first, second = map(float, run.stdout.split())
        found.append(round(first - second, 2))
    return found


def main() -> None:
    """Measure and write the record."""
    one_thread()
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (N,), generator=g)
    means = torch.randn(K, D, generator=g)
    features = [means[y] + torch.randn(N, D, generator=g) + offset for offset in (0, 1, 10, 100, 1e4)]
    model, rows = Stored(features, SHAPES, BATCH), Rows(y, BATCH)

    def measured(passes: int) -> Callable[[], pfc.Profile]:
        return lambda: pfc.measure(model, rows, layers="layers.*", passes=passes, progress=False)

    some = [(torch.randn(128, 1024), torch.arange(128) % 2)]
    pfc.measure(
        nn.Sequential(nn.Linear(1024, 2)), some, progress=False
    )  # loads the libraries, which are no one's state
    memory = {f"passes={p}": peak_memory(measured(p)) for p in (2, 1)}
    error = errors(measured(1)(), features, y)
    runs = {
        "floor": lambda: floor(features, y),
        "passes=1": measured(1),
        "passes=2": measured(2),
        "fastest floor": lambda: fastest_floor(features, y),
    }
    seconds = side_by_side(runs, REPEATS)
    plain = {name: times for name, times in seconds.items() if name != "fastest floor"}
    fastest = {name: times for name, times in seconds.items() if name != "floor"}
    record = {
        "what": f"{LAYERS} layers of {N} x {D} float32 features, {K} classes, batches of {BATCH}",
        "floor": "read twice, class-sum product, K-column product, float32",
        "cpu_seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
        "ratio": ratios(plain, "floor"),
        "ratio_to_the_fastest_floor": ratios(fastest, "fastest floor"),
        "aim": {"passes=1": 0.3, "passes=2": 0.8, "extra_memory_mb": 20, "relative_error": 1e-9},
        "extra_memory_mb": memory,
        "relative_error_of_pfc1": error,
        "small_batches": f"{DEEP} layers of {WIDTH} features, batches of {SMALL}",
        "small_batches_ms_per_layer_and_batch": small_batches(),
        "compiling_cpu_seconds": compiling(),
    }
    keep(__file__, record)


if __name__ == "__main__":
    sys.exit(main())
