"""Costs to train with: of the transport from layer to layer, of samples far from their class mean."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from pfc.foreign import attribute
from pfc.layers import Layers, choose
from pfc.samples import ArrayLike, class_indices
from pfc.schema import some
from pfc.taps import Watch, unwrapped, writes
from pfc.theory.coefficients import finite


class _Seen:
    """The outputs of layers in the last forward pass inside a `with` block, with their gradients."""

    def __init__(self, net: nn.Module, layers: Layers) -> None:
        if layers is None and not isinstance(attribute(unwrapped(net), "taps"), tuple):
            raise ValueError(
                f"{type(unwrapped(net)).__name__} does not name its layers (it has no `taps`): name by "
                "layers= those of the residual stream in the order in which they run"
            )
        self.modules = choose(net, layers)[0]
        if not self.modules:
            raise ValueError("the cost needs layers that are modules of the net; name them by layers=")
        self.outputs: dict[str, Tensor] = {}
        self._written: dict[str, int] = {}
        self._watch: Watch | None = None

    def __enter__(self) -> None:
        if self._watch is not None:
            raise ValueError("the forward pass of a cost is watched already: leave its with block first")
        self.outputs.clear()
        self._watch = Watch(self.modules, self._see, detach=False).__enter__()

    def __exit__(self, kind: Any, *error: Any) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(kind, *error)
        if kind is None and watch is not None and (silent := self.modules.keys() - {*watch.fired}):
            raise ValueError(f"no output of layer {some(sorted(silent))}: run the net in the with block")

    def _see(self, name: str, output: Tensor) -> None:
        self.outputs[name], self._written[name] = output, writes(output)

    def read(self) -> Mapping[str, Tensor]:
        """The outputs by name, in the order in which the layers ran."""
        if not self.outputs:
            raise ValueError("no forward pass was seen: run the net inside `with cost:`, then call it")
        for name, output in self.outputs.items():
            if writes(output) != self._written[name]:
                raise ValueError(
                    f"the output of layer {name!r} was overwritten in place by what comes after it; "
                    "watch that instead, or make it not inplace"
                )
        return self.outputs


class TransportCost:
    r"""How far a batch is carried along the residual stream, as a cost to add to a loss.

    Of each segment of $L + 1$ watched layers of one shape, with $h_l$ the flattened output of layer l,
    $$T = \sum_{l=1}^{L} \frac{\mathrm{mean} \|h_l - h_{l-1}\|^2}{\mathrm{mean} \|h_0\|^2},$$
    means over the batch, summed over the segments. $h_0$ in the denominator is detached, so that
    nothing is gained by making it larger; with it T depends neither on the width nor on the scale
    of the features. It does depend on their origin. Over all samples it is what a profile with
    `weighting="sample"` has as energy of the path, over L times the mean of $\|h_0\|^2$. T is NaN where
    $h_0$ is zero.

    Relatives differ in scale: LAP (Karkar et al. 2020) adds the mean squared residuals with a
    Lagrangian's multiplier, not divided by the input's size; TRGL (Karkar et al. 2023) adds them for one
    module at a time with 1 / (2 tau), tau from 1 to 1e6 between data sets. Ours.

    The evidence is in records/acting: choose the weight on validation data, from 0.01 to 30, say.

    Args:
        net: The network. Wrapped ones (DataParallel, DDP) are looked into; one that `torch.compile`
            made is not watched reliably.
        layers: Names, globs such as `"blocks.*"`, or modules, each of which runs once; `None` for those
            that the net names itself as `taps`, as the package's own do. The first of a segment is
            where the path starts.

    Raises:
        ValueError: If a layer is not there; in use, if one did not run or ran twice, if no two
            consecutive layers have one shape, or if the net was not run inside the `with` block.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> cost = TransportCost(net, layers=["0", "1"])
        >>> with cost:
        ...     logits = net(torch.ones(3, 4))
        >>> loss = F.cross_entropy(logits, torch.tensor([0, 1, 1])) + 0.1 * cost()
        >>> loss.backward()
    """

    def __init__(self, net: nn.Module, layers: Layers = None) -> None:
        self._seen = _Seen(net, layers)

    def __enter__(self) -> "TransportCost":
        self._seen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._seen.__exit__(*error)

    def __call__(self) -> Float[Tensor, ""]:
        """The cost of the forward pass that was seen last.

        Returns:
            T, at least 0, in float32 or the features' own precision if that is higher.

        Raises:
            ValueError: If no forward pass was seen, or no two consecutive layers have one shape.
        """
        segments = _segments(list(self._seen.read().values()))
        if not segments:
            raise ValueError(
                "the transport cost needs two consecutive layers of one shape, got "
                f"{some(f'{name} of {[*h.shape[1:]]}' for name, h in self._seen.read().items())}"
            )
        return torch.stack([_transport(segment) for segment in segments]).sum()


def _segments(outputs: list[Tensor]) -> list[list[Tensor]]:
    """Runs of at least two consecutive outputs of one shape, a row a sample."""
    runs = [outputs[:1]]
    for before, after in pairwise(outputs):
        if after.shape == before.shape:
            runs[-1].append(after)
        else:
            runs.append([after])
    return [[_rows(h) for h in run] for run in runs if len(run) > 1]


def _rows(h: Tensor) -> Tensor:
    """Flattened, in at least float32."""
    return h.reshape(len(h), -1).to(torch.promote_types(h.dtype, torch.float32))


def _transport(segment: list[Float[Tensor, "B D"]]) -> Float[Tensor, ""]:
    """T of one segment."""
    start = segment[0].detach().square().sum(1).mean()
    moved = torch.stack([(b - a).square().sum(1).mean() for a, b in pairwise(segment)]).sum()
    return torch.where(start > 0, moved / start, torch.nan)


class LayerCollapse:
    r"""Cross-entropy of the nearest class mean at chosen layers ("deep nearest-mean"), to add to a loss.

    At each layer a sample $h$ of D numbers is classified by minus its mean squared difference from the
    running class means, $-\|h - m_k\|^2 / D$, as logits; the cost is their cross-entropy, averaged over
    samples and layers. Running means are averages over batches with exponentially falling weights, of a
    new class its first batch's, and take no gradient. A class that was not seen yet is no answer.
    Samples whose features are not finite do not move them, and nothing does under `torch.no_grad`. They
    are not part of any state dict: a training that is resumed gathers them anew. Where several
    processes train, each has its own.

    The evidence is in records/acting. Ours.

    Args:
        net: The network.
        layers: As of `TransportCost`.
        momentum: Weight of the means so far, in [0, 1).

    Raises:
        ValueError: If a layer is not there or the momentum out of its range; in use, if labels do not
            fit the batch, or as of `TransportCost`.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> cost, y = LayerCollapse(net, layers=["0"]), torch.tensor([0, 1, 1])
        >>> with cost:
        ...     logits = net(torch.ones(3, 4))
        >>> loss = F.cross_entropy(logits, y) + 0.1 * cost(y)
    """

    def __init__(self, net: nn.Module, layers: Layers = None, *, momentum: float = 0.9) -> None:
        if not (finite(momentum) and 0 <= momentum < 1):
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self._seen, self.momentum = _Seen(net, layers), momentum
        self.means: dict[str, tuple[Float[Tensor, "K D"], Int64[Tensor, " K"]]] = {}

    def __enter__(self) -> "LayerCollapse":
        self._seen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._seen.__exit__(*error)

    def __call__(self, y: ArrayLike) -> Float[Tensor, ""]:
        """The cost of the forward pass that was seen last; its samples move the running means first.

        Args:
            y: Labels of its samples, 0..K-1.

        Returns:
            The cost, at least 0.

        Raises:
            ValueError: If no forward pass was seen, or the labels do not fit it.
        """
        outputs, y = self._seen.read(), class_indices(y)
        for name, h in outputs.items():
            if y.shape != h.shape[:1]:
                raise ValueError(
                    f"labels of shape {(*y.shape,)} do not fit layer {name!r} of shape {(*h.shape,)}"
                )
        costs = [self._cost(name, _rows(h), y.to(h.device)) for name, h in outputs.items()]
        return torch.stack(costs).mean()

    def _cost(self, name: str, h: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cross-entropy at one layer."""
        mean, seen = moved = self._moved(name, h.detach(), y)
        if torch.is_grad_enabled():
            self.means[name] = moved
        origin = mean.mean(0)  # about which products lose nothing to an offset of the features
        with torch.autocast(h.device.type, enabled=False):
            m = mean - origin
            nearness = (2 * (h - origin) @ m.mT - m.square().sum(1)) / h.shape[1]
        return F.cross_entropy(nearness.masked_fill(seen == 0, -torch.inf), y)

    def _moved(
        self, name: str, h: Float[Tensor, "B D"], y: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "K D"], Int64[Tensor, " K"]]:
        """The running means of a layer with a batch more, and how many samples each class has had."""
        old = self.means.get(name, (h.new_zeros(0, h.shape[1]), y.new_zeros(0)))
        more = max(0, int(y.max()) + 1 - len(old[1]))
        mean, seen = F.pad(old[0], (0, 0, 0, more)), F.pad(old[1], (0, more))
        known = h.isfinite().all(1)
        count = torch.bincount(y[known], minlength=len(seen))
        batch = torch.zeros_like(mean).index_add_(0, y[known], h[known]) / count.clamp(min=1)[:, None]
        share = (count > 0) * torch.where(seen > 0, 1 - self.momentum, torch.ones_like(mean[:, 0]))
        return mean + share[:, None] * (batch - mean), seen + count
