"""Data read beside a training that reads them too, and leaves no trace in it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from pfc.foreign import attribute

BATCHES = 2  # of a trial


@contextmanager
def apart(data: Any) -> Iterator[Any]:
    """The data for a reading that the training does not notice.

    The torch generators of a loader and of its samplers are as they were afterwards. Workers that live
    from epoch to epoch draw their random numbers for the training alone, so a copy of the loader has
    workers of its own. Of a loader that accelerate has prepared the one inside is read: a reading of
    its own that fails would leave behind when gradients are accumulated.

    Args:
        data: What is measured.

    Yields:
        The same, or what reads the same.
    """
    inner = attribute(data, "base_dataloader")
    data = data if inner is None else inner
    kept = [(generator, generator.get_state()) for generator in _generators(data)]
    try:
        yield _with_own_workers(data)
    finally:
        for generator, state in kept:
            generator.set_state(state)


def _generators(data: Any) -> list[torch.Generator]:
    batches = attribute(data, "batch_sampler")
    owners = (data, attribute(data, "sampler"), batches, attribute(batches, "sampler"))
    found = (attribute(owner, "generator") for owner in owners)
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _with_own_workers(data: Any) -> Any:
    if not isinstance(data, DataLoader) or not data.persistent_workers:
        return data
    twin = copy.copy(data)
    vars(twin).update(_iterator=None, persistent_workers=False)
    return twin


def changes(data: Any) -> str:
    """Why a loader gives other samples in each reading; empty if nothing tells that it does."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return ""
    sampler = data.sampler
    if isinstance(sampler, WeightedRandomSampler):
        return "a WeightedRandomSampler"
    if isinstance(sampler, RandomSampler) and sampler.replacement:
        return "a RandomSampler with replacement"
    drops = data.drop_last and data.batch_size and len(data.sampler) % data.batch_size  # type: ignore[arg-type]
    return "shuffled, with drop_last" if isinstance(sampler, RandomSampler) and drops else ""


class Beginning:
    """The first batches of data, for a trial.

    Of a loader of a map-style dataset the same samples are read from the dataset each time, by this
    process: what a shuffled loader gives twice, and augmentation does not. Of other data the batches are
    kept.

    Args:
        data: What will be measured.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.classes = data, attribute(data, "classes")
        self.dataset = _Classes(attribute(data, "dataset"))
        self._kept: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        loader = self.data
        by_number = isinstance(loader, DataLoader) and loader.batch_sampler is not None
        if by_number and not isinstance(loader.dataset, IterableDataset):
            self._kept = self._kept or list(islice(loader.batch_sampler, BATCHES))
            return iter(
                DataLoader(loader.dataset, batch_sampler=self._kept, collate_fn=loader.collate_fn)
            )
        self._kept = self._kept or list(islice(iter(loader), BATCHES))
        return iter(self._kept)


class _Classes:
    """The number of classes that a dataset tells, and nothing else: a trial has fewer samples."""

    def __init__(self, dataset: Any) -> None:
        self.classes = attribute(dataset, "classes")
