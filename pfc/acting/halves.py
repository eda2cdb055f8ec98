"""A trial whether samples can be computed without the others of their batch: half of a few go out."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pfc.acting.leaving import Leaves, Seen
from pfc.foreign import in_words

CLOSE = 1e-3  # by how much the logits of the others may differ then, over their spread; ours
ROUNDED = 8  # units in the last place of the largest logit that they may differ besides; ours


def try_halves(run: Callable[[Leaves], Float[Tensor, "B K"]], layers: Sequence[str], net: str) -> bool:
    """Let every other sample go out at each layer; the rest must not notice.

    Args:
        run: Logits of a few samples, of which some leave.
        layers: Names of the exits.
        net: What the network is called.

    Returns:
        Whether that says something: not where the logits are NaN or infinite.

    Raises:
        ValueError: If the rest fail, or their logits change.
    """
    whole = run(nobody)
    stays = torch.arange(len(whole), device=whole.device) % 2 == 1
    for i, layer in enumerate(layers):
        try:
            got = run(partial(_half_at, i))
        except Exception as error:
            raise ValueError(_not_apart(net, layer, in_words(error))) from error
        slip = _slip(got[stays], whole[stays])
        if slip > _bound(whole):
            raise ValueError(_not_apart(net, layer, f"their logits change by {slip:.2g}"))
    return bool(whole.amax(1).isfinite().all())


def nobody(_: int, seen: Seen) -> Bool[Tensor, " n"]:
    """Nobody exits."""
    return torch.zeros_like(seen.margin, dtype=torch.bool)


def _half_at(layer: int, i: int, seen: Seen) -> Bool[Tensor, " n"]:
    """Every other sample exits at one layer."""
    here = torch.arange(len(seen.margin), device=seen.margin.device) % 2 == 0
    return here & (layer == i)


def _slip(a: Float[Tensor, "b K"], b: Float[Tensor, "b K"]) -> float:
    """The largest difference; none between what is NaN or infinite in both."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(torch.inf).masked_fill(same, 0).amax())


def _bound(logits: Float[Tensor, "B K"]) -> float:
    """By how much logits may differ, in units of their own: of their range, and of their rounding."""
    known = logits[logits.isfinite()]
    if not len(known):
        return 0.0
    rounding = ROUNDED * torch.finfo(logits.dtype).eps * float(known.abs().amax())
    return CLOSE * float(known.amax() - known.amin()) + rounding


def _not_apart(net: str, layer: str, why: str) -> str:
    return (
        f"{net} can't compute some samples of a batch without the others: when half of them exit at "
        f"{layer!r}, the rest fail or change ({why}); something beside the inputs of its modules, such "
        "as a mask, has the samples' axis: give it one sample at a time"
    )
