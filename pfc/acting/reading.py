"""Read data through a network about class means that are known: one pass, a few numbers a sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from pfc.acting.gauges import KINDS, Gauge
from pfc.acting.heldout import input_hashes
from pfc.acting.margins import refuse_width
from pfc.measuring import shards
from pfc.measuring.head import Classifier
from pfc.measuring.loader import Batch, MeasuredBatches, float64_device
from pfc.measuring.survey import Request, Survey, survey
from pfc.processes import ALONE
from pfc.profile import Profile
from pfc.progress import shown
from pfc.schema import some


@dataclass(eq=False)
class Read:
    """What was read of a data set, batch by batch, on the CPU.

    Args:
        values: A score a sample at each layer.
        nearest: The class of the nearest mean at each layer.
        labels: Of the samples.
        logits: The answer and the baselines, where there are logits.
        sums: Of all features at each layer, where these are no known classes'.
        hashes: Two of each input that has a form.
    """

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    nearest: dict[str, list[Tensor]] = field(default_factory=dict)
    labels: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    hashes: list[Tensor] = field(default_factory=list)

    @property
    def y(self) -> Int64[Tensor, " N"]:
        """All labels."""
        return torch.cat(self.labels)


class Reader:
    """Reads data sets through a network, at layers whose class means are known.

    Args:
        net: The network.
        profile: What was measured of it.
        names: The layers.
        kind: Of the scores.
        device: Where to run.
        classifier: As for `measure`.
    """

    def __init__(
        self,
        net: nn.Module,
        profile: Profile,
        names: Sequence[str],
        kind: str,
        device: torch.device,
        classifier: Classifier = None,
    ) -> None:
        self.device, self.formula = device, KINDS[kind].formula
        pool, exponents = profile.about.get("pool", "flatten"), profile.about.get("exponents", {})
        self.request = Request(net, list(names), classifier, pool, segments=False)
        self.statistics = float64_device(device)
        self.gauges = {
            name: Gauge.of(profile.moments[name].to(self.statistics), exponents.get(name, 0))
            for name in names
        }
        self.looked: Survey | None = None

    def read(
        self, data: Iterable[Any], limit: int | None, title: str, *, labelled: bool, progress: bool
    ) -> Read:
        """Read a data set once; of the known classes where it is labelled."""
        own = shards.own_limit(limit, data, ALONE)
        batches = MeasuredBatches(data, own, self.device, labelled=labelled)
        found = Read()
        with shown(title, batches.total, enabled=progress) as step:
            for batch in batches:
                self.looked = self.looked or self._looked(batch)
                if labelled:
                    self._check_labels(batch)
                self._take(batch, found, self.looked, labelled=labelled)
                step(batch.number + 1)
        return found

    def _looked(self, batch: Batch) -> Survey:
        """Where the layers are, if they are those of the means."""
        looked = survey(self.request, batch)
        for name, features in looked.layout.features.items():
            refuse_width(name, features, len(self.gauges[name].span.centre))
        return looked

    def _check_labels(self, batch: Batch) -> None:
        known = next(iter(self.gauges.values())).numbers.tolist()
        if others := sorted(set(batch.labels.numbers) - set(known)):
            raise ValueError(
                f"batch {batch.number} has samples of class {some(map(str, others))}, of which the "
                "profile has no mean: give data of other classes as unknown="
            )

    def _take(self, batch: Batch, found: Read, looked: Survey, *, labelled: bool) -> None:
        def see(name: str, H: Float[Tensor, "B D"]) -> None:
            gauge = self.gauges[name]
            reading = gauge.read(H)
            found.nearest.setdefault(name, []).append(gauge.numbers[reading.nearest].cpu())
            if self.formula is not None:
                found.values.setdefault(name, []).append(self.formula(reading).cpu())
            if not labelled:
                total = gauge.scale.rescaled(H).sum(0, dtype=torch.float64).cpu()
                found.sums[name] = found.sums.get(name, 0) + total

        found.hashes.append(input_hashes(batch))
        logits = looked.logits(batch, self.statistics, see)
        found.labels.append(batch.y)
        if logits is not None:
            found.logits.append(_of_logits(logits, looked.layout.threshold).cpu())


def _of_logits(logits: Float[Tensor, "B C"], threshold: float) -> Float64[Tensor, "B 4"]:
    """The answer and the baselines; one logit is that of the second of two classes."""
    z = logits.double()
    if z.shape[1] == 1:
        z = torch.cat([torch.full_like(z, threshold), z], dim=1)
    largest, answer = z.max(1)
    energy = z.logsumexp(1)
    return torch.stack([answer.double(), (largest - energy).exp(), largest, energy], dim=1)
