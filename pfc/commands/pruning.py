"""`pfc prune`: fewer blocks of a run's network, if its held-out data allow it."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pfc import data as sets
from pfc.acting.pruning import Head
from pfc.acting.pruning import prune as cut
from pfc.files import check_place, expanded
from pfc.training import Run


def prune(
    run: Path,
    /,
    *,
    head: Head = "ridge",
    eps: float = 0.005,
    data: str | None = None,
    split: str | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Remove the last blocks of a run's network as far as its held-out data allow.

    Args:
        run: The run's folder.
        head: The classifier of what is left: ridge, least squares on one-hot labels; means, the nearest
            class mean; own, the network's own. The first two are fitted to the run's training data.
        eps: The loss of accuracy that is tolerated; the 95 % interval of the change stays above -eps.
        data: Where the run's data are, if they have been moved.
        split: The held-out data; those beside the run's own split if not given.
        seed: Deals the held-out data into two halves, one to choose by and one to report by.
        batch_size: Samples in a forward pass.
        device: Such as cpu or cuda.
        out: Save the weights as this .safetensors file, and beside it as .json what was cut.
        as_json: Print one JSON object and nothing else.

    Raises:
        ValueError: If there is no run, or it has no held-out data.
    """
    if out is not None:
        out = expanded(out)
        if out.suffix != ".safetensors":
            raise ValueError(f"--out must end in .safetensors, got {out}")
        check_place(out)
        check_place(out.with_suffix(".json"))
    kept = Run(run)
    net, profile = kept.network(), kept.profiles[max(kept.profiles)]
    fit = kept.data(spec=data)
    apart = split or sets.held_out(fit.spec, fit.split)
    if apart is None or apart == fit.split:
        raise ValueError(
            f"{run} has no held-out data beside split {fit.split!r}: name some by --split, or train on "
            "a part of the data, as by `pfc run digits --split fit`"
        )
    held, own = (images.batches(batch_size) for images in (kept.data(apart, spec=data), fit))
    found = cut(net, profile, held, head=head, eps=eps, fit=own, seed=seed, device=device)
    if out is not None:
        found.save(out)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    columns = ["removed", "head", "share", "accuracy", "change", "low", "high", "chosen_low"]
    print(found)
    print(found.table()[columns].to_string(float_format="{:.4g}".format, na_rep="-"))
