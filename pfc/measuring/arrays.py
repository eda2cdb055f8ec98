"""Features from arrays, in memory or on disk, as a source that the passes read block by block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.evaluation import undisturbed
from pfc.foreign import told
from pfc.measuring.decisions import answers_of
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch
from pfc.measuring.sums import See
from pfc.samples import class_indices, samples

BLOCK = 2**22  # numbers of all layers that are read at once; ours
LATE = 2**7  # blocks that are looked at again where sums fail, as devices tell late; ours
LEAST = 64  # rows that are read at once at the least; ours


@dataclass(frozen=True, eq=False)
class ArrayHead:
    """A classifier of features: its weight, where it is linear, and what it answers.

    Args:
        weight: K x D, or `None`.
        bias: Of a linear one; may be `None`.
        module: What gives the logits, or `None` for weight and bias.
    """

    weight: Tensor | None
    bias: Tensor | None = None
    module: nn.Module | None = None

    @classmethod
    def of(cls, classifier: Any) -> "ArrayHead | None":
        """A module, a pair (W, b) or W; `None` for none."""
        if classifier is None:
            return None
        if isinstance(classifier, nn.Module):
            weight = classifier.weight if isinstance(classifier, nn.Linear) else None
            return cls(None if weight is None else weight.detach(), None, classifier)
        paired = isinstance(classifier, tuple) and len(classifier) == 2
        W, b = classifier if paired else (classifier, None)
        W = samples(W, name="the classifier's weight").double()
        b = None if b is None else samples([b], name="the classifier's bias")[0].double()
        if b is not None and b.shape != W.shape[:1]:
            raise ValueError(f"the classifier's bias must be of shape ({len(W)},), got {(*b.shape,)}")
        return cls(W, b)

    @torch.no_grad()
    def logits(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """What it gives for these rows."""
        if self.module is not None:
            own = next(self.module.parameters(), H)
            with undisturbed(self.module, own.device):
                with told(f"the classifier failed on {len(H)} rows of {H.shape[1]} features"):
                    found: Tensor = self.module(H.to(own.device, own.dtype))
            return found
        assert self.weight is not None, "either a module or a weight"
        found = H.double() @ self.weight.to(H.device).mT
        return found if self.bias is None else found + self.bias.to(H.device)

    def outputs(self, H: Float[Tensor, "B D"]) -> int:
        """How many numbers it gives a row."""
        return self.logits(H).shape[1]


class ArraySource:
    """Features of N samples at each layer, with their labels: what the passes read, and the data.

    Args:
        features: Arrays N x ... by the names of the layers.
        y: Class of each sample.
        classifier: Of the last layer that it fits: a module, (W, b), W, or `None`.

    Raises:
        ValueError: If an array or the labels are unfit, or the classifier fits no layer.
    """

    classes = None

    def __init__(self, features: Any, y: Any, classifier: Any, *, segments: bool) -> None:
        if not isinstance(features, Mapping) or not features:
            kind = "an empty one" if isinstance(features, Mapping) else type(features).__name__
            raise ValueError(f"features must be a dict of arrays by the names of layers, got {kind}")
        self._checks, self._done = True, 0  # whether numbers are looked at; rows read in this pass
        self.y = class_indices(y)
        self.dataset_size = self.largest = len(self.y)
        self.arrays = {str(name): _sliceable(X, f"layer {name!r}") for name, X in features.items()}
        first = {name: self._read(name, slice(0, 1)) for name in self.arrays}
        self.device = next(iter(first.values())).device
        shapes = {name: (*X.shape[1:],) for name, X in self.arrays.items()}
        for name, X in self.arrays.items():
            if len(X) != len(self.y):
                raise ValueError(f"layer {name!r} has {len(X)} rows, and there are {len(self.y)} labels")
        self.head = ArrayHead.of(classifier)
        row, outputs = self._row_of(self.head, {name: H.shape[1] for name, H in first.items()})
        called = None if classifier is None else type(classifier).__name__
        self.layout = Layout(shapes, segments, called, outputs, row)
        self.height = max(LEAST, BLOCK // sum(map(prod, shapes.values())))

    def _row_of(self, head: ArrayHead | None, features: dict[str, int]) -> tuple[str | None, int]:
        """The last layer that the classifier fits, and its outputs."""
        if head is None:
            return None, 0
        if head.weight is None:
            last = next(reversed(features))
            return last, max(2, head.outputs(self._read(last, slice(0, 1))))
        outputs, D = head.weight.shape
        row = next((name for name in reversed(features) if features[name] == D), None)
        if row is None:
            have = ", ".join(f"{name} {n}" for name, n in features.items())
            raise ValueError(f"the classifier takes {D} numbers a sample; the layers have {have}")
        return row, max(2, outputs)  # the sign of one logit tells two classes

    def _read(self, name: str, rows: slice) -> Float[Tensor, "B D"]:
        where = f"layer {name!r}" + (f", rows {rows.start} to {rows.stop - 1}" if rows.start else "")
        with told(f"{where} failed"):
            read = self.arrays[name][rows]
        return samples(read, name=where, flatten=True, finite=self._checks)

    @contextmanager
    def checked_late(self) -> Iterator[None]:
        """Look at no number that is read, as sums tell what is not finite; then name its rows."""
        self._checks = False
        try:
            yield
        except ValueError:
            if unfit := self._unfit():
                raise unfit from None
            raise
        finally:
            self._checks = True

    def _unfit(self) -> ValueError | None:
        """What is wrong with numbers of the last blocks that were read, of all once a pass is over."""
        self._checks = True
        start = 0 if self._done == len(self.y) else max(0, self._done - LATE * self.height)
        try:
            for rows in self._blocks(start, self._done):
                for name in self.arrays:
                    self._read(name, rows)
        except ValueError as unfit:
            return unfit
        return None

    def _blocks(self, start: int, stop: int) -> Iterator[slice]:
        """Rows that are read at once, from the first of a block on."""
        return (slice(at, min(at + self.height, stop)) for at in range(start, stop, self.height))

    def __len__(self) -> int:
        return -(-len(self.y) // self.height)

    def __iter__(self) -> Iterator[Batch]:
        for number, rows in enumerate(self._blocks(0, len(self.y))):
            self._done = rows.stop
            features = {name: self._read(name, rows) for name in self.arrays}
            yield Batch(number, (features,), {}, self.y[rows])

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """Hand over each layer's rows of a block; what the classifier answers to those it takes."""
        (features,) = batch.args
        for name, H in features.items():
            see(name, H.to(device))
        if self.head is None:
            return None
        logits = self.head.logits(features[self.layout.classifier_row])
        return answers_of(logits.reshape(len(logits), -1)).to(device)


def _sliceable(X: Any, name: str) -> Any:
    """What gives some of its rows without reading the others, such as a memory-mapped array."""
    kind = type(X)
    with told(f"{name} failed"):
        if hasattr(kind, "__getitem__") and hasattr(kind, "__len__") and hasattr(X, "shape"):
            if len(X.shape):
                return X
    return samples(X, name=name, flatten=True)
