"""Maps of class means and samples: each layer's own plane, turned towards that of the layer before."""

import base64
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.profile import Profile
from pfc.profile.classes import ClassGeometry

REACH = 1.5  # above the largest coordinate after a turn, in parts of the largest before


def packed(numbers: np.ndarray) -> str:
    """Whole numbers as text: base64 of their bytes."""
    return base64.b64encode(numbers.tobytes()).decode()


def plane(profile: Profile, samples: int) -> dict[str, Any]:
    """The maps of one epoch, at most so many samples on each.

    Args:
        profile: One that has a sample.
        samples: On a map.

    Returns:
        `labels`, a row of the class means for each sample; and `layers`, of each the `means` in 16 bits,
        the `points` in 8 bits, both as parts of the largest coordinate, and the `share` of the means'
        spread that the plane shows. Nothing of a layer whose numbers are not finite.
    """
    sample, geometry = profile.sample, profile.geometry
    assert sample is not None, "the caller has looked"
    layers: list[dict[str, Any] | None] = []
    before = None
    for layer in profile.layers:
        M, X = sample.means[layer].double(), sample.points[layer][:samples].double()
        largest = torch.cat([M, X]).abs().max()
        if not 0 < float(largest) < torch.inf:
            layers.append(None)
            continue
        M, X = M / largest, X / largest
        R = torch.eye(2, dtype=M.dtype, device="cpu") if before is None else turned(M, before)
        before = M @ R
        layers.append({
            "means": packed((before * 32767 / REACH).round().numpy().astype("<i2")),
            "points": packed((X @ R * 127 / REACH).round().numpy().astype("i1")),
            "share": share(geometry.get(layer)),
        })
    return {"labels": _rows(profile, samples), "layers": layers}


def turned(A: Float64[Tensor, "P 2"], B: Float64[Tensor, "P 2"]) -> Float64[Tensor, "2 2"]:
    """The rotation or reflection R for which A R is nearest to B (orthogonal Procrustes)."""
    U, _, Vt = torch.linalg.svd(A.mT @ B)
    return U @ Vt


def share(geometry: ClassGeometry | None) -> float | None:
    """Which part of the spread of the class means lies in their first two directions."""
    if geometry is None or geometry.gram is None or not bool(geometry.gram.isfinite().all()):
        return None
    values = torch.linalg.eigvalsh(geometry.gram.double()).clamp(min=0)
    total = float(values.sum())
    return round(float(values[-2:].sum()) / total, 4) if total > 0 else None


def _rows(profile: Profile, samples: int) -> list[int]:
    """Of each sample the row of its class among the class means."""
    sample, known = profile.sample, next(iter(profile.geometry.values()), None)
    assert sample is not None, "the caller has looked"
    labels = sample.labels[:samples].tolist()
    rows = len(next(iter(sample.means.values())))
    if known is None or len(known.number) != rows:
        return labels
    place = {number: row for row, number in enumerate(known.number.tolist())}
    return [place.get(label, label) for label in labels]
