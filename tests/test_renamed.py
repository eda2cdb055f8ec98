"""Public names of version 0.1.0 that were renamed still work for one version, and say so."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import pfc
from pfc.moments import ClassMoments
from pfc.theory import descent, mufm, transport
from tests import problems
from tests.arrays import profile_of

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
MOVED = {
    **{f"pfc.profile.{n}": f"pfc.measuring.{n}" for n in ("Cost", "Monitor", "cost", "features")},
    **{f"pfc.profile.{n}": f"pfc.measuring.{n}" for n in ("measure", "transport")},
    "pfc.theory.mufm.Iterates": "pfc.theory.mufm.Trace",
    "pfc.theory.transport.Atoms": "pfc.theory.transport.SemiDiscrete",
    "pfc.theory.descent.ufm": "pfc.theory.descent.on_ufm",
    "pfc.theory.descent.mufm": "pfc.theory.descent.on_mufm",
}


@pytest.mark.parametrize("old", MOVED)
def test_a_name_of_a_module(old):
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is {MOVED[old]} now; the old name")):
        found = getattr(import_module(module), name)
    place, _, new = MOVED[old].rpartition(".")
    assert found is getattr(import_module(place), new)
    assert f"`{name}`" in CHANGELOG


@pytest.mark.parametrize("module", [pfc.profile, mufm, transport, descent])
def test_what_never_was_there_is_not_found(module):
    with pytest.raises(AttributeError, match=r"module 'pfc\..*' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_of_an_object():
    H, y = problems.features(1)
    profile = profile_of({"a": H, "b": H + torch.randn_like(H)}, y)
    X, y = H[:12], torch.arange(12) % 3
    gap = transport.gap(X, 2 * X, y, exact=6, progress=False)
    solution = mufm.solve(X, y, lam=0.1)
    prediction = profile.prediction()
    for owner, old, new in (
        (ClassMoments.of(H, torch.arange(len(H)) % 2), "low", "mean_error"),
        (profile, "steps_back", "non_monotone_layers"),
        (profile.segment().path(), "told", "to_dict"),
        (profile.segment(), "told", "to_dict"),
        (prediction, "told", "to_dict"),
        (gap, "told", "to_dict"),
        (solution, "moved", "relative_displacement"),
        (solution, "size", "norm_ratio"),
        (solution, "distance", "direction_distance"),
    ):
        kind = type(owner).__name__
        with pytest.warns(DeprecationWarning, match=rf"{kind}\.{old} is {kind}\.{new} now; the old"):
            found = getattr(owner, old)
        known = getattr(owner, new)
        assert found is known or found == known
        assert f"`{old}`" in CHANGELOG or f".{old}`" in CHANGELOG
        assert new in CHANGELOG
