"""What the models ask of their data and coefficients, said at the boundary."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


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


def labelled(X: Float[Tensor, "N D"], y: Int[Tensor, " M"]) -> int:
    """Refuse data that no model can take.

    Args:
        X: Features, one sample a row.
        y: Their classes.

    Returns:
        The number of classes, one more than the largest label.

    Raises:
        ValueError: If the lengths differ, a feature is not finite, a label is negative, a class has
            no sample, or there are fewer than two classes.
    """
    if len(X) != len(y):
        raise ValueError(f"need one label a row of X, got {len(X)} rows and {len(y)} labels")
    if not torch.isfinite(X).all():
        raise ValueError("X must be finite, got NaN or infinity; drop or repair those samples")
    if len(y) and y.min() < 0:
        raise ValueError(f"labels must not be negative, got {int(y.min())}")
    count = torch.bincount(y)
    if len(count) < 2:
        raise ValueError(f"need samples of at least 2 classes, got {len(count)}")
    if (count == 0).any():
        empty = count.argmin().item()
        raise ValueError(f"class {empty} has no sample; number the classes 0..K-1 without gaps")
    return len(count)
