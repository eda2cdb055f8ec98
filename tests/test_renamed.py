"""Public names that were renamed still work for one version, and say so."""

import pytest
import torch

import pfc
from pfc.moments import ClassMoments
from tests import problems
from tests.arrays import profile_of


@pytest.mark.parametrize("name", ["Cost", "Monitor", "cost", "features", "measure", "transport"])
def test_measuring_was_a_part_of_the_profile(name):
    with pytest.warns(DeprecationWarning, match=rf"pfc\.profile\.{name} is pfc\.measuring\.{name} now"):
        found = getattr(pfc.profile, name)
    assert found is getattr(pfc.measuring, name)


def test_what_never_was_there_is_not_found():
    with pytest.raises(AttributeError, match=r"module 'pfc\.profile' has no attribute 'survey'"):
        _ = pfc.profile.survey


def test_the_compensation_of_a_mean():
    moments = ClassMoments.of(*problems.features(1))
    with pytest.warns(DeprecationWarning, match="low is mean_error now"):
        assert moments.low is moments.mean_error


def test_layers_that_step_back():
    H, y = problems.features(1)
    profile = profile_of({"a": H, "b": H + torch.randn_like(H)}, y)
    with pytest.warns(DeprecationWarning, match="steps_back is non_monotone_layers now"):
        assert profile.steps_back("pfc1") == profile.non_monotone_layers("pfc1")
