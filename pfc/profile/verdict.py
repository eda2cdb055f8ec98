"""The two sentences of a profile: does collapse hold, and from which layer on is it decided."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from pfc.metrics import effective_depth
from pfc.profile.columns import PFC, Column

ROUNDING = 1e-12  # of its range, or without one of its value, two values of a metric are the same; ours

Values = Sequence[float]


def same(column: Column, a: float, b: float) -> bool:
    """Whether two values of a metric differ by rounding at most."""
    room = ROUNDING * column.highest if math.isfinite(column.highest) else 0.0
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=room)


def non_monotone(column: Column, values: Values) -> list[int]:
    """Where a metric is less collapsed than just before, or cannot be compared."""
    sign = -1 if column.rises else 1
    return [
        l
        for l, (a, b) in enumerate(pairwise(values), 1)
        if not (sign * b <= sign * a or same(column, a, b))
    ]


def tau(values: Values) -> float:
    """Kendall's rank correlation of values with their place."""
    from scipy.stats import kendalltau

    return float(kendalltau(range(len(values)), values).statistic)


def collapse(layers: Sequence[str], columns: Mapping[str, Values], *, still: bool) -> str:
    """The first sentence; `still` where no sample moves between the layers."""
    span = f"from {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"at {layers[0]}"
    if why := _nothing_to_judge(layers, columns, still):
        return f"Of progressive feedforward collapse nothing can be said {span}: {why}."
    told = ", ".join(_change(metric, columns[metric]) for metric in PFC)
    return f"Progressive feedforward collapse {_judged(layers, columns, span)}: {told}."


def _nothing_to_judge(layers: Sequence[str], columns: Mapping[str, Values], still: bool) -> str:
    """Why collapse cannot be judged; empty if it can."""
    if len(layers) < 2:
        return "only one layer was measured"
    if still:
        return "nothing moves between these layers"
    told = []
    for metric in PFC:
        if unknown := _undefined(layers, columns[metric]):
            told.append(f"{metric.upper()} is undefined at {', '.join(unknown)}")
    return "; ".join(told)


def _undefined(layers: Sequence[str], values: Values) -> list[str]:
    return [name for name, value in zip(layers, values, strict=True) if math.isnan(value)]


def _judged(layers: Sequence[str], columns: Mapping[str, Values], span: str) -> str:
    """Whether each metric goes one way, and that of collapse."""
    back = {metric: non_monotone(column, columns[metric]) for metric, column in PFC.items()}
    if any(back.values()):
        where = {metric: ", ".join(layers[l] for l in at) for metric, at in back.items() if at}
        told = "; ".join(f"{metric.upper()} steps back at {at}" for metric, at in where.items())
        return f"does not hold at every layer {span} ({told})"
    held = [metric for metric in PFC if _collapses(metric, columns[metric])]
    moved = [metric for metric in PFC if _approaches(metric, columns[metric])]
    if not moved:
        return f"does not show {span}"
    some = "" if len(held) == len(PFC) else f"for {' and '.join(map(str.upper, held))} "
    return f"holds {some}{span}"


def _approaches(metric: str, values: Values) -> bool:
    """Whether a metric ends more collapsed than it began."""
    return len(non_monotone(PFC[metric], [values[-1], values[0]])) > 0


def _collapses(metric: str, values: Values) -> bool:
    """Whether a metric that never steps back approaches its value at collapse, or is there already."""
    end = PFC[metric].collapsed
    there = end is not None and same(PFC[metric], values[0], end)
    return there or _approaches(metric, values)


def _change(metric: str, values: Values) -> str:
    """From where to where a metric goes."""
    column = PFC[metric]
    first, last = _digits(column, values[0], values[-1])
    if all(same(column, values[0], value) for value in values):
        return f"{metric.upper()} stays at {first}"
    return f"{metric.upper()} goes from {first} to {last}"


def _digits(column: Column, *values: float) -> list[str]:
    """Values in the fewest digits, from three on, that tell them from each other and from 1."""
    known = [*values, 1.0]
    for digits in range(3, 17):
        told = [f"{value:.{digits}g}" for value in known]
        pairs = combinations(zip(known, told, strict=True), 2)
        if all(s != t or same(column, a, b) for (a, s), (b, t) in pairs):
            break
    return told[:-1]


def decision(layers: Sequence[str], pfc3: Values, samples: int, eps: float) -> str:
    """The second sentence: from which layer on the nearest class mean is right, but for a part `eps`."""
    least, depth = f"{100 * (1 - eps):.12g} %", effective_depth([1 - p for p in pfc3], eps)
    if depth is not None:
        wrong = round((1 - pfc3[-1]) * samples)
        return (
            f"From {layers[depth]} (layer {depth + 1} of {len(layers)}) on, at least {least} of the "
            f"samples are nearest to their own class mean; at {layers[-1]} "
            f"{f'all but {wrong} are' if wrong else 'all are'}."
        )
    reach = [l for l in range(len(layers)) if effective_depth([1 - pfc3[l]], eps) is not None]
    if reach:
        where = ", ".join(layers[l] for l in reach)
        last = "that is undefined" if math.isnan(pfc3[-1]) else f"{_percent(pfc3[-1])} are"
        return (
            f"At least {least} of the samples are nearest to their own class mean at {where}, "
            f"but not at the last layer, {layers[-1]}, where {last}."
        )
    return _never(layers, pfc3, least)


def _never(layers: Sequence[str], pfc3: Values, least: str) -> str:
    """That no layer reaches so much, and how much the best one does."""
    known = [p for p in pfc3 if not math.isnan(p)]
    if not known:
        return "Nearest-class-mean accuracy is undefined at every layer."
    unknown = _undefined(layers, pfc3)
    but = f"; it is undefined at {', '.join(unknown)}" if unknown else ""
    best = _percent(max(known))
    return f"No layer reaches {least} nearest-class-mean accuracy; the best reaches {best}{but}."


def _percent(part: float) -> str:
    """Never more than it is: 98.999 is no 99.00."""
    return f"{math.floor(round(part * 1e4, 6)) / 100:.2f} %"
