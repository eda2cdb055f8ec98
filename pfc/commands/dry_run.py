"""`pfc measure --dry-run`: what a measurement would cost, as a table and sentences or as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pfc.commands.prepared import Prepared
from pfc.measuring.forecast import Forecast
from pfc.measuring.outlook import EACH, in_bytes, in_time

OPTIONS = {"segments": "--no-segments", "pool": "--pool mean", "limit": "--limit"}


@dataclass(frozen=True)
class Other:
    """Data that are read besides those that are measured.

    Args:
        words: What for.
        batches: How many; a probe reads once, and so counts in part.
    """

    words: str
    batches: int | float


Others = Mapping[str, Other]


def others(ready: Prepared, batch_size: int, passes: int) -> Others:
    """What is read besides the samples that are measured."""
    found = {}
    if (means := ready.means) is not None:
        words = f"the class means of split {means.split!r}"
        found["means"] = Other(words, len(means.batches(batch_size)))
    if (beside := ready.beside) is not None:
        words = f"split {beside.split!r} beside it, which --no-test leaves out"
        found["test"] = Other(words, len(beside.batches(batch_size)))
    if ready.held is not None:
        both = sum(len(each.batches(batch_size)) for each in (ready.samples, ready.held))
        found["probe"] = Other("the probe", both / passes)
    return found


def told(forecast: Forecast, name: str, others: Others) -> str:
    """What measuring data of that name would cost, beside which others of so many batches are read."""
    batches, rows = forecast.batches, forecast.rows
    of = "1 batch" if batches == 1 else f"{batches or 'an unknown number of'} batches"
    layout = forecast.layout
    lines = [
        f"{layout.model} on {name}: {of} of {rows}, {forecast.classes} classes; layers: {layout.chosen}",
        _table(forecast),
        f"memory: {in_bytes(forecast.bytes.state)} of state, {in_bytes(forecast.peak)} at the peak with "
        f"a batch's features{_free(forecast)}",
        f"time: {_time(forecast)}",
        *_scaled(forecast),
        *(f"time: {words}" for words in _of_others(forecast, others)),
        *_savings(forecast),
        "nothing was measured",
    ]
    return "\n".join(lines)


def as_json(forecast: Forecast, name: str, others: Others) -> str:
    """The same as one JSON object; seconds and bytes."""
    seconds = {
        "total": forecast.seconds,
        "of_a_batch": asdict(forecast.per_batch),
        "tried_at_most": forecast.most,
        "others": {what: forecast.per_batch.of(each.batches) for what, each in others.items()},
    }
    memory = {**asdict(forecast.bytes), "peak": forecast.peak, "free": forecast.free}
    memory |= {"features_of_a_batch": forecast.bytes.batch * forecast.rows}
    told = {
        "model": forecast.layout.model,
        "data": name,
        "classes": forecast.classes,
        "batches": forecast.batches,
        "batch_size": forecast.rows,
        "chosen": forecast.layout.chosen,
        "layers": _layers(forecast),
        "bytes": memory,
        "seconds": seconds,
        "savings": {OPTIONS[option]: asdict(s) for option, s in forecast.savings.items()},
    }
    return json.dumps(told, indent=1)


def _layers(forecast: Forecast) -> dict[str, dict[str, Any]]:
    """Shape, numbers of a sample and segment of each layer."""
    layout = forecast.layout
    place = {name: i for i, names in enumerate(layout.segments, start=1) for name in names}
    return {
        name: {
            "shape": [*shape],
            "numbers": layout.features[name],
            "segment": place.get(name),
        }
        for name, shape in layout.shapes.items()
    }


def _table(forecast: Forecast) -> str:
    """The layers, a line each."""
    from pandas import DataFrame

    rows = {
        name: {
            "shape": " x ".join(map(str, row["shape"])),
            "numbers": f"{row['numbers']:,}",
            "segment": row["segment"] or "-",
        }
        for name, row in _layers(forecast).items()
    }
    return DataFrame.from_dict(rows, orient="index").to_string()


def _free(forecast: Forecast) -> str:
    return "" if forecast.free is None else f"; {in_bytes(forecast.free)} are free"


def _time(forecast: Forecast) -> str:
    """The seconds of all batches, and of what they are made."""
    each, batches = forecast.per_batch, forecast.batches
    n = 1 if batches is None else batches
    parts = {
        "reading": n * each.passes * each.reading,
        "forward passes": n * each.passes * each.forward,
        "statistics": n * (each.first + each.second) + each.once,
    }
    split = ", ".join(f"{name} {in_time(seconds)}" for name, seconds in parts.items())
    whole = "a batch takes about" if batches is None else "about"
    return f"{whole} {in_time(each.of(n))} ({split})"


def _scaled(forecast: Forecast) -> list[str]:
    """That the seconds of the statistics are not of all of them."""
    if (most := forecast.most) is None:
        return []
    return [
        f"time: statistics of at most {most:,} classes and numbers a layer were tried, to be brief and "
        "spare memory; their time is scaled up from those, and rough"
    ]


def _of_others(forecast: Forecast, others: Others) -> list[str]:
    """What is read besides."""
    of = forecast.per_batch.of
    return [f"about {in_time(of(other.batches))} more for {other.words}" for other in others.values()]


def _savings(forecast: Forecast) -> list[str]:
    """What each option would save, a line each."""
    lines = []
    for name, saving in forecast.savings.items():
        option = f"{OPTIONS[name]} {saving.value}" if name == "limit" else OPTIONS[name]
        each = f" ({EACH} a class)" if name == "limit" else ""
        memory = f" and {in_bytes(saving.bytes)}" if saving.bytes else ""
        lines.append(f"{option}{each} would save about {in_time(saving.seconds)}{memory}")
    return lines
