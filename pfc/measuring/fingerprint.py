"""An order-independent fingerprint of the labelled inputs, by which the second pass knows them again."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from pfc.fused import at_hand, processor
from pfc.measuring.loader import Batch
from pfc.measuring.scale import exponent_of
from pfc.tiles import column_tiles, row_tiles, upcast

MOST = 2.0**500  # a mark beyond it is cut off, for its square is no number; ours
ROUNDING = 1e-13  # of an inner product, relative to the vector; ours
SAME = 1e-9  # relative: sums of the same float64 numbers in another order differ by less; ours

Reference = tuple[int, float, float]  # of the first input: the power of two, its mark and its norm


class Fingerprint:
    """Order-independent fingerprint of the labelled inputs.

    Each input is one inner product with a fixed vector of incommensurable cosines, less that of the
    first input, so that a common offset hides nothing; of each class the number, the sum and the sum of
    squares are kept.

    Args:
        reference: Of the first input; the first one that comes if `None`.
        keep_marks: Whether to keep class and mark of each sample, too.
    """

    def __init__(self, reference: Reference | None = None, *, keep_marks: bool = False) -> None:
        self.reference = reference
        self.sums = torch.zeros(0, 3, dtype=torch.float64, device="cpu")
        self.marks: list[Float64[Tensor, "B 2"]] | None = [] if keep_marks else None
        self.widths: set[int] = set()
        self.written = False
        self._waves: dict[tuple[int, torch.device], Tensor] = {}
        self._version = 0

    def fresh(self) -> "Fingerprint":
        """An empty one with the same reference, for the second pass."""
        return Fingerprint(self.reference)

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        x, labels = batch.inputs, batch.labels
        self._version = _version(batch)
        mark = torch.zeros(len(batch), dtype=torch.float64, device="cpu")
        if x is not None:
            self.widths.add(x.shape[1])
            self.reference = self.reference or reference_of(x)
            exponent, origin, _ = self.reference
            mark = self._marks_of(x, exponent) - origin
        mark = batch.spread(mark)
        if self.marks is not None:
            self.marks.append(torch.stack([labels.y.to(mark), mark], dim=1))
        rows = torch.stack([torch.ones_like(mark), mark, mark.square()], dim=1)
        sums = with_room(self.sums.to(mark.device), labels.numbers[-1] + 1)
        self.sums = sums.index_add_(0, labels.y.to(mark.device, non_blocking=True), rows)

    def note_writes(self, batch: Batch) -> None:
        """Note whether the forward pass wrote to the inputs of the batch."""
        self.written |= _version(batch) > self._version

    def _marks_of(self, x: Tensor, exponent: int) -> Float64[Tensor, " B"]:
        key = (x.shape[1], x.device)
        if key not in self._waves:
            self._waves = {key: _wave(x, exponent)}
        return _products(x, self._waves[key])

    def compare(self, again: "Fingerprint") -> None:
        """Refuse a second pass that read other samples than the first."""
        K = max(len(self.sums), len(again.sums))
        ours, theirs = (with_room(each.sums.cpu(), K) for each in (self, again))
        _, _, length = self.reference or (0, 0.0, 0.0)
        other = ours[:, 0] != theirs[:, 0]
        wrong = other | ~_equal(ours, theirs, ROUNDING * length)
        if wrong.any():
            k = int(wrong.byte().argmax())
            had, has = int(ours[k, 0]), int(theirs[k, 0])
            what = f"{has} of class {k} after {had}" if other[k] else f"the inputs of class {k} differ"
            raise ValueError(
                f"the second pass saw different samples from the first: {what}; {self._remedy()}"
            )

    def _remedy(self) -> str:
        """What would make both passes see the same, by what was seen in the first."""
        if self.written:
            return "the model writes to its inputs, which the data keep: let it work on x.clone()"
        if len(self.widths) > 1:
            return (
                "inputs are padded to the longest of their batch, so keep the order of the samples, or "
                "give the attention_mask too; else turn off random augmentation, or take passes=1"
            )
        return (
            "turn off random augmentation (and shuffling, under a limit or with drop_last), or take "
            "passes=1"
        )


def _version(batch: Batch) -> int:
    """How often the network's first input was written to; tensors of inference mode do not tell."""
    x = batch.first
    return 0 if x is None or x.is_inference() else x._version


def _equal(a: Float64[Tensor, "K 3"], b: Float64[Tensor, "K 3"], slip: float) -> Bool[Tensor, " K"]:
    """Whether sums and squares agree to rounding, class by class, where a mark may be off by a slip."""
    n, size = a[:, 0], torch.maximum(a[:, 2], b[:, 2])
    sums, squares = (a - b).abs()[:, 1:].unbind(1)
    return (sums <= SAME * (n * size).sqrt() + n * slip) & (
        squares <= SAME * size + n * slip**2 + 2 * slip * (n * size).sqrt()
    )


def reference_of(x: Tensor) -> Reference:
    """What all marks are taken from: the first of these inputs."""
    far = x.dtype == torch.float64 and x.numel() > 0
    exponent = exponent_of(float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) if far else 0.0)
    length = float((x[0].double() * 2.0**-exponent).nan_to_num(0.0, 0.0, 0.0).norm())
    return exponent, float(_products(x[:1], _wave(x, exponent))), length


def _wave(x: Tensor, exponent: int) -> Float64[Tensor, " D"]:
    steps = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
    return torch.cos(steps * 2.399963229728653) * 2.0**-exponent  # the golden angle


def _products(x: Tensor, wave: Float64[Tensor, " D"]) -> Float64[Tensor, " B"]:
    if x.dtype in processor.TYPES and at_hand(x.device, x.numel()):
        mark = processor.project(x, torch.zeros_like(wave), wave[None])[:, 0]
    else:
        mark = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for columns in column_tiles(x):
            for rows in row_tiles(x, columns):
                mark[rows] += upcast(x[rows, columns], "fingerprint") @ wave[columns]
    return mark.nan_to_num(0.0, MOST, -MOST).clamp(-MOST, MOST)


def with_room(sums: Float64[Tensor, "K 3"], classes: int) -> Float64[Tensor, "M 3"]:
    """The same rows, and zero ones for further classes."""
    more = classes - len(sums)
    return torch.cat([sums, sums.new_zeros(more, 3)]) if more > 0 else sums
