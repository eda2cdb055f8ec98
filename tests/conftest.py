"""Tests that need a graphics processor are left out where there is none; slow ones have more time."""

import pytest
import torch

from pfc import fused


@pytest.fixture(scope="module", params=["compiled", "torch"])
def engine(request):
    """Compiled loops, and the slow twin in torch that serves where they do not."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(fused, "loops", dict)
        elif not fused.loops():
            pytest.skip("no numba here")
        yield request.param


def pytest_collection_modifyitems(items):
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(3600))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
