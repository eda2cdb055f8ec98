"""Where to compute: a device that exists, by name, and on how many of the processor's threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

SYNCHRONOUS_DEVICES = {"cpu"}  # whose numbers can be read without waiting for queued work
SMALL = 2**20  # numbers in an array up to which a second thread costs more than it brings; ours


def device_of(name: str | torch.device | None, model: nn.Module) -> torch.device:
    """The device of that name, or the model's own.

    Args:
        name: Such as `"cpu"`, `"cuda"` or `"cuda:1"`; `None` for the place of the model's first tensor.
        model: The network.

    Returns:
        The device.

    Raises:
        ValueError: If there is no such device here.
    """
    if name is None:
        places = [t.device for t in (*model.parameters(), *model.buffers())]
        real = [place for place in places if place.type != "meta"]
        if places and not real:
            raise ValueError(
                "the model's weights are on the device 'meta', which holds no numbers: load them "
                "(model.to_empty(device='cpu'), then load_state_dict), or name the device they move to"
            )
        return real[0] if real else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {str(name)!r} here: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("device 'meta' holds no numbers; name one such as 'cpu' or 'cuda'")
    return device


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given, so that a clock can tell how long that took."""
    if device.type not in SYNCHRONOUS_DEVICES:
        torch.get_device_module(device).synchronize(device)


@contextmanager
def one_thread(size: int = 0) -> Iterator[None]:
    """Compute on one thread while the block runs, if arrays are small: two would wait for each other.

    Measured on two busy processors: a solve of 5 ms takes 70 ms on two threads.

    Args:
        size: Numbers in the arrays that are worked on; above `SMALL` nothing is changed.

    Yields:
        Nothing.
    """
    if size > SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _pools() -> "ThreadpoolController":
    """The thread pools of numpy and scipy, which a look at all loaded libraries finds."""
    import scipy.optimize  # noqa: F401  # brings its own
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
