"""The classes of an image set: which number each has, and where numbers and names do not agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfc.data.encoded import EncodedSet, Part
from pfc.foreign import attribute
from pfc.schema import nfc, quoted, short
from pfc.strict_json import parse_json

MOST = 100_000  # classes; a larger whole number is no class number but something else; ours


@dataclass(frozen=True)
class Numbering:
    """Which number each label has.

    Args:
        names: Of the classes, by number.
        numbers: Number of each label as it stands in the column.
        unused: Numbers that no split has, among whole numbers without names.
        remarks: What a reader may expect otherwise, in sentences.
        named: Whether the set names its classes; whole numbers without names are called by themselves.
    """

    names: tuple[str, ...]
    numbers: Mapping[Any, int]
    unused: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    named: bool = True


def kinds(part: Part) -> dict[str, dict[str, Any]]:
    """The hub's feature types by column; empty where a file has none."""
    text = (part.schema.metadata or {}).get(b"huggingface", b"{}")
    where = f"the metadata 'huggingface'{f' of {part.name}' if part.name else ''}"
    features = (parse_json(text, where).get("info") or {}) if text else {}
    features = (features.get("features") or {}) if isinstance(features, dict) else None
    if not isinstance(features, dict):
        raise ValueError(f"{where} has no table of features: {short(text.decode())}")
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def class_names(part: Part, column: str) -> tuple[str, ...] | None:
    """The names that a file gives to the numbers of a label column; `None` if it gives none."""
    kind = kinds(part).get(column, {})
    names = kind.get("names") if kind.get("_type") == "ClassLabel" else None
    if not names:
        return None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"the names of column {column!r}{f' of {part.name}' if part.name else ''} must be a list of "
            f"text, got {short(names)}"
        )
    return tuple(map(nfc, names))


def numbering(source: EncodedSet, split: str, column: str) -> Numbering:
    """Number labels alike in all splits: whole numbers as they are, text in its order."""
    parts = [
        (part, split)
        for split, own in source.splits.items()
        for part in _distinct(own)
        if column in part.schema.names
    ]
    given = (class_names(part, column) for part, where in parts if where == split)
    if names := next(filter(None, given), None):
        remarks = _renamed(source, split, column, names, parts)
        return Numbering(names, {k: k for k in range(len(names))}, remarks=tuple(remarks))
    held = _held(source, column)
    if all(isinstance(label, str) for label in held):
        texts = sorted({nfc(label) for label in held})
        places = {text: number for number, text in enumerate(texts)}
        numbers = {label: places[nfc(label)] for label in held}
        return Numbering(tuple(texts), numbers, remarks=tuple(renumbered(texts)))
    return _as_they_are(source, column, held)


def _distinct(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts whose schemas are not the same object: images of a folder share one."""
    return iter({id(part.schema): part for part in parts}.values())


def _as_they_are(source: EncodedSet, column: str, held: Sequence[int]) -> Numbering:
    known = sorted({int(label) for label in held if label >= 0})
    if known and known[-1] >= MOST:
        raise ValueError(
            f"column {column!r} of {quoted(source.spec)} has the whole number {known[-1]}: is it no "
            "class? Number the classes from 0, or choose by label_column="
        )
    several = range(known[-1] + 1 if known else 0)
    unused = tuple(sorted(set(several) - set(known)))
    return Numbering(tuple(map(str, several)), {k: k for k in known}, unused, named=False)


def _held(source: EncodedSet, column: str) -> list[Any]:
    """The distinct labels of all splits, of one kind."""
    first: dict[type, str] = {}
    held: dict[Any, None] = {}
    for split, parts in source.splits.items():
        if column not in parts[0].schema.names:
            continue
        for row, label in enumerate(values(source, split, column)):
            kind = str if isinstance(label, str) else int
            if label is not None and label not in held:
                held[label] = None
                if kind not in first:
                    first[kind] = source.row(split, row)
    if len(first) > 1:
        raise ValueError(
            f"labels must be of one kind: column {column!r} holds text in {first[str]} and whole "
            f"numbers in {first[int]}"
        )
    return list(held)


def values(source: EncodedSet, split: str, column: str) -> Iterator[Any]:
    """The labels of a split, whole numbers or text or missing."""
    row = 0
    for some in source.read(split, column):
        for label in some:
            if not isinstance(label, int | str | None):
                raise ValueError(
                    f"labels must be whole numbers or text, got {short(label)} in column {column!r}, "
                    f"{source.row(split, row)}"
                )
            yield label
            row += 1


def renumbered(names: Sequence[str]) -> Iterator[str]:
    """A sentence where text that is a number is not the number of its class."""
    if not all(name.isdecimal() for name in names):
        return
    for number, name in enumerate(names):
        if int(name) != number:
            yield (
                f"the classes are called by numbers, but numbered in the order of their names as text: "
                f"{name!r} is class {number}"
            )
            return


def difference(names: Sequence[str], others: Sequence[str]) -> str | None:
    """The first number that two sets of classes call by different names, in words."""
    for k, (a, b) in enumerate(zip(names, others, strict=False)):
        if nfc(a).casefold() != nfc(b).casefold():
            return f"class {k} is {a!r} in the one and {b!r} in the other"
    if len(names) != len(others):
        return f"the one has {len(names)} classes and the other {len(others)}"
    return None


def names_of_model(model: Any) -> tuple[str, ...]:
    """The names in a model's own `config.id2label`; none where they are those transformers makes up."""
    known = attribute(attribute(model, "config"), "id2label")
    if not isinstance(known, Mapping) or {*known} != {*range(len(known))}:
        return ()
    names = tuple(str(known[k]) for k in range(len(known)))
    return () if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names


def renamed_classes(model: Any, classes: Sequence[str]) -> str | None:
    """The first class that a model's own `config.id2label` calls by another name, in words."""
    names = names_of_model(model)
    return difference(classes, names) if names and classes else None


def _renamed(
    source: EncodedSet,
    split: str,
    column: str,
    names: Sequence[str],
    parts: Sequence[tuple[Part, str]],
) -> Iterator[str]:
    """A sentence for another split whose names differ; a file of the same split is refused."""
    for part, other in parts:
        theirs = class_names(part, column)
        how = None if theirs is None or theirs == names else difference(names, theirs)
        if how and other == split:
            raise ValueError(
                f"files of {source.where(split)} name the classes of column {column!r} differently; "
                f"{part.name}: {how}"
            )
        if how:
            yield f"{source.where(split)} and split {other!r} name classes differently: {how}"
