"""Gives the functions of `pfc.theory` arguments of wrong kinds, where no test checks types."""

import math
import warnings

import numpy as np
import torch

from pfc.theory import collapse, descent, mufm, separation, toy, transport, ufm, unbalanced
from pfc.theory.coefficients import at_least, positive, several
from pfc.theory.mufm import flow

Y = torch.arange(12) % 3
X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double() + 2 * torch.eye(3, 4)[Y]
QUIET = {"progress": False}
UFM = {"classes": 3, "features": 5, "per_class": 4}
DECAYS = {"weight_decay": 0.005, "feature_decay": 0.005}
DATA = {"X": X, "y": Y}
DESCENT = {"step": 0.1, "steps": 10, "seed": 0, "records": 5}
SOLVE = {"lam": 0.1, "weight_decay": 0.005, "restarts": 0, "seed": 0}
WRONG = (
    *(None, "x", -1, 0, math.nan, math.inf, 2.5, True, [], [3, 4], {}, object(), 1j, np.float32(0.5)),
    *(torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), torch.ones(2, 2, 2), torch.tensor(2)),
    np.array(["a"]),
)
FUNCTIONS = {
    "UFM in closed form": (ufm.optimum, {**UFM, **DECAYS, "loss": "mse", "bias": False}),
    "UFM solved": (
        ufm.solve,
        {**UFM, **DECAYS, "loss": "mse", "bias": False, "restarts": 1, "seed": 0, "method": "lbfgs"},
    ),
    "UFM descended": (
        ufm.solve,
        {**UFM, "restarts": 1, "seed": 0, "method": "descent", "step": 0.1, "steps": 9},
    ),
    "unbalanced": (unbalanced.unbalanced, {"counts": [3, 4], "features": 3, **DECAYS, "bias": False}),
    "MUFM in closed form": (
        mufm.optimum,
        {**UFM, "lam": 0.1, "weight_decay": 0.005, "norm": 1.0, "sigma": 0.5},
    ),
    "MUFM": (
        mufm.solve,
        {**DATA, **SOLVE, "loss": "mse", "bias": False, "centre": False, "weighting": "class"}
        | {"tolerance": 1e-12, "iterations": None, "relax": False},
    ),
    "MUFM with cross-entropy": (mufm.solve, {**DATA, **SOLVE, "loss": "ce"}),
    "MUFM over lam": (mufm.sweep, {**DATA, "lams": [0.1], "restarts": 0}),
    "layered MUFM": (mufm.solve_layered, {**DATA, **SOLVE, "layers": 2}),
    "MUFM, iterations": (
        mufm.iterates,
        {**DATA, "lam": 0.1, "weight_decay": 0.005, "start": "normal", "seed": 0}
        | {"tolerance": 1e-9, "iterations": 20, "records": 5},
    ),
    "expansion": (mufm.expansion, {**DATA, "weight_decay": 0.005, "weighting": "class"}),
    "flow": (
        flow.flow,
        {**DATA, "until": 1.0, "weight_decay": 0.005, "records": 5, "weighting": "class"},
    ),
    "statistics": (mufm.gather, {"batches": [(X, Y)]}),
    "transport": (
        transport.gap,
        {
            "start": X,
            "end": 2 * X,
            "y": Y,
            "weighting": "class",
            "exact": 12,
            "directions": 4,
            "seed": 0,
        },
    ),
    "toy data": (toy.toy, {"classes": 3, "features": 4, "per_class": 2, "sigma": 0.5, "seed": 0}),
    "law of data separation": (separation.fit, {"values": [1.0, 0.5, 0.2]}),
    "collapse": (collapse.collapse, {"H": X, "y": Y, "weighting": "class"}),
    "UFM by descent": (descent.on_ufm, {**UFM, **DECAYS, **DESCENT, "loss": "mse"}),
    "MUFM by descent": (
        descent.on_mufm,
        {**DATA, **DESCENT, "lam": 0.1, "weight_decay": 0.005, "loss": "mse"},
    ),
}
SILENT = {"expansion", "statistics", "toy data", "law of data separation", "collapse"}
SILENT |= {"UFM in closed form", "unbalanced", "MUFM in closed form", "MUFM, iterations"}


def called(name, **changed):
    """Call a function, whatever it says of what it found."""
    function, given = FUNCTIONS[name]
    with warnings.catch_warnings(action="ignore"):
        return function(**given | changed, **({} if name in SILENT else QUIET))


SAID = (
    (lambda: unbalanced.unbalanced([3, 4], 2.5), "features must be a whole number, got 2.5"),
    (lambda: unbalanced.unbalanced(7, 2), "counts must be a sequence of numbers, got 7"),
    (lambda: unbalanced.unbalanced([3, 4.5], 2), "counts must be a whole number, got 4.5"),
    (lambda: positive(lam="1"), "lam must be a positive number, got '1'"),
    (lambda: positive(lam=True), "lam must be a positive number, got True"),
    (lambda: at_least(2, classes=None), "classes must be a whole number, got None"),
    (lambda: at_least(2, classes=True), "classes must be a whole number, got True"),
    (lambda: several("lams", "12"), "lams must be a sequence of numbers, got '12'"),
    (lambda: separation.fit([1.0, "x"]), "values must be numbers, got 'x'"),
    (lambda: called("MUFM", centre="no"), "centre must be True or False, got 'no'"),
    (lambda: called("transport", exact="all"), "exact must be a whole number, got 'all'"),
    (
        lambda: called("statistics", batches=3),
        "batches must be pairs (x, y) to iterate over, got 3",
    ),
)


def faults():
    """What other errors than a `ValueError` there are, and messages that are not as they should be."""
    for name, (_, given) in FUNCTIONS.items():
        called(name)
        for argument in given:
            for wrong in WRONG:
                try:
                    called(name, **{argument: wrong})
                except ValueError:
                    continue
                except Exception as error:
                    yield f"{name}, {argument}={wrong!r:.40}: {type(error).__name__}: {error}"
    for call, message in SAID:
        try:
            call()
        except ValueError as error:
            if str(error) != message:
                yield f"{error}, not {message}"
        else:
            yield f"no error, not {message}"
    positive(lam=np.float32(0.5), decay=np.float64(0.5), step=np.int64(1))
    at_least(1, classes=np.int32(3))
    if not several("n", np.array([3, 4])) == several("n", torch.tensor([3, 4])) == [3, 4]:
        yield "arrays are sequences of numbers"


if __name__ == "__main__":
    print(*faults(), sep="\n", end="")
