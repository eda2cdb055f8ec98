"""Labelled images as one uint8 tensor, and the constants that normalise them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """What makes every channel of a training set have mean 0 and standard deviation 1.

    Args:
        mean: Mean of each channel in pixel units.
        std: Standard deviation (over all pixels, ddof 0) of each channel in pixel units; 1 for a
            constant channel.
        source: What the numbers were computed from.

    Raises:
        ValueError: If a standard deviation is not positive, or one is missing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"need a positive std for every mean {self.mean}, got std={self.std}")

    @classmethod
    def of(cls, images: UInt8[Tensor, "N C H W"], source: str) -> "Normalisation":
        """Mean and standard deviation of these images, from exact integer sums."""
        means, stds = zip(*map(_moments, images.unbind(1)), strict=True)
        return cls(means, stds, source)


def _moments(channel: UInt8[Tensor, "N H W"]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels; the sums are exact integers."""
    counts = torch.zeros(256, dtype=torch.int64, device="cpu")
    for start in range(0, len(channel), 4096):
        counts += torch.bincount(channel[start : start + 4096].reshape(-1), minlength=256)
    n, first, second = (sum(c * v**p for v, c in enumerate(counts.tolist())) for p in (0, 1, 2))
    spread = n * second - first**2  # n^2 times the variance
    return first / n, math.sqrt(spread) / n if spread else 1.0


@dataclass(frozen=True)
class Origin:
    """Where images come from: enough to load them again, and to tell whether they are the same.

    Args:
        path: Absolute path of their folder; a hub name or `digits` as it is.
        counts: Images of each split there, by name.
        files: Of each split that has files a fingerprint of their names in the folder and their sizes.
        image_column: The column with the images; `None` where there are no columns.
        label_column: The column with the labels.
        other_labels: Columns that could have been the labels' too.
        other_contents: Columns that could have been the images' too.
    """

    path: str
    counts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    image_column: str | None = None
    label_column: str | None = None
    other_labels: tuple[str, ...] = ()
    other_contents: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory, and how to normalise them.

    Args:
        images: Pixels as they were stored; one channel for grey images, three for RGB.
        labels: Class of each image, an index into `classes`.
        classes: Names of the classes.
        normalisation: Constants of the training split, whatever split this is.
        spec: What `load` was asked for.
        split: Which split this is.
        limit: The limit it was loaded with, if any.
        seed: The seed that chose the images under that limit.
        origin: Where they come from; `None` of images that were not loaded.
        unused: Numbers of classes that no split has, where the labels are whole numbers without names.
        remarks: What a reader of the numbers and names of the classes may expect otherwise.

    Raises:
        ValueError: If the parts do not belong together.
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    normalisation: Normalisation
    spec: str
    split: str
    limit: int | None = None
    seed: int = 0
    origin: Origin | None = None
    unused: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    _mean: Float32[Tensor, "C 1 1"] = field(init=False, repr=False)
    _std: Float32[Tensor, "C 1 1"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        N, C = self.images.shape[:2]
        if (N, C) != (labels := len(self.labels), means := len(self.normalisation.mean)):
            raise ValueError(
                f"{N} images of {C} channels need labels and means to match, not {labels}, {means}"
            )
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.normalisation, name), dtype=torch.float32, device="cpu")
            object.__setattr__(self, f"_{name}", values[:, None, None].to(self.images.device))

    @classmethod
    def of(
        cls,
        images: UInt8[Tensor, "N C H W"],
        labels: Int64[Tensor, " N"],
        classes: tuple[str, ...],
        spec: str,
        split: str,
    ) -> "Images":
        """A whole split, with the constants of its own pixels."""
        source = f"all {len(images):,} images of split {split!r} of {spec!r}"
        return cls(images, labels, classes, Normalisation.of(images, source), spec, split)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        C, H, W = self.shape
        names = self.classes if len(self.classes) <= 10 else (*self.classes[:9], "...")
        chosen = f" by {self.chosen_labels}" if self.chosen_labels else ""
        return (
            f"Images({self.spec!r}, {self.split!r}: {len(self):,} of {C} x {H} x {W}, "
            f"{len(self.classes)} classes{chosen}: {', '.join(names)})"
        )

    @property
    def chosen_labels(self) -> str | None:
        """The column of the labels, where there was a choice."""
        return self.origin.label_column if self.origin and self.origin.other_labels else None

    @property
    def other_labels(self) -> tuple[str, ...]:
        """Columns that could have been the labels' too."""
        return self.origin.other_labels if self.origin else ()

    @property
    def chosen_contents(self) -> str | None:
        """The column of the images, where there was a choice."""
        return self.origin.image_column if self.other_contents and self.origin else None

    @property
    def other_contents(self) -> tuple[str, ...]:
        """Columns that could have been the images' too."""
        return self.origin.other_contents if self.origin else ()

    @cached_property
    def fingerprint(self) -> str:
        """Of pixels, labels, their order, and the names of the classes: other images have another."""
        known = [list(self.images.shape), self.labels.tolist(), list(self.classes)]
        digest = sha256(json.dumps(known).encode())
        for start in range(0, len(self), 4096):
            digest.update(self.images[start : start + 4096].cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        C, H, W = self.images.shape[1:]
        return C, H, W

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def part(self, i: int, of: int) -> "Images":
        """Every so-many-th image, from number `i` on: the parts of processes, even but for one.

        Args:
            i: Which part, from 0.
            of: How many parts there are.

        Returns:
            The images of that part, without a copy.
        """
        return replace(self, images=self.images[i::of], labels=self.labels[i::of])

    def rows(self, index: Int64[Tensor, " n"]) -> "Images":
        """The images with these numbers.

        Args:
            index: Their numbers.

        Returns:
            A copy of them, in that order.
        """
        return replace(self, images=self.images[index], labels=self.labels[index])

    def normalised(self, index: slice | Tensor = slice(None)) -> Float32[Tensor, "B C H W"]:
        """The chosen images as the network sees them, on the device where they lie.

        Args:
            index: A slice, or a tensor of indices or of yes and no.

        Returns:
            (pixel - mean) / std, channel by channel; 0 throughout in a channel that is constant.
        """
        return self.images[index].float().sub_(self._mean).div_(self._std)

    def batches(self, batch_size: int = 256) -> "Batches":
        """Normalised images with their labels in a fixed order, as often as one likes."""
        return Batches(self, batch_size)


def batch_count(samples: int, batch_size: int) -> int:
    """How many batches there are of so many samples; a size of which none can be is refused."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return math.ceil(samples / batch_size)


@dataclass(frozen=True, eq=False)
class Batches:
    """Mini-batches (normalised images, labels) in the order of the set; may be iterated again.

    Args:
        images: The set.
        batch_size: Images in a batch; the last one may be smaller.

    Raises:
        ValueError: If a batch would hold nothing.
    """

    images: Images
    batch_size: int = 256

    def __post_init__(self) -> None:
        batch_count(len(self.images), self.batch_size)

    @property
    def name(self) -> str:
        """The set's name without its folder, and the split and the columns where there was a choice."""
        images = self.images
        path = images.spec if images.origin is None else images.origin.path
        return set_name(path, images.split, images.chosen_contents, images.chosen_labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.classes

    def __len__(self) -> int:
        return batch_count(len(self.images), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.images), self.batch_size):
            index = slice(start, start + self.batch_size)
            yield self.images.normalised(index), self.images.labels[index]


def set_name(path: str, split: str, *columns: str | None) -> str:
    """A set's name without its folder, and the split and the columns where there was a choice."""
    chosen = [part for part in (split if split != "train" else None, *columns) if part]
    return f"{Path(path).name} ({', '.join(chosen)})" if chosen else Path(path).name
