"""A fixed small sample of the data, the inputs of least hash, and where it lies at each layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.measuring.costs import MOST, SKETCH
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import inputs_of
from pfc.measuring.loader import Batch, attention_mask
from pfc.measuring.sums import See
from pfc.nearest import MeansSpan, project
from pfc.processes import Processes
from pfc.profile.classes import SamplePoints

READ = 4096  # numbers of an input that its hash reads at most, evenly spaced; ours
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ODD = -7046029254386353131  # 2^64 over the golden ratio


@dataclass(eq=False)
class Subset:
    """The inputs of least hash: chosen in pass one, followed in pass two.

    Args:
        least: The least hashes so far, ascending.
        hashes: Of the samples that were followed.
        labels: Their classes.
        rows: Of each layer their first two coordinates in the span of the class means.
        residuals: Of each layer whose means span a line, a sketch of what is left across it.
    """

    least: Int64[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    hashes: list[Int64[Tensor, " b"]] = field(default_factory=list)
    labels: list[Int64[Tensor, " b"]] = field(default_factory=list)
    rows: dict[str, list[Float64[Tensor, "b 2"]]] = field(default_factory=dict)
    residuals: dict[str, list[Float64[Tensor, "b S"]]] = field(default_factory=dict)

    def choose(self, batch: Batch) -> None:
        """See the inputs of a batch, in pass one."""
        hashes = hashes_of(batch)
        self.least = torch.cat([self.least.to(hashes.device), hashes]).sort().values[:MOST]

    def merge_choice(self, ranks: Processes) -> None:
        """Choose among the samples of all processes."""
        self.least = _all([self.least.cpu()], ranks).sort().values[:MOST]

    def follow(self, batch: Batch, decisions: Decisions, see: See) -> See:
        """Note where the chosen samples of a batch are, besides what `see` does, in pass two."""
        hashes = hashes_of(batch).cpu()
        chosen = (hashes <= self.least[-1]).nonzero().flatten() if len(self.least) else hashes
        if not len(chosen):
            return see
        self.hashes.append(hashes[chosen])
        self.labels.append(batch.y[chosen])

        def also(name: str, H: Float[Tensor, "B D"]) -> None:
            see(name, H)
            rows = decisions.scales[name].rescaled(H[chosen.to(H.device)])
            self._note(name, rows, decisions.spans[name])

        return also

    def _note(self, name: str, H: Float[Tensor, "b D"], span: MeansSpan) -> None:
        z = project(H, span, span.basis)
        self.rows.setdefault(name, []).append(_two(z).cpu())
        if z.shape[1] == 1:
            across = (H.double() - span.centre) - span.centre_error - z @ span.basis.mT
            self.residuals.setdefault(name, []).append(_sketch(across).cpu())

    def points(self, spans: Mapping[str, MeansSpan], ranks: Processes) -> SamplePoints:
        """Where all chosen samples are."""
        hashes, labels = (_all(part, ranks) for part in (self.hashes, self.labels))
        order = hashes.argsort(stable=True)[:MOST]
        points, means = {}, {}
        for name, span in spans.items():
            z = _all(self.rows.get(name, []), ranks, 2)[order]
            if span.basis.shape[1] == 1:
                across = _all(self.residuals.get(name, []), ranks, min(len(span.centre), SKETCH))
                z[:, 1] = _leading(across[order])
            points[name] = z.float()
            means[name] = _two(span.points).float().cpu()
        return SamplePoints(labels[order], points, means)


def hashes_of(batch: Batch) -> Int64[Tensor, " B"]:
    """A hash of each row's input, the same in batches of any size; of its place where it has no form."""
    x = inputs_of(batch)
    if x is None:
        start = batch.number << 32
        return _mixed(torch.arange(start, start + len(batch.y)))
    step = -(-x.shape[1] // READ)
    bits = x[:, ::step].contiguous()
    bits = bits.to(torch.int8) if bits.dtype == torch.bool else bits
    bits = bits.view(INTEGER[bits.element_size()]).to(torch.int64)
    place = torch.arange(bits.shape[1], device=x.device).expand(bits.shape)
    mask = attention_mask(batch.kwargs)
    if mask is not None and mask.shape == bits.shape:  # padding, on whichever side, counts nothing
        bits, place = bits * mask, mask.cumsum(1) - 1
    hashes = _mixed((bits * (place * 2 + 1) * ODD).sum(1))
    if batch.tokens is None:
        return hashes
    tokens = batch.tokens.to(x.device)
    return _mixed(batch.spread(hashes) + place[tokens] * ODD)


def _mixed(h: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """The same numbers, each bit of them spread over all."""
    for shift in (31, 29, 32):
        h = (h ^ (h >> shift)) * ODD
    return h


def _two(z: Float64[Tensor, "b R"]) -> Float64[Tensor, "b 2"]:
    return torch.nn.functional.pad(z[:, :2], (0, max(0, 2 - z.shape[1])))


def _sketch(H: Float64[Tensor, "b D"]) -> Float64[Tensor, "b S"]:
    """Signed sums of columns, in which inner products are kept on average (a count sketch)."""
    D = H.shape[1]
    if D <= SKETCH:
        return H
    h = _mixed(torch.arange(D, device=H.device))
    sign = 1.0 - 2.0 * ((h >> 40) & 1).to(H)
    return H.new_zeros(len(H), SKETCH).index_add_(1, h % SKETCH, H * sign)


def _leading(across: Float64[Tensor, "n S"]) -> Float64[Tensor, " n"]:
    """Coordinates along the leading direction of what lies across the line of two class means."""
    U, S = torch.linalg.svd(across, full_matrices=False)[:2]
    found = U[:, 0] * S[0]
    return found * torch.sign(found[found.abs().argmax()])


def _all(parts: list[Tensor], ranks: Processes, width: int | None = None) -> Tensor:
    """What all processes kept, one after the other."""
    empty = torch.zeros(0, dtype=torch.int64) if width is None else torch.zeros(0, width).double()
    own = torch.cat([empty, *parts])
    return torch.cat(ranks.gather(own)) if ranks.size > 1 else own
