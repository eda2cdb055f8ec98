"""What all tests have: types checked at first, no graphics processor asked for that is not there."""

import os
import signal

import pytest
import torch
from jaxtyping import config

from pfc import fused
from pfc.fused import processor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its programs run without a device


CHECKED = 0.1  # processor seconds of a test in which all calls are checked, which takes thrice the time


@pytest.fixture(autouse=True)
def checked():
    """Check the types and shapes of every call, until a test has taken so long."""
    config.update("jaxtyping_disable", False)
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGVTALRM, lambda *_: config.update("jaxtyping_disable", True))
    signal.setitimer(signal.ITIMER_VIRTUAL, CHECKED)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


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
