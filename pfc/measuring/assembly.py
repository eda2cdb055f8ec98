"""Sums and decisions made a profile."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pfc.measuring.decisions import Decisions
from pfc.measuring.sums import Sums
from pfc.metrics import Weighting
from pfc.moments import ClassMoments
from pfc.nearest import MeansSpan
from pfc.profile.columns import Evidence, measured
from pfc.profile.profile import Profile
from pfc.profile.segment import Segment
from pfc.warning import warn


def assemble(
    sums: Sums,
    decisions: Decisions | None,
    weighting: Weighting,
    *,
    W: Float[Tensor, "C D"] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Profile:
    """The profile of two passes, or of the first alone; `W` is the classifier's weight if known."""
    layout, moments, columns = sums.layout, sums.moments, measured(2 if decisions else 1)
    segments = _segments(sums, decisions, weighting)
    position = {
        name: place
        for segment in segments
        for name, place in zip(segment.layers, segment.position("path"), strict=True)
    }
    rows = {}
    for name, each in moments.items():
        evidence = _evidence(name, each, sums, decisions, weighting, W)
        evidence = replace(evidence, position=position.get(name, math.nan))
        rows[name] = {column.name: column.of(evidence) for column in columns}
        _warn_of_undefined(name, evidence, rows[name], each.mean.shape[1])
    exponents = {name: scale.exponent for name, scale in sums.scales.items() if scale.exponent}
    return Profile(
        layers=layout.names,
        shapes=tuple(layout.shapes.values()),
        columns={c.name: tuple(row[c.name] for row in rows.values()) for c in columns},
        moments={name: each.cpu() for name, each in moments.items()},
        segments=segments,
        about={
            "model": layout.model,
            "chosen": layout.chosen,
            "pool": layout.pool,
            "weighting": weighting,
            "passes": 2 if decisions else 1,
            "statistics": str(sums.device.type),
            "samples": int(sums.count.sum()),
            "classes": len(sums.count),
            "classifier": layout.classifier,
            "at_classifier": layout.classifier_row,
            "accuracy": decisions.answers.accuracy if decisions else None,
            "exponents": exponents,
            "torch": torch.__version__,
            **(about or {}),
        },
    )


def _segments(sums: Sums, decisions: Decisions | None, weighting: Weighting) -> tuple[Segment, ...]:
    return tuple(
        Segment.of(
            sums.layout.names.index(group.names[0]),
            group.names,
            group.moments,
            weighting,
            decisions.lines[group.names[0], group.names[-1]].curves() if decisions else {},
            group.paths,
            group.scale.exponent,
        )
        for group in sums.groups
        if group.moments.paired
    )


def _evidence(
    name: str,
    moments: ClassMoments,
    sums: Sums,
    decisions: Decisions | None,
    weighting: Weighting,
    W: Float[Tensor, "C D"] | None,
) -> Evidence:
    """What is known of a layer, of the classes that have samples."""
    present, nearest = moments.present(), decisions.nearest[name] if decisions else None
    span = nearest.span if nearest else MeansSpan.of(moments, weighting)
    at_classifier = name == sums.layout.classifier_row
    disagreement = decisions.answers.disagreement if decisions and at_classifier else None
    evidence = Evidence(
        count=present.count,
        scatter=present.scatter,
        M=span.points,
        weighting=weighting,
        nearest=nearest,
        disagreement=math.nan if disagreement is None else disagreement,
    )
    if not at_classifier or W is None or len(W) < len(sums.count):
        return evidence
    seen = (moments.count > 0).nonzero().flatten()
    return replace(evidence, classifier=(W.detach().to(moments.mean)[seen], present.centred()))


def _warn_of_undefined(name: str, evidence: Evidence, row: Mapping[str, float], features: int) -> None:
    """Say what has no meaning at a layer, and why."""
    rank, full = evidence.M.shape[1], min(len(evidence.M) - 1, features)
    if rank < full:
        warn(
            f"layer {name!r}: the class means span {rank} dimensions, not {full}: "
            "they coincide or are collinear"
        )
    unknown = [c.name for c in measured(1) if c.needs == "means" and math.isnan(row[c.name])]
    if unknown and rank:
        warn(f"layer {name!r}: {' and '.join(unknown)} undefined, for a class mean is the mean of all")
    if rank and evidence.classifier and math.isnan(row["nc3"]):
        why = "the classifier's weights are zero or no numbers"
        warn(f"layer {name!r}: nc3 is undefined, for {why}")
