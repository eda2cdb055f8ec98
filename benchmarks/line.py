"""Benchmark D: the exact PFC3 curve of 50,000 samples, 10 classes, 1,000 features, against its products.

`python benchmarks/line.py` compares all of the second pass's work for a line (both layers projected, the
intervals of every sample, sorting) with the float64 inner products that the curve needs: each end
against the class means of both, 4 K a sample, in the same batches, the upcast of float32 included. These
are plain products H @ M; with the few means first they take less than half the time.
"""

import sys
from collections.abc import Callable

import torch
from record import keep, one_thread, peak_memory, ratios, side_by_side
from torch import Tensor

from pfc.line import LineCrossings, StepCurve
from pfc.moments import ClassMoments
from pfc.nearest import project
from pfc.span import MeansSpan

N, D, K, BATCH, REPEATS = 50_000, 1_000, 10, 10_000, 9
FLOOR = "inner products"


def products(ends: list[Tensor], M: Tensor) -> None:
    """The inner products alone."""
    for start in range(0, N, BATCH):
        for H in ends:
            H[start : start + BATCH].double() @ M


def curve(ends: list[Tensor], y: Tensor, spans: list[MeansSpan], *, all_ends: bool) -> StepCurve:
    """The exact curve, batch by batch as the second pass has it; by default it does all three ends."""
    line = LineCrossings(*spans)
    if not all_ends:
        line.prototypes = {"measured": line.last.prototypes}
    for start in range(0, N, BATCH):
        rows = slice(start, start + BATCH)
        z = [project(H[rows], span, line.bases) for H, span in zip(ends, spans, strict=True)]
        line.update(*z, y[rows])
    return line.curves()["measured"]


def features() -> tuple[list[Tensor], Tensor, Tensor]:
    """Two layers in float64, the labels, and the class means of both as columns."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (N,), generator=g)
    means = (
        torch.randn(2, K, D, generator=g, dtype=torch.float64) * torch.tensor([0.3, 3.0])[:, None, None]
    )
    noise = [3 * torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(2)]
    return [m[y] + e for m, e in zip(means, noise, strict=True)], y, means.reshape(-1, D).mT.contiguous()


def main() -> None:
    """Measure and write the record."""
    one_thread()
    layers, y, M = features()
    seconds, ratio, memory = {}, {}, {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        ends = [H.to(dtype) for H in layers]
        spans = [MeansSpan.of(ClassMoments.of(H, y)) for H in ends]
        runs: dict[str, Callable[[], object]] = {FLOOR: lambda ends=ends: products(ends, M)}
        for what, every in (("one end", False), ("three ends", True)):
            runs[what] = lambda ends=ends, spans=spans, every=every: curve(
                ends, y, spans, all_ends=every
            )
        memory[name] = peak_memory(runs["three ends"])
        seconds[name] = side_by_side(runs, REPEATS)
        ratio |= {f"{what}, {name}": r for what, r in ratios(seconds[name], FLOOR).items()}
    found = curve(ends, y, spans, all_ends=False)
    keep(
        __file__,
        {
            "what": f"exact PFC3 curve of {N} samples, {D} features, {K} classes, batches of {BATCH}",
            "floor": f"{4 * K} float64 inner products a sample, in the same batches",
            "cpu_seconds": {
                name: {what: [round(t, 3) for t in times] for what, times in runs.items()}
                for name, runs in seconds.items()
            },
            "ratio": ratio,
            "aim": {"one end, float64": 1.3, "one end, float32": 1.3},
            "breakpoints": len(found.breakpoints),
            "extra_memory_mb": memory,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
