"""Keep the small files of runs as a record, and write their numbers as a page.

    python records/report.py records/digits runs/digits-0 runs/digits-1

The first run's configuration, last profile and figures are kept; the tables are of all of them. What
stands in NOTES.md of the record comes first on the page.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from pfc import figures
from pfc.profile import Profile
from pfc.training import Run

METRICS = ("pfc1", "pfc2", "pfc3")


def last(run: Run) -> Profile:
    """The profile after training."""
    return run.profiles[max(run.profiles)]


def keep(run: Run, record: Path) -> None:
    """Copy what is small: configuration, last profile without class means, figures, history."""
    for name in ("config.json", "history.jsonl"):
        shutil.copy(run.folder / name, record / name)
    last(run).save(record / "profile.json", means=False)
    figures.save(figures.training(run.profiles), record / "training")
    figures.save(figures.layers(last(run)), record / "layers")


def seconds(run: Run) -> float:
    """Wall-clock seconds of the passes over the data."""
    return sum(line["seconds"] for line in run.history)


def overview(runs: list[Run]) -> Iterator[str]:
    """A line a run: did it collapse, is each metric monotone over the last segment."""
    heads = ("seed", "epochs", "s", "accuracy", "off at the last layer", "effective depth (1 %)")
    heads += ("on the line", "tau of PFC1, PFC2, PFC3 with depth", "not monotone")
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for run in runs:
        p = last(run)
        off = round((1 - p.table()["pfc3"].iloc[-1]) * p.about["samples"])
        depth = p.effective_depth()
        where = "none" if depth is None else f"{p.layers[depth]} ({depth + 1} of {len(p.layers)})"
        line = p.prediction().depth
        t = "none" if line is None or line.t is None else f"t = {line.t:.3f}, {line.layer}"
        taus = ", ".join(f"{p.tau(m, -1):+.3f}" for m in METRICS)
        back_at = p.non_monotone_layers
        back = "; ".join(f"{m.upper()} at {', '.join(b)}" for m in METRICS if (b := back_at(m, -1)))
        cells = (run.config["seed"], run.recipe.epochs, f"{seconds(run):.0f}", f"{p.accuracy:.4f}", off)
        yield f"| {' | '.join(map(str, cells))} | {where} | {t} | {taus} | {back or '-'} |"


def layers(runs: list[Run], metric: str) -> Iterator[str]:
    """A line a layer, a column a seed, and the mean."""
    seeds = [run.config["seed"] for run in runs]
    yield f"| {metric.upper()} | " + " | ".join(f"seed {s}" for s in seeds) + " | mean |"
    yield "| --- |" + " --- |" * (len(runs) + 1)
    for i, name in enumerate(last(runs[0]).layers):
        values = [last(run).columns[metric][i] for run in runs]
        yield f"| {name} | " + " | ".join(f"{v:.4f}" for v in values) + f" | {mean(values):.4f} |"


def page(record: Path, runs: list[Run]) -> str:
    """The record's README."""
    lines = [(record / "NOTES.md").read_text(encoding="utf-8").rstrip(), "", *overview(runs), ""]
    for metric in METRICS:
        lines += [*layers(runs, metric), ""]
    config = runs[0].config
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    place = f"{config['machine']}, {config['threads']} thread(s), {config['device']}"
    lines += [f"Environment: {versions}, {place}.", ""]
    lines += [
        "![metrics over the layers](layers.png)",
        "",
        "![metrics over the epochs](training.png)",
        "",
    ]
    return "\n".join(lines)


def main(record: Path, folders: list[str]) -> None:
    """Write the record."""
    runs = [Run(folder) for folder in folders]
    keep(runs[0], record)
    (record / "README.md").write_text(page(record, runs), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python records/report.py RECORD RUN...")
    main(Path(sys.argv[1]), sys.argv[2:])
