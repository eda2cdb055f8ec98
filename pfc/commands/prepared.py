"""What `pfc measure` reads before it measures: the model, its data, and those that go with them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pfc import data as sets
from pfc.commands.given import OfModel, OfRun
from pfc.models import Samples

Shown = sets.Images | Samples


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model and the data that it will be shown.

    Args:
        model: The network with its weights.
        samples: What is measured.
        beside: The split kept apart, which is measured about the class means of the others.
        held: The data on which a probe is tried.
        means: The split about whose class means the samples are measured.
    """

    model: nn.Module
    samples: Shown
    beside: Shown | None = None
    held: Shown | None = None
    means: Shown | None = None


def prepared(
    opened: OfRun | OfModel,
    *,
    means: str | None,
    test: bool,
    probe: bool,
    check: Callable[[str], None],
) -> Prepared:
    """Read all that is measured; what is wrong with any of it is told before anything is measured."""
    model, samples = opened.model, opened.samples()
    opened.describe(samples)
    apart = opened.held_out() if test and means is None else None
    if apart is not None:
        check(apart)
    beside = None if apart is None else _beside(opened, apart, samples.split)
    held = _held_out(opened, samples.split) if probe else None
    split = None if means is None or means.endswith(".json") else opened.samples(means)
    return Prepared(model, samples, beside, held, split)


def _beside(opened: OfRun | OfModel, split: str, own: str) -> Shown:
    """The split kept apart."""
    try:
        return opened.samples(split)
    except ValueError as error:
        raise ValueError(
            f"split {split!r} can't be measured beside {own!r}, --no-test leaves it out: {error}"
        ) from error


def _held_out(opened: OfRun | OfModel, own: str) -> Shown:
    """The data on which a probe is tried."""
    split = opened.held_out()
    if split is None:
        raise ValueError(f"--probe needs a split that is kept apart, and there is none beside {own!r}")
    return opened.samples(split)
