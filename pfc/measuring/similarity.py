"""How alike the layers of two networks represent the same data: linear CKA, tile by tile."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pfc.evaluation import undisturbed
from pfc.foreign import workers_told
from pfc.layers import Layers
from pfc.measuring.calling import place_of
from pfc.measuring.loader import Batch, MeasuredBatches, selected
from pfc.measuring.nested import changed, found
from pfc.measuring.subset import hashes_of
from pfc.measuring.survey import Request, Survey, survey
from pfc.progress import Step, shown
from pfc.taps import Pool, unwrapped

if TYPE_CHECKING:
    import pandas as pd

MOST = 5_000  # samples, whose pairs are gone through
TILE = 256  # samples whose features are in memory at once, twice; ours


def cka(
    a: nn.Module,
    b: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = None,
    pool: Pool = "flatten",
    limit: int = 2_000,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> "pd.DataFrame":
    r"""Linear centred kernel alignment of the layers of two networks on the same data.

    $$ \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}
       = \frac{\langle K, L \rangle}{\|K\|_F \|L\|_F},
       \qquad K = X X^\top, \quad L = Y Y^\top, $$

    where the rows of X and Y are the samples' features at a layer of each network, less their mean
    (Kornblith et al., arXiv 1905.00414). It is formed from the Gram matrices, tile by tile in float64,
    so that neither an N x N nor a D x D matrix is kept; of N samples each forward pass is made
    2 + N / 512 times, and their inputs are kept in memory. Of many more features than samples even
    unrelated features come out alike: more samples, or `pool="mean"`, help.

    Args:
        a: A torch classifier, as for `measure`.
        b: Another one that takes the same inputs, or the same.
        data: Batches, as for `measure`.
        layers: Which layers of both, as for `measure`.
        pool: How to reduce tokens or pixels to one vector per sample, as for `measure`.
        limit: Samples, at most 5,000: those of least input hash, and so the same in every order.
        device: Where to run; each model's own device if `None`.
        progress: Show a progress bar on the standard error.

    Returns:
        A number in [0, 1] for each layer of `a` (rows) and of `b` (columns): 1 where one is the other
        rotated, scaled and moved, NaN where all features of a layer coincide. `.attrs["samples"]` is the
        number of samples.

    Raises:
        ValueError: If the limit is not from 2 to 5,000, tokens are the samples, or the data are empty.
    """
    import pandas as pd

    if not 2 <= limit <= MOST:
        raise ValueError(f"limit must be from 2 to {MOST} samples, got {limit}")
    if pool == "tokens":
        raise ValueError("pool='tokens' makes samples of tokens; compare pooled layers, as by 'mean'")
    nets = [_Network(net, place_of(net, device), layers, pool) for net in (a, b)]
    with workers_told(), ExitStack() as stack:
        for net in nets:
            stack.enter_context(undisturbed(unwrapped(net.model), net.device))
        tiles = [*_tiles(MeasuredBatches(data, None, torch.device("cpu")), limit)]
        steps = len(tiles) * (len(tiles) + 3) // 2
        with shown("cka", steps, enabled=progress) as step:
            products = _products(nets, tiles, step)
    names = [net.names for net in nets]
    size = products.diagonal().sqrt()
    alike = (products / size / size[:, None])[: len(names[0]), len(names[0]) :]
    table = pd.DataFrame(alike.tolist(), index=[*names[0]], columns=[*names[1]])
    table.attrs["samples"] = sum(map(len, tiles))
    return table


@dataclass(eq=False)
class _Network:
    """A network, and what is tapped of it; found at the first batch."""

    model: nn.Module
    device: torch.device
    layers: Layers
    pool: Pool
    looked: Survey | None = None

    @property
    def names(self) -> Sequence[str]:
        """The layers that are tapped."""
        return () if self.looked is None else self.looked.layout.names

    def features(self, batch: Batch) -> dict[str, Float64[Tensor, "B D"]]:
        """The features of a batch at each layer, in float64 on the CPU."""
        args, kwargs = changed(Tensor, lambda x: x.to(self.device), (batch.args, batch.kwargs))
        moved = Batch(batch.number, args, kwargs, batch.y)
        self.looked = self.looked or survey(Request(self.model, self.layers, None, self.pool), moved)
        rows: dict[str, Tensor] = {}

        def keep(name: str, H: Tensor) -> None:
            rows[name] = H.to("cpu", torch.float64, copy=True)

        self.looked.forward(moved, torch.device("cpu"), keep)
        return rows


def _tiles(batches: MeasuredBatches, limit: int) -> Iterator[Batch]:
    """The samples of least input hash, in one reading; kept in memory, and joined to tiles."""
    kept = _Least(limit)
    for batch in batches:
        kept.add(hashes_of(batch), (batch.args, batch.kwargs, batch.y))
    alike: list[list[Any]] = []  # samples that can stand in one batch, as those of one length
    for sample in kept.samples():
        room = next((tile for tile in alike if len(tile) < TILE and _fits(tile[0], sample)), None)
        if room is None:
            alike.append(room := [])
        room.append(sample)
    for number, tile in enumerate(alike):
        yield Batch(number, *_joined(tile))


class _Least:
    """The samples of least hash so far, one by one; of equal hashes, as of equal inputs, the first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[tuple[int, int, Any]] = []  # hash, order of reading, sample
        self.read = 0

    def add(self, hashes: Int64[Tensor, " B"], batch: Any) -> None:
        """Take those of a batch that may be among the least."""
        last = self.kept[-1][0] if len(self.kept) == self.limit else None
        for i, own in enumerate(hashes.tolist()):
            if last is None or own < last:
                index = torch.tensor([i], device="cpu")
                self.kept.append((own, self.read + i, selected(batch, index, len(hashes))))
        self.read += len(hashes)
        self.kept = sorted(self.kept, key=itemgetter(0, 1))[: self.limit]

    def samples(self) -> Iterator[Any]:
        """Those that are kept, by their hashes."""
        return (sample for _, _, sample in self.kept)


def _fits(a: Any, b: Any) -> bool:
    """Whether two samples can stand in one batch."""
    kinds = (Tensor, PackedSequence)
    pairs = [*zip_longest(found(kinds, a), found(kinds, b))]
    return all(
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (x.shape, x.dtype) == (y.shape, y.dtype)
        and (x.ndim > 0 or bool(x == y))
        for x, y in pairs
    )


def _joined(samples: Sequence[Any]) -> Any:
    """One batch of samples that fit."""
    first, *others = samples
    if not others:
        return first
    parts = zip(*(found(Tensor, sample) for sample in samples), strict=True)
    return changed(Tensor, lambda x: torch.cat(each) if (each := next(parts))[0].ndim else x, first)


def _products(nets: Sequence[_Network], tiles: Sequence[Batch], step: Step) -> Float64[Tensor, "L L"]:
    """Inner products of the centred Gram matrices of all layers, of one network after the other."""
    done, sums = 0, None
    for batch in tiles:
        rows = [H.sum(0) for net in nets for H in net.features(batch).values()]
        sums = rows if sums is None else [s + H for s, H in zip(sums, rows, strict=True)]
        step(done := done + 1)
    n = sum(map(len, tiles))
    means = [s / n for s in sums or ()]
    products = torch.zeros(len(means), len(means), dtype=torch.float64, device="cpu")
    for i, batch in enumerate(tiles):
        first = _centred(nets, batch, means)
        for j in range(i, len(tiles)):
            second = first if i == j else _centred(nets, tiles[j], means)
            grams = torch.stack([(X @ Y.mT).flatten() for X, Y in zip(first, second, strict=True)])
            products += (1 if i == j else 2) * (grams @ grams.mT)
            step(done := done + 1)
    return products


def _centred(
    nets: Sequence[_Network], batch: Batch, means: Sequence[Tensor]
) -> list[Float64[Tensor, "B D"]]:
    rows = [H for net in nets for H in net.features(batch).values()]
    return [H.sub_(mean) for H, mean in zip(rows, means, strict=True)]
