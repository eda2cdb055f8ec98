"""Checks of coefficients and numbers, by their names."""

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from pfc.schema import short


def positive(**coefficients: float) -> None:
    """Refuse coefficients that are not positive and finite, by their names."""
    for name, value in coefficients.items():
        if not (finite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {short(value)}")


def not_negative(**coefficients: float) -> None:
    """Refuse coefficients that are negative or not finite, by their names."""
    for name, value in coefficients.items():
        if not (finite(value) and value >= 0):
            raise ValueError(f"{name} must be a number from 0 on, got {short(value)}")


def whole(**numbers: Any) -> None:
    """Refuse what is no whole number, by its name."""
    for name, value in numbers.items():
        if type(value) is bool or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be a whole number, got {short(value)}")


def at_least(least: int, **numbers: Any) -> None:
    """Refuse numbers that are not whole or below the least that makes sense, by their names."""
    whole(**numbers)
    for name, value in numbers.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def several(name: str, values: Iterable[Any]) -> list[Any]:
    """The numbers of a sequence; text, a mapping and what holds nothing are refused."""
    values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of numbers, got {short(values)}")
    return list(values)


def finite(value: Any) -> bool:
    """Whether it is a real number, and finite."""
    try:
        return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # of a whole number beyond float64
        return False
