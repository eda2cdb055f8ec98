"""A fixed small sample of the data, the inputs of least hash, and where it lies at each layer."""

from collections.abc import Mapping
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Float64, Int, Int64, Shaped
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import at_hand, processor
from pfc.fused.processor import ODD, SHIFTS
from pfc.labels import BatchLabels
from pfc.measuring.costs import MOST, SKETCH
from pfc.measuring.decisions import Coordinates, Decisions
from pfc.measuring.loader import Batch, attention_mask
from pfc.measuring.sums import See
from pfc.processes import Processes
from pfc.profile.classes import SamplePoints
from pfc.span import MeansSpan
from pfc.tiles import row_tiles

READ = 4096  # numbers of an input that its hash reads at most, evenly spaced; ours
COPIES = 8  # numbers of a tile that each counts for while it is mixed on the processor; measured
SHARED = 0.1  # part of held-out samples that may be among others, as duplicates are; ours
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ODD_OF = {torch.int64: ODD, torch.int32: -1640531535}


class Subset:
    """The inputs of least hash, and where they are at each layer; followed in pass two."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}  # hashes, labels, of each layer coordinates and residuals
        self._new: dict[str, Tensor] = {}
        self._waiting: dict[str, Tensor] = {}  # a batch's coordinates, that lie there until the next
        self._rows: slice | Tensor = slice(None)  # of the batch, those that may be kept

    def follow(self, batch: Batch, labels: BatchLabels, decisions: Decisions, seen: Coordinates) -> See:
        """Note where the samples of a batch are as it is seen; `settle` ends the batch."""
        hashes = hashes_of(batch).to(labels.y.device)
        rows: slice | Tensor = slice(None)  # of a device that is not asked, all of them
        kept = self.kept.get("hash", hashes[:0])
        if hashes.device.type in SYNCHRONOUS_DEVICES and len(kept) + len(hashes) > MOST:
            least = torch.cat([kept, hashes]).argsort(stable=True)[:MOST] - len(kept)
            rows = least[least >= 0].sort().values
        known = identities_of(batch, hashes, rows)
        self._new = {"hash": hashes[rows], "identity": known, "label": labels.y[rows]}
        self._rows = rows
        return partial(self._follow, decisions, seen)

    def _follow(
        self, decisions: Decisions, seen: Coordinates, name: str, H: Float[Tensor, "B D"]
    ) -> None:
        z = seen.see(name, H)
        if not len(self._new["hash"]):
            return
        span = decisions.nearest[name].span
        if span.basis.shape[1] == 1:
            H = decisions.scales[name].rescaled(H[self._rows])
            across = (H.double() - span.centre) - span.centre_error - z[self._rows] @ span.basis.mT
            self._new[f"across/{name}"] = _sketch(across)
        if seen.start is None:  # of large batches no more is kept than needed
            self._new[f"at/{name}"] = _two(z, self._rows)
        else:
            self._waiting[name] = z

    def settle(self) -> None:
        """Keep the least of the samples so far and of those of the batch."""
        new, self._new = self._new, {}
        new |= {f"at/{name}": _two(z, self._rows) for name, z in self._waiting.items()}
        self._waiting = {}
        if len(new["hash"]):
            both = {
                key: torch.cat([self.kept[key], part]) if self.kept else part
                for key, part in new.items()
            }
            self.kept = _least(both)

    def points(self, spans: Mapping[str, MeansSpan], ranks: Processes) -> SamplePoints:
        """Where the samples of least hash of all processes are."""
        empty = torch.zeros(0, dtype=torch.int64, device="cpu")
        kept = {key: _all(self.kept.get(key, empty), ranks) for key in ("hash", "identity", "label")}
        for name, span in spans.items():
            kept[f"at/{name}"] = _all(self.kept.get(f"at/{name}", empty.double().view(0, 2)), ranks)
            if span.basis.shape[1] == 1:
                width = min(len(span.centre), SKETCH)
                own = self.kept.get(
                    f"across/{name}", torch.zeros(0, width, dtype=torch.float64, device="cpu")
                )
                kept[f"across/{name}"] = _all(own, ranks)
        kept = _least(kept)
        for name in spans:
            if f"across/{name}" in kept:
                kept[f"at/{name}"][:, 1] = _leading(kept[f"across/{name}"])
        return SamplePoints(
            labels=kept["label"],
            points={name: kept[f"at/{name}"].float() for name in spans},
            means={name: _two(span.points, slice(None)).float().cpu() for name, span in spans.items()},
            hashes=torch.stack([kept["hash"], kept["identity"]], 1),
        )


def _least(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The samples of least hash, ascending, without asking their device."""
    hashes = samples["hash"]
    order = hashes.argsort(stable=True)[:MOST]
    return {key: part[order] for key, part in samples.items()}


def hashes_of(batch: Batch) -> Int64[Tensor, " B"]:
    """A hash of each row's input, the same in batches of any size; of its place where it has no form."""
    x = batch.inputs
    if x is None:
        start = batch.number << 32
        return _mixed(torch.arange(start, start + len(batch.y), device="cpu"))
    bits = _bits(x)
    bits = bits if bits.element_size() > 2 else bits.int()  # products wrap around in their own type
    odd = _odd(bits.shape[1], bits.dtype, x.device)
    hashes = _mixed((bits * odd).sum(1, dtype=torch.int64))
    if batch.tokens is None:
        return hashes
    tokens, mask = batch.tokens.to(x.device), attention_mask(batch.kwargs)
    place = torch.arange(tokens.shape[1], device=x.device)
    if mask is not None and mask.shape == tokens.shape:  # of tokens, not of padding before them
        place = mask.cumsum(1) - 1
    return _mixed(batch.spread(hashes) + place.expand(tokens.shape)[tokens].long() * ODD)


@lru_cache(maxsize=8)
def _odd(width: int, dtype: torch.dtype, device: torch.device) -> Int[Tensor, " C"]:
    """Odd numbers by which those of an input are multiplied, by their places."""
    place = torch.arange(width, dtype=dtype, device=device)
    return (place * 2 + 1) * ODD_OF[dtype]


def identities_of(
    batch: Batch, hashes: Int64[Tensor, " B"], rows: slice | Tensor = slice(None)
) -> Int64[Tensor, " b"]:
    """Another hash of some samples, each number mixed: those of small integers differ, too."""
    x = batch.inputs
    if x is None or batch.tokens is not None:
        return hashes[rows]
    bits = _bits(x[rows if isinstance(rows, slice) else rows.to(x.device)])
    if at_hand(bits.device, bits.numel()):
        return processor.mix(bits).to(hashes.device)
    place = (torch.arange(bits.shape[1], device=x.device) + 1) * ODD
    copies = COPIES if bits.device.type in SYNCHRONOUS_DEVICES else 1
    tiles = row_tiles(bits, slice(0, copies * bits.shape[1]))
    found = (_mixed(bits[tile] + place).sum(1) for tile in tiles)
    return torch.cat([place[:0], *found]).to(hashes.device)


def _bits(x: Shaped[Tensor, "B D"]) -> Int[Tensor, "B C"]:
    """Some numbers of each input, evenly spaced, their bits read as whole numbers."""
    some = x[:, :: -(-x.shape[1] // READ)].contiguous()
    some = some.to(torch.int8) if some.dtype == torch.bool else some
    return some.view(INTEGER[some.element_size()])


def known_again(own: Int64[Tensor, " N"], known: Int64[Tensor, " M"]) -> int:
    """How many samples are among others, by their identities; 0 where these are few duplicates."""
    shared = int(torch.isin(own, known).sum())
    return shared if shared > SHARED * len(own) else 0


def _mixed(h: Int64[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
    """The same numbers, each bit of them spread over all."""
    for shift in SHIFTS:
        h = (h ^ (h >> shift)) * ODD
    return h


def _two(z: Float64[Tensor, "B R"], rows: slice | Tensor) -> Float64[Tensor, "b 2"]:
    """Two coordinates of some rows, in memory of their own."""
    two = z[:, :2] if z.shape[1] > 1 else torch.nn.functional.pad(z, (0, 2 - z.shape[1]))
    return two[rows] if isinstance(rows, Tensor) else two[rows].clone()


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


def _all(own: Tensor, ranks: Processes) -> Tensor:
    """What all processes kept, one after the other, on the CPU."""
    return torch.cat(ranks.gather(own)).cpu() if ranks.size > 1 else own.cpu()
