"""The data's classes in the model's numbers, by their names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from pfc.data.classes import difference
from pfc.schema import nfc


@dataclass(frozen=True)
class Matching:
    """How the classes of data stand to those of a model.

    Args:
        classes: Names by number, the model's where they are known to be meant.
        numbers: The model's number of each of the data's; `None` if they stay as they are.
        told: What a reader is to know, in a sentence.
        differ: Whether the names are not those of the model.
    """

    classes: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    told: str | None = None
    differ: bool = False

    def renumbered(self, labels: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
        """Labels of the data in the model's numbers."""
        if self.numbers is None:
            return labels
        return torch.tensor(self.numbers, device="cpu")[labels]


def matched(classes: Sequence[str], own: Sequence[str], model: str, *, named: bool = True) -> Matching:
    """Match the classes of data with a model's.

    Args:
        classes: The data's, by number.
        own: The model's, by number; none if it names none.
        model: What the model is called.
        named: Whether the data's numbers have names at all.

    Returns:
        The model's numbers where every name is one of the model's, else the data's own.
    """
    if not own:
        return Matching(tuple(classes))
    if not named:  # they are the numbers of the model's outputs, or nothing is known of them
        return Matching(tuple(own) if len(classes) <= len(own) else tuple(classes))
    numbers = _places(classes, own)
    if numbers is None:
        how = difference(classes, own)
        told = None if how is None else f"the data's classes are not those of {model}: {how}"
        return Matching(tuple(classes), told=told, differ=how is not None)
    moved = [(k, number) for k, number in enumerate(numbers) if k != number]
    if not moved:
        return Matching(tuple(own))
    k, number = moved[0]
    told = (
        f"the labels are numbered as {model} numbers its classes: {own[number]!r} is {number}, and "
        f"{k} in the data"
    )
    return Matching(tuple(own), numbers, told)


def _places(classes: Sequence[str], own: Sequence[str]) -> tuple[int, ...] | None:
    """The model's number of each name; `None` if one is not the model's, or stands for two classes."""
    times = Counter(map(_form, own))
    places = {_form(name): number for number, name in enumerate(own)}
    if any(times[_form(name)] != 1 for name in classes) or len({*map(_form, classes)}) < len(classes):
        return None
    return tuple(places[_form(name)] for name in classes)


def _form(name: str) -> str:
    """A name as names are compared."""
    return nfc(name).casefold()
