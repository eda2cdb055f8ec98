"""Benchmark E: the theory's own speed, in processor seconds and beside the floor of each.

`python benchmarks/theory.py` times, on one thread:

- `transport.gap` of 5,000 and 60,000 samples, exact part 2,000, with all certificates, of an optimal
  map; and the exact part of 3,000 samples of classes so collapsed that nearly all partners change.
  The floor is scipy's assignment on the inner products of as many of the samples;
- the Gelbrich bound at D = 1,024 of 4,096 samples, and once at 4,096 of 16,384; the floor is one
  decomposition of D x D;
- `solve_layered` on the toy data with 5 and 50 layers from five starts, without a floor;
- a step of plain gradient descent on MUFM (K = 4, D = 20, N = 200); the floor are its three products.

`python benchmarks/theory.py commands` also runs `pfc mufm --sweep` and `pfc run`, in folders that are
removed afterwards, and keeps their processor seconds.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from record import keep, one_thread, ratios, side_by_side
from scipy.optimize import linear_sum_assignment

from pfc.theory import descent, mufm
from pfc.theory.joint import Joint
from pfc.theory.toy import toy
from pfc.theory.transport import gap
from pfc.theory.transport.clouds import Clouds
from pfc.theory.transport.gelbrich import gelbrich

REPEATS, STEPS = 5, 5_000
COMMANDS = {"pfc mufm --sweep": ["mufm", "--sweep"], "pfc run": ["run"]}


def clouds(
    N: int, D: int, *, collapsed: bool = False, K: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples about K means, and what a network makes of them that pulls each class together."""
    make = torch.Generator().manual_seed(0)
    y = torch.arange(N) % K
    M = 2 * torch.randn(K, D, generator=make)[y]
    spread, noise = torch.randn(2, N, D, generator=make)
    return M + spread, 2 * M + (0.05 * noise if collapsed else spread / 2 + 0.2 * noise), y


def of_transport(N: int, exact: int, *, collapsed: bool = False) -> dict[str, Callable[[], object]]:
    """The verdict, of collapsed classes its exact part alone; an assignment of as many samples."""
    a, b, y = clouds(N, 16 if collapsed else 64, collapsed=collapsed)
    few = [x[:exact].double() for x in (a, b)]
    G = ((few[0] - few[0].mean(0)) @ (few[1] - few[1].mean(0)).mT).numpy()
    how: dict[str, Any] = {"exact": exact, "certificates": not collapsed, "progress": False}
    return {
        "gap": lambda: gap(a, b, y, **how),
        "assignment": lambda: linear_sum_assignment(G, maximize=True),
    }


def of_gelbrich(N: int, D: int) -> dict[str, Callable[[], object]]:
    """The bound, and a decomposition of its size."""
    a, b, _ = clouds(N, D)
    found = Clouds.of(a, b, None, "sample")
    cost, M = found.cost(), a[:D].double()
    return {
        "bound": lambda: gelbrich(found, cost, D, np.random.default_rng(0)),
        "decomposition": lambda: torch.linalg.svd(M),
    }


def of_layers(layers: int) -> dict[str, Callable[[], object]]:
    """All layers free on the toy data."""
    X, y = toy()
    return {"solve": lambda: mufm.solve_layered(X, y, layers=layers, lam=1e-3, progress=False)}


def of_descent() -> dict[str, Callable[[], object]]:
    """Steps of plain gradient descent, and their products alone."""
    X, y = toy()
    problem = Joint.of(X, y, pull=1e-3, weight_decay=0.005, loss="mse")
    theta = problem.normal_start(np.random.default_rng(0))
    W, H, _ = problem.split(theta.copy())
    G, dW, dH = np.empty_like(problem.Y), np.empty_like(W), np.empty_like(H)

    def products() -> None:
        for _ in range(STEPS):
            np.matmul(W, H, out=G)
            np.matmul(G, H.T, out=dW)
            np.matmul(W.T, G, out=dH)

    return {
        "steps": lambda: descent._advance(problem, theta.copy(), 0.1, STEPS),
        "products": products,
    }


def timed(runs: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, Any]:
    """Median processor seconds of each, and over the floor, which comes second."""
    for run in runs.values() if repeats > 1 else ():
        run()  # loads the libraries
    seconds = side_by_side(runs, repeats)
    told: dict[str, Any] = {name: round(median(times), 4) for name, times in seconds.items()}
    if len(runs) > 1:
        told["over the floor"] = next(iter(ratios(seconds, [*runs][1]).values()))
    return told


def of_command(arguments: list[str]) -> float:
    """Processor seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with TemporaryDirectory() as place:
        subprocess.run(
            [sys.executable, "-m", "pfc", *arguments], cwd=place, check=True, capture_output=True
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def main(arguments: list[str]) -> None:
    """Measure and write the record; what was measured of commands before is kept."""
    one_thread()
    path = Path(__file__).with_suffix(".json")
    known = json.loads(path.read_text()).get("commands", {}) if path.exists() else {}
    fresh = {name: of_command(words) for name, words in COMMANDS.items()} if arguments else {}
    keep(
        __file__,
        {
            "what": f"median processor seconds of {REPEATS} repeats; of the descent {STEPS:,} steps",
            "gap of 5,000 samples": timed(of_transport(5_000, 2_000)),
            "gap of 60,000 samples": timed(of_transport(60_000, 2_000)),
            "exact part of 3,000 collapsed samples": timed(of_transport(3_000, 3_000, collapsed=True)),
            "Gelbrich bound at D = 1,024": timed(of_gelbrich(4_096, 1_024)),
            "Gelbrich bound at D = 4,096, once": timed(of_gelbrich(16_384, 4_096), 1),
            "5 layers": timed(of_layers(5)),
            "50 layers": timed(of_layers(50)),
            "descent": timed(of_descent()),
            "commands": {**known, **fresh},
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
