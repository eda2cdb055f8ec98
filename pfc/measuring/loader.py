"""Batches as measuring wants them: checked, on the device, labels beside the statistics."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import DataLoader, IterableDataset

from pfc.foreign import attribute, told
from pfc.labels import BatchLabels
from pfc.measuring.nested import changed
from pfc.measuring.tokens import Tokens
from pfc.samples import class_indices, integers
from pfc.schema import short
from pfc.taps import NoTokensError, Pool, first_tensor, pooled

StatisticsPlace = Literal["device", "host"]
EMPTY = "the data gave no batch at all; is the loader empty, or used up by an earlier reading?"
USED_UP = (
    "the data gave no batch when they were read again: a loader whose dataset iterates over an iterator "
    "is used up after one reading; let its __iter__ begin anew"
)
END = object()
LABELS = ("labels", "label")  # what a batch and a data set call them
ROOM = 0.7  # part of a device's free memory that statistics may take; ours


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: what the network is called with, and the labels.

    A row of the features that are measured is a sample, or a token where tokens have the labels.

    Args:
        number: Counted from 0.
        args: Positional arguments of the forward pass.
        kwargs: Named arguments of the forward pass.
        y: Class of each row, on the CPU.
        tokens: Which tokens of each sample are rows; `None` where samples are.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    y: Int64[Tensor, " R"]
    tokens: Bool[Tensor, "B T"] | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.y) if self.tokens is None else len(self.tokens)

    @cached_property
    def labels(self) -> BatchLabels:
        """The classes, prepared on the CPU."""
        return BatchLabels.of_indices(self.y)

    @cached_property
    def first(self) -> Tensor | None:
        """The network's first input."""
        return first_tensor((self.args, self.kwargs))

    @property
    def inputs(self) -> Shaped[Tensor, "B D"] | None:
        """A row of numbers for each sample, where the first input is that; padding comes last."""
        x = self.first
        if x is None or x.device.type == "mps" or len(x) != len(self):
            return None
        x, mask = x.reshape(len(x), -1), attention_mask(self.kwargs)
        if mask is None or mask.shape != x.shape:
            return x
        order = (~mask).byte().argsort(dim=1, stable=True)
        return x.masked_fill(~mask, 0).gather(1, order)

    def rows(self, output: Tensor, pool: Pool, samples: int | None = None) -> Float[Tensor, "..."]:
        """A row of numbers for each labelled row, of the first samples or of all."""
        first = slice(samples)
        if self.tokens is None:
            mask = None if pool == "flatten" else attention_mask(self.kwargs)
            return pooled(output, pool, None if mask is None else mask[first])
        tokens = self.tokens[first]
        tokens = tokens if samples is None else torch.ones_like(tokens)  # a trial needs some
        if output.shape[:2] != tokens.shape:
            raise NoTokensError(
                f"pool='tokens' needs a vector for each of {(*tokens.shape,)} tokens, got shape "
                f"{(*output.shape,)}; name the layers that give it"
            )
        return output[tokens.to(output.device)]

    def spread(self, numbers: Shaped[Tensor, " B"]) -> Shaped[Tensor, " R"]:
        """Of each row the number of its sample."""
        if self.tokens is None:
            return numbers
        tokens = self.tokens.to(numbers.device)
        return numbers[:, None].expand(tokens.shape)[tokens]


def attention_mask(kwargs: Mapping[str, Any]) -> Bool[Tensor, "B T"] | None:
    """Which tokens are no padding, by a mask among the arguments."""
    mask = kwargs.get("attention_mask")
    return mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None


class MeasuredBatches:
    """A pass over the user's data, again and again.

    Args:
        data: A re-iterable of `(x, y)` pairs, or of dicts with `labels`.
        limit: Use at most this many samples.
        device: Where the network is.
        tokens: How tokens are labelled, if they are; samples have the labels if `None`.
        may_be_empty: Whether there may be no batch, as in one of many processes.
        labelled: Whether there are labels; else there may be none, and those that there are go unread.

    Raises:
        ValueError: If the data can't be read twice, or `limit` is below 1.
    """

    def __init__(
        self,
        data: Any,
        limit: int | None,
        device: torch.device,
        tokens: Tokens | None = None,
        *,
        may_be_empty: bool = False,
        labelled: bool = True,
    ) -> None:
        _check_iterable(data)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.data, self.limit, self.device, self.tokens = data, limit, device, tokens
        self.may_be_empty, self.labelled = may_be_empty, labelled
        self.largest = 0  # samples of the largest batch so far
        self.part = (0, 1)  # of batches with numbers of this remainder, by this divisor
        self.read = (0, 0)  # samples of the pass so far, of all parts, and a checksum of their labels

    @property
    def total(self) -> int | None:
        """Batches in a pass, where the data know it and no limit cuts them."""
        return None if self.limit is not None else _length(self.data)

    def expected(self, size: int) -> int | None:
        """Batches of so many samples in a pass, where the data or a limit tell."""
        known, limit = _length(self.data), self.limit
        return min((n for n in (known, limit and -(-limit // size)) if n is not None), default=None)

    @property
    def dataset_size(self) -> int | None:
        """Rows of the dataset behind a loader, where it knows."""
        if self.tokens is not None:
            return None
        return _length(attribute(self.data, "dataset"))

    @property
    def classes(self) -> int | None:
        """The data's own number of classes: `classes` of the data or of its `dataset`."""
        for owner in (self.data, attribute(self.data, "dataset")):
            own = attribute(owner, "classes")
            if isinstance(own, int) and not isinstance(own, bool):
                return own
            if isinstance(own, list | tuple) and own:
                return len(own)
        return None

    @property
    def class_names(self) -> list[str]:
        """The data's own names of the classes, as image folders and Hugging Face data sets have them."""
        dataset = attribute(self.data, "dataset")
        features = attribute(dataset, "features")
        labels = [features.get(name) for name in LABELS] if isinstance(features, Mapping) else []
        owners = [attribute(owner, "classes") for owner in (self.data, dataset)]
        for names in (*owners, *(attribute(label, "names") for label in labels)):
            if isinstance(names, list | tuple) and names:
                return [*map(str, names)]
        return []

    @property
    def name(self) -> str | None:
        """The data's own name, if they have one."""
        name = attribute(self.data, "name")
        return name if isinstance(name, str) else None

    def __iter__(self) -> Iterator[Batch]:
        for number, args, kwargs, y in self._items():
            batch = self._batch(number, args, kwargs, y)
            if batch is not None and batch.labels.numbers:  # prepared before any device works
                yield batch

    def _items(self) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any], Tensor]]:
        """Number, inputs and labels, of samples or of tokens, of each batch up to the limit."""
        seen = 0
        for number, item in self._read():
            with told(f"the data failed at batch {number}"):  # a mapping may read when it is asked
                args, kwargs, y = _split(item if self.labelled else _with_labels(item, number), number)
            y = (
                integers(y, f"labels of batch {number}")
                if self.tokens
                else class_indices(y, batch=number)
            )
            size = y.shape[0]
            if self.limit is not None and self.limit - seen < size:
                args, kwargs, y = cut((args, kwargs, y), self.limit - seen, size)
                size = y.shape[0]
            if number % self.part[1] == self.part[0]:
                yield number, args, kwargs, y
            seen += size
            if self.part[1] > 1:  # hashes of whole numbers are the same in every process
                self.read = (seen, hash((self.read[1] if number else 0, *y.flatten().tolist())))
            self.largest = max(self.largest, size)
            if self.limit is not None and seen >= self.limit:
                return
        if not seen and not self.may_be_empty:
            raise ValueError(USED_UP if self.largest else EMPTY)

    def _read(self) -> Iterator[tuple[int, Any]]:
        """The data's own batches and their numbers; what the data raise is told."""
        with told("the data failed before their first batch"):
            batches = iter(self.data)
        for number in count():
            with told(f"the data failed at batch {number}"):
                item = next(batches, END)
            if item is END:
                self._check_end(number)
                return
            yield number, item

    def _check_end(self, read: int) -> None:
        """Refuse data that ended early: a `StopIteration` of a dataset ends its loader in silence."""
        known = isinstance(self.data, DataLoader) and not isinstance(self.data.dataset, IterableDataset)
        batches = _length(self.data) if known else None
        if batches is not None and read < batches:
            raise ValueError(
                f"the data ended after {read} of {batches} batches: a StopIteration in the dataset or "
                "in collate_fn ends a loader without a word; let it raise another error"
            )

    def _batch(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> Batch | None:
        """One batch on the device; `None` where no token of it has a label."""
        if self.tokens is None:
            args, kwargs = _moved((args, kwargs), self.device)
            return Batch(number, args, kwargs, y)
        chosen, labels = self.tokens.chosen(y, attention_mask(kwargs), number)
        if not len(labels):
            return None
        classes = self.tokens.classes_of(labels)
        unknown = (
            labels[classes == len(self.tokens.vocabulary)] if len(self.tokens.vocabulary) else labels[:0]
        )
        if len(unknown):
            raise ValueError(
                f"labels {short(unknown.unique().tolist())} of batch {number} are of no class that is "
                "known; put -100 in their places, or read the same data in both passes"
            )
        args, kwargs = _moved((args, kwargs), self.device)
        return Batch(number, args, kwargs, classes, chosen)

    def labels(self) -> Int64[Tensor, " K"]:
        """The labels of tokens that occur, ascending; reads the data once, and runs no network."""
        assert self.tokens is not None, "only tokens are numbered anew"
        found = torch.zeros(0, dtype=torch.int64, device="cpu")
        for number, _, kwargs, y in self._items():
            labels = self.tokens.chosen(y, attention_mask(kwargs), number)[1]
            found = torch.cat([found, labels]).unique()
        return found


def _length(data: Any) -> int | None:
    """How long the data say they are, if they know."""
    try:
        return len(data)
    except Exception:  # a `__len__` of others may raise anything where it has no answer
        return None


def _check_iterable(data: Any) -> None:
    if not isinstance(data, Iterable) and not hasattr(type(data), "__getitem__"):
        raise ValueError(
            f"data must be batches that can be iterated over, got {type(data).__name__}"
            + ("; call its batches()" if attribute(data, "batches") else "")
        )
    with told("the data failed before their first batch"):
        # asking a loader would draw its seed
        one_shot = isinstance(data, Iterator) and iter(data) is data
    if one_shot:
        raise ValueError(
            f"data is a one-shot iterator ({type(data).__name__}), and measuring reads it more than "
            "once; give the loader or list that it came from"
        )


def float64_device(device: torch.device) -> torch.device:
    """Where statistics of features on a device are kept: there, if it has float64."""
    return torch.device("cpu") if device.type == "mps" else device


def statistics_device(device: torch.device, place: str | None, size: int) -> torch.device:
    """Where statistics of so many bytes are kept: on the device, or by the host where it has no room."""
    if place not in {None, "device", "host"}:
        raise ValueError(f"statistics must be 'device', 'host' or None, got {place!r}")
    if place is None and device.type == "cuda" and size >= ROOM * torch.cuda.mem_get_info(device)[0]:
        place = "host"
    return torch.device("cpu") if place == "host" else float64_device(device)


def _split(item: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if isinstance(item, Mapping):
        name = next((name for name in LABELS if name in item), None)
        if name is None:
            raise ValueError(f"batch {number} is a dict without 'labels'; it has {list(item)}")
        inputs = {key: value for key, value in item.items() if key not in LABELS}
        return (), inputs, item[name]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"batch {number} must be a pair (x, y) or a dict with 'labels', got {type(item).__name__}"
            + (f" of length {len(item)}" if isinstance(item, tuple | list) else "")
        )
    x, y = item
    if isinstance(x, Mapping):
        return (), dict(x), y
    return (x,), {}, y


def cut(item: Any, left: int, size: int) -> Any:
    """A copy of the first `left` samples of everything that has `size` of them."""
    return selected(item, torch.arange(min(left, size), device="cpu"), size)


def selected(item: Any, index: Int64[Tensor, " n"], size: int) -> Any:
    """A copy of the samples with these numbers, of everything that has `size` samples."""

    def of(part: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(part, Tensor):
            return part[index.to(part.device)] if part.ndim and len(part) == size else part
        parts = unpack_sequence(part)
        if len(parts) != size:
            return part
        return pack_sequence([parts[i] for i in index.tolist()], enforce_sorted=False)

    return changed((Tensor, PackedSequence), of, item)


def _with_labels(item: Any, number: int) -> Any:
    """A batch of which no label is asked, with one for each sample; labels that there are count them."""
    if isinstance(item, Mapping):
        inputs = {key: value for key, value in item.items() if key not in LABELS}
        y = next((item[name] for name in LABELS if name in item), None)
    elif isinstance(item, tuple | list) and len(item) in {1, 2}:
        inputs, y = item[0], item[1] if len(item) == 2 else None
    else:
        inputs, y = item, None
    x = first_tensor(inputs)
    size = _length(y) or (None if x is None else _length(x))
    if size is None:
        raise ValueError(
            f"batch {number} must be a tensor, a pair (x, y) or a dict, got {type(item).__name__}"
        )
    return inputs, torch.zeros(size, dtype=torch.int64, device="cpu")


def _moved(item: Any, device: torch.device) -> Any:
    soon = device.type == "cuda"
    return changed((Tensor, PackedSequence), lambda part: part.to(device, non_blocking=soon), item)
