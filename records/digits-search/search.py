"""Train small networks on the digits by many recipes, and keep what every layer of each became.

Each try is a `Recipe`; each run, a try with a seed, adds one line to results.jsonl and is skipped when
its line is there already. table.md is written from all lines, the mean over seeds for each try.

    python records/digits-search/search.py
    python records/digits-search/search.py --only mse --seeds 0 1 2 3 4
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import kendalltau

import pfc.data
from pfc.profile import Profile
from pfc.training import Recipe, train

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.jsonl", HERE / "table.md"
METRICS = ("pfc1", "pfc2", "pfc3")
OFF = 3  # samples that may be nearer to another class mean at the last layer
SECONDS = 90  # a run may take

FIRST = Recipe(
    name="first",
    data="digits",
    blocks=(5,),
    width=128,
    form="W relu(Vx)",
    normalise="batch",
    zero_start=True,
    loss="cross-entropy",
    epochs=350,
    batch_size=64,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-3,
)
MSE = replace(
    FIRST,
    name="mse",
    blocks=(10,),
    width=64,
    loss="mse",
    learning_rate=0.02,
    weight_decay=5e-3,
)
ENTROPY = replace(MSE, name="entropy", loss="cross-entropy", learning_rate=0.05)

TRIES = [
    FIRST,
    replace(FIRST, name="first-decay-1e-2", weight_decay=1e-2),
    replace(FIRST, name="first-ten-blocks", blocks=(10,), width=64),
    replace(FIRST, name="first-no-norm", normalise="none"),
    replace(FIRST, name="first-mse", loss="mse"),
    ENTROPY,
    replace(ENTROPY, name="entropy-relu(Wx)", form="relu(Wx)", zero_start=False),
    MSE,
    replace(MSE, name="mse-five-blocks", blocks=(5,)),
    replace(MSE, name="mse-no-norm", normalise="none"),
    replace(MSE, name="mse-random-start", zero_start=False),
    replace(MSE, name="mse-width-32", width=32),
    replace(MSE, name="mse-decay-2e-3", weight_decay=2e-3),
    replace(MSE, name="mse-decay-6e-3", weight_decay=6e-3),
    replace(MSE, name="mse-decay-1e-2", weight_decay=1e-2),
    replace(MSE, name="mse-rate-0.05", learning_rate=0.05),
    replace(MSE, name="mse-rate-0.015", learning_rate=0.015, weight_decay=6e-3),
    replace(MSE, name="mse-batch-128", batch_size=128, learning_rate=0.035),
    replace(MSE, name="mse-short", epochs=100, learning_rate=0.01, weight_decay=1e-2),
]


def difference(recipe: Recipe) -> dict[str, Any]:
    """Fields in which a recipe differs from the first try's."""
    first = asdict(FIRST)
    return {k: v for k, v in asdict(recipe).items() if k != "name" and v != first[k]}


def run(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train once.

    Args:
        recipe: How to build and train.
        seed: Of the first weights and of the order of the samples.

    Returns:
        The line of results.jsonl.
    """
    line: dict[str, Any] = {"try": recipe.name, "differs": difference(recipe), "seed": seed}
    data = pfc.data.load("digits")
    started = time.process_time()
    profile = None
    try:
        net = recipe.build(data, seed)
        for epoch in train(net, data, recipe, seed=seed, progress=False):
            profile = epoch.profile
    except ValueError as error:  # how `train` reports a loss that is not finite
        return {**line, "seconds": _seconds(started), "error": str(error)}
    if profile is None:
        raise RuntimeError("the last epoch was not measured")
    return {**line, "seconds": _seconds(started), **read(profile, net.taps)}


def _seconds(started: float) -> float:
    return round(time.process_time() - started, 1)


def read(profile: Profile, taps: tuple[str, ...]) -> dict[str, Any]:
    """What a run is judged by: the last epoch's profile at the tap points."""
    table = profile.table().loc[list(taps)]
    rows = {m: [float(f"{v:.6g}") for v in table[m]] for m in METRICS}
    depth = range(len(taps))
    return {
        "accuracy": profile.accuracy,
        "off": round((1 - table["pfc3"].iloc[-1]) * profile.about["samples"]),
        "depth": profile.effective_depth(0.01),
        **rows,
        "tau": {m: round(float(kendalltau(depth, table[m]).statistic), 4) for m in METRICS},
        "steps_back": {m: steps_back(m, table[m].tolist()) for m in METRICS},
    }


def steps_back(metric: str, values: list[float]) -> list[int]:
    """Blocks, counted from 1, that leave a metric less collapsed than they found it."""
    sign = -1 if metric == "pfc3" else 1
    pairs = pairwise(values)
    return [block for block, (a, b) in enumerate(pairs, 1) if not sign * b <= sign * a]


def collapsed(line: dict[str, Any]) -> bool:
    """Every sample right, at most `OFF` nearer to another class mean, in time."""
    return (
        "error" not in line
        and line["accuracy"] == 1
        and line["off"] <= OFF
        and line["seconds"] < SECONDS
    )


def late(line: dict[str, Any]) -> bool:
    """The 0.01-effective depth lies in the second half of the blocks."""
    depth = line.get("depth")
    return depth is not None and 2 * depth > len(line["pfc1"]) - 1


def monotone(line: dict[str, Any]) -> bool:
    """No metric steps back at any block."""
    return "error" not in line and not any(line["steps_back"].values())


def lines() -> list[dict[str, Any]]:
    """All lines of results.jsonl."""
    if not RESULTS.exists():
        return []
    return [json.loads(text) for text in RESULTS.read_text(encoding="utf-8").splitlines()]


HEAD = (
    *("try", "differs from the first", "seeds", "s", "accuracy", "off", "depth", "PFC1", "PFC2"),
    *("PFC3", "collapsed", "late", "monotone"),
)


def table() -> str:
    """Markdown of all results, one row a try in the order of `TRIES`."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for recipe in TRIES:
        mine = sorted((x for x in lines() if x["try"] == recipe.name), key=lambda x: x["seed"])
        if mine:
            rows.append(_row(recipe, mine))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(recipe: Recipe, mine: list[dict[str, Any]]) -> tuple[str, ...]:
    done = [x for x in mine if "error" not in x]
    differs = ", ".join(f"{k} {_plain(v)}" for k, v in difference(recipe).items())
    start = (recipe.name, differs or "-", ", ".join(str(x["seed"]) for x in mine))
    marks = tuple(_marks(judge, mine) for judge in (collapsed, late, monotone))
    if not done:
        return (*start, f"{mean(x['seconds'] for x in mine):.0f}", *("diverged",) * 6, *marks)
    ends = (
        f"{mean(x[m][0] for x in done):.3f} to {mean(x[m][-1] for x in done):.{digits}f}"
        for m, digits in (("pfc1", 3), ("pfc2", 3), ("pfc3", 4))
    )
    depths = ", ".join(str(x["depth"]) if "depth" in x else "diverged" for x in mine)
    return (
        *start,
        f"{mean(x['seconds'] for x in done):.0f}",
        f"{mean(x['accuracy'] for x in done):.4f}",
        ", ".join(str(x["off"]) if "off" in x else "diverged" for x in mine),
        f"{depths} of {recipe.blocks[0]}",
        *ends,
        *marks,
    )


def _plain(value: Any) -> str:
    return str(value[0]) if isinstance(value, tuple) else str(value)


def _marks(judge: Any, mine: list[dict[str, Any]]) -> str:
    return " ".join("yes" if judge(x) else "no" for x in mine)


def main() -> None:
    """Run what is missing of the chosen tries and seeds, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=[r.name for r in TRIES], help="one try instead of all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    done = {(x["try"], x["seed"]) for x in lines()}
    for seed in chosen.seeds:
        for recipe in TRIES:
            if (recipe.name, seed) in done or chosen.only not in {None, recipe.name}:
                continue
            line = run(recipe, seed)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            TABLE.write_text(table(), encoding="utf-8")
            print(recipe.name, seed, line.get("error") or (line["off"], line["depth"], line["seconds"]))
    TABLE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
