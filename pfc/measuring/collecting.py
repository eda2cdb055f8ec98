"""Features in full, of few samples or few layers, and the transport gap between two layers of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.evaluation import Precision, undisturbed
from pfc.foreign import workers_told
from pfc.layers import Layers
from pfc.measuring import shards
from pfc.measuring.calling import place_of
from pfc.measuring.loader import MeasuredBatches
from pfc.measuring.survey import Request, Survey, survey
from pfc.measuring.tokens import Tokens
from pfc.processes import ALONE
from pfc.profile.profile import Profile
from pfc.progress import shown
from pfc.taps import Pool, unwrapped

if TYPE_CHECKING:
    from pfc.theory.transport import Gap


def features(
    model: nn.Module,
    data: Iterable[Any],
    layers: Layers = None,
    *,
    limit: int | None = None,
    pool: Pool = "flatten",
    shift: int = 0,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    progress: bool = True,
) -> tuple[dict[str, Float[Tensor, "N D"]], Int64[Tensor, " N"]]:
    """Collect the features of chosen layers in full, on the CPU: for few samples or few layers.

    Args:
        model: Any torch classifier, as for `measure`.
        data: Batches, as for `measure`.
        layers: Which layers, as for `measure`.
        limit: Use at most this many samples.
        pool: How to reduce tokens or pixels to one vector per sample, as for `measure`.
        shift: With `pool="tokens"`, as for `measure`.
        device: Where to run; the model's own device if `None`.
        precision: Of the forward passes, as for `measure`.
        progress: Show a progress bar on the standard error.

    Returns:
        Features of each layer by name, one row a sample, and the labels.

    Raises:
        ValueError: If a layer is unknown or does not run, or the data are empty.
    """
    tokens = Tokens.asked(pool, shift, None)
    request = Request(model, layers, None, pool, tokens=tokens)
    device = place_of(model, device)
    rows: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    looked: Survey | None = None

    def keep(name: str, H: Tensor) -> None:
        rows.setdefault(name, []).append(H.clone())

    batches = MeasuredBatches(data, shards.own_limit(limit, data, ALONE), device, tokens)
    quiet = undisturbed(unwrapped(model), device, precision)
    with workers_told(), quiet, shown("collect", batches.total, enabled=progress) as step:
        for batch in batches:
            looked = looked or survey(request, batch)
            looked.forward(batch, torch.device("cpu"), keep)
            labels.append(batch.y)
            step(batch.number + 1)
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.cat(labels)


def transport(
    model: nn.Module,
    data: Iterable[Any],
    profile: Profile,
    i: int = -1,
    *,
    exact: int = 2000,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> "Gap":
    """Is the map from the first to the last layer of a segment an optimal transport map?

    Collects the features of the two layers in full (N x D numbers each, on the CPU).

    Args:
        model: The one that was measured.
        data: What it was measured on, or a stratified sample of it.
        profile: What was measured: names the segment, the weighting and the pooling.
        i: Which segment.
        exact: Samples of the exact part, as for `pfc.theory.transport.gap`.
        device: Where to run; the model's own device if `None`.
        progress: Show a progress bar on the standard error.

    Returns:
        Cost, exact optimal transport, and bounds, weighted as the profile is.

    Raises:
        ValueError: If there is no such segment, or its outputs were pooled by a callable.
    """
    from pfc.theory.transport import gap

    chosen, pool = profile.segment(i), profile.about.get("pool", "flatten")
    shift = profile.about.get("shift", 0)
    if pool not in {"flatten", "mean", "cls", "last", "tokens"}:
        raise ValueError(f"outputs were pooled by {pool}: give their features to theory.transport.gap")
    ends = [chosen.layers[0], chosen.layers[-1]]
    precision = profile.about.get("precision")
    found, y = features(
        model, data, ends, pool=pool, shift=shift, device=device, precision=precision, progress=progress
    )
    start, end = (found[name] for name in ends)
    return gap(start, end, y, weighting=chosen.weighting, exact=exact, progress=progress)
