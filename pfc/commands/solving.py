"""What `pfc mufm` does: a task, traced for Figure 4 or swept for Figure 5, kept as JSON and printed."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import Parameter
from torch import Tensor

from pfc import figures as draw
from pfc.files import plain, read_json, write_json
from pfc.progress import shown
from pfc.schema import ABOVE, COUNT, FLAG, NUMBER, TEXT, rows, table
from pfc.theory import descent as plain_descent
from pfc.theory import mufm as models
from pfc.theory import ufm
from pfc.theory.collapse import Collapse, collapse

FORMAT = "pfc-mufm-1"
TIRER = "Tirer and Bruna 2022, from memory; the paper's own is lost"
INFERRED = "inferred; the paper's own is lost"
ROWS = 5_000  # samples gathered between two signs of life; ours
NARROW = 200  # features up to which the relaxation is solved too, for a smaller gap; ours
CERTIFIED = 1e-4  # proven relative gap up to which a point is drawn as proven; ours
METRICS = ("pfc1", "pfc2", "pfc3")
ALIGNED = {  # keys of the files of version 0.1.0, and their names in a solution
    "cosine": "cosine",
    "distance": "direction_distance",
    "moved": "relative_displacement",
    "size": "norm_ratio",
}
_METRICS = dict.fromkeys(METRICS, NUMBER)
_ROW = {
    **{"lam": ABOVE, "objective": ABOVE},
    **dict.fromkeys(("gradient_norm", *METRICS, *ALIGNED, "cpu_seconds"), NUMBER),
}
SWEEP = table(  # what the file of a sweep must hold
    {
        "settings": table({"constants": table({})}),
        "data": table(_METRICS),
        "solutions": rows(
            table({**_ROW, "certificate": NUMBER, "gap": NUMBER, "certified": FLAG, "proven": TEXT})
        ),
        "descent": rows(table({**_ROW, "steps": COUNT})),
    }
)


def _from(source: str) -> dict[str, str]:
    return {"source": source}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of the models and of the toy data.

    Args:
        classes: Classes of the toy data.
        dimensions: Features of the toy data.
        per_class: Samples of each class of the toy data.
        sigma: Standard deviation of the toy data around their class means, which lie on a sphere.
        weight_decay: Of the classifier.
        feature_decay: Of the features, in UFM.
        lam: What a change of the data costs, in MUFM; of a sweep see --lams.
        loss: Squared error or cross-entropy.
        seed: Of the toy data, a subset, and the random starts.
        restarts: Random starts of the solver after its own first one, unless that is proven to be best;
            4 up to 200 features and none above if not given.
        step: Of the paper's plain gradient descent.
        steps: How many it takes.
        start: Where it begins in MUFM: features from the standard normal distribution, or at the data.
    """

    classes: int = 4
    dimensions: int = 20
    per_class: int = 50
    sigma: float = 0.5
    weight_decay: float = 0.005
    feature_decay: float = 0.005
    lam: float = 0.005
    loss: Literal["mse", "ce"] = "mse"
    seed: int = 0
    restarts: int | None = None
    step: float = plain_descent.STEP
    steps: int = plain_descent.STEPS
    start: plain_descent.Start = "normal"

    @property
    def sources(self) -> dict[str, str]:
        """Where each constant comes from."""
        known = {
            **dict.fromkeys(("classes", "dimensions", "per_class"), TIRER),
            **dict.fromkeys(("weight_decay", "feature_decay", "step"), TIRER),
            **dict.fromkeys(("sigma", "lam", "steps"), INFERRED),
            **dict.fromkeys(("loss", "start"), "arXiv 2405.00985, Sec. IV-B"),
        }
        usual = Constants()
        return {
            f.name: known.get(f.name, "ours; the paper does not say")
            if getattr(self, f.name) == getattr(usual, f.name)
            else "given"
            for f in fields(self)
        }


USUAL = Constants()


@dataclass(frozen=True, eq=False)
class Samples:
    """The data that the models are drawn to.

    Args:
        name: In words.
        X: One sample a row.
        y: Their classes.
        real: Whether they are no toy data.
    """

    name: str
    X: Tensor
    y: Tensor
    real: bool

    @property
    def size(self) -> int:
        """Numbers in X, and in H."""
        return self.X.numel()


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be solved, and where the results go."""

    samples: Samples
    constants: Constants
    centre: bool
    bias: Literal["free"] | bool
    descent: bool
    folder: Path

    def settings(self, *, sweep: bool) -> dict[str, Any]:
        """All that decides the result, each constant that plays a part with its source."""
        N, D = self.samples.X.shape
        idle = {"classes", "dimensions", "per_class", "sigma"} if self.samples.real else set()
        idle |= {"lam", "feature_decay"} if sweep else set()
        idle |= set() if self.descent else {"step", "steps", "start"}
        constants, sources = asdict(self.constants), self.constants.sources
        return {
            "data": self.samples.name,
            "samples": N,
            "features": D,
            "centred": self.centre,
            "bias": self.bias,
            "descent": self.descent,
            "constants": {name: value for name, value in constants.items() if name not in idle},
            "sources": {name: source for name, source in sources.items() if name not in idle},
        }

    @property
    def title(self) -> str:
        """The data and the model in a line."""
        N, D = self.samples.X.shape
        c = self.constants
        return f"{self.samples.name}: N = {N:,}, D = {D:,}, weight decay {c.weight_decay:g}, {c.loss}"

    @property
    def X(self) -> Tensor:
        """The data as the model sees them, in float64."""
        X = self.samples.X.double()
        return X - X.mean(0) if self.centre else X

    def data(self) -> dict[str, float]:
        """PFC1-3 of the data."""
        return _collapse(collapse(self.samples.X, self.samples.y))

    def problem(self) -> Callable[[float], models.Solution]:
        """A function that solves MUFM for a coefficient; what all coefficients share is done once."""
        X, y, c = self.samples.X, self.samples.y, self.constants
        narrow = X.shape[1] <= NARROW
        restarts = c.restarts if c.restarts is not None else 4 * narrow
        how: dict[str, Any] = {
            **{"weight_decay": c.weight_decay, "restarts": restarts, "seed": c.seed},
            **{"centre": self.centre, "loss": c.loss, "bias": self.bias},
            "relax": narrow,
        }
        if c.loss == "ce" or len(X) < X.shape[1]:
            return lambda lam: models.solve(X, y, lam=lam, **how)
        statistics = self._statistics()

        def solved(lam: float) -> models.Solution:
            found = models.solve(statistics, lam=lam, **how)
            return replace(found, pfc3=found.accuracy([(X, y)]))

        return solved

    def _statistics(self) -> models.Statistics:
        """Statistics of the data, gathered and decomposed."""
        X, y = self.samples.X, self.samples.y
        parts = list(zip(X.split(ROWS), y.split(ROWS), strict=True))
        with shown("statistics", len(parts) + 1) as step:

            def told() -> Iterator[tuple[Tensor, Tensor]]:
                for done, part in enumerate(parts):
                    step(done, "gather")
                    yield part

            statistics = models.gather(told())
            step(len(parts), "decompose")
            centred = self.centre or self.bias == "free"
            _ = (statistics.centred if centred else statistics).spectrum  # kept for every coefficient
        return statistics

    def descended(self, lam: float) -> models.Trace:
        """Plain gradient descent on MUFM."""
        c = self.constants
        how: dict[str, Any] = {"weight_decay": c.weight_decay, "loss": c.loss, "seed": c.seed}
        how |= {"step": c.step, "steps": c.steps, "start": c.start}
        return plain_descent.on_mufm(self.X, self.samples.y, lam=lam, **how)


def _collapse(found: Collapse) -> dict[str, float]:
    return {metric: getattr(found, metric) for metric in METRICS}


def _row(solution: models.Solution, seconds: float) -> dict[str, Any]:
    """What is kept of a solution."""
    names = {name: name for name in ("lam", "objective", "gradient_norm", *METRICS)} | ALIGNED
    row = {key: getattr(solution, name) for key, name in names.items()}
    proof = {"certificate": solution.certificate, "gap": solution.gap, "spread": solution.spread}
    certified = bool(solution.gap <= CERTIFIED)
    words = {"certified": certified, "starts": solution.starts, "proven": solution.proven}
    return {**row, **proof, **words, "cpu_seconds": round(seconds, 3)}


def _descent_row(trace: models.Trace, X: Tensor, lam: float, seconds: float) -> dict[str, Any]:
    """What is kept of the end of gradient descent, in the same words."""
    H, size = trace.features(), float(X.norm())
    cosine = float(trace.cosine[-1])
    ends = {name: float(getattr(trace, name)[-1]) for name in ("objective", "gradient_norm", *METRICS)}
    apart = {"distance": (max(0.0, 2 - 2 * cosine)) ** 0.5, "moved": float((H - X).norm()) / size}
    row = {"lam": lam, **ends, "cosine": cosine, **apart, "size": float(H.norm()) / size}
    return {**row, "steps": int(trace.steps[-1]), "cpu_seconds": round(seconds, 3)}


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return run(), time.process_time() - started


def sweep(task: Task, lams: list[float]) -> None:
    """Figure 5: the solution for each coefficient, kept as they are done."""
    path = task.folder / "figure5.json"
    settings = task.settings(sweep=True)
    kept = _kept(path, settings)
    if not kept:
        kept = {
            "format": FORMAT,
            "settings": settings,
            "data": task.data(),
            "solutions": [],
            "descent": [],
        }
    done: dict[str, set[float]] = {n: {row["lam"] for row in kept[n]} for n in ("solutions", "descent")}
    solve = None
    with shown("sweep", len(lams)) as step:
        for i, lam in enumerate(lams):
            if lam not in done["solutions"]:
                solve = solve or task.problem()
                solution, seconds = _timed(partial(solve, lam))
                kept["solutions"].append(_row(solution, seconds))
            if task.descent and lam not in done["descent"]:
                trace, seconds = _timed(partial(task.descended, lam))
                kept["descent"].append(_descent_row(trace, task.X, lam, seconds))
            for part in done:
                kept[part].sort(key=lambda row: row["lam"])
            write_json(path, kept)
            step(i + 1, f"lam {lam:g}")
    rows = {part: [row for row in kept[part] if row["lam"] in lams] for part in done}
    _print_sweep(kept["data"], rows["solutions"], rows["descent"])
    figure = draw.sweep(rows["solutions"], kept["data"], rows["descent"], title=task.title)
    _tell(path, *draw.save(figure, task.folder / "figure5"))


def _kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call with the same settings has done; nothing if there is none."""
    if not path.exists():
        return {}
    try:
        old = read_json(path, FORMAT, SWEEP)
    except ValueError as error:
        raise ValueError(f"{error}; or choose another folder by --out") from None
    if old["settings"] != plain(settings):
        flat, was = ({**s, **s["constants"]} for s in (plain(settings), old["settings"]))
        changed = [k for k, v in flat.items() if was.get(k) != v and k not in {"constants", "sources"}]
        raise ValueError(
            f"{path} holds a sweep with another {', '.join(changed)}: choose another folder by --out"
        )
    for part in ("solutions", "descent"):
        old[part] = [{k: _number(v) for k, v in row.items()} for row in old[part]]
    return {**old, "data": {metric: float(old["data"][metric]) for metric in METRICS}}


def _number(value: Any) -> Any:
    """What a file says of a number that is not finite, as the number."""
    return float(value) if isinstance(value, str) and value in {"nan", "inf", "-inf"} else value


def _print_sweep(
    data: Mapping[str, float], solutions: list[dict[str, Any]], descent: list[dict[str, Any]]
) -> None:
    import pandas as pd

    columns = ["objective", *METRICS, "cosine", "moved", "certificate", "gap", "cpu_seconds"]
    table = pd.DataFrame(solutions).set_index("lam")[columns]
    print(table.to_string(float_format=lambda x: f"{x:.4g}", na_rep="-"))
    print(f"data: {', '.join(f'{m.upper()} {data[m]:.4g}' for m in METRICS)}")
    proven = [row for row in solutions if row["certified"]]
    if math.isnan(solutions[0]["gap"]):
        print("Cross-entropy has no certificate: nothing is proven of these minima.")
        return
    within = f"within a relative {CERTIFIED:.0e} of the minimum"
    print(f"{len(proven)} of {len(solutions)} are proven to be {within}.")
    lower = sum(row["pfc1"] < data["pfc1"] for row in solutions)
    print(f"PFC1 is below that of the data (Theorem 4) for {lower} of {len(solutions)} coefficients.")
    for ours, theirs in zip(solutions, descent, strict=False):
        worse = theirs["objective"] / ours["objective"] - 1
        if worse > 1e-6:
            print(
                f"lam {ours['lam']:g}: {theirs['steps']:,} steps of gradient descent end "
                f"{100 * worse:.3g} % above, with PFC1 {theirs['pfc1']:.4g} for {ours['pfc1']:.4g}."
            )


def iterations(task: Task) -> None:
    """Figure 4: each metric along the iterations, of our solver and of gradient descent."""
    c, (X, y) = task.constants, (task.samples.X, task.samples.y)
    data, ways = task.data(), {}
    rows: dict[str, dict[str, Any]] = {"data": dict(data)}
    balanced = len(y.bincount().unique()) == 1
    if c.loss == "mse" and not task.bias:
        ways["MUFM, ours"] = _way(_passed(task.X, y, c.lam, c))
    solution, seconds = _timed(lambda: task.problem()(c.lam))
    rows["MUFM, ours"] = _row(solution, seconds)
    if balanced:
        rows["UFM, closed form"] = _closed_form(task)
    if c.loss == "mse":
        blank = torch.zeros(len(y), min(X.shape[1], int(y.max()) + 1), dtype=torch.float64)
        found, seconds = _timed(lambda: _passed(blank, y, c.feature_decay, c))
        ways["UFM, ours"] = _way(found)
        rows["UFM, ours"] = {**_last(found), "cpu_seconds": round(seconds, 3)}
    if task.descent:
        trace, seconds = _timed(lambda: task.descended(c.lam))
        ways["MUFM, descent"] = _way(trace)
        rows["MUFM, descent"] = {**_last(trace), "cpu_seconds": round(seconds, 3)}
        if balanced:
            trace, seconds = _timed(lambda: _ufm_descended(task))
            ways["UFM, descent"] = _way(trace)
            rows["UFM, descent"] = {**_last(trace), "cpu_seconds": round(seconds, 3)}
    path = task.folder / "figure4.json"
    content = {
        "format": FORMAT,
        "settings": task.settings(sweep=False),
        "data": data,
        "ends": rows,
        "ways": ways,
    }
    write_json(path, content)
    _print_rows(rows)
    print(f"MUFM: {solution.proven}.")
    if ways:
        figure = draw.iterations(ways, data, title=f"{task.title}, lam {c.lam:g}")
        _tell(path, *draw.save(figure, task.folder / "figure4"))
    else:
        _tell(path)


def _passed(X: Tensor, y: Tensor, lam: float, c: Constants) -> models.Trace:
    how: dict[str, Any] = {"weight_decay": c.weight_decay, "seed": c.seed}
    return models.iterates(X, y, lam=lam, **how)


def _closed_form(task: Task) -> dict[str, Any]:
    """UFM's optimum, known without solving."""
    c, y = task.constants, task.samples.y
    classes = int(y.max()) + 1
    how: dict[str, Any] = {"weight_decay": c.weight_decay, "feature_decay": c.feature_decay}
    found = ufm.optimum(classes, task.samples.X.shape[1], len(y) // classes, **how, loss=c.loss)
    return {"objective": found.objective, **{m: getattr(found, m) for m in METRICS}}


def _ufm_descended(task: Task) -> models.Trace:
    c, y = task.constants, task.samples.y
    classes = int(y.max()) + 1
    how: dict[str, Any] = {"weight_decay": c.weight_decay, "feature_decay": c.feature_decay}
    how |= {"loss": c.loss, "step": c.step, "steps": c.steps, "seed": c.seed}
    return plain_descent.on_ufm(classes, task.samples.X.shape[1], len(y) // classes, **how)


def _way(found: models.Trace) -> dict[str, list[Any]]:
    """The recorded points as lists."""
    names = ("steps", "objective", "gradient_norm", *METRICS, "cosine")
    return {name: getattr(found, name).tolist() for name in names}


def _last(found: models.Trace) -> dict[str, Any]:
    """The last recorded point."""
    return {name: values[-1] for name, values in _way(found).items()}


def _print_rows(rows: Mapping[str, Mapping[str, Any]]) -> None:
    import pandas as pd

    columns = ["objective", "gradient_norm", *METRICS, "cosine", "steps", "cpu_seconds"]
    table = pd.DataFrame(list(rows.values()), index=list(rows)).reindex(columns=columns)
    print(table.to_string(float_format=lambda x: f"{x:.4g}", na_rep="-"))


def _tell(*paths: Path) -> None:
    for path in paths:
        print(path)
