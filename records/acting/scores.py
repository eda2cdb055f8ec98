"""Do class means at every layer tell unknown data from known, better than the logits do?

    python records/acting/scores.py RUN --data MNIST --unknown FASHION_MNIST

Digits: of the ten classes two are left out of the training and are the unknown ones, five pairs by five
seeds by two losses; the known test samples are the held-out fifth of the other eight. MNIST: the run
that is named, such as runs/reproduce/runs/mnist-paper-0 of `pfc reproduce claims`, and as its unknown
data the test images of Fashion-MNIST. Every kind of score at every layer, beside max softmax, max logit
and energy. Writes scores.json and scores.png beside itself, and prints the tables of scores.md.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch

import pfc
from pfc.acting.gauges import KINDS
from pfc.data import Images
from pfc.files import write_json
from pfc.intervals import student

HERE = Path(__file__).parent
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
SEEDS = range(5)
BASELINES = ("max softmax", "max logit", "energy")
RECIPE = replace(pfc.RECIPES["digits"], epochs=50, blocks=(6,))
LOSSES = ("cross-entropy", "mse")
LIMIT = 2000  # images of each kind of MNIST and Fashion-MNIST


def kept(images: Images, classes: list[int]) -> Images:
    """The images of some classes, numbered anew in their order."""
    rows = torch.isin(images.labels, torch.tensor(classes)).nonzero()[:, 0]
    own = images.rows(rows)
    labels = torch.searchsorted(torch.tensor(classes), own.labels)
    return replace(own, labels=labels, classes=tuple(images.classes[k] for k in classes))


def areas(net: Any, profile: pfc.Profile, known: Images, unknown: Images) -> dict[str, Any]:
    """AUROC of every kind at every layer and of the baselines, NC5."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        s = pfc.scores(net, known.batches(), profile, kind, unknown=unknown.batches(), progress=False)
        found[kind] = [float(s.auroc.loc[layer, "auroc"]) for layer in profile.layers]
    found |= {name: float(s.auroc.loc[name, "auroc"]) for name in BASELINES}
    return found | {column: s.nc5[column].tolist() for column in s.nc5}


def digits() -> Iterator[dict[str, Any]]:
    """One training after the other."""
    for loss, seed, pair in product(LOSSES, SEEDS, PAIRS):
        yield {"loss": loss, "seed": seed, "unknown": pair, **trained(loss, seed, pair)}


def trained(loss: Any, seed: int, pair: tuple[int, int]) -> dict[str, Any]:
    """A network that knows eight of the digits, and what is found of the other two."""
    fit, apart = (pfc.data.load("digits", split) for split in ("fit", "held-out"))
    classes = [k for k in range(10) if k not in pair]
    train, test = kept(fit, classes), kept(apart, classes)
    recipe = replace(RECIPE, loss=loss)
    net = recipe.build(train, seed)
    for _ in pfc.train(net, train, recipe, seed=seed, progress=False):
        pass
    profile = pfc.measure(net, train.batches(), segments=False, progress=False)
    right = pfc.measure(net, test.batches(), means=profile, progress=False).accuracy
    told = {"layers": profile.layers, "pfc1": profile.columns["pfc1"], "accuracy": right}
    return told | areas(net, profile, test, kept(fit, list(pair)))


def mnist(folder: str, data: str, unknown: str) -> dict[str, Any]:
    """A run on MNIST against Fashion-MNIST."""
    run = pfc.Run(folder)
    net, profile = run.network(), run.profiles[max(run.profiles)]
    known = run.normalised(pfc.data.load(data, "test", LIMIT, progress=False))
    others = run.normalised(pfc.data.load(unknown, "test", LIMIT, progress=False))
    right = pfc.measure(net, known.batches(), means=profile, progress=False).accuracy
    told = {"layers": profile.layers, "pfc1": profile.columns["pfc1"], "accuracy": right}
    return told | areas(net, profile, known, others)


def rounded(value: Any) -> Any:
    """The same with six digits of every number."""
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over pairs of each seed's AUROC: their mean, 95 % interval, and that of the gain."""
    base = [mean(r["max softmax"] for r in rows if r["seed"] == s) for s in SEEDS]
    found: dict[str, Any] = {}
    for name in (*KINDS, *BASELINES):
        places = range(len(rows[0]["layers"])) if name in KINDS else [None]
        found[name] = []
        for l in places:
            by_seed = [
                mean(r[name] if l is None else r[name][l] for r in rows if r["seed"] == s) for s in SEEDS
            ]
            gains = [a - b for a, b in zip(by_seed, base, strict=True)]
            found[name].append({
                "mean": mean(by_seed),
                "interval": student(by_seed),
                "gain": mean(gains),
                "gain_interval": student(gains),
            })
    return found


def frame(values: list[dict[str, Any]], base: Mapping[str, Any], layers: list[str]) -> pd.DataFrame:
    """Areas over the layers with the intervals over seeds, the baselines below."""
    rows = dict(zip(layers, values, strict=True)) | {name: base[name][0] for name in BASELINES}
    told = {name: [row["mean"], *row["interval"]] for name, row in rows.items()}
    return pd.DataFrame.from_dict(told, orient="index", columns=["auroc", "low", "high"])


def tables(told: Mapping[str, Any]) -> Iterator[str]:
    """AUROC and its gain over max softmax, as Markdown."""
    layers = told["layers"]
    for loss in LOSSES:
        found = told["digits"][loss]
        yield f"Digits, {loss}:\n\n| score | {layers[0]} | {layers[3]} | {layers[-1]} | gain there |"
        yield "| --- | --- | --- | --- | --- |"
        for kind in KINDS:
            cells = [f"{found[kind][l]['mean']:.3f}" for l in (0, 3, -1)]
            low, high = found[kind][-1]["gain_interval"]
            gain = f"{found[kind][-1]['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            yield f"| {kind} | {' | '.join(cells)} | {gain} |"
        for name in BASELINES:
            low, high = found[name][0]["gain_interval"]
            gain = f"{found[name][0]['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            yield f"| {name} | | | {found[name][0]['mean']:.3f} | {gain} |"
        yield ""
    own = told["mnist"]
    heads = " | ".join(own["layers"][i] for i in (0, 5, -1))
    yield f"MNIST against Fashion-MNIST:\n\n| score | {heads} |"
    yield "| --- | --- | --- | --- |"
    for kind in KINDS:
        yield f"| {kind} | {' | '.join(f'{own[kind][i]:.3f}' for i in (0, 5, -1))} |"
    yield from (f"| {name} | | | {own[name]:.3f} |" for name in BASELINES)


def draw(told: Mapping[str, Any]) -> None:
    """Areas over the layers of the networks trained with cross-entropy on the digits."""
    found = told["digits"]["cross-entropy"]
    shown = [kind for kind in KINDS if kind != "depth"]  # which is far below, and in the table
    areas = {kind: frame(found[kind], found, told["layers"]) for kind in shown}
    pfc.figures.save(pfc.figures.familiarity(areas), HERE / "scores.png")


def main() -> None:
    """Make the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run on MNIST")
    parser.add_argument("--data", required=True, help="MNIST")
    parser.add_argument("--unknown", required=True, help="Fashion-MNIST")
    given = parser.parse_args()
    start, rows = time.process_time(), []
    for row in digits():
        rows.append(row)
        told = " ".join(f"{name} {float(np.ravel(row[name])[-1]):.4f}" for name in (*KINDS, *BASELINES))
        print(
            row["loss"], row["seed"], row["unknown"], f"accuracy {row['accuracy']:.3f}", told, flush=True
        )
    told = {
        "recipe": {name: getattr(RECIPE, name) for name in ("name", "epochs", "blocks", "width")},
        "layers": rows[0]["layers"],
        "runs": rows,
        "digits": {loss: over_seeds([r for r in rows if r["loss"] == loss]) for loss in LOSSES},
        "mnist": mnist(given.run, given.data, given.unknown),
        "seconds": round(time.process_time() - start),
    }
    write_json(HERE / "scores.json", rounded(told))
    draw(told)
    print("\n".join(tables(told)))


if __name__ == "__main__":
    main()
