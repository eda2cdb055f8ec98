"""Sums and decisions made a profile."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pfc.measuring.decisions import Decisions
from pfc.measuring.passes import Measured
from pfc.measuring.probe import Probed
from pfc.measuring.reference import Reference
from pfc.measuring.sums import Sums
from pfc.metrics import Weighting, noise_share
from pfc.moments import ClassMoments
from pfc.nearest import MOST_PAIRED
from pfc.profile.classes import ClassGeometry
from pfc.profile.columns import Evidence, measured
from pfc.profile.profile import Profile
from pfc.profile.segment import Segment
from pfc.span import points_of
from pfc.warning import warn

NOISE = 0.1  # share of the between-class variance above which the noise of the means is told


def assemble(
    found: Measured,
    weighting: Weighting,
    *,
    W: Float[Tensor, "C D"] | None = None,
    reference: Reference | None = None,
    probed: Probed | None = None,
    about: Mapping[str, Any] | None = None,
) -> Profile:
    """The profile of what was measured; `W` is the classifier's weight if known."""
    sums, decisions = found.sums, found.decisions
    layout, moments = sums.layout, sums.moments
    columns = measured(2 if decisions else 1, own=reference is None, probe=probed is not None)
    segments = _segments(sums, decisions, weighting)
    position = {
        name: place
        for segment in segments
        for name, place in zip(segment.layers, segment.position("path"), strict=True)
    }
    known = {
        name: replace(
            _evidence(name, each, sums, decisions, weighting, W, reference),
            position=position.get(name, math.nan),
            probe=math.nan if probed is None else probed.accuracy[name],
        )
        for name, each in moments.items()
    }
    rows = {name: {c.name: c.of(evidence) for c in columns} for name, evidence in known.items()}
    for name, evidence in known.items():
        _warn_of_undefined(name, evidence, rows[name], moments[name].mean.shape[1])
    _warn_of_noise({name: _noise(evidence) for name, evidence in known.items()})
    return Profile(
        layers=layout.names,
        shapes=tuple(layout.shapes.values()),
        columns={c.name: tuple(row[c.name] for row in rows.values()) for c in columns},
        moments={name: layout.named(name, each).cpu() for name, each in moments.items()},
        segments=segments,
        about=_about(found, weighting, reference) | dict(about or {}),
        geometry={name: _geometry(moments[name], evidence) for name, evidence in known.items()},
        sample=found.points,
        errors=_errors(decisions),
    )


def _errors(decisions: Decisions | None) -> dict[str, tuple[float, ...]]:
    """The standard error of metrics at every layer, where that was asked for."""
    rows = [each.errors() for each in decisions.influences.values()] if decisions else []
    return {metric: tuple(row[metric] for row in rows) for metric in (rows[0] if rows else ())}


def _about(found: Measured, weighting: Weighting, reference: Reference | None) -> dict[str, Any]:
    """How it was measured."""
    sums, decisions, layout = found.sums, found.decisions, found.sums.layout
    return {
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
        "exponents": {name: scale.exponent for name, scale in sums.scales.items() if scale.exponent},
        "means": None if reference is None else reference.name,
        "torch": torch.__version__,
    }


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
    reference: Reference | None,
) -> Evidence:
    """What is known of a layer, of the classes that have samples."""
    present, nearest = moments.present(), decisions.nearest[name] if decisions else None
    known = nearest.span.points if nearest and reference is None else points_of(moments, weighting)
    about = None
    if nearest and reference is not None:
        about = reference.about_means(name, moments, nearest.span)
        nearest = nearest.rows(nearest.span.place[moments.count > 0])
    at_classifier = name == sums.layout.classifier_row
    disagreement = decisions.answers.disagreement if decisions and at_classifier else None
    evidence = Evidence(
        count=present.count,
        scatter=present.scatter,
        M=known,
        weighting=weighting,
        reference=about,
        nearest=nearest,
        disagreement=math.nan if disagreement is None else disagreement,
    )
    if not at_classifier or W is None or len(W) < len(sums.count):
        return evidence
    seen = (moments.count > 0).nonzero().flatten()
    return replace(evidence, classifier=(W.detach().to(moments.mean)[seen], present.centred()))


def _geometry(moments: ClassMoments, evidence: Evidence) -> ClassGeometry:
    """What is kept of the classes at a layer."""
    nearest = evidence.nearest
    return ClassGeometry.of(
        (moments.count > 0).nonzero().flatten(),
        evidence.count,
        evidence.scatter,
        evidence.M,
        MOST_PAIRED,
        nearest.hits if nearest else None,
        nearest.confusion if nearest and len(nearest.confusion) else None,
    )


def _noise(evidence: Evidence) -> float:
    """Which share of the variance between the data's own means their noise makes; 0 about others."""
    return float(noise_share(evidence.moments, evidence.weighting)) if evidence.has("own") else 0.0


def _warn_of_noise(shares: Mapping[str, float]) -> None:
    """Say where the class means are of so few samples that their own noise sets them apart."""
    loud = {name: share for name, share in shares.items() if NOISE < share < math.inf}
    if loud:
        most = max(loud, key=lambda name: loud[name])
        share = f"makes {100 * loud[most]:.0f} % of the variance between them"
        if loud[most] > 1:
            share = "alone would set them further apart than they are"
        warn(
            f"few samples a class: sampling noise of the class means {share} at layer {most!r} (over "
            f"10 % at {len(loud)} of {len(shares)} layers), so that PFC1 is too small and PFC3 too "
            "large there; see pfc1_unbiased, or use more samples"
        )


def _warn_of_undefined(name: str, evidence: Evidence, row: Mapping[str, float], features: int) -> None:
    """Say what has no meaning at a layer, and why."""
    rank, full = evidence.M.shape[1], min(len(evidence.M) - 1, features)
    if not full:
        return
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
