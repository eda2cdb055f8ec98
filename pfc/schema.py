"""What may stand in a file, forms of JSON values and of tensors; and how values and names are told.

A form is a function that refuses a value which is something else, by its place in the file. So the
content of a file is one table, in the module that writes it.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unicodedata import normalize

import torch
from torch import Tensor

Form = Callable[[Any, str], None]
FEW = 5  # names in a message; ours
MOST = 2**53  # the largest whole number in a file: what a float64 can count to


def one_line(error: object, most: int = 300) -> str:
    """A text on one line, cut if it is long."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}..."


def short(value: Any) -> str:
    """A value as it stands in a message."""
    return one_line(repr(value), 60)


def rounded(bound: float, digits: int, *, up: bool) -> str:
    """A bound with so many significant digits, still a bound: rounded up or down."""
    if not math.isfinite(bound):
        return str(bound)
    with localcontext() as context:
        context.prec, context.rounding = digits, ROUND_CEILING if up else ROUND_FLOOR
        return f"{float(+Decimal(bound)):.{max(digits, 4)}g}"


def nfc(text: str) -> str:
    """A name in the one Unicode form in which names are compared."""
    return normalize("NFC", text)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for a message: on one line, and as bytes where it is no UTF-8."""
    raw = os.fsencode(path)
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)


def some(names: Iterable[str], most: int = FEW) -> str:
    """Names for a message, not more than a few."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def scalar(words: str, fits: Callable[[Any], bool]) -> Form:
    """A single value, by its name in words and a test."""

    def form(value: Any, where: str) -> None:
        if not fits(value):
            raise ValueError(f"{where} must be {words}, got {short(value)}")

    return form


def list_of(each: Form, size: int | None = None) -> Form:
    """A list whose parts are all of one form, of some size or of any."""

    def form(value: Any, where: str) -> None:
        LIST(value, where)
        if size is not None and len(value) != size:
            raise ValueError(f"{where} must have {size} parts, got {short(value)}")
        for i, part in enumerate(value):
            each(part, f"{where}[{i}]")

    return form


def object_of(
    parts: Mapping[str, Form],
    *,
    optional: Mapping[str, Form] | None = None,
    others: Form | None = None,
    closed: bool = False,
) -> Form:
    """An object with parts by name.

    Args:
        parts: That it must have.
        optional: That it may have.
        others: The form of each other part; anything if `None`.
        closed: Whether it has no other part.

    Returns:
        The form.
    """
    may = optional or {}

    def form(value: Any, where: str) -> None:
        OBJECT(value, where)
        at = where if where.endswith(": ") else f"{where}."
        for name in parts:
            if name not in value:
                raise ValueError(f"{at}{name} is missing")
        for name, part in value.items():
            known = parts.get(name) or may.get(name) or others
            if closed and not known:
                raise ValueError(f"{at}{one_line(name, 60)} is unknown")
            if known:
                known(part, f"{at}{one_line(name, 60)}")

    return form


def optional(form: Form) -> Form:
    """Nothing, or something of a form."""
    return lambda value, where: None if value is None else form(value, where)


def one_of(*values: Any) -> Form:
    """One of some values."""
    words = f"one of {', '.join(map(repr, values))}"
    return scalar(words, lambda v: any(type(v) is type(known) and v == known for known in values))


def _number(value: Any) -> bool:
    return _finite(value) or (isinstance(value, str) and value in {"nan", "inf", "-inf"})


def _finite(value: Any) -> bool:
    """Whether it is a number of JSON; what is not finite stands there as text."""
    return isinstance(value, float) or _whole(value)


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= MOST


LIST = scalar("a list", lambda v: isinstance(v, list | tuple))
OBJECT = scalar("an object", lambda v: isinstance(v, dict))
TEXT = scalar("text", lambda v: isinstance(v, str))
FLAG = scalar("true or false", lambda v: isinstance(v, bool))
WHOLE = scalar("a whole number", _whole)
COUNT = scalar("a whole number of at least 0", lambda v: _whole(v) and v >= 0)
POSITIVE = scalar("a whole number above 0", lambda v: _whole(v) and v > 0)
EXPONENT = scalar("a whole number from -1100 to 1100", lambda v: _whole(v) and abs(v) <= 1100)
NUMBER = scalar("a number", _number)
FINITE = scalar("a finite number", _finite)
ABOVE = scalar("a number above 0", lambda v: _finite(v) and v > 0)
FRACTION = scalar("a number from 0 to 1", lambda v: v == "nan" or (_finite(v) and 0 <= v <= 1))
SIMPLE: dict[Any, Form] = {int: WHOLE, float: NUMBER, str: TEXT, bool: FLAG}


def up_to(highest: float) -> Form:
    """A number from 0 to a largest one, which rounding may exceed; or NaN."""
    words = "a number from 0" + (f" to {highest:.4g}" if math.isfinite(highest) else " on")
    return scalar(words, lambda v: _number(v) and (v == "nan" or 0 <= float(v) <= highest + 1e-9))


def defaults_of(hint: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields, by name: what a file of an older version may lack."""
    known = [f for f in fields(hint) if f.init]
    given = {f.name: f.default for f in known if f.default is not MISSING}
    return given | {f.name: f.default_factory() for f in known if f.default_factory is not MISSING}


def form_of(hint: Any) -> Form:
    """The form of a type as JSON holds it: a plain type, a literal, a tuple, or a dataclass of them."""
    if hint in SIMPLE:
        return SIMPLE[hint]
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        forms = {f.name: form_of(hints[f.name]) for f in fields(hint) if f.init}
        absent = {name: forms.pop(name) for name in defaults_of(hint)}
        return object_of(forms, optional=absent, closed=True)
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return one_of(*inner)
    if get_origin(hint) is tuple:
        return list_of(form_of(inner[0]))
    (kind,) = (part for part in inner if part is not NoneType)
    return optional(form_of(kind))


def restored(hint: Any, value: Any) -> Any:
    """A value of a type, from what JSON held of it; its form was checked before."""
    if value is None:
        return None
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{name: restored(hints[name], part) for name, part in value.items()})
    if get_origin(hint) is tuple:
        return tuple(restored(get_args(hint)[0], part) for part in value)
    if get_origin(hint) in {Union, UnionType}:
        return restored(next(part for part in get_args(hint) if part is not NoneType), value)
    return float(value) if hint is float else value


@dataclass(frozen=True)
class Array:
    """What a tensor of a file must be.

    Args:
        shape: A letter or a number an axis; a letter is the same length wherever it stands.
        dtype: Its type.
        finite: Whether all its numbers are.
    """

    shape: str
    dtype: torch.dtype = torch.float64
    finite: bool = True

    def check(self, tensor: Tensor | None, sizes: dict[str, int], where: str) -> None:
        """Refuse another tensor.

        Args:
            tensor: The tensor; `None` if there is none.
            sizes: Lengths of the letters that are known; those seen first are put in.
            where: Its place, for the message.

        Raises:
            ValueError: If it is missing, or of another type or shape, or not finite.
        """
        if tensor is None:
            raise ValueError(f"{where} is missing")
        axes = self.shape.split()
        if tensor.dtype == self.dtype and tensor.dim() == len(axes):
            for axis, size in zip(axes, tensor.shape, strict=True):
                if axis.isalpha():
                    sizes.setdefault(axis, size)
        known = [int(axis) if axis.isdigit() else sizes.get(axis, axis) for axis in axes]
        if tensor.dtype != self.dtype or list(tensor.shape) != known:
            raise ValueError(
                f"{where} must be {self.dtype} of shape {known}, got {tensor.dtype} of "
                f"{list(tensor.shape)}"
            )
        if self.finite and not bool(tensor.isfinite().all()):
            raise ValueError(f"{where} must be finite")


def check_arrays(
    tensors: Mapping[str, Tensor], schema: Mapping[str, Array], sizes: dict[str, int], where: str
) -> None:
    """Refuse tensors that are not what a table says.

    Args:
        tensors: By name.
        schema: What each must be.
        sizes: Lengths of letters that are known; those seen first are put in.
        where: The file and what stands before the names.
    """
    for name, array in schema.items():
        array.check(tensors.get(name), sizes, f"{where}{name}")
