"""Figures 4 and 5 of arXiv 2405.00985: UFM and MUFM along the iterations, MUFM over its coefficient."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfc import figures
from pfc.experiments.task import METRICS
from pfc.experiments.task import Constants as Constants
from pfc.experiments.task import Dataset as Dataset
from pfc.experiments.task import Task as Task
from pfc.files import check_place, expanded, read_json, write_json
from pfc.progress import shown
from pfc.schema import ABOVE, COUNT, FLAG, NUMBER, TEXT, defaults_of, list_of, object_of
from pfc.strict_json import plain
from pfc.theory import mufm as models
from pfc.theory.coefficients import positive
from pfc.theory.mufm.proof import APART

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "pfc-mufm-1"
LAMS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0, 10.0)  # inferred; the paper's are lost
CERTIFIED = 1e-4  # proven relative gap up to which a point is drawn as proven; ours
ALIGNED = {  # keys of the files, and their names in a solution
    "cosine": "cosine",
    "distance": "direction_distance",
    "moved": "relative_displacement",
    "size": "norm_ratio",
}
POINTS = ("steps", "objective", "gradient_norm", *METRICS, "cosine")  # what is recorded of a way
_METRICS = dict.fromkeys(METRICS, NUMBER)
_ROW = {
    **{"lam": ABOVE, "objective": ABOVE},
    **dict.fromkeys(("gradient_norm", *METRICS, *ALIGNED, "cpu_seconds"), NUMBER),
}
_PROOF = {"certificate": NUMBER, "gap": NUMBER, "certified": FLAG, "proven": TEXT}
SWEEP_SCHEMA = object_of(  # what the file of a sweep must hold
    {
        "settings": object_of({"constants": object_of({})}),
        "data": object_of(_METRICS),
        "solutions": list_of(object_of({**_ROW, **_PROOF})),
        "descent": list_of(object_of({**_ROW, "steps": COUNT})),
    }
)
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Iterations:
    """Figure 4 in numbers; prints itself.

    Args:
        data: PFC1-3 of the data.
        ends: The last point of each way by its name, such as `"MUFM, ours"`, and the data.
        ways: All recorded points of each way, a list a number.
        proven: What is proven of MUFM's solution, in words.
        files: What was written.
    """

    data: Mapping[str, float]
    ends: Mapping[str, Row]
    ways: Mapping[str, Mapping[str, list[Any]]]
    proven: str
    files: tuple[Path, ...]

    def table(self) -> "pd.DataFrame":
        """One row a way, one column a number."""
        import pandas as pd

        return pd.DataFrame(list(self.ends.values()), index=list(self.ends))

    def __str__(self) -> str:
        columns = ["objective", "gradient_norm", *METRICS, "cosine", "steps", "cpu_seconds"]
        return f"{_text(self.table().reindex(columns=columns))}\nMUFM: {self.proven}."


@dataclass(frozen=True, eq=False)
class Sweep:
    """Figure 5 in numbers; prints itself.

    Args:
        data: PFC1-3 of the data.
        solutions: A row for each coefficient: objective, metrics, alignment with the data, proof.
        descent: What plain gradient descent ended at, if it ran: rows of the same names.
        files: What was written.
        expected: The closed form for orthogonal means, where it has one: rows of the same names.
    """

    data: Mapping[str, float]
    solutions: Sequence[Row]
    descent: Sequence[Row]
    files: tuple[Path, ...] = ()
    expected: Sequence[Row] = ()

    def table(self) -> "pd.DataFrame":
        """One row a coefficient, one column a number."""
        import pandas as pd

        return pd.DataFrame(list(self.solutions)).set_index("lam")

    def __str__(self) -> str:
        columns = ["objective", *METRICS, "cosine", "moved", "certificate", "gap", "cpu_seconds"]
        told = ", ".join(f"{metric.upper()} {self.data[metric]:.4g}" for metric in METRICS)
        return "\n".join([_text(self.table()[columns]), f"data: {told}", *self._sentences()])

    def _sentences(self) -> list[str]:
        """What is proven, what Theorem 4 says, and how far gradient descent came."""
        n, proven = len(self.solutions), sum(row["certified"] for row in self.solutions)
        lower = sum(row["pfc1"] < self.data["pfc1"] for row in self.solutions)
        return [
            f"{proven} of {n} are proven to be within a relative {CERTIFIED:.0e} of the minimum.",
            *(
                f"lam {row['lam']:g}: its {row['starts']} starts ended in different minima, "
                f"{100 * row['spread']:.3g} % apart."
                for row in self.solutions
                if not row["certified"] and row.get("spread", 0.0) > APART
            ),
            f"PFC1 is below that of the data (Theorem 4) for {lower} of {n} coefficients.",
            *(
                f"lam {ours['lam']:g}: {theirs['steps']:,} steps of gradient descent end "
                f"{100 * worse:.3g} % above, with PFC1 {theirs['pfc1']:.4g} for {ours['pfc1']:.4g}."
                for ours, theirs in zip(self.solutions, self.descent, strict=False)
                if (worse := theirs["objective"] / ours["objective"] - 1) > 1e-6
            ),
        ]


def _text(table: "pd.DataFrame") -> str:
    return table.to_string(float_format=lambda x: f"{x:.4g}", na_rep="-")


def iterations(task: Task) -> Iterations:
    """Figure 4: each metric along the iterations, of our solver and of gradient descent.

    Writes `figure4.json`, and `figure4.png` and `.svg` where a way is recorded, into the task's folder.

    Args:
        task: What is to be solved.

    Returns:
        What was found.

    Raises:
        ValueError: If the models refuse the data.

    Examples:
        >>> import tempfile
        >>> from pfc.experiments import mufm
        >>> constants = mufm.Constants(per_class=10, dimensions=6, steps=20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     task = mufm.Task(data=mufm.Dataset.toy(constants), constants=constants, folder=folder)
        ...     found = mufm.iterations(task)
        >>> list(found.ways)
        ['MUFM, ours', 'UFM, ours', 'MUFM, descent', 'UFM, descent']
    """
    path = expanded(task.folder) / "figure4.json"
    check_place(path, "figure4.png", "figure4.svg")
    data, c = task.data.metrics, task.constants
    solution, seconds = _timed(lambda: task.solve(c.lam))
    ends = {"data": dict(data), "MUFM, ours": _row(solution, seconds)}
    if task.balanced:
        optimum = task.optimum()
        ends["UFM, closed form"] = {n: getattr(optimum, n) for n in ("objective", *METRICS)}
    ways = {}
    for name, way in _ways(task).items():
        found, seconds = _timed(way)
        ways[name] = {point: getattr(found, point).tolist() for point in POINTS}
        last = {name: values[-1] for name, values in ways[name].items()}
        ends.setdefault(name, {**last, "cpu_seconds": seconds})
    told = {"settings": task.settings(sweep=False), "data": data, "ends": ends, "ways": ways}
    write_json(path, {"format": FORMAT, **told})
    files = [path]
    if ways:
        figure = figures.iterations(ways, data, title=f"{task.title}, lam {c.lam:g}")
        files += figures.save(figure, path.with_suffix(""))
    return Iterations(data, ends, ways, solution.proven, tuple(files))


def _ways(task: Task) -> dict[str, Callable[[], models.Trace]]:
    """The ways to the minimum that are recorded, each with what runs it."""
    squared = task.constants.loss == "mse"
    ways: dict[str, tuple[bool, Callable[[], models.Trace]]] = {
        "MUFM, ours": (squared and not task.bias, task.iterate),
        "UFM, ours": (squared, task.iterate_ufm),
        "MUFM, descent": (task.descent, partial(task.descend, task.constants.lam)),
        "UFM, descent": (task.descent and task.balanced, task.descend_ufm),
    }
    return {name: way for name, (due, way) in ways.items() if due}


def coefficients(lams: Iterable[float]) -> list[float]:
    """The coefficients of a sweep in ascending order, each once.

    Args:
        lams: Positive numbers.

    Returns:
        The coefficients.

    Raises:
        ValueError: If there is none, or one is not positive.
    """
    chosen = sorted(set(lams))
    if not chosen:
        raise ValueError("lams needs at least one coefficient, such as 1e-4 1e-3")
    for lam in chosen:
        positive(lams=lam)
    return chosen


def sweep(task: Task, lams: Iterable[float]) -> Sweep:
    """Figure 5: MUFM solved for each coefficient, and its alignment with the data.

    Writes `figure5.json`, `.png` and `.svg` into the task's folder; what an earlier call with the same
    settings has solved is read from there.

    Args:
        task: What is to be solved.
        lams: Coefficients; the `lam` of the task's constants plays no part.

    Returns:
        What was found for these coefficients.

    Raises:
        ValueError: If a coefficient is not positive, the folder holds a sweep with other settings or a
            damaged one, or the models refuse the data.
    """
    chosen, path = coefficients(lams), expanded(task.folder) / "figure5.json"
    check_place(path, "figure5.png", "figure5.svg")
    settings = task.settings(sweep=True)
    kept = _kept(path, settings) or {
        **{"format": FORMAT, "settings": settings, "data": task.data.metrics},
        **{"solutions": [], "descent": []},
    }
    _solve(task, chosen, kept, path)
    solutions, descent = (
        [row for row in kept[part] if row["lam"] in chosen] for part in ("solutions", "descent")
    )
    expected = [_expected(lam, found) for lam in chosen if (found := task.expected(lam))]
    figure = figures.sweep(solutions, kept["data"], descent, expected, title=task.title)
    files = (path, *figures.save(figure, path.with_suffix("")))
    return Sweep(kept["data"], solutions, descent, files, expected)


def _solve(task: Task, lams: Sequence[float], kept: dict[str, Any], path: Path) -> None:
    """Add what is not kept yet; the file is written after each coefficient."""
    parts = {"solutions": _solved, **({"descent": _descended} if task.descent else {})}
    with shown("sweep", len(lams)) as step:
        for i, lam in enumerate(lams, start=1):
            for part, row in parts.items():
                if all(known["lam"] != lam for known in kept[part]):
                    kept[part] = sorted([*kept[part], row(task, lam)], key=lambda row: row["lam"])
            write_json(path, kept)
            step(i, f"lam {lam:g}")


def _kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call with the same settings has done; nothing if there is none."""
    if not path.exists():
        return {}
    try:
        old = read_json(path, FORMAT, SWEEP_SCHEMA)
    except ValueError as error:
        raise ValueError(f"{error}; or choose another folder") from None
    if changed := _changed(old["settings"], plain(settings)):
        names = ", ".join(changed)
        raise ValueError(f"{path} holds a sweep with another {names}: choose another folder")
    for part in ("solutions", "descent"):
        old[part] = [{k: _number(v) for k, v in row.items()} for row in old[part]]
    return {**old, "data": {metric: float(old["data"][metric]) for metric in METRICS}}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of settings that differ; what an older version did not write has its default."""
    was, now = (
        {k: v for k, v in {**s, **s["constants"]}.items() if k not in {"constants", "sources"}}
        for s in (old, new)
    )
    known = {**plain(defaults_of(Constants)), **was}
    differ = [name for name, value in now.items() if known.get(name) != value]
    return differ or sorted(was.keys() - now.keys())


def _number(value: Any) -> Any:
    """What a file says of a number that is not finite, as the number."""
    return float(value) if isinstance(value, str) and value in {"nan", "inf", "-inf"} else value


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds of the processor that it takes."""
    started = time.process_time()
    return run(), round(time.process_time() - started, 3)


def _solved(task: Task, lam: float) -> Row:
    return _row(*_timed(partial(task.solve, lam)))


def _row(solution: models.Solution, seconds: float) -> Row:
    """What is kept of a solution."""
    own = ("lam", "objective", "gradient_norm", *METRICS, "certificate", "gap", "spread")
    names = {name: name for name in own} | ALIGNED
    row = {key: getattr(solution, name) for key, name in names.items()}
    certified = bool(solution.gap <= CERTIFIED)
    words = {"certified": certified, "starts": solution.starts, "proven": solution.proven}
    return {**row, **words, "cpu_seconds": seconds}


def _expected(lam: float, found: models.Optimum) -> Row:
    """What is drawn of the closed form, in the same words."""
    names = {name: name for name in ("objective", "pfc1", "pfc2", "certificate")} | ALIGNED
    return {"lam": lam, **{key: getattr(found, name) for key, name in names.items()}}


def _descended(task: Task, lam: float) -> Row:
    """What is kept of the end of gradient descent, in the same words."""
    trace, seconds = _timed(partial(task.descend, lam))
    X, H, cosine = task.X, trace.features(), float(trace.cosine[-1])
    ends = {name: float(getattr(trace, name)[-1]) for name in ("objective", "gradient_norm", *METRICS)}
    moved, size = (float(part.norm()) / float(X.norm()) for part in (H - X, H))
    apart = {"distance": max(0.0, 2 - 2 * cosine) ** 0.5, "moved": moved, "size": size}
    row = {"lam": lam, **ends, "cosine": cosine, **apart}
    return {**row, "steps": int(trace.steps[-1]), "cpu_seconds": seconds}
