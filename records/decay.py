"""What weight decay does to collapse and to depth, in trained networks and in MUFM.

    python records/decay.py runs/reproduce

The map is of the runs of records/recipes-search on MNIST: loss, rate and decay against the last layer's
PFC1 and PFC2 and the effective depth. The folder is that of `pfc reproduce claims`: of its MNIST runs
MUFM is solved, cross-entropy with the run's own decay, for data that are the stem's features, and the
solutions stand beside the run's last layer. What is solved is kept in records/decay/results.jsonl.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mufm.compare import at, network

from pfc import features, figures
from pfc.files import write_text
from pfc.strict_json import plain
from pfc.theory import mufm
from pfc.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
RECORD = HERE / "decay"
RUNS = ("mnist-paper-decay-0.0005-0", "mnist-paper-decay-0.005-0", "mnist-paper-0")
LAMS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3)
NUMBERS = ("pfc1", "pfc2", "pfc3", "cosine", "moved", "size")
COLORS = {"cross-entropy": "#2b2f77", "mse": "#d1495b"}
STYLES = ("-o", "--s", ":^")


def searched() -> list[dict[str, Any]]:
    """The runs of the map: those of the search that differ in loss, rate and decay alone."""
    lines = (HERE / "recipes-search" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line for line in map(json.loads, lines) if line["set"] == "mnist" and "error" not in line]
    usual = {"loss": "cross-entropy", "learning_rate": 0.01, "weight_decay": 5e-4}
    return [
        {**line, **usual, **line["changes"]}
        for line in found
        if not line["changes"].keys() - usual.keys()
    ]


def solved(run: Run) -> Iterator[dict[str, Any]]:
    """MUFM of the stem's features for each coefficient."""
    found, y = features(run.network(), run.data().batches(), ["stem"], progress=False)
    X = found["stem"].double()
    X = X - X.mean(0)
    for lam in LAMS:
        s = mufm.solve(X, y, lam=lam, weight_decay=run.recipe.weight_decay, loss="ce", restarts=0)
        row = {"lam": lam, **{m: getattr(s, m) for m in ("pfc1", "pfc2", "pfc3", "cosine")}}
        yield {**row, "moved": s.relative_displacement, "size": s.norm_ratio, "gap": s.gap}


def results(folder: Path) -> list[dict[str, Any]]:
    """What is kept, and what is missing."""
    path = RECORD / "results.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {row["run"] for row in kept}
    for name in RUNS:
        place = folder / "runs" / name
        if name not in known and (place / "examined.json").exists():
            run = Run(place)
            own = {"run": name, "decay": run.recipe.weight_decay, "network": network(run)}
            kept.append(plain({**own, "solutions": list(solved(run))}))
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            print(name, flush=True)
    return sorted(kept, key=lambda row: row["decay"])


def panel(ax: "Axes", runs: list[dict[str, Any]], metric: str) -> None:
    """A number of the last layer over decay, a line a loss and rate."""
    for loss, color in COLORS.items():
        rates = sorted({run["learning_rate"] for run in runs if run["loss"] == loss})
        for rate, style in zip(rates, STYLES, strict=True):
            own = sorted(
                (rate * r["weight_decay"], value(r, metric))
                for r in runs
                if (r["loss"], r["learning_rate"]) == (loss, rate)
            )
            label = f"{'squared error' if loss == 'mse' else loss}, rate {rate:g}"
            ax.plot(*zip(*own, strict=True), style, color=color, lw=1, ms=3.5, label=label)
    ax.set_xscale("log")
    ax.set_xlabel("rate times weight decay")
    ax.grid(axis="y", color="0.9")


def value(run: dict[str, Any], metric: str) -> float:
    """The last layer's metric, or the effective depth; of none one more than the layers."""
    if metric != "depth":
        return float(run[metric][-1])
    found = run["effective_depth"]
    return float(run["layers"] + 1 if found is None else found + 1)


def draw(runs: list[dict[str, Any]], solutions: list[dict[str, Any]]) -> None:
    """The map, and MUFM beside the networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(2, 2)
    heads = {"pfc1": "PFC1 of the last layer", "pfc2": "PFC2 of the last layer"}
    heads["depth"] = "effective depth (12: no layer is separable)"
    for ax, (metric, name) in zip(grid.flat, heads.items(), strict=False):
        panel(ax, runs, metric)
        ax.set_title(name, fontsize=9, loc="left")
    grid[0, 0].set_yscale("log")
    ax = grid[1, 1]
    for row, color in zip(solutions, ("#9ecae1", "#4292c6", "#084594"), strict=False):
        own = row["solutions"]
        label = f"decay {row['decay']:g}"
        ax.plot(
            [s["pfc1"] for s in own], [s["pfc2"] for s in own], "-", color=color, label=f"MUFM, {label}"
        )
        ax.plot(
            row["network"]["pfc1"],
            row["network"]["pfc2"],
            "*",
            color=color,
            ms=11,
            label=f"network, {label}",
        )
    ax.set_xlabel("PFC1")
    ax.set_title("PFC2 against PFC1 over lambda (cross-entropy, rate 0.05)", fontsize=9, loc="left")
    ax.grid(color="0.9")
    ax.set_ylim(top=0.84)
    ax.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figures.save(figure, RECORD / "decay.png")


def table(solutions: list[dict[str, Any]]) -> Iterator[str]:
    """The network's last layer, and MUFM where it is as collapsed or has moved as far."""
    yield "| weight decay | which | lambda | PFC1 | PFC2 | PFC3 | cosine to the stem | moved | size |"
    yield "| --- " * 9 + "|"
    for row in solutions:
        own = row["network"]
        lines = {"network, last block": {"lam": None, **own}}
        for key in ("pfc1", "moved"):
            lines[f"MUFM of its {'PFC1' if key == 'pfc1' else 'displacement'}"] = at(
                row["solutions"], key, own[key]
            )
        for name, line in lines.items():
            if line is None:
                yield f"| {row['decay']:g} | {name} | beyond {LAMS[0]:g} | | | | | | |"
                continue
            lam = "-" if line["lam"] is None else f"{line['lam']:.2g}"
            numbers = " | ".join(f"{line[n]:.4f}" for n in NUMBERS)
            yield f"| {row['decay']:g} | {name} | {lam} | {numbers} |"


def grid_table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The map in numbers."""
    yield "| loss | rate | decay | accuracy | effective depth of 11 | PFC1 | PFC2 | PFC3 |"
    yield "| --- " * 8 + "|"
    for run in sorted(runs, key=lambda r: (r["loss"], r["learning_rate"], r["weight_decay"])):
        depth = run["effective_depth"]
        cells = [
            run["loss"],
            f"{run['learning_rate']:g}",
            f"{run['weight_decay']:g}",
            f"{run['accuracy']:.4f}",
        ]
        cells += ["none" if depth is None else str(depth + 1)]
        yield f"| {' | '.join([*cells, *(f'{run[m][-1]:.4f}' for m in ('pfc1', 'pfc2', 'pfc3'))])} |"


def main(folder: Path) -> None:
    """Write the record."""
    torch.set_num_threads(1)
    runs, solutions = searched(), results(folder)
    draw(runs, solutions)
    parts = [(RECORD / "NOTES.md").read_text(encoding="utf-8").rstrip(), ""]
    parts += ["![last layer and effective depth over weight decay, and MUFM](decay.png)", ""]
    parts += ["## The networks' last layer and MUFM", "", *table(solutions), ""]
    parts += ["## The map: 2,000 images, width 200, 350 epochs, seed 0", "", *grid_table(runs), ""]
    write_text(RECORD / "README.md", "\n".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
