"""Benchmark V: this version against another checkout, side by side in one run.

`python benchmarks/versions.py OTHER FOLDER`, with the folder of another checkout of pfc and one of
CIFAR-10's parquet files, runs each job in processes of its own, in turn by the one and the other, and
keeps the median of the ratios (this one over the other): CPU seconds of the passes of benchmarks A and
B, peak memory of benchmark E's central case, and, of two processes, CPU seconds and bytes exchanged.
"""

import json
import multiprocessing as mp
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import FRANK, cpu_seconds, keep, one_thread

import pfc

REPEATS = 5
HERE = Path(__file__).resolve().parents[1]


def engine() -> dict[str, float]:
    """CPU seconds of one pass and of two over stored features: benchmark A."""
    import engine

    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, engine.K, (engine.N,), generator=g)
    H = torch.randn(engine.N, engine.D, generator=g) + y[:, None]
    features = [H] * engine.LAYERS
    model, rows = engine.Stored(features, engine.SHAPES, engine.BATCH), engine.Rows(y, engine.BATCH)

    def run(passes: int) -> Callable[[], object]:
        return lambda: pfc.measure(model, rows, layers="layers.*", passes=passes, progress=False)

    run(1)()
    return {f"engine, passes={p}, seconds": cpu_seconds(run(p)) for p in (1, 2)}


def network(folder: str) -> dict[str, float]:
    """CPU seconds that measuring adds to a network's forward passes: benchmark B, half as wide."""
    torch.manual_seed(0)
    net = pfc.ConvResNet(3, (32, 32), 10, blocks=(2, 2, 2, 2), width=32, zero_start=False).eval()
    batches = list(pfc.data.load(folder, split="test", limit=512, progress=False).batches(128))
    layers = "stages.*.blocks.*"

    def run(passes: int, segments: bool) -> Callable[[], object]:
        how: dict[str, Any] = {"layers": layers, "passes": passes, "segments": segments}
        return lambda: pfc.measure(net, batches, progress=False, **how)

    run(1, True)()
    cases = {"one pass": (1, False), "one pass with segments": (1, True), "two passes": (2, True)}
    return {f"network, {name}, seconds": cpu_seconds(run(*how)) for name, how in cases.items()}


def memory() -> dict[str, float]:
    """Peak MB of both passes: benchmark E's central case."""
    import memory

    return {"memory, peak MB": memory.case(**memory.CENTRE)["mb"]}


def _part(rank: int, port: int, answers: Any) -> None:
    import processes
    import torch.distributed as dist

    one_thread()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 20_000), torch.nn.Tanh())
    data = processes.Generated(2_000, (64,), 50, rank, 2)
    found = []
    seconds = cpu_seconds(lambda: found.append(pfc.measure(model, data, layers=["1"], progress=False)))
    answers.put((seconds, found[0].about["exchanged"] / 2**20))
    dist.destroy_process_group()


def many() -> dict[str, float]:
    """CPU seconds and MB exchanged of two processes that measure 1,000 classes of 20,000 features."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = mp.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_part, args=(rank, port, answers)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {"two processes, seconds": sum(s for s, _ in told), "two processes, MB": told[0][1]}


JOBS: dict[str, Callable[..., dict[str, float]]] = {
    **{"engine": engine, "network": network, "memory": memory, "many": many}
}


def measured(checkout: Path, job: str, *arguments: str) -> dict[str, float]:
    """A job by a checkout's package and this one's script, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"} | FRANK
    command = [sys.executable, __file__, "--job", job, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(other: str, folder: str) -> None:
    """Run every job by both checkouts in turn and write the record."""
    found: dict[str, list[tuple[float, float]]] = {}
    for job in JOBS:
        for _ in range(REPEATS):
            arguments = [folder] if job == "network" else []
            ours, theirs = (measured(place, job, *arguments) for place in (HERE, Path(other)))
            for name, value in ours.items():
                found.setdefault(name, []).append((round(value, 3), round(theirs[name], 3)))
        print(job, {name: pairs[-1] for name, pairs in found.items()}, file=sys.stderr)
    keep(
        __file__,
        {
            "what": "this version over another, each number of a process of its own, taken in turn",
            "versions": [pfc.__version__, _version(Path(other))],
            "values": found,
            "ratio": {name: round(median(a / b for a, b in pairs), 3) for name, pairs in found.items()},
        },
    )


def _version(checkout: Path) -> str:
    text = (checkout / "pfc" / "__init__.py").read_text()
    return text.partition('__version__ = "')[2].partition('"')[0]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        one_thread()
        print(json.dumps(JOBS[sys.argv[2]](*sys.argv[3:])))
    elif len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/versions.py OTHER FOLDER")
    else:
        main(*sys.argv[1:])
