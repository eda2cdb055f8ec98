"""What pruning gives: the network, what it costs and saves, its files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pfc.acting.heldout import Change, too_few
from pfc.files import expanded, write_json, write_tensors

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "pfc-pruned-1"


@dataclass(frozen=True)
class Candidate:
    """A cut that was tried.

    Args:
        layer: The last layer of its segment that is kept.
        removed: Layers of the segment that go; 0 of the whole network with a fitted classifier.
        penalty: Of the ridge classifier, the best on the choosing part; `None` of other classifiers.
        operations: Of a forward pass of one sample.
        chosen: The change of accuracy on the choosing part.
        reported: The change of accuracy on the reporting part.
    """

    layer: str
    removed: int
    penalty: float | None
    operations: int
    chosen: Change
    reported: Change

    def row(self) -> dict[str, Any]:
        """Its numbers, those of the reporting part by their own names."""
        own = {key: getattr(self, key) for key in ("layer", "removed", "penalty", "operations")}
        told, chosen = self.reported, self.chosen
        change = {"accuracy": told.after, "change": told.after - told.before}
        return own | change | {"low": told.low, "high": told.high, "chosen_low": chosen.low}


@dataclass(frozen=True, eq=False)
class Pruned:
    """A network without the last blocks, and what that costs and saves.

    Args:
        network: In evaluation mode, of the same classes as the one that was given and with weights of
            its own; a copy of that one where nothing can go.
        layer: The last layer of the segment that is kept.
        removed: Layers of the segment that went; empty where nothing can go.
        head: The classifier: `"ridge"`, `"means"` or `"own"`.
        eps: The loss of accuracy that was tolerated.
        change: Of the accuracy, on the reporting part.
        candidates: Every cut that was tried, the shallowest first; then, where the classifier is fitted,
            the whole network with such a one, which is never chosen but says what fitting alone gains.
        operations: Of a forward pass of one sample, before and after.
        latency: Median seconds of a forward pass before and after, by the size of the batch.
        parts: Samples of each part of the held-out data.
        fitted: Samples that the classifier was fitted to; 0 of the own one.
        steps: How the network is made of the one that was given, a line of Python each.
        about: The network, the data, the seed.
    """

    network: nn.Module
    layer: str
    removed: tuple[str, ...]
    head: str
    eps: float
    change: Change
    candidates: tuple[Candidate, ...]
    operations: tuple[int, int]
    latency: Mapping[int, tuple[float, ...]]
    parts: Mapping[str, int]
    fitted: int
    steps: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refitted(self) -> Candidate | None:
        """The whole network with a fitted classifier; `None` with its own one."""
        return next((each for each in self.candidates if not each.removed), None)

    def table(self) -> "pd.DataFrame":
        """One row a cut that was tried, the shallowest first, and at the end the whole network.

        That has two rows, where the classifier is fitted: with a fitted one, so that cuts can be
        compared with what fitting alone gains, and as it was given.

        Returns:
            Indexed by `layer`: how many layers are `removed`, the classifier, `head`, as fitted or
            `"own"`, the ridge classifier's `penalty`,
            `operations` of one sample and their `share` of the whole network's, `accuracy` on the
            reporting part, its `change` with the 95 % interval from `low` to `high`, and `chosen_low`,
            the lower end on the choosing part, by which the cut is chosen.
        """
        import pandas as pd

        n, before = self.change.samples, self.change.before
        whole = {"layer": self.about["last"], "removed": 0, "head": "own", "penalty": None}
        whole |= {"operations": self.operations[0], "accuracy": before}
        whole |= dict.fromkeys(("change", "low", "high", "chosen_low"), 0.0)
        tried = [each.row() | {"head": self.head} for each in self.candidates]
        table = pd.DataFrame([*tried, whole])[[*whole]].set_index("layer")
        table["penalty"] = table["penalty"].astype(float)
        table.insert(4, "share", table["operations"] / max(self.operations[0], 1))
        table.attrs |= {"samples": n, "eps": self.eps, "head": self.head, "layer": self.layer}
        return table

    def to_dict(self) -> dict[str, Any]:
        """All but the network, as JSON can hold it."""
        names = ("layer", "removed", "head", "eps", "operations", "parts", "fitted", "steps", "about")
        told = {name: getattr(self, name) for name in names}
        sizes = {str(size): list(seconds) for size, seconds in self.latency.items()}
        tried = [asdict(each) for each in self.candidates]
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in told.items()}
        return plain | {"change": asdict(self.change), "candidates": tried, "latency": sizes}

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Save the weights as safetensors, and beside them as JSON what was cut and how to rebuild it.

        To load it without pfc: build the network that was given, run the lines of `steps` on it as
        `net`, then `net.load_state_dict(safetensors.torch.load_file(path))`.

        Args:
            path: Ends in .safetensors.

        Returns:
            The paths of both files.

        Raises:
            ValueError: If the path ends in something else.
        """
        path = expanded(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"the path must end in .safetensors, got {path}")
        beside = path.with_suffix(".json")
        write_tensors(path, self.network.state_dict(), format=FORMAT)
        write_json(
            beside, {"format": FORMAT, "weights": path.name} | json.loads(json.dumps(self.to_dict()))
        )
        return path, beside

    def __str__(self) -> str:
        last, (before, after) = self.about["last"], self.operations
        if not self.removed:
            return (
                f"nothing can go: no cut before {last} is sure to lose at most {self.eps:g} of the "
                f"accuracy with the classifier {self.head!r}; the whole network has "
                f"{self.change.before:.4f}" + too_few(self.parts["choose"], self.eps) + self._gain()
            )
        time = "; ".join(
            f"{1e3 * was:.3g} ms before, {1e3 * now:.3g} ms after for {size} at once"
            for size, (was, now) in self.latency.items()
        )
        cuts = sum(each.removed > 0 for each in self.candidates)
        return (
            f"cut after {self.layer}: {len(self.removed)} of {cuts} layers are gone, "
            f"classifier {self.head!r}\n{self.change}{self._gain()}\n"
            f"operations {before:.4g} before, {after:.4g} after ({after / max(before, 1):.1%}); {time}"
        )

    def _gain(self) -> str:
        """What fitting the classifier alone gains, in words."""
        if (whole := self.refitted) is None:
            return ""
        told, change = whole.reported, whole.reported.after - whole.reported.before
        return (
            f"\nuncut with the classifier {self.head!r} fitted: accuracy {told.after:.4f}, change "
            f"{change:+.4f}, 95 % interval [{told.low:+.4f}, {told.high:+.4f}]"
        )
