"""A linear probe of every layer: ridge classifiers in closed form, and how they do on held-out data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pfc.measuring.costs import probe_bytes, probe_width
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch
from pfc.measuring.passes import Batches, Source
from pfc.measuring.subset import hashes_of, identities_of, known_again
from pfc.measuring.sums import NotFinite, Sums
from pfc.progress import Step, shown
from pfc.schema import some
from pfc.taps import pooled
from pfc.theory.mufm.statistics import Statistics
from pfc.theory.ridge import Ridge

PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # of the mean eigenvalue; of equal ones the first; ours
MOST = 4 * 2**30  # bytes of second moments; ours


@dataclass(frozen=True, eq=False)
class Probed:
    """What linear probes of every layer found.

    Args:
        accuracy: Fraction of the held-out samples that each answers rightly.
        penalties: Which was chosen at each layer.
        samples: Held-out samples.
        name: What the held-out data are called.
    """

    accuracy: Mapping[str, float]
    penalties: Mapping[str, float]
    samples: int
    name: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """How it was found, as a profile tells it."""
        told = f"{self.name or 'other data'}, {self.samples} samples"
        return {"probe": told, "penalties": dict(self.penalties)}


def check_room(layout: Layout, processes: int = 1) -> None:
    """Refuse layers whose second moments have no room, and several processes."""
    if processes > 1:
        raise ValueError(
            f"probe= is for one process, and {processes} measure: leave it out, or group=False"
        )
    shapes = layout.shapes
    if (size := probe_bytes([*shapes.values()])) > MOST:
        widest = max(shapes, key=lambda name: probe_width(shapes[name]))
        raise ValueError(
            f"the probe needs the second moments of every layer, {size / 2**30:.3g} GiB, which is more "
            f"than {MOST / 2**30:g}: {widest!r} has {probe_width(shapes[widest])} numbers a sample "
            "after pooling; name fewer or narrower layers"
        )


def look(apart: tuple[Source, Batches], device: torch.device) -> None:
    """Run the first held-out batch, so that data that do not fit are told before all are measured."""
    for batch in apart[1]:
        apart[0].forward(batch, device, lambda *_: None)
        break


def probe_layers(
    source: Source,
    batches: Batches,
    apart: tuple[Source, Batches] | None,
    sums: Sums,
    *,
    enabled: bool,
) -> Probed | None:
    """Probe each layer, where data are held apart for that; with a bar where that is enabled."""
    if apart is None:
        return None
    with shown("probe", None, enabled=enabled) as step:
        return _probed(source, batches, apart, sums, step)


def _probed(
    source: Source, batches: Batches, apart: tuple[Source, Batches], sums: Sums, step: Step
) -> Probed:
    """Fit a ridge classifier to each layer of the data, and try it on those held apart."""
    rows, held = _Rows(source.layout, sums), _read(apart[1], sums)
    ridges = _fitted(source, batches, rows, held, step)
    penalties = {name: min(PENALTIES, key=ridge.gcv) for name, ridge in ridges.items()}
    hits, samples = dict.fromkeys(ridges, 0), 0
    classifiers = {name: ridge.at(penalties[name]) for name, ridge in ridges.items()}
    classifiers = {n: (W.to(rows.device), b.to(rows.device)) for n, (W, b) in classifiers.items()}
    for batch in apart[1]:
        for name, (H, y) in rows.of(apart[0], batch).items():
            if not H.isfinite().all():
                raise NotFinite(
                    f"layer {name!r} gave NaN or infinite features on batch {batch.number} of probe="
                )
            W, b = classifiers[name]
            hits[name] += int(((H.double() @ W.mT + b).argmax(1) == y).sum())
        samples += len(batch.y)
        step(batch.number + 1, "held out")
    accuracy = {name: n / samples for name, n in hits.items()}
    return Probed(accuracy, penalties, samples, getattr(apart[1], "name", None))


def _fitted(
    source: Source, batches: Batches, rows: "_Rows", held: Int64[Tensor, " M"], step: Step
) -> dict[str, Ridge]:
    """The classifiers of each layer, of data that have other samples than those of these hashes."""
    moments = {n: Statistics.empty(rows.classes, D, rows.device) for n, D in rows.widths.items()}
    hashes = []
    for batch in batches:
        for name, (H, y) in rows.of(source, batch).items():
            moments[name].add(H, y)
        hashes.append(_hashes(batch))
        step(batch.number + 1, "probe")
    if shared := known_again(held, torch.cat(hashes)):
        raise ValueError(
            f"{shared} of {len(held)} samples of probe= are among the measured ones: give held-out "
            "samples"
        )
    return {name: Ridge(each.cpu()) for name, each in moments.items()}


def _read(batches: Batches, sums: Sums) -> Int64[Tensor, " M"]:
    """Hashes of the held-out inputs, all of whose classes are to be known; no network runs."""
    known, hashes = sums.count > 0, [torch.zeros(0, dtype=torch.int64, device="cpu")]
    for batch in batches:
        others = [k for k in batch.labels.numbers if k >= len(known) or not known[k]]
        if others:
            raise ValueError(
                f"batch {batch.number} of probe= has samples of class {some(map(str, others))}, of "
                "which the measured data have none"
            )
        hashes.append(_hashes(batch))
    return torch.cat(hashes)


def _hashes(batch: Batch) -> Int64[Tensor, " B"]:
    """A hash of each input; none where inputs have no form of which there is one."""
    if batch.inputs is None:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    return identities_of(batch, hashes_of(batch)).cpu()


class _Rows:
    """A vector a sample at each layer, maps and tokens averaged, with the labels."""

    def __init__(self, layout: Layout, sums: Sums) -> None:
        self.shapes, self.scales = layout.shapes, sums.scales
        self.device, self.classes = sums.device, len(sums.count)
        self.widths = {name: probe_width(shape) for name, shape in layout.shapes.items()}

    def of(self, source: Source, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Of a batch."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        y = batch.y.to(self.device)

        def see(name: str, H: Float[Tensor, "B D"]) -> None:
            H = self.scales[name].rescaled(H).reshape(len(H), *self.shapes[name])
            found[name] = pooled(H, "mean").clone(), y

        source.forward(batch, self.device, see)
        return found
