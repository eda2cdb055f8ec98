"""What measuring over processes costs at ImageNet's scale: memory, bytes exchanged, seconds.

`python benchmarks/processes.py` starts one and then two processes on this machine, each on one thread:
- "pooled": all 16 blocks of a ResNet-50 with random weights, their channels averaged over the pixels,
  1,000 classes, 2,000 random images of 64 x 64 (the statistics do not depend on the images' size);
- "wide": one layer of 100,352 numbers, the size of a block of the last stage at 224 x 224, 1,000
  classes, 4,000 samples, statistics in the host's memory.
Memory is the peak of a process above what it had before measuring, less its features of a batch.
"""

import json
import multiprocessing as mp
import resource
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from record import keep, one_thread
from torch import Tensor, nn

import pfc

K = 1000
BLOCKS = "resnet.encoder.stages.*.layers.*"


class Generated:
    """Random inputs around a mean of their class; every process makes those of its own part."""

    classes = K

    def __init__(self, samples: int, shape: tuple[int, ...], batch: int, rank: int, size: int) -> None:
        self.numbers = torch.arange(samples)[rank::size].split(batch)
        self.shape = shape
        self.means = torch.randn(K, *shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for numbers in self.numbers:
            noise = [
                torch.randn(self.shape, generator=torch.Generator().manual_seed(n))
                for n in numbers.tolist()
            ]
            y = numbers % K
            yield self.means[y] + torch.stack(noise), y


def resnet() -> nn.Module:
    """The network of the paper's ImageNet experiments' kind, with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=K))


def wide() -> nn.Module:
    """One layer as large as a block of the last stage."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100_352), nn.Tanh())


TASKS: dict[str, dict[str, Any]] = {
    "pooled": {
        "model": resnet,
        "data": partial(Generated, 2_000, (3, 64, 64), 50),
        "how": {"layers": BLOCKS, "pool": "mean"},
    },
    "wide": {
        "model": wide,
        "data": partial(Generated, 4_000, (64,), 50),
        "how": {"layers": ["1"], "statistics": "host"},
    },
}


def peak() -> int:
    """Bytes of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(task: str, rank: int, size: int, port: int, answers: Any) -> None:
    """Measure as one of the processes."""
    one_thread()
    if size > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    told = TASKS[task]
    model, data = told["model"]().eval(), told["data"](rank=rank, size=size)
    with torch.no_grad():
        model(next(iter(data))[0])
    before, started = peak(), time.process_time()
    profile = pfc.measure(model, data, progress=False, **told["how"])
    samples = sum(map(len, data.numbers))
    cost = pfc.measuring.cost(profile.shapes, K, processes=size, samples=samples)
    answers.put({
        "rank": rank,
        "cpu_seconds": round(time.process_time() - started, 1),
        "peak_mb": round((peak() - before) / 2**20),
        "formula_peak_mb": round(cost.peak / 2**20),
        "state_mb": round(cost.state / 2**20),
        "exchanged_mb": round(profile.about["exchanged"] / 2**20, 1),
        "formula_exchanged_mb": round(cost.exchanged / 2**20, 1),
        "metrics": {c: list(profile.columns[c]) for c in ("pfc1", "pfc2", "pfc3", "nc1")},
    })
    if size > 1:
        dist.destroy_process_group()


def together(task: str, size: int) -> list[dict[str, Any]]:
    """What each of so many processes tells, by rank."""
    context = mp.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=work, args=(task, rank, size, port, answers)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    told = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sorted(told, key=lambda each: each["rank"])


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Largest relative difference of any metric at any layer."""
    pairs = ((x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    return max(abs(x - y) / max(abs(x), abs(y), 1e-300) for x, y in pairs)


def main() -> None:
    """Measure and write the record."""
    record: dict[str, Any] = {
        "what": "1,000 classes; one process and two, one thread each, gloo, loopback"
    }
    for task in sys.argv[1:] or TASKS:
        found = {size: together(task, size) for size in (1, 2)}
        metrics = {size: [each.pop("metrics") for each in told] for size, told in found.items()}
        record[task] = {
            "one process": found[1],
            "two processes": found[2],
            "largest_relative_difference": difference(metrics[1][0], metrics[2][0]),
            "same_in_both": json.dumps(metrics[2][0]) == json.dumps(metrics[2][1]),
        }
        print(json.dumps(record[task], indent=1), file=sys.stderr, flush=True)
    keep(__file__, record)


if __name__ == "__main__":
    main()
