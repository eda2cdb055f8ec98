"""What is measured: plain data that can be sent to every process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import prod
from typing import Any

from pfc.layers import CLASSIFIER_INPUT
from pfc.moments import ClassMoments
from pfc.taps import Side

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What is measured of a model or of arrays.

    Args:
        shapes: Shape of a sample at each row, in the order of the forward pass.
        paired: Whether neighbours of one shape form segments.
        classifier: Name of what gives the logits, or `None`.
        outputs: Logits of a sample; 0 where they are not known.
        classifier_row: The row that is the classifier's input, or `None`.
        logits: Where the logits are in what the model returns; `None` where they are what the
            classifier's layer gives, or its weight and the row.
        threshold: One logit above it is the second of two classes.
        entrance: The module whose input or output is the classifier's input, and which of them.
        input_pool: How the classifier's input is reduced to one vector a sample.
        sequence_first: Rows whose layers give tokens first, samples second.
        lying: Rows of maps whose channels lie last in memory, and that are read in that order.
        model: What the network is called.
        pool: How outputs of several tokens or pixels were reduced.
        chosen: How the layers were chosen, in words.
    """

    shapes: Mapping[str, Shape]
    paired: bool = True
    classifier: str | None = None
    outputs: int = 0
    classifier_row: str | None = None
    logits: str | None = None
    threshold: float = 0.0
    entrance: tuple[str, Side] | None = None
    input_pool: str = "flatten"
    sequence_first: tuple[str, ...] = ()
    lying: tuple[str, ...] = ()
    model: str = "features"
    pool: str = "flatten"
    chosen: str = "named"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self.shapes)

    @property
    def classes(self) -> int | None:
        """Classes that the classifier has; one output is two classes, or no class at all."""
        return self.outputs if self.outputs > 1 else None

    @property
    def answers(self) -> int:
        """Classes that the classifier can answer; one logit tells two."""
        return 2 if self.outputs == 1 else self.outputs

    @property
    def features(self) -> dict[str, int]:
        """Numbers of a sample at each row."""
        return {name: prod(shape) for name, shape in self.shapes.items()}

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The segments, and every other row by itself; the classifier's input stands aside."""

        def key(item: tuple[int, str]) -> object:
            i, name = item
            return self.shapes[name] if self.paired and name != CLASSIFIER_INPUT else i

        return [tuple(name for _, name in run) for _, run in groupby(enumerate(self.names), key)]

    @property
    def segments(self) -> list[tuple[str, ...]]:
        """Runs of two or more consecutive rows of one shape."""
        return [group for group in self.groups if len(group) > 1]

    def named(self, name: str, moments: ClassMoments) -> ClassMoments:
        """Moments of a row with their features in the order of its shape."""
        if name not in self.lying:
            return moments
        channels, *places = self.shapes[name]
        means, errors = (
            M.view(len(M), *places, channels).movedim(-1, 1).reshape(len(M), -1)
            for M in (moments.mean, moments.mean_error)
        )
        return replace(moments, mean=means, mean_error=errors)

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Layout":
        """The layout that `to_dict` described."""
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        entrance = None if value["entrance"] is None else tuple(value["entrance"])
        names = {name: tuple(value[name]) for name in ("sequence_first", "lying")}
        return cls(**{**value, "shapes": shapes, "entrance": entrance, **names})

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        return f"{layers} (classifier {self.classifier})"
