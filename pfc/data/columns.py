"""Which columns of a set are read: by what was asked for, by the hub's feature types, by names."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from pfc.data.classes import kinds
from pfc.data.encoded import EncodedSet, Part

Content = Literal["image", "text"]
NAMES: Mapping[Content, Sequence[str]] = {
    "image": ("image", "img", "images"),
    "text": ("text", "sentence"),
}
PARTNERS = frozenset(  # beside another column of text each is half of a pair
    "question query premise hypothesis context passage answer response text_pair sentence_pair text2 "
    "text_2 text_b sentence2 sentence_2 sentence_b".split()
)
TEXTS = {"string", "large_string", "string_view"}  # arrow's types
LABEL_NAMES = ("fine_label", "label", "labels", "target", "class")  # CIFAR-100: 100 fine classes


@dataclass(frozen=True)
class Columns:
    """The columns of a split that are read.

    Args:
        content: With the images, or the texts.
        label: With the labels.
        others: Other columns that could have been the labels'.
        contents: Other columns that could have been the content's.
    """

    content: str
    label: str
    others: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()


def columns_of(source: EncodedSet, split: str, content: Content = "image") -> Columns:
    """The content and the label column: as given, else by feature type, else by form or name."""
    first, *rest = source.splits[split]
    names, where = first.schema.names, source.where(split)
    types = {name: kind.get("_type") for name, kind in kinds(first).items() if name in names}
    labels = [name for name in names if types.get(name) == "ClassLabel"]
    labels = labels or [name for name in names if name in LABEL_NAMES]
    for name in source.columns:
        if name is not None and name not in names:
            raise ValueError(f"no column {name!r} in {where}; it has {', '.join(names)}")
    found = _images(first, types) if content == "image" else _texts(first, {source.columns[1], *labels})
    if content == "text" and source.columns[0] is None:
        _refuse_pair(found, where)
    chosen = source.columns[0] or _one(content, found, NAMES[content], names, where)
    label = source.columns[1] or _one("label", labels, LABEL_NAMES, names, where)
    for part in rest:
        if part.schema is not first.schema and (lacks := {chosen, label} - {*part.schema.names}):
            raise ValueError(
                f"no column {min(lacks)!r} in {part.name} of {where}, as {first.name} has; it has "
                f"{', '.join(part.schema.names)}"
            )
    return Columns(chosen, label, _without(labels, label), _without(found, chosen))


def _without(names: Sequence[str], chosen: str) -> tuple[str, ...]:
    return tuple(name for name in names if name != chosen)


def _images(part: Part, types: Mapping[str, Any]) -> list[str]:
    """Columns of images: by the hub's feature type, else those of bytes."""
    known = [name for name in part.schema.names if types.get(name) == "Image"]
    return known or [column.name for column in part.schema if "binary" in str(column.type)]


def _texts(part: Part, labels: Set[str | None]) -> list[str]:
    """Columns of text that are no labels."""
    texts = [column.name for column in part.schema if str(column.type) in TEXTS]
    return [name for name in texts if name not in labels]


def _refuse_pair(texts: Sequence[str], where: str) -> None:
    """Refuse to take half of a pair unasked."""
    names = sorted(texts, key=lambda name: name not in NAMES["text"])
    pairs = [name for name in names if name in PARTNERS or name in NAMES["text"]]
    if len(pairs) > 1:
        raise ValueError(
            f"{' and '.join(map(repr, pairs))} in {where} are texts of one sample, and a model is shown "
            "one: choose it by text_column= (pfc measure --column), or write a column of both joined"
        )


def _one(what: str, found: Sequence[str], usual: Sequence[str], names: Sequence[str], where: str) -> str:
    """The first usual name among the columns found, or the only one."""
    candidates = [name for name in usual if name in found][:1] or found
    if len(candidates) != 1:
        command = "--label" if what == "label" else "pfc measure --column"
        raise ValueError(
            f"{len(found) or 'no'} {what} column(s) in {where}; choose by {what}_column= ({command}); "
            f"there are {', '.join(names)}"
        )
    return candidates[0]
