"""Tests that need a graphics processor are left out where there is none; slow ones have more time."""

import os

import pytest
import torch

from pfc import fused
from pfc.fused import processor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its programs run without a device


@pytest.fixture(scope="module", params=["compiled", "torch"])
def engine(request):
    """Compiled loops, and the slow twin in torch that serves where they do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "LEAST", 0)
        if request.param == "torch":
            patch.setattr(processor, "loops", dict)
        elif not processor.loops():
            pytest.skip("no numba here")
        yield request.param


def pytest_collection_modifyitems(items):
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(3600))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
