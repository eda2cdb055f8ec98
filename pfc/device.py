"""Where to compute: a device that exists, by name, and on how many of the processor's threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

SYNCHRONOUS_DEVICES = {"cpu"}  # whose numbers can be read without waiting for queued work
MEMORY = "/proc/meminfo"  # of Linux
GROUP = "/proc/self/cgroup"  # of Linux: the groups whose limits hold for this process
LIMITS = {  # by kind of group: the folder of all, a limit, what is held, and which of that are files
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        *("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        *("memory.usage_in_bytes", "total_inactive_file"),
    ),
}
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


def free_memory(device: torch.device) -> int | None:
    """How much memory a device has free.

    Args:
        device: The device; `"cpu"` for the host's memory.

    Returns:
        Bytes; of a host that does not tell what is free, all it has, and `None` where that is not told
        either. Linux counts as free what it would take back from files that it keeps, and no more than
        the limit of a container leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, ValueError, KeyError):
        return min([1024 * _numbers(MEMORY)["MemAvailable:"], *_left()])
    with suppress(AttributeError, OSError, ValueError):  # Windows has no such function
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left() -> Iterator[int]:
    """What the limits of containers and of batch systems leave free."""
    with suppress(OSError, ValueError):
        for line in Path(GROUP).read_text(encoding="ascii").splitlines():
            _, kind, group = line.split(":", 2)
            if kind in LIMITS:
                root, *names = LIMITS[kind]
                for part in (PurePosixPath(group), *PurePosixPath(group).parents):
                    yield from _left_by(Path(root, *part.parts[1:]), *names)


def _left_by(folder: Path, limit: str, used: str, files: str) -> Iterator[int]:
    """What the limit of one group leaves free, if it has one."""
    with suppress(OSError, ValueError, KeyError):  # without one the file is missing, or says "max"
        most, held = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        yield max(0, most - held + _numbers(folder / "memory.stat")[files])


def _numbers(path: str | Path) -> dict[str, int]:
    """The first number of each line of a file, by its first word."""
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


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
