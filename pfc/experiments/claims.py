"""What arXiv 2405.00985 claims, each claim a function of what was measured, with an interval over seeds.

On one network a claim holds, fails, or says nothing; over the seeds it is confirmed if it holds on all,
refuted if it fails on all, and undecided otherwise. `judges` decides it on one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from pfc.experiments import judges
from pfc.experiments.judges import FRAME, OFF, SEPARABLE, Finding
from pfc.experiments.judges import Network as Network
from pfc.files import read_json
from pfc.intervals import student
from pfc.line import End
from pfc.profile.columns import PFC
from pfc.profile.segment import KINDS
from pfc.profile.verdict import non_monotone, same, tau
from pfc.schema import COUNT, NUMBER, TEXT, list_of, object_of

Verdict = Literal["confirmed", "refuted", "undecided"]

FORMAT = "pfc-claims-1"
NUMBERS = ("value", "low", "high")
SCHEMA = object_of(  # what the file of the answers must hold
    {
        "answers": list_of(
            object_of(
                {
                    **dict.fromkeys(("claim", "kind", "where", "verdict"), TEXT),
                    **{"held": COUNT, "of": COUNT, **dict.fromkeys(NUMBERS, NUMBER)},
                },
                closed=True,
            )
        )
    }
)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or one that goes beyond it.

    Args:
        name: Short.
        words: What is claimed.
        number: What its number is.
        judge: Decides it on one network.
        ours: Whether the paper does not make it.
    """

    name: str
    words: str
    number: str
    judge: Callable[[Network], Finding]
    ours: bool = False


@dataclass(frozen=True)
class Answer:
    """What was found of a claim in one place.

    Args:
        claim: Its name.
        kind: Of which kind of network or model.
        where: Of which of that kind, such as a data set.
        verdict: Confirmed if it holds on all of them, refuted if it fails on all, else undecided.
        held: On how many it holds.
        of: Networks.
        value: Mean of its number over those that have one.
        low: Lower end of the 95 % interval of Student's t; NaN of fewer than two.
        high: Its upper end.
    """

    claim: str
    kind: str
    where: str
    verdict: Verdict
    held: int
    of: int
    value: float
    low: float
    high: float


def answer(claim: str, kind: str, where: str, findings: Sequence[Finding]) -> Answer:
    """Put together what a claim comes to on several networks.

    Args:
        claim: Its name.
        kind: What kind of network or model they are.
        where: What else they have in common, such as their data set.
        findings: One a network.

    Returns:
        The verdict with its number.

    Raises:
        ValueError: If there is none.
    """
    if not findings:
        raise ValueError(f"claim {claim!r} needs at least one network, got none for {where!r}")
    held = [finding.holds for finding in findings]
    verdict: Verdict = "undecided"
    if all(holds is True for holds in held):
        verdict = "confirmed"
    elif all(holds is False for holds in held):
        verdict = "refuted"
    values = [finding.value for finding in findings if not math.isnan(finding.value)]
    interval = _interval(values)
    return Answer(claim, kind, where, verdict, held.count(True), len(findings), *interval)


def read(path: Path) -> list[Answer]:
    """Read the answers that `pfc reproduce` kept.

    Args:
        path: Its claims.json.

    Returns:
        The answers.

    Raises:
        ValueError: If the file is damaged.
    """
    rows = read_json(path, FORMAT, SCHEMA)["answers"]
    return [Answer(**{**row, **{n: float(row[n]) for n in NUMBERS}}) for row in rows]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t."""
    return (mean(values) if values else math.nan), *student(values)


def ask(kind: str, where: str, networks: Sequence[Network]) -> list[Answer]:
    """All claims about trained networks, of the same recipe with different seeds.

    Args:
        kind: What kind of network they are.
        where: What else they have in common, such as their data set.
        networks: One a seed.

    Returns:
        An answer a claim, in the order of `CLAIMS`; a claim of which nothing is known on any of the
        networks is left out.
    """
    found = []
    for claim in CLAIMS:
        findings = [claim.judge(network) for network in networks]
        if any(finding.holds is not None for finding in findings):
            found.append(answer(claim.name, kind, where, findings))
    return found


def _orders() -> Iterator[Claim]:
    """The claims about order, metric by metric."""
    tau, words = "Kendall's tau", "{} steps back at no layer of the last stage"
    for m in PFC:
        yield Claim(f"order of {m.upper()}", words.format(m.upper()), tau, judges.order(m))
    for m in PFC:
        said = f"before training {m.upper()} steps back at some of them"
        yield Claim(f"no order of {m.upper()} at the start", said, tau, judges.no_order_before(m))
    yield Claim(
        "learned",
        "training improves PFC1-3 at each layer of the last stage",
        "part improved",
        judges.learned,
    )
    for m in PFC:
        said = f"{m.upper()} steps back at no measured layer"
        yield Claim(f"order of {m.upper()}, all layers", said, tau, judges.order_of_all(m), ours=True)
    for m in PFC:
        said = f"{words.format(m.upper())}, on test images"
        yield Claim(f"order of {m.upper()}, test", said, tau, judges.order_on_test(m), ours=True)


def _lines() -> Iterator[Claim]:
    """The claims about the straight line."""
    ends: dict[End, str] = {"etf": "the nearest frame", "measured": "the last features"}
    for metric in ("pfc1", "pfc2"):
        for end, said in ends.items():
            name = f"{metric.upper()} falls on the line to {said}"
            words = f"{metric.upper()} falls on the whole line to {said}"
            yield Claim(
                name, words, "t from which on it falls", judges.falls(metric, end), end == "measured"
            )
    yield Claim(
        "Theorem 1's assumption", "the class means of both ends are aligned", "cosine", judges.assumption
    )
    yield Claim("Theorem 2's radius", "PFC2 falls near the end of that line", "1 - t0", judges.radius)
    for m in PFC:
        words = f"inner layers are within {OFF} of the change of {m.upper()} from the line"
        yield Claim(f"{m.upper()} near the line", words, "distance over change", judges.near(m))
    for kind in KINDS:
        if kind != "path":
            words = f"so for PFC1, where layers are placed by {kind}"
            name = f"PFC1 near the line, by {kind}"
            yield Claim(name, words, "distance over change", judges.near("pfc1", kind), ours=True)


CLAIMS: tuple[Claim, ...] = (
    *_orders(),
    Claim(
        *(
            "effective depth is the depth",
            "the effective depth (error 0.01) is the last block, or the pooled layer behind it",
        ),
        *("effective depth over depth", judges.depth),
    ),
    Claim(
        *("last-layer collapse", f"accuracy 1, PFC3 at least {SEPARABLE}, PFC2 at most {FRAME}"),
        *("PFC2 of the last layer", judges.collapsed),
    ),
    *_lines(),
    Claim(
        *("optimal transport", "the last stage is an optimal transport map of the samples"),
        *("excess over the least cost", judges.transported),
    ),
)


def decay(by_decay: Mapping[float, Sequence[Network]]) -> list[Answer]:
    """Whether more weight decay makes the path straighter and the map nearer to optimal, seed by seed.

    Args:
        by_decay: For each weight decay one network a seed, the seeds in the same order.

    Returns:
        Answers about each decay and the next larger one.
    """
    found = []
    decays = sorted(by_decay)
    for small, large in pairwise(decays):
        where = f"{large:g} after {small:g}"
        pairs = list(zip(by_decay[small], by_decay[large], strict=True))
        more = [judges.straight(b).value - judges.straight(a).value for a, b in pairs]
        findings = [Finding(None if math.isnan(d) else d > 0, d) for d in more]
        found.append(answer("straighter with decay", "weight decay", where, findings))
        gaps = [(judges.transported(a).value, judges.transported(b).value) for a, b in pairs]
        findings = [Finding(None if math.isnan(a + b) else b <= a, b - a) for a, b in gaps]
        found.append(answer("nearer to optimal transport with decay", "weight decay", where, findings))
    return found


def figure4(ends: Mapping[str, Mapping[str, Any]], where: str) -> list[Answer]:
    """Whether UFM ends nearer to collapse than MUFM, and MUFM nearer than the data.

    Args:
        ends: Of `pfc.experiments.mufm.iterations`.
        where: The data.

    Returns:
        An answer a metric and comparison.
    """
    ufm = next(name for name in ("UFM, closed form", "UFM, ours", "UFM, descent") if name in ends)
    found = []
    for metric, column in PFC.items():
        for name, near, far in (
            ("UFM is more collapsed than MUFM", ufm, "MUFM, ours"),
            ("MUFM is more collapsed than the data", "MUFM, ours", "data"),
        ):
            a, b = float(ends[near][metric]), float(ends[far][metric])
            more = a - b if column.rises else b - a
            finding = Finding(None if same(column, a, b) else more > 0, more)
            found.append(answer(f"{name}: {metric.upper()}", "Figure 4", where, [finding]))
    return found


def figure5(
    solutions: Sequence[Mapping[str, Any]],
    data: Mapping[str, float],
    descent: Sequence[Mapping[str, Any]],
    where: str,
) -> list[Answer]:
    """The trade-off of MUFM, Theorem 4, and what gradient descent misses.

    Args:
        solutions: Of `pfc.experiments.mufm.sweep`, ascending in lambda.
        data: PFC1-3 of the data.
        descent: Ends of gradient descent, for the same coefficients; may be empty.
        where: The data.

    Returns:
        Answers: as lambda grows, each of PFC1 and PFC2 rises and the features come nearer to the data;
        PFC1 is below the data's from some lambda on; descent reaches the minimum at each lambda.
    """
    found = []
    for metric in ("pfc1", "pfc2"):
        values = [row[metric] for row in solutions]
        back = non_monotone(PFC[metric], values[::-1])
        finding = Finding(not back, tau(values))
        found.append(answer(f"{metric.upper()} rises with lambda", "Figure 5", where, [finding]))
    values = [row["moved"] for row in solutions]
    nearer = all(b <= a for a, b in pairwise(values))
    found.append(
        answer("nearer to the data with lambda", "Figure 5", where, [Finding(nearer, tau(values))])
    )
    below = [row["pfc1"] < data["pfc1"] for row in solutions]
    from_on = next((i for i in range(len(below)) if all(below[i:])), None)
    least = math.nan if from_on is None else float(solutions[from_on]["lam"])
    found.append(answer("Theorem 4", "Figure 5", where, [Finding(from_on is not None, least)]))
    if descent:
        above = [t["objective"] / o["objective"] - 1 for o, t in zip(solutions, descent, strict=True)]
        finding = Finding(max(above) <= 1e-6, max(above))
        found.append(answer("descent reaches the minimum", "Figure 5", where, [finding]))
    return found


OTHERS: dict[str, tuple[str, str]] = {  # words and number of the claims that are not of one network
    "straighter with decay": ("weight decay straightens the path", "more straightness"),
    "nearer to optimal transport with decay": (
        "weight decay takes the map no farther from optimal transport",
        "more excess over the least cost",
    ),
    "UFM is more collapsed than MUFM": ("UFM ends more collapsed than MUFM", "by how much"),
    "MUFM is more collapsed than the data": ("MUFM ends more collapsed than the data", "by how much"),
    "PFC1 rises with lambda": ("PFC1 never falls as lambda grows", "Kendall's tau"),
    "PFC2 rises with lambda": ("PFC2 never falls as lambda grows", "Kendall's tau"),
    "nearer to the data with lambda": (
        "features never go farther from the data as lambda grows",
        "Kendall's tau",
    ),
    "Theorem 4": ("PFC1 is below that of the data from some lambda on", "that lambda"),
    "descent reaches the minimum": (
        "plain gradient descent ends within 1e-6 of the minimum",
        "largest relative excess",
    ),
}
