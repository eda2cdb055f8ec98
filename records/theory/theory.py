"""What theory says of trained runs at the start, half-way and the end; does decay straighten the path?

    python records/theory/theory.py runs/digits-*-* runs/mnist

Each run is measured with all samples weighing the same, at each epoch whose weights it kept. A line a
run and epoch goes to results.jsonl, the tables of all of them to README.md behind NOTES.md. Without runs
the page is written again from results.jsonl.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from pfc import figures, measure
from pfc.files import write_text
from pfc.intervals import student
from pfc.measuring import transport
from pfc.profile import Profile
from pfc.strict_json import plain
from pfc.theory.transport import Gap
from pfc.training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
EXACT = 2000  # samples of the exact optimal transport: all of the digits
NUMBERS = {  # column of the table: key, how it is written
    "align": ("align_etf", "{:+.3f}"),
    "PFC1 falls": ("pfc1_falls", "{}"),
    "t0": ("t0", "{:.3f}"),
    "off the line, PFC1": ("off_pfc1", "{:.3f}"),
    "PFC2": ("off_pfc2", "{:.3f}"),
    "PFC3": ("off_pfc3", "{:.3f}"),
    "straightness": ("straightness", "{:.4f}"),
    "energy / chord^2": ("energy_ratio", "{:.3f}"),
    "cost / W2^2": ("ratio", "{:.6g}"),
    "moved": ("moved", "{:.4f}"),
    "Gelbrich": ("gelbrich_ratio", "{:.4f}"),
    "negative pairs": ("negative_pairs", "{}"),
}


def numbers(run: Run, epoch: int, profile: Profile, gap: Gap) -> dict[str, Any]:
    """What is kept of one run and epoch."""
    segment, path = profile.segment(), profile.segment().path()
    etf, measured = segment.certify("etf"), segment.certify("measured")
    last = {metric: profile.columns[metric][-1] for metric in ("pfc1", "pfc2", "pfc3")}
    assert gap.exact is not None
    assert gap.gelbrich is not None
    return {
        "recipe": run.recipe.name,
        "weight_decay": run.recipe.weight_decay,
        "seed": run.config["seed"],
        "epoch": epoch,
        "samples": profile.about["samples"],
        "accuracy": profile.accuracy,
        **last,
        "align_etf": etf.theorem1.align,
        "align_measured": measured.theorem1.align,
        "pfc1_falls": "yes" if etf.theorem1.monotone and measured.theorem1.monotone else "no",
        "t0": etf.theorem2.t0,
        "t0_measured": measured.theorem2.t0,
        "turns_measured": measured.theorem2.turns,
        **{f"off_{m}": off for m, off in profile.agreement().off.items()},
        "straightness": path.straightness,
        "straightness_median": path.over_samples("straightness"),
        "energy_ratio": path.speed * path.direction,
        "speed": path.speed,
        "direction": path.direction,
        "fuzziness_rate": profile.law(i=-1).rate,
        "fuzziness_correlation": profile.law(i=-1).correlation,
        "transport_samples": gap.exact.samples,
        "ratio": gap.exact.ratio,
        "gap": gap.exact.gap,
        "cost": gap.exact.cost,
        "moved": gap.exact.moved,
        "gelbrich_ratio": gap.gelbrich.ratio,
        "negative_pairs": gap.cycles[0].negative,
        "label_ratio": gap.atoms.ratio if gap.atoms else math.nan,
    }


def save(figure: "Figure", name: str) -> None:
    """Keep a figure as PNG alone."""
    figures.save(figure, HERE / f"{name}.png")


def examined(folder: Path) -> Iterator[dict[str, Any]]:
    """The numbers of a run at each kept epoch."""
    run = Run(folder)
    images = run.data()
    for path in sorted((folder / "weights").glob("epoch-*.safetensors")):
        epoch = int(path.stem.split("-")[1])
        net = run.network(epoch)
        profile = measure(net, images.batches(), weighting="sample", progress=False)
        gap = transport(net, images.batches(), profile, exact=EXACT, progress=False)
        if epoch == run.recipe.epochs and run.config["seed"] == 0:
            name = f"{run.recipe.name}-{run.recipe.weight_decay:g}"
            save(figures.layers(profile), f"{name}-layers")
            save(figures.path(profile), f"{name}-path")
            save(figures.certificates(profile, transport=gap), f"{name}-certificates")
        yield numbers(run, epoch, profile, gap)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of Student's t."""
    if not all(map(math.isfinite, values)):
        return "-"
    _, high = student(values)
    half = "" if math.isnan(high) else f" ± {high - mean(values):.4f}"
    return f"{mean(values):.4f}{half}"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a run and epoch."""
    heads = ("recipe", "decay", "seed", "epoch", *NUMBERS)
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for row in rows:
        cells = [row["recipe"], f"{row['weight_decay']:g}", str(row["seed"]), str(row["epoch"])]
        cells += [how.format(row[key]).replace("nan", "-") for key, how in NUMBERS.values()]
        yield f"| {' | '.join(cells)} |"


def decay_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and interval over the seeds for each weight decay, at the end."""
    keys = {"straightness": "straightness", "speed": "speed", "direction": "direction"}
    keys |= {"energy / chord^2": "energy_ratio", "cost / W2^2": "ratio", "Gelbrich": "gelbrich_ratio"}
    keys |= {"off, PFC1": "off_pfc1", "off, PFC2": "off_pfc2", "PFC1": "pfc1", "PFC2": "pfc2"}
    yield f"| decay | {' | '.join(keys)} |"
    yield "| --- " * (len(keys) + 1) + "|"
    for decay in sorted({row["weight_decay"] for row in rows}):
        chosen = [row for row in rows if row["weight_decay"] == decay]
        cells = [interval([row[key] for row in chosen]) for key in keys.values()]
        yield f"| {decay:g} | {' | '.join(cells)} |"


def differences(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Straightness with a decay less that with the next smaller one, seed by seed."""
    decays = sorted({row["weight_decay"] for row in rows})
    for small, large in pairwise(decays):
        of = {(row["weight_decay"], row["seed"]): row for row in rows}
        seeds = sorted({row["seed"] for row in rows})
        for key in ("straightness", "energy_ratio"):
            values = [of[large, seed][key] - of[small, seed][key] for seed in seeds]
            yield f"- {key.replace('_', ' ')}, decay {large:g} less {small:g}: {interval(values)}"


def draw(rows: list[dict[str, Any]]) -> None:
    """Straightness, energy and transport against weight decay, a dot a seed."""
    from matplotlib.figure import Figure

    decays = sorted({row["weight_decay"] for row in rows})
    shown = {
        "straightness": "straightness (chord / length)",
        "energy_ratio": "energy / chord^2",
        "gelbrich_ratio": "cost / W2^2, at most (Gelbrich)",
    }
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for ax, (key, name) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        for seed in sorted({row["seed"] for row in rows}):
            own = {row["weight_decay"]: row[key] for row in rows if row["seed"] == seed}
            ax.plot(
                range(len(decays)), [own[d] for d in decays], "o-", lw=0.6, ms=4, label=f"seed {seed}"
            )
        ax.set_xticks(range(len(decays)), [f"{d:g}" for d in decays])
        ax.set_xlabel("weight decay")
        ax.set_title(name, fontsize=9, loc="left")
        ax.grid(axis="y", color="0.9")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    save(figure, "weight-decay")


def page(rows: list[dict[str, Any]]) -> str:
    """The record's README."""
    digits = [row for row in rows if row["recipe"] == "digits"]
    last = [row for row in digits if row["epoch"] == max(r["epoch"] for r in digits)]
    notes = (HERE / "NOTES.md").read_text(encoding="utf-8").rstrip()
    return "\n".join([
        notes,
        "",
        "## Weight decay, at the last epoch: mean and 95 % interval over the seeds",
        "",
        *decay_table(last),
        "",
        "Seed by seed:",
        "",
        *differences(last),
        "",
        "![path and transport against weight decay](weight-decay.png)",
        "",
        "## Every run and epoch",
        "",
        *table(rows),
        "",
        "Environment: torch 2.13.0+cpu, x86_64, one thread.",
        "",
    ])


def main(folders: list[Path]) -> None:
    """Write the record."""
    kept = HERE / "results.jsonl"
    if folders:
        rows = [row for folder in folders for row in examined(folder)]
        write_text(kept, "".join(json.dumps(plain(row)) + "\n" for row in rows))
    rows = [
        {k: float(v) if v == "nan" else v for k, v in json.loads(line).items()}
        for line in kept.read_text(encoding="utf-8").splitlines()
    ]
    draw([r for r in rows if r["recipe"] == "digits" and r["epoch"] == 350])
    write_text(HERE / "README.md", page(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([Path(folder) for folder in sys.argv[1:]])
