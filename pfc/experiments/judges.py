"""What a claim comes to on one network: the judges of the claims, each a function of its profiles.

The thresholds are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pfc.line import End
from pfc.metrics import effective_depth
from pfc.profile import Profile
from pfc.profile.columns import PFC, Column
from pfc.profile.segment import Position
from pfc.profile.verdict import non_monotone, same, tau
from pfc.theory.transport import Gap

OFF = 0.1  # of a metric's change: a layer so far from the line counts as near it
SEPARABLE = 0.999  # PFC3 of a collapsed last layer
FRAME = 0.3  # PFC2 of one
EPS = 0.01  # NCC error of a layer that is separable, as of `Profile.effective_depth`
LEAST = 3  # layers of which an order can be spoken


@dataclass(frozen=True)
class Network:
    """All that the claims need to know of one network.

    Args:
        last: After training, on the training images.
        test: After training, on test images about the training means; `None` if not measured.
        random: Before training, with random first weights; `None` if not measured.
        gap: Whether its last stage is an optimal transport map; `None` if not computed.

    Raises:
        ValueError: If `last` is about the means of other data, or another profile lacks its layers.
    """

    last: Profile
    test: Profile | None = None
    random: Profile | None = None
    gap: Gap | None = None

    def __post_init__(self) -> None:
        if self.last.about.get("means"):
            raise ValueError("last must be about its own class means, not those of other data; see test")
        for name, other in {"test": self.test, "random": self.random}.items():
            if other is not None and not set(self.last.layers) <= set(other.layers):
                lacking = ", ".join(l for l in self.last.layers if l not in other.layers)
                raise ValueError(f"{name} must have the layers of last, it lacks {lacking}")

    @property
    def stage(self) -> tuple[str, ...]:
        """The layers of the last segment, of which the paper speaks; all layers if there is none."""
        return self.last.segment().layers if self.last.segments else self.last.layers


@dataclass(frozen=True)
class Finding:
    """What a claim comes to on one network.

    Args:
        holds: Whether it holds; `None` if nothing can be said.
        value: Its number; NaN if there is none.
    """

    holds: bool | None
    value: float


NOTHING = Finding(None, math.nan)


def _values(profile: Profile, metric: str, layers: Sequence[str]) -> list[float]:
    """A metric at these layers."""
    at = [profile.layers.index(layer) for layer in layers]
    return [profile.columns[metric][l] for l in at] if metric in profile.columns else []


def _order(metric: str, profile: Profile | None, layers: Sequence[str]) -> Finding:
    """Whether a metric improves or stays at every layer and gets better in all; Kendall's tau."""
    values = [] if profile is None else _values(profile, metric, layers)
    if len(values) < LEAST or any(map(math.isnan, values)):
        return NOTHING
    column = PFC[metric]
    if all(same(column, values[0], value) for value in values):
        return NOTHING  # such as PFC2 of two classes, or PFC3 where all are separable from the start
    return Finding(not non_monotone(column, values), tau(values))


def order(metric: str) -> Callable[[Network], Finding]:
    """Order in the last stage after training."""
    return lambda network: _order(metric, network.last, network.stage)


def order_of_all(metric: str) -> Callable[[Network], Finding]:
    """Order of all measured layers after training."""
    return lambda network: _order(metric, network.last, network.last.layers)


def order_on_test(metric: str) -> Callable[[Network], Finding]:
    """Order in the last stage on test images."""
    return lambda network: _order(metric, network.test, network.stage)


def no_order_before(metric: str) -> Callable[[Network], Finding]:
    """Whether the metric of the untrained network has no order in the last stage."""

    def judge(network: Network) -> Finding:
        found = _order(metric, network.random, network.stage)
        return Finding(None if found.holds is None else not found.holds, found.value)

    return judge


def learned(network: Network) -> Finding:
    """Whether training improves all three metrics at each layer of the last stage; the part that is."""
    if network.random is None:
        return NOTHING
    better = []
    for metric, column in PFC.items():
        known = [_values(profile, metric, network.stage) for profile in (network.random, network.last)]
        if not all(known) or any(map(math.isnan, (*known[0], *known[1]))):
            return NOTHING
        better += [_better(column, before, after) for before, after in zip(*known, strict=True)]
    return Finding(all(better), sum(better) / len(better))


def _better(column: Column, before: float, after: float) -> bool:
    """Whether a metric is more collapsed than before, or could not be."""
    there = column.collapsed is not None and same(column, after, column.collapsed)
    return there or len(non_monotone(column, [after, before])) > 0


def falls(metric: str, end: End) -> Callable[[Network], Finding]:
    """Whether PFC1 or PFC2 falls on the whole straight line; where from."""

    def judge(network: Network) -> Finding:
        if not network.last.segments:
            return NOTHING
        certificate = network.last.segment().certify(end)
        theorem1, theorem2 = certificate.theorem1, certificate.theorem2
        if math.isnan(theorem1.align) or (theorem1 if metric == "pfc1" else theorem2).constant:
            return NOTHING  # such as PFC2 of two classes
        if metric == "pfc1":
            start = max(theorem1.turns, default=0.0) if theorem1.falls else math.nan
            return Finding(theorem1.monotone, start)
        return Finding(theorem2.t0 == 0, theorem2.t0)

    return judge


def assumption(network: Network) -> Finding:
    """Whether Theorem 1's assumption holds on the line to the nearest frame; its cosine."""
    if not network.last.segments:
        return NOTHING
    align = network.last.segment().certify("etf").theorem1.align
    return NOTHING if math.isnan(align) else Finding(align >= 0, align)


def radius(network: Network) -> Finding:
    """Whether PFC2 falls at the end of the line to the nearest frame; on which part of it."""
    if not network.last.segments:
        return NOTHING
    certificate = network.last.segment().certify("etf")
    if math.isnan(certificate.theorem1.align) or certificate.theorem2.constant:
        return NOTHING
    found = certificate.theorem2.radius
    return Finding(False, 0.0) if math.isnan(found) else Finding(found > 0, found)


def near(metric: str, kind: Position = "path") -> Callable[[Network], Finding]:
    """Whether inner layers of the last stage lie near the line; how far off, of the metric's change."""

    def judge(network: Network) -> Finding:
        if not network.last.segments:
            return NOTHING
        off = network.last.agreement(kind).off.get(metric, math.nan)
        return NOTHING if math.isnan(off) else Finding(off <= OFF, off)

    return judge


def depth(network: Network) -> Finding:
    """Whether no layer before the last block is separable; the effective depth over the depth."""
    stage, layers = network.stage, network.last.layers
    values = _values(network.last, "pfc3", layers)
    if len(values) < LEAST or any(map(math.isnan, values)):
        return NOTHING
    found = effective_depth([1 - value for value in values], EPS)
    if found is None:
        return Finding(False, math.nan)
    return Finding(found >= layers.index(stage[-1]), (found + 1) / len(layers))


def collapsed(network: Network) -> Finding:
    """Whether the last layer is collapsed: training accuracy 1, PFC3, PFC2; its PFC2."""
    profile = network.last
    if profile.accuracy is None or "pfc3" not in profile.columns:
        return NOTHING
    pfc2, pfc3 = profile.columns["pfc2"][-1], profile.columns["pfc3"][-1]
    return Finding(profile.accuracy == 1 and pfc3 >= SEPARABLE and pfc2 <= FRAME, pfc2)


def transported(network: Network) -> Finding:
    """Whether the last stage maps its samples as optimal transport does; its excess over that cost."""
    if network.gap is None or network.gap.exact is None or math.isnan(network.gap.exact.ratio):
        return NOTHING
    excess = network.gap.exact.ratio - 1
    return Finding(network.gap.exact.gap == 0, excess)


def straight(network: Network) -> Finding:
    """Straightness of the path through the last stage; not a claim by itself."""
    return (
        Finding(None, network.last.segment().path().straightness) if network.last.segments else NOTHING
    )
