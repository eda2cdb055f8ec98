"""Held-out data: apart from the training data, dealt into parts, and what changes on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pfc.intervals import of_change
from pfc.measuring.loader import Batch, MeasuredBatches
from pfc.measuring.subset import hashes_of, identities_of, known_again
from pfc.profile.profile import Profile
from pfc.schema import short
from pfc.theory.coefficients import finite, whole

UNSEEN = "data that the network was not trained on"


@dataclass(frozen=True)
class Change:
    """How the accuracy changes on the same samples.

    Args:
        samples: How many there are.
        before: Accuracy before.
        after: Accuracy after.
        lost: Samples that were right and are wrong now.
        won: Samples that were wrong and are right now.
        low: Lower end of the 95 % interval of the change.
        high: Its upper end.
    """

    samples: int
    before: float
    after: float
    lost: int
    won: int
    low: float
    high: float

    @classmethod
    def of(cls, before: Bool[Tensor, " N"], after: Bool[Tensor, " N"]) -> "Change":
        """By which samples were answered rightly before and after; Tango's score interval."""
        n, lost, won = len(before), int((before & ~after).sum()), int((after & ~before).sum())
        was, now = (float(part.double().mean()) for part in (before, after))
        return cls(n, was, now, lost, won, *of_change(lost, won, n))

    @classmethod
    def none(cls, right: Bool[Tensor, " N"]) -> "Change":
        """None, for certain: the same network before and after."""
        accuracy = float(right.double().mean())
        return cls(len(right), accuracy, accuracy, 0, 0, 0.0, 0.0)

    def __str__(self) -> str:
        return (
            f"accuracy {self.before:.4f} before, {self.after:.4f} after, on {self.samples} samples: "
            f"change {self.after - self.before:+.4f}, 95 % interval [{self.low:+.4f}, {self.high:+.4f}]"
        )


def too_few(n: int, eps: float) -> str:
    """What to say where not even the same answers to so many samples would be sure enough."""
    least = -of_change(0, 0, n)[0]
    told = f"; {n} samples to choose by are sure to {least:.2g} at best: give more, or a larger eps"
    return told if least > eps else ""


@dataclass(frozen=True, eq=False)
class Samples:
    """Labels of data, and hashes of their inputs, in the order of the data.

    Args:
        y: Class of each sample.
        hashes: Of its input; of none where the inputs have no form.
    """

    y: Int64[Tensor, " N"]
    hashes: Int64[Tensor, "M 2"]


class Noted:
    """Notes labels and hashes of the batches that pass by, and that each reading gives the same."""

    def __init__(self) -> None:
        self.first: Samples | None = None

    def of(self, batches: MeasuredBatches) -> Iterator[tuple[Batch, slice]]:
        """Each batch, and the numbers of its samples."""
        y, hashes, seen = list[Tensor](), list[Tensor](), 0
        for batch in batches:
            y.append(batch.y)
            hashes.append(input_hashes(batch))
            yield batch, slice(seen, seen + len(batch.y))
            seen += len(batch.y)
        read = Samples(torch.cat(y), torch.cat(hashes))
        if self.first is None:
            self.first = read
        elif not (torch.equal(self.first.y, read.y) and torch.equal(self.first.hashes, read.hashes)):
            raise ValueError(
                "the held-out data come in another order, or are others, at each reading: turn off "
                "shuffling and augmentation, as the same samples are compared before and after"
            )

    @property
    def samples(self) -> Samples:
        """What the first reading gave."""
        assert self.first is not None, "nothing was read"
        return self.first


def input_hashes(batch: Batch) -> Int64[Tensor, "B 2"]:
    """Two hashes of each input; none where inputs have no form of which there is one."""
    if batch.inputs is None:
        return torch.zeros(0, 2, dtype=torch.int64, device="cpu")
    hashes = hashes_of(batch)
    return torch.stack([hashes, identities_of(batch, hashes)], 1).cpu()


def refuse_trained(
    hashes: Int64[Tensor, "N 2"], profile: Profile, whose: str = "the held-out data", give: str = UNSEEN
) -> None:
    """Refuse held-out data that the profile was measured on, by the least hashes of its inputs."""
    known = None if profile.sample is None else profile.sample.hashes
    if known is None or not len(known):
        return
    whole = profile.about["samples"] <= len(known)
    among = hashes if whole else hashes[hashes[:, 0] <= known[-1, 0]]
    refuse_shared(among, known, "the data that the profile was measured on", whose, give)


def refuse_shared(
    hashes: Int64[Tensor, "N 2"],
    known: Int64[Tensor, "M 2"],
    what: str,
    whose: str = "the held-out data",
    give: str = UNSEEN,
) -> None:
    """Refuse data of which more than some duplicates are among others."""
    if shared := known_again(hashes[:, 1], known[:, 1]):
        raise ValueError(
            f"{shared} of {len(hashes)} samples of {whose} that were compared are among {what}: give "
            f"{give}"
        )


def refuse_undefined(batch: int, what: str, *numbers: Tensor) -> None:
    """Refuse held-out data of which a network or a layer makes NaN or infinite numbers."""
    if not all(bool(each.isfinite().all()) for each in numbers):
        raise ValueError(
            f"{what} gave numbers that are NaN, infinite or too large to square on batch {batch} of the "
            "held-out data, of which nothing can be decided: look for such numbers in the inputs"
        )


def check_choice(eps: Any, seed: Any) -> None:
    """Refuse a tolerated loss that is none, and a seed that deals nothing."""
    if not finite(eps) or not 0 <= eps < 1:
        raise ValueError(f"eps must be in [0, 1), got {short(eps)}")
    whole(seed=seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")


def check_labels(y: Int64[Tensor, " N"], classes: int) -> None:
    """Refuse labels of one class, or beyond those that the network answers."""
    own = y.unique()
    if len(own) < 2:
        raise ValueError(f"the held-out data are of one class, {int(own[0])}: give some of each class")
    if int(own[-1]) >= classes:
        raise ValueError(
            f"the held-out data have the label {int(own[-1])}, but the network answers {classes} classes"
        )


def dealt(y: Int64[Tensor, " N"], parts: int, seed: int) -> list[Int64[Tensor, " n"]]:
    """The samples dealt into parts, each class as evenly as can be, by a seed.

    Args:
        y: Class of each sample.
        parts: How many.
        seed: Of the shuffling.

    Returns:
        Numbers of the samples of each part, ascending.

    Raises:
        ValueError: If a part would have fewer than two samples.
    """
    make = torch.Generator().manual_seed(int(seed))
    order = torch.randperm(len(y), generator=make, device="cpu")
    order = order[y[order].argsort(stable=True)]  # class by class, shuffled within
    found = [order[i::parts].sort().values for i in range(parts)]
    if len(y) < 2 * parts:
        raise ValueError(
            f"{len(y)} held-out samples can't be dealt into {parts} parts of two or more: give more"
        )
    return found


def described(parts: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """How many samples each part has."""
    return {name: len(part) for name, part in zip(names, parts, strict=True)}
