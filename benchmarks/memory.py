"""Benchmark E: peak memory of `pfc.measure`, flat in the samples and linear in classes times features.

`python benchmarks/memory.py` measures each case in a process of its own: both passes, all metrics, with
segments, of a residual network of equal layers whose inputs are made batch by batch. The growth of the
resident memory is read from its high-water mark, less that of a bare forward pass. With K classes,
layers of D features, sum D in all, batches of B (4 bytes a feature) and N samples it is at most

    pass one   8 x 2 K sum D    mean and low, and for the length of a batch
               4 B sum D        the batch of a segment, cloned in its own type
    pass two   8 x 3 K sum D    mean, low, and the basis of the span
               8 x (2 + T) K D  both ends' bases side by side; T matrices for one layer at a time
    both       16 min(2^18, BD) a layer of a segment: two work arrays of a tile

and of a segment, which alone has numbers of each sample: 4 C + 16 bytes a sample for the C = 2 L + 1
numbers of a path of L steps (of up to 131,072 samples, then pruned to 65,536), three to four times that
for a moment while their quantiles are taken; 16 bytes for each stretch of the line on which a sample is
wrong (three ends), twice to thrice while they are sorted. Without segments nothing grows with N.

Here K is above B, so the end of pass two is the peak, and a further layer must cost 24 K D + 16 B D.
T is what the decompositions of one span and one segment need, besides some K x K; it is found here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import linear_regression

import torch
from record import FRANK, keep, one_thread, peak_memory
from torch import Tensor, nn

import pfc

BATCH = 32
CENTRE = {"samples": 2_000, "features": 4_000, "classes": 200, "depth": 4, "paired": 1}
CASES = {
    "samples": (2_000, 8_000, 32_000),
    "features": (2_000, 4_000, 8_000),
    "classes": (100, 200, 400),
    "depth": (2, 4, 8),
}
QUICK = {"features": 1_000}  # where samples are many
ALONE = {"paired": 0}  # without segments


class Step(nn.Module):
    """A block x + a x + b, which needs no matrix; from layer to layer classes come apart."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(features) / 10)

    def forward(self, x: Tensor) -> Tensor:
        """The next layer."""
        return torch.addcmul(x, x, self.a)


class Made:
    """Batches that are made when they are read, always the same."""

    def __init__(self, samples: int, features: int, classes: int) -> None:
        self.samples, self.shape, self.classes = samples, (BATCH, features), classes
        self.means = torch.randn(classes, features, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.samples // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            g = torch.Generator().manual_seed(number + 1)
            y = torch.randint(0, self.classes, (BATCH,), generator=g)
            yield torch.randn(self.shape, generator=g).mul_(40).add_(self.means[y]), y


def case(samples: int, features: int, classes: int, depth: int, paired: int) -> dict[str, float]:
    """MB that measuring adds at most to those of a bare forward pass, and what was found."""
    one_thread()
    net = nn.Sequential(*(Step(features) for _ in range(depth)))
    data, small = Made(samples, features, classes), Made(10 * BATCH, 8, 2)
    few = nn.Sequential(*(Step(8) for _ in range(depth)))
    pfc.measure(few, small, progress=False)  # loads the libraries, which are no one's state
    x, _ = next(iter(data))
    with torch.no_grad():
        bare = peak_memory(lambda: net(x)) or 0.0
    found: list[pfc.Profile] = []
    run = partial(pfc.measure, net, data, segments=bool(paired), progress=False)
    grown = peak_memory(lambda: found.append(run()))
    if grown is None:
        raise OSError("the process's high-water mark can't be read here: Linux alone tells it")
    curves = [curve for segment in found[0].segments for curve in segment.curves.values()]
    return {"mb": round(grown - bare, 1), "stretches": sum(len(curve.starts) for curve in curves)}


def measured(allocator: Mapping[str, str] = FRANK, **changes: int) -> dict[str, float]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, json.dumps(CENTRE | changes)]
    result = subprocess.run(command, env=os.environ | allocator, capture_output=True, check=True)
    return {**CENTRE, **changes, **json.loads(result.stdout)}


def slope(rows: list[dict[str, float]], size: str) -> float:
    """Bytes a unit of that size; the rows are equal otherwise."""
    fit = linear_regression([row[size] for row in rows], [1e6 * row["mb"] for row in rows])
    return fit.slope


def straight(rows: list[dict[str, float]], size: str) -> float:
    """Largest relative distance of a row from the fitted straight line."""
    fit = linear_regression([row[size] for row in rows], [row["mb"] for row in rows])
    return max(abs(fit.slope * row[size] + fit.intercept - row["mb"]) / row["mb"] for row in rows)


def main() -> None:
    """Measure every case and write the record."""
    more = {"samples": QUICK}
    rows = {
        size: [measured(**more.get(size, {}), **{size: value}) for value in values]
        for size, values in CASES.items()
    }
    alone = [measured(samples=value, **QUICK, **ALONE) for value in CASES["samples"]]
    K, D, L = CENTRE["classes"], CENTRE["features"], CENTRE["depth"]
    keep(
        __file__,
        {
            "what": f"peak MB of both passes above a bare forward pass, batches of {BATCH}, float32",
            "rows": {**rows, "samples, without segments": alone},
            "mb_as_the_allocator_likes": measured({})["mb"],
            "bytes_a_layer": {
                "found": round(slope(rows["depth"], "depth")),
                "formula": 24 * K * D + 16 * min(2**18, BATCH * D),
            },
            "matrices_for_one_layer_at_a_time": round(
                slope(rows["classes"], "classes") / (8 * D) - 3 * L - 2, 2
            ),
            "bytes_a_sample": {
                "with segments": round(slope(rows["samples"], "samples"), 1),
                "of which stay": 4 * (2 * (L - 1) + 1) + 16,
                "without segments": round(slope(alone, "samples"), 1),
            },
            "off_the_straight_line": {s: round(straight(r, s), 3) for s, r in rows.items()},
            "aim": {"bytes_a_layer": 0.05, "off_the_straight_line": 0.1},
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(case(**json.loads(sys.argv[1]))))
    else:
        main()
