"""Load a split by name: decode it once, then serve it from the user's cache folder."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pfc.data.columns import Columns, columns_of
from pfc.data.decoding import decoded
from pfc.data.drawing import drawn
from pfc.data.encoded import EncodedSet
from pfc.data.images import Images, Normalisation, Origin
from pfc.data.sources import find
from pfc.files import read_tensors, write_tensors
from pfc.folders import cache_folder
from pfc.schema import COUNT, FINITE, TEXT, Array, check_arrays, list_of, object_of, quoted, some
from pfc.strict_json import parse_json
from pfc.warning import warn

FORMAT = "pfc-images-1"
READER = 2  # counts up whenever the same files give other images
DIGITS = ("train", "fit", "held-out")
NUMBERS = list_of(FINITE)
SCHEMA = object_of({
    **{"classes": list_of(TEXT), "mean": NUMBERS, "std": NUMBERS, "source": TEXT},
    **{"unused": list_of(COUNT), "remarks": list_of(TEXT)},
})
TENSORS = {"images": Array("N C H W", torch.uint8), "labels": Array("N", torch.int64)}


def load(
    spec: str | Path = "digits",
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: bool = True,
) -> Images:
    """Load one split of an image set, decoded once and then served from the user's cache folder.

    The cache (`PFC_CACHE` names another folder) holds one safetensors file for each version of each
    split; a source that changed, or a damaged file, is decoded anew.

    Args:
        spec: `"digits"` (bundled with scikit-learn), a name on the Hugging Face hub, or a folder of
            parquet files or of images in one subfolder a class.
        split: Which part: `"train"`, `"test"` or what else the set has. The digits have no test set:
            `"train"` is all of them, `"held-out"` a fixed fifth of each class, `"fit"` the others.
        limit: Images in all, as equal a class as can be; `None` or more than there are means all.
        seed: Chooses the images under a limit; a smaller limit's are among a larger one's.
        image_column: The column with the images, if it cannot be told.
        label_column: The column with the labels, if it cannot be told or is not the one wanted.
        progress: Show a progress bar while many images are decoded.

    Returns:
        The images, in the order of their source.

    Raises:
        ValueError: If there is no such set, split, column or limit, or its rows are no labelled
            8-bit images of one size.

    Examples:
        >>> load("digits", limit=100)
        Images('digits', 'train': 100 of 1 x 8 x 8, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    """
    columns = (image_column, label_column)
    if bundled(spec):
        refuse_columns(columns)
        return subset(_digits(split), limit, seed)
    source = with_split(replace(find(os.fspath(spec), progress), columns=columns), split)
    whole = _whole(source, split, progress)
    if split != "train" and "train" in source.splits:
        whole = _as_training(whole, _whole(source, "train", progress), source)
    for sentence in (*source.remarks, *whole.remarks, *_absent(whole)):
        warn(sentence, UserWarning)
    return subset(whole, limit, seed)


def with_split(source: EncodedSet, split: str) -> EncodedSet:
    """The set, if it has this split."""
    if split not in source.splits:
        have = ", ".join(sorted(source.splits)) or "none"
        raise ValueError(f"no split {split!r} in {quoted(source.spec)}; it has {have}")
    return source


def refuse_columns(columns: tuple[str | None, str | None]) -> None:
    """Refuse columns of the digits."""
    if column := columns[0] or columns[1]:
        raise ValueError(f"no column {column!r} in 'digits', which have none")


def bundled(spec: str | Path) -> bool:
    """Whether the digits are meant, and no folder that is called so."""
    return os.fspath(spec) == "digits" and not (isinstance(spec, Path) and spec.is_dir())


def _as_training(whole: Images, train: Images, source: EncodedSet) -> Images:
    """A split with the channels and the constants of the training split."""
    C, known = whole.shape[0], train.shape[0]
    if C > known:
        raise ValueError(
            f"{source.where(whole.split)} has colour images, and the training split grey ones alone: "
            "make them all of one kind"
        )
    images = whole.images.expand(-1, known, -1, -1).contiguous() if C < known else whole.images
    return replace(whole, images=images, normalisation=train.normalisation)


def _absent(whole: Images) -> Iterator[str]:
    """A sentence on classes without an image."""
    missing = sorted(set(range(len(whole.classes))) - set(whole.labels.tolist()))
    if missing:
        yield (
            f"split {whole.split!r} of {quoted(whole.spec)} has no image of {len(missing)} of the "
            f"{len(whole.classes)} classes: {some(whole.classes[k] for k in missing)}"
        )


def splits(spec: str | Path = "digits", *, progress: bool = True) -> tuple[str, ...]:
    """The splits of an image set, by name.

    Args:
        spec: As for `load`.
        progress: Show a progress bar while a set is fetched.

    Returns:
        Their names.

    Raises:
        ValueError: If there is no such set.

    Examples:
        >>> splits("digits")
        ('train', 'fit', 'held-out')
    """
    return DIGITS if bundled(spec) else tuple(find(os.fspath(spec), progress).splits)


def held_out(spec: str | Path, split: str = "train", *, progress: bool = True) -> str | None:
    """The split that is kept apart from one that a network is trained on; `None` if there is none.

    Args:
        spec: As for `load`.
        split: What it is trained on.
        progress: Show a progress bar while a set is fetched.

    Returns:
        `"test"`, or `"validation"` where there is no such, beside `"train"`; `"held-out"` beside the
        digits' `"fit"`.

    Raises:
        ValueError: If there is no such set.

    Examples:
        >>> held_out("digits", "fit"), held_out("digits", "train")
        ('held-out', None)
    """
    have = splits(spec, progress=progress)
    apart = {"train": ("test", "validation"), "fit": ("held-out",)} if split in have else {}
    return next((name for name in apart.get(split, ()) if name in have), None)


def subset(whole: Images, limit: int | None, seed: int = 0) -> Images:
    """Some images of a set, as equal a class as can be.

    Args:
        whole: The set.
        limit: Images in all; `None` or more than there are means all.
        seed: Chooses the images; a smaller limit's are among a larger one's.

    Returns:
        The chosen images in the order of the set.

    Raises:
        ValueError: If the limit leaves out a class.
    """
    if limit is None:
        return whole
    return replace(whole.rows(drawn(whole.labels, limit, seed)), limit=limit, seed=seed)


def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    if split not in DIGITS:
        raise ValueError(f"no split {split!r} in 'digits'; it has {', '.join(DIGITS)}")
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    whole = Images.of(images, labels, tuple(map(str, digits.target_names)), "digits", split)
    whole = replace(whole, origin=Origin("digits"))
    if split == "train":
        return whole
    apart = _fifth_of_each_class(labels)
    fit = Images.of(images[~apart], labels[~apart], whole.classes, "digits", "fit")
    fit = replace(fit, origin=whole.origin)
    if split == "fit":
        return fit
    return replace(fit, images=images[apart], labels=labels[apart], split=split)


def _fifth_of_each_class(labels: Int64[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """A fixed fifth of the samples of each class."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for k in labels.unique():
        own = (labels == k).nonzero().flatten()
        chosen[
            own[torch.randperm(len(own), generator=generator, device="cpu")[: round(len(own) / 5)]]
        ] = True
    return chosen


def _whole(source: EncodedSet, split: str, progress: bool) -> Images:
    columns = columns_of(source, split)
    path = _cache_file(source, split, columns)
    whole = None if path is None else _from_cache(path, source.spec, split)
    if whole is None:
        whole = decoded(source, split, columns, progress)
        if path is not None:
            _to_cache(path, whole)
    names = (columns.content, columns.label, columns.others, columns.contents)
    return replace(whole, origin=Origin(source.path, source.counts, source.files, *names))


def _cache_file(source: EncodedSet, split: str, columns: Columns) -> Path | None:
    """Where a split is kept; `None` if there is no place for it."""
    folder = cache_folder()
    if folder is None:
        why = "there is no home folder; PFC_CACHE names one"
        warn(f"no cache, so the next load decodes anew: {why}", UserWarning)
        return None
    about = [FORMAT, READER, source.path, source.stamp, columns.content, columns.label, split]
    key = sha256(json.dumps(about).encode()).hexdigest()[:20]
    name = re.sub(r"\W+", "-", f"{Path(source.path).name[:80]}-{split[:80]}-{key}")
    return Path(folder) / f"{name}.safetensors"


def _to_cache(path: Path, whole: Images) -> None:
    about = {name: getattr(whole, name) for name in ("classes", "unused", "remarks")}
    about |= asdict(whole.normalisation)
    tensors = {"images": whole.images, "labels": whole.labels}
    try:
        write_tensors(path, tensors, format=FORMAT, pfc=json.dumps(about))
    except OSError as error:
        warn(f"no cache, so the next load decodes anew: {error}", UserWarning)


def _from_cache(path: Path, spec: str, split: str) -> Images | None:
    """The split as it was decoded before, or `None` if there is no sound file of it."""
    try:
        tensors, metadata = read_tensors(path, FORMAT)
        about = parse_json(metadata.get("pfc", "").encode(), str(path))
        SCHEMA(about, f"{path}: ")
        sizes = {"C": len(about["mean"])}
        check_arrays(tensors, TENSORS, sizes, f"{path}: ")
        images, labels, classes = tensors["images"], tensors["labels"], tuple(about["classes"])
        if not sizes["N"] or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            return None
        mean, std = (tuple(map(float, about[name])) for name in ("mean", "std"))
        constants = Normalisation(mean, std, about["source"])
        whole = Images(images, labels, classes, constants, spec, split)
        return replace(whole, unused=tuple(about["unused"]), remarks=tuple(about["remarks"]))
    except ValueError:
        return None
