"""Benchmark G: an epoch of `pfc.train`, kept in a folder, against the bare steps on a fixed batch.

`python benchmarks/training.py` trains networks of the recipes on images of random pixels. The floor
makes the same number of steps (forward pass, loss, backward pass, step of a fused optimizer) on one
batch that is ready: no data, no counts, no files. Both in float32 and bfloat16; of convolutions
the floor runs with the channels last in memory, too. MNIST has the images of the recipe mnist-wide, as
what an epoch writes, a state of 160 MB, does not grow with them. `--device cuda` measures there.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product as product_of
from statistics import median
from typing import Any

import torch
from record import keep, ratios

import pfc
from pfc.data import Images
from pfc.training.trainer import objective

REPEATS = 3
SETUPS: dict[str, tuple[str, int, int, tuple[int, int, int]]] = {  # recipe, width, images, shape
    "mnist, width 1000": ("mnist", 1000, 9_984, (1, 28, 28)),
    "fashion_mnist, width 16": ("fashion_mnist", 16, 640, (1, 28, 28)),
    "cifar10, width 32": ("cifar10", 32, 384, (3, 32, 32)),
    "cifar10, width 64": ("cifar10", 64, 128, (3, 32, 32)),
}


def images(count: int, shape: tuple[int, int, int]) -> Images:
    """Random pixels with random labels."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=g)
    return Images.of(pixels, labels, tuple(map(str, range(10))), "random", "train")


def product(recipe: pfc.Recipe, data: Images, how: dict[str, Any]) -> Iterator[float]:
    """Wall-clock seconds of each epoch between the first, which warms up, and the last."""
    net = recipe.build(data)
    with tempfile.TemporaryDirectory() as folder:
        epochs = pfc.train(
            net, data, recipe, folder=folder, measure_every=recipe.epochs, progress=False, **how
        )
        next(epochs), next(epochs)
        while True:
            started = time.perf_counter()
            if next(epochs).epoch == recipe.epochs:
                return
            yield time.perf_counter() - started


def floor(recipe: pfc.Recipe, data: Images, how: dict[str, Any]) -> Iterator[float]:
    """The same steps and nothing else."""
    device = torch.device(how["device"])
    net = recipe.build(data).to(device)
    x = data.normalised(slice(recipe.batch_size)).to(device)
    if how.get("channels_last"):
        net, x = (
            net.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    y = data.labels[: recipe.batch_size].to(device)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4, fused=True
    )
    half = how["precision"] == "bfloat16"
    torch.set_num_threads(how["threads"])
    torch.set_flush_denormal(True)
    while True:
        wait(device)
        started = time.perf_counter()
        for _ in range(len(data) // recipe.batch_size):
            with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
                logits = net(x)
            optimizer.zero_grad(set_to_none=True)
            objective(logits.float(), y, recipe.loss).backward()
            optimizer.step()
        wait(device)
        yield time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until what was queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(ways: dict[str, Iterator[float]]) -> dict[str, list[float]]:
    """Seconds of each way, in turn; the floor's first epoch warms up."""
    for name in ways:
        if name.startswith("floor"):
            next(ways[name])
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, seconds in ways.items():
            found[name].append(next(seconds))
    return found


def row(recipe: pfc.Recipe, data: Images, how: dict[str, Any]) -> dict[str, Any]:
    """Seconds of an epoch, and the ratio to each floor in the same repeat."""
    ways = {"pfc.train": product(recipe, data, how), "floor": floor(recipe, data, how)}
    if recipe.net == "conv":
        ways["floor, channels last"] = floor(recipe, data, {**how, "channels_last": True})
    seconds = compared(ways)
    return {
        "seconds": {name: round(median(times), 3) for name, times in seconds.items()},
        "ratio": {
            f"over the {name}": ratios(seconds, name)["pfc.train"]
            for name in ways
            if name != "pfc.train"
        },
    }


def main(device: str, threads: list[int], only: str) -> None:
    """Measure and write the record."""
    rows: dict[str, dict[str, Any]] = {}
    for name, (kind, width, count, shape) in SETUPS.items():
        recipe = replace(pfc.RECIPES[kind], width=width, epochs=REPEATS + 2, learning_rate=1e-3)
        for number, precision in product_of(threads, ("float32", "bfloat16")):
            how = {"device": device, "threads": number, "precision": precision}
            title = f"{name}, {precision}, {number} thread{'s' * (number > 1)}"
            if only in title:
                rows[title] = row(recipe, images(count, shape), how)
                print(title, rows[title], flush=True)
    keep(__file__, {"what": "wall-clock seconds of an epoch", "device": device, "rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--only", default="", help="a part of a setup's name")
    given = parser.parse_args()
    main(given.device, given.threads, given.only)
