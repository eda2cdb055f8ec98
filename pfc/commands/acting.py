"""`pfc prune`, `pfc exits`, `pfc scores`: what the collapse of a run's network is good for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc.acting.exits import EarlyExit
from pfc.acting.gauges import KINDS
from pfc.acting.kept import Name, as_told, keep, place
from pfc.acting.pruning import Head
from pfc.acting.pruning import prune as cut
from pfc.acting.scores import scores as scored
from pfc.device import device_of
from pfc.files import check_place, expanded
from pfc.profile import Profile
from pfc.strict_json import plain
from pfc.training import Run

if TYPE_CHECKING:
    import pandas as pd

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out data of a run, and how they are read.

    Args:
        data: Where the run's data are, if they have been moved.
        split: The held-out data; those beside the run's own split if not given.
        batch_size: Samples in a forward pass.
        device: Such as cpu or cuda.
    """

    data: str | None = None
    split: str | None = None
    batch_size: int = 256
    device: str | None = None

    def opened(self, folder: Path, name: Name) -> "Opened":
        """The run with its data, if what a command finds of it can be kept there."""
        run = Run(folder)
        check_place(place(run.folder, name))
        epoch = max(run.profiles)
        net, fit = run.network(epoch), run.data(spec=self.data)
        apart = self.split or sets.held_out(fit.spec, fit.split)
        if apart is None or apart == fit.split:
            raise ValueError(
                f"{folder} has no held-out data beside split {fit.split!r}: name some by --split, or "
                "train on a part of the data, as by `pfc run digits --split fit`"
            )
        held = run.data(apart, spec=self.data)
        net = net.to(device_of(self.device, net))
        return Opened(name, run, net, run.profiles[epoch], fit, held, self.batch_size)


USUAL = HeldOut()


@dataclass(frozen=True, eq=False)
class Opened:
    """A run, and what a command finds of it.

    Args:
        name: Of the command.
        run: The run.
        net: Its network with the last weights.
        profile: The last one.
        fit: The training images.
        held: The held-out ones.
        batch_size: Samples in a forward pass.
    """

    name: Name
    run: Run
    net: nn.Module
    profile: Profile
    fit: sets.Images
    held: sets.Images
    batch_size: int

    def batches(self, images: sets.Images) -> sets.Batches:
        """Images as the network is shown them."""
        return images.batches(self.batch_size)

    def finish(
        self,
        told: Mapping[str, Any],
        table: "pd.DataFrame",
        words: Callable[[], str],
        *,
        as_json: bool,
    ) -> None:
        """Keep what was found in the run's folder, and print it."""
        found = plain(as_told(told, table))
        keep(self.run.folder, self.name, self.profile, found)
        print(json.dumps(found, indent=1) if as_json else words())


def prune(
    run: Path,
    /,
    *,
    head: Head = "ridge",
    eps: float = 0.005,
    seed: int = 0,
    heldout: HeldOut = USUAL,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Remove the last blocks of a run's network as far as its held-out data allow.

    What was found is kept in the run's folder, as prune.json; `pfc report` shows it.

    Args:
        run: The run's folder.
        head: The classifier of what is left: ridge, least squares on one-hot labels; means, the nearest
            class mean; own, the network's own. The first two are fitted to the run's training data.
        eps: The loss of accuracy that is tolerated; the 95 % interval of the change stays above -eps.
        seed: Deals the held-out data into two halves, one to choose by and one to report by.
        heldout: The held-out data.
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
        check_place(beside := out.with_suffix(".json"))
        if beside.resolve() == place(expanded(run), "prune").resolve():
            raise ValueError(f"{beside} is where `pfc prune` keeps what it found: choose another --out")
    of = heldout.opened(run, "prune")
    held, own = of.batches(of.held), of.batches(of.fit)
    found = cut(of.net, of.profile, held, head=head, eps=eps, fit=own, seed=seed)
    if out is not None:
        found.save(out)
    columns = ["removed", "head", "share", "accuracy", "change", "low", "high", "chosen_low"]
    table = found.table()
    of.finish(found.to_dict(), table, lambda: f"{found}\n{_shown(table[columns])}", as_json=as_json)


def exits(
    run: Path,
    /,
    *,
    eps: float = 0.005,
    seed: int = 0,
    heldout: HeldOut = USUAL,
    as_json: AsJson = False,
) -> None:
    """Let samples leave a run's network early, as far as its held-out data allow.

    What was found is kept in the run's folder, as exits.json; `pfc report` shows it.

    Args:
        run: The run's folder.
        eps: The loss of accuracy that is tolerated; the 95 % interval of the change stays above -eps.
        seed: Deals the held-out data into two halves, one to choose by and one to report by.
        heldout: The held-out data.
        as_json: Print one JSON object and nothing else.
    """
    of = heldout.opened(run, "exits")
    held = of.batches(of.held)
    found = EarlyExit(of.net, of.profile).calibrate(held, eps, seed=seed)
    about = {"network": type(of.net).__name__, "data": held.name, "seed": seed}
    of.finish(found.to_dict() | {"about": about}, found.curve, lambda: str(found), as_json=as_json)


def scores(
    run: Path,
    /,
    *,
    kind: Literal["cosine", "distance", "span", "depth"] = "cosine",
    unknown: str | None = None,
    unknown_split: str | None = None,
    heldout: HeldOut = USUAL,
    as_json: AsJson = False,
) -> None:
    """Say how familiar held-out data are at each layer, and how well unknown data are told from them.

    What was found is kept in the run's folder, as scores.json; `pfc report` shows it.

    Args:
        run: The run's folder.
        kind: Which score: cosine to the nearest class mean, distance to it in that class's spread, share
            of the norm in the span of the means, or depth from which on the nearest mean stays the same.
        unknown: Data of none of the classes, of images of the same size: a hub name, or a folder of
            parquet files or of images.
        unknown_split: Of the unknown data; the test split, or train, if not given.
        heldout: The held-out data, which are the known ones.
        as_json: Print one JSON object and nothing else.

    Raises:
        ValueError: If a split of unknown data is named, and no data.
    """
    if unknown is None and unknown_split is not None:
        raise ValueError("--unknown-split is of unknown data: name them by --unknown")
    of = heldout.opened(run, "scores")
    held, strange = of.batches(of.held), None
    if unknown is not None:
        split = unknown_split or sets.held_out(unknown) or "train"
        strange = of.batches(of.run.normalised(sets.load(unknown, split)))
    found = scored(of.net, held, of.profile, kind, unknown=strange)
    told = {
        **{"kind": kind, "data": held.name, "samples": len(of.held)},
        "unknown": None if strange is None else strange.name,
        "unknown_samples": 0 if strange is None else len(strange.images),
    }
    table = found.summary()
    of.finish(told, table, lambda: _of_scores(told, table), as_json=as_json)


def _of_scores(told: Mapping[str, Any], table: "pd.DataFrame") -> str:
    """What the scores are of, and their numbers layer by layer."""
    kind = KINDS[told["kind"]]
    beside = f", beside {told['unknown_samples']} of {told['unknown']}" if told["unknown"] else ""
    return (
        f"{kind.words}, {'large' if kind.rises else 'small'} of known samples: {told['samples']} of "
        f"{told['data']}{beside}\n{_shown(table)}"
    )


def _shown(table: "pd.DataFrame") -> str:
    """A table in four digits."""
    return str(table.to_string(float_format="{:.4g}".format, na_rep="-"))
