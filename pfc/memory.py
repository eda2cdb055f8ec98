"""How much memory is free, on the host or a device, by what the system and its limits say."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

MEMORY = "/proc/meminfo"  # of Linux
GROUP = "/proc/self/cgroup"  # of Linux: the groups whose limits hold for this process
LIMITS = {  # by kind of group: the folder of all, a limit, what is held, and which of that are files
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        *("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        *("memory.usage_in_bytes", "total_inactive_file"),
    ),
}


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
