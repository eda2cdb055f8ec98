"""Checks of coefficients and numbers, by their names."""

import math


def positive(**coefficients: float) -> None:
    """Refuse coefficients that are not positive and finite, by their names."""
    for name, value in coefficients.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")


def at_least(least: int, **numbers: int) -> None:
    """Refuse numbers below the least that makes sense, by their names."""
    for name, value in numbers.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
