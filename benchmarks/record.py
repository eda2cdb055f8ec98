"""Time alternatives side by side in one process, on one thread, and keep the medians as small JSON."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from threadpoolctl import threadpool_limits

# What glibc's allocator is told: to keep all memory; or that what is freed goes back at once, so that a
# high-water mark is what was alive and no heap's habit.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
FRANK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def one_thread() -> None:
    """Compute on one thread, numpy and scipy too; call it before anything else."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def keep_memory() -> None:
    """Start again with an allocator that keeps what it has, where that is glibc's.

    Otherwise page faults are a fifth of a large forward pass, more or fewer by chance from run to run.
    """
    if platform.libc_ver()[0] == "glibc" and not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEPT})


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of the whole process while `run` runs."""
    started = time.process_time()
    run()
    return time.process_time() - started


def side_by_side(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each alternative, taken in turn so that a busy moment meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(cpu_seconds(run))
    return seconds


def ratios(seconds: Mapping[str, list[float]], floor: str) -> dict[str, float]:
    """Median over the repeats of each alternative's time over the floor's of the same repeat."""
    return {
        name: round(median(t / f for t, f in zip(times, seconds[floor], strict=True)), 3)
        for name, times in seconds.items()
        if name != floor
    }


def keep(script: str, record: Mapping[str, Any]) -> None:
    """Write the record with its environment beside the script, and print it.

    What was kept of other processors stays, the last record of each, as `elsewhere`.
    """
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "date": date.today().isoformat(),
    }
    now, others = {**record, "environment": environment}, _by_processor(script)
    others.pop(environment["processor"], None)
    text = json.dumps(now | ({"elsewhere": [*others.values()]} if others else {}), indent=1) + "\n"
    Path(script).with_suffix(".json").write_text(text, encoding="utf-8")
    print(json.dumps(now, indent=1))


def kept(script: str) -> dict[str, Any]:
    """What is on record of this processor; empty if nothing is."""
    return _by_processor(script).get(_processor(), {})


def _by_processor(script: str) -> dict[str, dict[str, Any]]:
    """What is on record, by processor."""
    path = Path(script).with_suffix(".json")
    last = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = [*last.pop("elsewhere", ()), *([last] if last else ())]
    return {each["environment"]["processor"]: each for each in known}


def _processor() -> str:
    """The processor's name, as Linux tells it; ratios differ between processors."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = dict(line.split(":", 1) for line in lines if ":" in line)
        found = {name.strip(): value.strip() for name, value in about.items()}
        names = ("model name", "cpu family", "model")
        return ", ".join(
            f"{n} {found[n]}" if n != "model name" else found[n] for n in names if n in found
        )
    return platform.processor() or platform.machine()


def peak_memory(run: Callable[[], object]) -> float | None:
    """MB by which the process grew at most while `run` ran; `None` where Linux does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return round((_status("VmHWM") - before) / 1e3, 1)
    except OSError:
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
