"""Labels of tokens: which tokens are rows of the features, and which classes occur."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pfc.samples import integers

LEFT_OUT = -100  # the label of a token that is left out, as torch's losses have it


@dataclass(frozen=True, eq=False)
class Tokens:
    """How tokens are labelled.

    Args:
        shift: How many tokens later the label of a token stands.
        vocabulary: The labels that occur, ascending: class k is the k-th of them. Empty while they are
            not known, when a label is its own class.
    """

    shift: int = 0
    vocabulary: Int64[Tensor, " K"] = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu")
    )

    @classmethod
    def asked(cls, pool: Any, shift: int, classes: int | None) -> "Tokens | None":
        """How tokens are labelled; `None` where samples have the labels."""
        if pool != "tokens":
            if shift:
                raise ValueError(f"shift is for pool='tokens', got shift={shift} with pool={pool!r}")
            return None
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        if classes is not None:
            raise ValueError(f"with pool='tokens' the classes are the labels that occur, got {classes=}")
        return cls(shift)

    def chosen(
        self, y: Any, mask: Bool[Tensor, "B T"] | None, batch: int
    ) -> tuple[Bool[Tensor, "B T"], Int64[Tensor, " R"]]:
        """Which tokens are rows, and the label of each row."""
        y = integers(y, f"labels of batch {batch}")
        if y.ndim != 2:
            raise ValueError(
                f"pool='tokens' needs labels of shape (B, T), one a token, with {LEFT_OUT} for those "
                f"left out; those of batch {batch} have shape {(*y.shape,)}"
            )
        if mask is not None and mask.shape != y.shape:
            raise ValueError(
                f"labels of batch {batch} have shape {(*y.shape,)}, the attention_mask {(*mask.shape,)}"
            )
        padding = torch.zeros_like(y, dtype=torch.bool) if mask is None else ~mask.cpu()
        y = y.masked_fill(padding, LEFT_OUT)
        if self.shift:
            y = torch.cat([y[:, self.shift :], torch.full_like(y[:, : self.shift], LEFT_OUT)], dim=1)
        y = y.masked_fill(padding, LEFT_OUT)
        tokens = y != LEFT_OUT
        return tokens, y[tokens]

    def classes_of(self, labels: Int64[Tensor, " R"]) -> Int64[Tensor, " R"]:
        """The class of each label: K for a label that does not occur, itself if below 0."""
        if not len(self.vocabulary):
            return labels
        vocabulary = self.vocabulary.to(labels.device)
        place = torch.searchsorted(vocabulary, labels).clamp(max=len(vocabulary) - 1)
        known = vocabulary[place] == labels
        return torch.where(known, place, torch.where(labels < 0, labels, len(vocabulary)))
