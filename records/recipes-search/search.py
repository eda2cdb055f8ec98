"""Train the paper's networks, made small, by many recipes, and keep what every layer of each became.

Each run, a try of a data set with a seed, adds one line to results.jsonl and is skipped when its line
is there already. Runs go side by side, as `--jobs` says. At the end README.md is written from NOTES.md
and all lines.

    python records/recipes-search/search.py cifar10 --data FOLDER
    python records/recipes-search/search.py cifar10 stl10 --data FOLDER --device cuda --jobs 16
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import torch

import pfc.data
from pfc.nets import ConvResNet
from pfc.profile import Profile
from pfc.training import RECIPES, Recipe, train
from pfc.training.recipes import Loss
from pfc.training.speed import fast_precision

HERE = Path(__file__).parent
METRICS = ("pfc1", "pfc2", "pfc3")


@dataclass(frozen=True)
class Setting:
    """A data set at a size that one core of a processor trains for 350 epochs in 90 minutes.

    Args:
        limit: Images, as many of each class.
        width: Of the network.
        rates: Learning rates to be tried of each loss, the first ones first; the paper gives none.
        decays: Weight decays to be tried with each.
        more: Further changes of the paper's recipe, each to be tried with both losses.
        first: Changes that are tried before all others, for what the first runs left open.
    """

    limit: int
    width: int
    rates: Mapping[Loss, tuple[float, ...]]
    decays: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    more: tuple[dict[str, Any], ...] = ()
    first: tuple[dict[str, Any], ...] = ()

    def tries(self, name: str) -> Iterator[Recipe]:
        """The recipes, the paper's own first."""
        paper = replace(RECIPES[name], width=self.width)
        yield paper
        for changes in self.first:
            yield replace(paper, **changes)
        depth = max(map(len, self.rates.values()))
        for place, decay in product(range(depth), self.decays):
            for loss, rates in self.rates.items():
                if place < len(rates):
                    yield replace(paper, loss=loss, learning_rate=rates[place], weight_decay=decay)
        for changes, (loss, rates) in product(self.more, self.rates.items()):
            yield replace(paper, **{"learning_rate": rates[0], **changes}, loss=loss)


RANDOM_START = {"zero_start": False}
CONVOLUTIONAL = (
    *({"head": "flatten", "weight_decay": decay} for decay in (5e-4, 2e-3, 5e-3)),
    {"weight_decay": 2e-3, **RANDOM_START},
    {"weight_decay": 2e-3, "form": "relu(Wx)", **RANDOM_START},
    *({"weight_decay": decay, "batch_size": 64} for decay in (2e-3, 5e-3)),
    {"weight_decay": 2e-3, "batch_size": 32},
)
FULLY_CONNECTED = (
    {"weight_decay": 5e-3, **RANDOM_START},
    {"weight_decay": 5e-3, "form": "relu(Wx)", **RANDOM_START},
    {"weight_decay": 5e-3, "batch_size": 64},
    {"weight_decay": 5e-3, "normalise": "none", "learning_rate": 0.005},
)
RATES: dict[Loss, tuple[float, ...]] = {"cross-entropy": (0.05, 0.02, 0.1), "mse": (0.01, 0.005, 0.02)}


def squared(rate: float, decay: float, **more: Any) -> dict[str, Any]:
    """Changes to squared error."""
    return {"loss": "mse", "learning_rate": rate, "weight_decay": decay, **more}


FIRST: dict[str, tuple[dict[str, Any], ...]] = {
    "fashion_mnist": (squared(0.02, 2e-3),),
    "cifar10": (
        *(squared(rate, decay) for rate, decay in ((0.01, 5e-4), (0.01, 2e-3), (0.005, 1e-3))),
        *({"width": width, **more} for width in (16, 8) for more in ({}, {"weight_decay": 2e-3})),
        {"head": "flatten", "weight_decay": 2e-3},
        {"head": "flatten", "weight_decay": 5e-3, "width": 16},
        squared(0.002, 1e-3),
        *({"head": "flatten", "learning_rate": 0.01, "weight_decay": d} for d in (5e-4, 2e-3, 5e-3)),
        *({"limit": 5_000, "width": width} for width in (16, 8)),
        {"learning_rate": 0.01},
        {"form": "relu(Wx)", "zero_start": False},
        {"form": "relu(Wx)", "zero_start": False, "limit": 5_000, "width": 8},
    ),
    "stl10": (squared(0.02, 2e-3),),
    "cifar100": (
        *(squared(rate, decay) for rate, decay in ((0.01, 5e-4), (0.01, 2e-3), (0.005, 1e-3))),
        *({"width": 8, **more} for more in ({}, {"weight_decay": 2e-3})),
        {"head": "flatten", "weight_decay": 2e-3},
        squared(0.002, 1e-3),
        *({"head": "flatten", "learning_rate": 0.01, "weight_decay": d} for d in (5e-4, 2e-3)),
        *({"limit": 5_000, "width": width} for width in (16, 8)),
        squared(0.01, 5e-4, width=32),
        squared(0.01, 5e-4, batch_size=32),
    ),
}
SETTINGS = {
    "mnist": Setting(
        2_000,
        200,
        {"cross-entropy": (0.02, 0.05, 0.01), "mse": (0.01, 0.02, 0.005)},
        (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
        FULLY_CONNECTED,
    ),
    "fashion_mnist": Setting(2_000, 16, RATES, more=CONVOLUTIONAL, first=FIRST["fashion_mnist"]),
    "cifar10": Setting(2_000, 32, RATES, more=CONVOLUTIONAL, first=FIRST["cifar10"]),
    "stl10": Setting(1_000, 8, RATES, more=CONVOLUTIONAL, first=FIRST["stl10"]),
    "cifar100": Setting(2_000, 16, RATES, more=CONVOLUTIONAL, first=FIRST["cifar100"]),
}


def changes(name: str, recipe: Recipe) -> dict[str, Any]:
    """What differs from the paper's recipe at this width."""
    paper = replace(RECIPES[name], width=SETTINGS[name].width)
    return {k: v for k, v in vars(recipe).items() if v != getattr(paper, k)}


def run(task: tuple[str, Recipe, int, str, str]) -> dict[str, Any]:
    """Train once; the line of results.jsonl."""
    name, recipe, seed, source, device = task
    torch.set_num_threads(1)
    setting, started = SETTINGS[name], time.perf_counter()
    line: dict[str, Any] = {"set": name, "changes": changes(name, recipe), "seed": seed}
    line |= {"images": setting.limit, "width": setting.width, "epochs": recipe.epochs}
    data = pfc.data.load(source, limit=recipe.limit or setting.limit)
    torch.manual_seed(seed)
    net = recipe.build(data, seed)
    line |= {"device": named(device), "precision": fast_precision(net, torch.device(device))}
    profile = None
    try:
        for epoch in train(
            *(net, data, recipe),
            **{"seed": seed, "device": device, "precision": "auto", "progress": False},
            measure_every=recipe.epochs,
        ):
            profile = epoch.profile
    except ValueError as error:  # how `train` reports a loss that is not finite
        return {**line, "seconds": round(time.perf_counter() - started, 1), "error": str(error)}
    if profile is None:
        raise RuntimeError("the last epoch was not measured")
    if isinstance(net, ConvResNet):  # a first stage over pooled maps beside flattened ones
        pooled = pfc.measure(net, data.batches(), pool="mean", device=device, progress=False)
        line["pooled"] = read(pooled)
    return {**line, "seconds": round(time.perf_counter() - started, 1), **read(profile)}


def named(device: str) -> str:
    """The device in words."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def read(profile: Profile) -> dict[str, Any]:
    """What a run is judged by, layer by layer."""
    rows = {m: [float(f"{v:.5g}") for v in profile.columns[m]] for m in METRICS}
    depth = profile.effective_depth()
    told = {"accuracy": profile.accuracy, "layers": len(profile.layers), "effective_depth": depth}
    return {**told, **rows}


def key(line: dict[str, Any]) -> str:
    """What tells a run from others."""
    return json.dumps([line[k] for k in ("set", "changes", "seed", "images", "width", "epochs")])


def tasks(given: argparse.Namespace, done: set[str]) -> list[tuple[str, Recipe, int, str, str]]:
    """The runs that are to be made, the sets' in turn."""
    found: list[list[tuple[str, Recipe, int, str, str]]] = []
    for name in given.sets:
        place = str(given.data / name) if given.data else RECIPES[name].data
        setting = SETTINGS[name]
        recipes = [replace(r, epochs=given.epochs) for r in setting.tries(name)][: given.most]
        own = []
        for seed, recipe in product(given.seeds, recipes):
            size = {"images": setting.limit, "width": setting.width, "epochs": recipe.epochs}
            line = {"set": name, "changes": changes(name, recipe), "seed": seed, **size}
            if key(line) not in done:
                done.add(key(line))  # the paper's own recipe is on the grid, too
                own.append((name, recipe, seed, place, given.device))
        found.append(own)
    return [task for row in zip_longest(*found) for task in row if task]


def rows(lines: list[dict[str, Any]]) -> Iterator[str]:
    """A line a run, those that end nearest to a frame first."""
    heads = (
        "differs",
        "seed",
        "accuracy",
        "effective depth",
        "of pooled maps",
        *map(str.upper, METRICS),
    )
    yield f"| {' | '.join(heads)} | s | where |"
    yield "| --- " * (len(heads) + 2) + "|"
    for line in sorted(lines, key=lambda each: each.get("pfc2", [float("inf")])[-1]):
        differs = ", ".join(f"{k} {v}" for k, v in line["changes"].items()) or "- (the paper's)"
        where = (
            f"{line['seconds']:.0f} | {line.get('device', 'cpu')}, {line.get('precision', 'float32')} |"
        )
        if "error" in line:
            yield f"| {differs} | {line['seed']} | diverged {'| ' * (len(heads) - 2)}| {where}"
            continue
        ends = (f"{line[m][0]:.3g} to {line[m][-1]:.3g}" for m in METRICS)
        cells = (f"{line['accuracy']:.4f}", depth(line), depth(line.get("pooled", line)), *ends)
        yield f"| {differs} | {line['seed']} | {' | '.join(cells)} | {where}"


def depth(line: dict[str, Any]) -> str:
    """The effective depth, counted from 1, of the number of layers."""
    found = line["effective_depth"]
    return f"{'none' if found is None else found + 1} of {line['layers']}"


def page(lines: list[dict[str, Any]]) -> str:
    """The record's README."""
    parts = [(HERE / "NOTES.md").read_text(encoding="utf-8").rstrip(), ""]
    for name in SETTINGS:
        if own := [line for line in lines if line["set"] == name]:
            size = ", ".join(f"{own[0][k]:,} {k}" for k in ("images", "epochs"))
            parts += [f"## {name}: {size}, width {own[0]['width']}", "", *rows(own), ""]
    return "\n".join(parts)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All runs that are kept."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main(given: argparse.Namespace) -> None:
    """Make the runs that are missing."""
    path = given.out
    due = tasks(given, {key(line) for line in read_lines(path)})
    started = time.perf_counter()
    print(f"{len(due)} runs", flush=True)
    with multiprocessing.get_context("spawn").Pool(given.jobs, maxtasksperchild=None) as pool:
        for number, line in enumerate(pool.imap_unordered(run, due), start=1):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            at = time.perf_counter() - started
            last = {m: line[m][-1] for m in METRICS if m in line}
            print(
                f"{number} of {len(due)}, {at:.0f} s: {line['set']} {line['changes']} {last}", flush=True
            )
            if at > given.seconds:
                pool.terminate()
                break
    if path == HERE / "results.jsonl":
        (HERE / "README.md").write_text(page(read_lines(path)), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", choices=SETTINGS)
    parser.add_argument(
        "--data", type=Path, help="folder with a folder of each set; hub names otherwise"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=350)
    parser.add_argument("--most", type=int, help="tries of each set")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    os.environ["OMP_NUM_THREADS"] = "1"
    main(parser.parse_args())
