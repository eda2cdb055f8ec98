"""Arrays of a file by name, read row by row where the format allows it, and never by unpickling."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open

from pfc.files import expanded, reading, refuse_pickle, refuse_pointer
from pfc.schema import some

SHOWN = 20  # names in a message; ours


@dataclass(frozen=True, eq=False)
class Rows:
    """An array of a safetensors file, of which only the rows that are asked for are read."""

    slices: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.slices.get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Any:
        return self.slices[rows]


def arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of a file by name.

    Args:
        path: An .npz or a .safetensors file.

    Returns:
        Arrays in the order of the file; of a safetensors file in the natural order of their names, as
        it keeps none, and each read row by row when asked for.

    Raises:
        ValueError: If there is no such file, it is damaged or of another format, or it would run code.
    """
    path = expanded(path)
    refuse_pointer(path)
    if path.suffix == ".npz":
        return _of_npz(path)
    if path.suffix == ".safetensors":
        with reading(path):
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
            return {name: Rows(file.get_slice(name)) for name in sorted(file.keys(), key=_natural)}
    refuse_pickle(path)
    raise ValueError(f"{path} must be an .npz or a .safetensors file of arrays")


def _of_npz(path: Path) -> dict[str, Any]:
    with reading(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, BadZipFile, EOFError, KeyError) as error:  # of objects, or torn
            raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from None


def _natural(name: str) -> list[Any]:
    """`blocks.10` comes after `blocks.9`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a file, their labels, and the classifier of the last layer.

    Args:
        layers: Arrays of N samples, by name.
        y: The labels.
        classifier: A pair (W, b), W, or `None`.
    """

    layers: dict[str, Any]
    y: Any
    classifier: Any = None

    @classmethod
    def read(
        cls,
        path: str | Path,
        labels: str,
        *,
        classifier: str | None = None,
        layers: Sequence[str] | None = None,
    ) -> "Features":
        """Read features from a file of arrays.

        Args:
            path: An .npz or a .safetensors file.
            labels: Name of the array of labels, or an .npy file.
            classifier: Name of the weight, of the weight and the bias as `W,b`, or what stands before
                `.weight` and `.bias` in both names.
            layers: Names or globs of the arrays that are layers, in their order; by default all that
                are neither labels nor of the classifier.

        Returns:
            The features.

        Raises:
            ValueError: If the file is unfit, or there is no such array in it.
        """
        found = arrays(path)
        y = _labels(labels, found, path)
        head = _classifier(classifier, found, path)
        used = {labels, *head}
        rest = [name for name in found if name not in used]
        chosen = rest if layers is None else _chosen(layers, rest, path)
        parts = tuple(found[name][:] for name in head)
        return cls(
            {name: found[name] for name in chosen}, y, parts[0] if len(parts) == 1 else parts or None
        )


def _labels(labels: str, found: Mapping[str, Any], path: str | Path) -> Any:
    if labels in found:
        return found[labels][:]
    if not labels.endswith(".npy"):
        raise ValueError(f"{path} has no array {labels!r}; it has {some(found, SHOWN)}")
    file = expanded(labels)
    refuse_pointer(file)
    with reading(file):
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{labels} is no .npy file of labels: {error}") from None


def _classifier(name: str | None, found: Mapping[str, Any], path: str | Path) -> list[str]:
    """Names of the weight, and of the bias if there is one."""
    if name is None:
        return []
    if f"{name}.weight" in found:
        return [part for part in (f"{name}.weight", f"{name}.bias") if part in found]
    wanted = name.split(",")
    if missing := [part for part in wanted if part not in found]:
        raise ValueError(f"{path} has no array {missing[0]!r}; it has {some(found, SHOWN)}")
    return wanted


def _chosen(layers: Sequence[str], names: Sequence[str], path: str | Path) -> list[str]:
    """The names that are asked for, in the order of asking."""
    chosen: dict[str, None] = {}
    for layer in layers:
        matching = [name for name in names if fnmatchcase(name, layer)]
        if not matching:
            raise ValueError(f"{path} has no array {layer!r}; it has {some(names, SHOWN)}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)
