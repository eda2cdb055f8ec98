"""Where the time goes: benchmarks A and B by part, from torch's own profiler.

`python benchmarks/flame.py FOLDER` runs both once under the profiler and adds up the processor time of
each kind of operation and of each compiled loop, named by what it is for. In B the operations of bare
forward passes are taken off, and only named ones are told: convolutions vary by more than all the others
take.
"""

import sys
from collections import Counter
from collections.abc import Callable

import torch
from engine import BATCH, LAYERS, SHAPES, D, K, N, Rows, Stored
from record import cpu_seconds, keep, one_thread
from torch.profiler import ProfilerActivity, profile, record_function

import pfc
from pfc.fused import processor

PARTS = {
    "pfc::absorb": "loop: class sums and squares",
    "pfc::absorb_ends": "loop: the same of a segment's ends, and their products",
    "pfc::increase": "loop: products of increments",
    "pfc::project": "loop: projections, and fingerprints",
    "pfc::gather": "loop: residuals by class",
    "pfc::mix": "loop: hashes of inputs",
    "aten::copy_": "upcast and clones",
    "aten::index_select": "shift: the mean of each sample's class",
    "aten::sub_": "shift: subtraction",
    "aten::sub": "increments, and other differences of K x D",
    "aten::index_add_": "class sums",
    "aten::scatter_add_": "class sums",
    "aten::linalg_vector_norm": "squares",
    "aten::pow_": "squares",
    "aten::addmm_": "projection",
    "aten::bmm": "Gram matrices of increments",
    "aten::mul": "cross scatter, and other products of K x D",
    "aten::mv": "fingerprint",
    "aten::addmv_": "fingerprint",
    "aten::argmin": "nearest mean",
}
OTHER = "other operations, and the profiler's own time"


def seen_by_the_profiler() -> None:
    """Let the compiled loops appear beside torch's operations."""
    for name, loop in processor.loops().items():

        def run(*given: object, called: Callable[..., None] = loop, key: str = f"pfc::{name}") -> None:
            with record_function(key):
                called(*given)

        processor.loops()[name] = run


def by_operation(run: Callable[[], object]) -> Counter[str]:
    """Milliseconds of the processor by operation, without what it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return Counter({e.key: e.self_cpu_time_total / 1e3 for e in seen.key_averages()})


def by_part(run: Callable[[], object], bare: Callable[[], object] | None = None) -> dict[str, float]:
    """Milliseconds by part: of the whole, or beyond the bare run of those parts that have a name."""
    run()
    whole = {} if bare else {"all, unprofiled": round(1e3 * cpu_seconds(run), 1)}
    spent, base = by_operation(run), by_operation(bare) if bare else Counter()
    parts: Counter[str] = Counter()
    for name, ms in spent.items():
        if name in PARTS or not bare:
            parts[PARTS.get(name, OTHER)] += ms - base.get(name, 0.0)
    return whole | {name: round(ms, 1) for name, ms in parts.most_common()}


def main(spec: str) -> None:
    """Profile and write the record."""
    one_thread()
    seen_by_the_profiler()
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (N,), generator=g)
    features = [torch.randn(N, D, generator=g) + y[:, None] for _ in range(LAYERS)]
    stored, rows = Stored(features, SHAPES, BATCH), Rows(y, BATCH)
    data = pfc.data.load(spec, split="test", limit=128)
    net = pfc.ConvResNet(3, (32, 32), 10, blocks=(2, 2, 2, 2), width=64, zero_start=False).eval()
    batches = list(data.batches(128))

    def bare(times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                net(batches[0][0])

    views = {
        f"A, passes={p}": by_part(
            lambda p=p: pfc.measure(stored, rows, layers="layers.*", passes=p, progress=False)
        )
        for p in (1, 2)
    }
    for p in (1, 2):
        views[f"B, passes={p}, one batch"] = by_part(
            lambda p=p: pfc.measure(net, batches, layers="stages.*.blocks.*", passes=p, progress=False),
            lambda p=p: bare(p),
        )
    keep(
        __file__,
        {
            "what": f"processor milliseconds by part; A: {LAYERS} layers of {N} x {D}, batches of "
            f"{BATCH}; B: eight blocks of a network of ResNet-18's size beyond its forward passes",
            "views": views,
        },
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/flame.py FOLDER")
    main(sys.argv[1])
