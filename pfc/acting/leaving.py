"""One forward pass that samples leave: those that exit at a layer are no longer computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pfc.acting.margins import ClassMeans, refuse_width
from pfc.measuring.loader import selected
from pfc.taps import first_tensor, pooled


@dataclass(frozen=True, eq=False)
class Seen:
    """How the samples that are left lie at a layer.

    Args:
        distances: Squared, to each class mean.
        margin: How much nearer the nearest mean is than the second.
        nearest: The class of the nearest mean.
    """

    distances: Float[Tensor, "n P"]
    margin: Float[Tensor, " n"]
    nearest: Int64[Tensor, " n"]


Leaves = Callable[[int, Seen], Bool[Tensor, " n"]]  # which exit at the layer of a number


class Ended(BaseException):
    """No sample is left: the pass is over. It is no error, so that no `except Exception` takes it."""


class Pass:
    """One forward pass: which samples are left, and what the others were answered.

    Args:
        layers: Names of the exits.
        pool: How the features are reduced.
        means: The class means at each exit.
        classes: Logits of a sample.
        size: Samples in the batch.
        leaves: Says of the samples that are left which exit, by the number of the layer and by how they
            lie there.
        mask: Which tokens are no padding.
    """

    def __init__(
        self,
        layers: Sequence[str],
        pool: str,
        means: nn.ModuleList,
        classes: int,
        size: int,
        leaves: Leaves,
        mask: Tensor | None,
    ) -> None:
        self.layers, self.pool, self.means, self.classes = layers, pool, means, classes
        self.size, self.leaves, self.mask = size, leaves, mask
        self.left: Tensor | None = None  # numbers of the samples that are left; `None` for all
        self.parts: list[tuple[Tensor | None, Tensor, int]] = []

    def at(self, i: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        """At a layer: those that exit are answered, the others go on."""
        H, means = first_tensor(output), self.means[i]
        n = self.size if self.left is None else len(self.left)
        assert isinstance(means, ClassMeans)
        if H is None or not H.ndim or len(H) != n:
            got = "no tensor" if H is None else f"shape {(*H.shape,)}"
            raise ValueError(f"layer {self.layers[i]!r} gave {got} for {n} samples, not a row each")
        mask = self.mask if self.mask is None or self.left is None else self.mask[self.left]
        rows = pooled(H, self.pool, mask)
        refuse_width(self.layers[i], width := prod(rows.shape[1:]), means.points.shape[1])
        distances = means(rows.reshape(n, width))
        gone = self.leaves(i, Seen(distances, *means.margin(distances)))
        if not bool(gone.any()):
            return None
        numbers = torch.arange(n, device=H.device) if self.left is None else self.left
        self.parts.append((numbers[gone], means.logits(distances[gone], self.classes), i))
        self.left = numbers[~gone]
        if not len(self.left):
            raise Ended
        stays = (~gone).nonzero().flatten()
        return _rows_of(output, stays, n)

    def finish(self, logits: Float[Tensor, "B K"]) -> None:
        """At the end: those that are left have the network's own logits."""
        n = self.size if self.left is None else len(self.left)
        if len(logits) != n:
            raise ValueError(f"the network gave {len(logits)} rows of logits for {n} samples")
        self.parts.append((self.left, logits, len(self.layers)))

    def result(self) -> tuple[Float[Tensor, "B K"], Int64[Tensor, " B"]]:
        """The logits in the order of the samples, and where each exited."""
        numbers, logits, i = self.parts[-1]
        if numbers is None:  # nobody exited
            return logits, torch.full((self.size,), i, device=logits.device)
        wide = reduce(torch.promote_types, (each.dtype for _, each, _ in self.parts))
        found = logits.new_empty(self.size, self.classes, dtype=wide)  # distances keep their digits
        at = torch.empty(self.size, dtype=torch.int64, device=logits.device)
        for numbers, logits, i in self.parts:
            assert numbers is not None
            found[numbers], at[numbers] = logits.to(found), i
        return found, at


def _rows_of(output: Any, stays: Int64[Tensor, " b"], n: int) -> Any:
    """A layer's output of the samples that go on; of an output with fields of each field."""
    if not is_dataclass(output) or isinstance(output, type):
        return selected(output, stays, n)
    parts = {field.name: selected(getattr(output, field.name), stays, n) for field in fields(output)}
    return type(output)(**parts)
