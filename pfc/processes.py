"""Processes that work together: sums over all, and a failure of one that stops all and hangs none.

A process tells the others through the store of its process group that it lives and what stopped it. Who
waits looks there, so that nobody waits for a process that died, raised, or never came.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BEAT = 2.0  # seconds between signs of life; ours
SILENT = 30.0  # seconds without one after which a process is taken for dead; ours
LATE = 50.0  # seconds that a process may come later than another to what all do; ours
LOOK = 1.0  # seconds between looks at the others while work goes on; ours
LINGER = 5.0  # seconds that the process with the store stays for others to hear why it stops; ours

GIVEN_UP = "given up"

_calls: Counter[str] = Counter()  # how often each group met in this process


class Processes:
    """This process alone; the base of `Group`, whose methods mean the same among many.

    Args:
        rank: This process's number.
        size: Number of processes.
    """

    group: Any = False  # what `measure` and others take as theirs

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.exchanged = 0  # bytes of the tensors that this process put into exchanges

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def use_device(self, device: torch.device) -> None:
        """Set the device used for collectives."""

    def check_peers(self) -> None:
        """Raise what stopped another process, if anything did."""

    def exchange(self, where: str, value: Any = None) -> list[Any]:
        """Wait for all; the value of each, by rank."""
        return [value]

    def agree(self, **values: Any) -> None:
        """Refuse values, by their names, that differ between processes."""
        each = self.exchange("agreed", values)
        for rank, theirs in enumerate(each):
            for name, value in theirs.items():
                if not alike(value, each[0][name]):
                    raise ValueError(
                        f"process {rank} has {name}={value!r}, process 0 {each[0][name]!r}: every "
                        "process needs the same"
                    )

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """What the first process holds, in place."""
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all, by rank; their lengths may differ."""
        return [x]

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Say what became of the other processes where an exchange with them fails in the block."""
        yield


class ProcessError(ConnectionError):
    """Another process failed, died, or never came."""


ALONE = Processes()


class Group(Processes):
    """One of the processes of a `torch.distributed` group.

    Args:
        group: The group, or `None` for all processes.
    """

    def __init__(self, group: Any) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.group = group
        self._device = torch.device("cpu")
        self._store = self._joined()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._looked = time.monotonic()
        self._stopped = False
        self._over = threading.Event()

    def _joined(self) -> "Store":
        """The store of this call, the same in all processes; calls that were given up are skipped."""
        from torch.distributed import distributed_c10d

        ranks = ",".join(map(str, dist.get_process_group_ranks(self.group or dist.group.WORLD)))
        store = distributed_c10d.PrefixStore(f"pfc/{ranks}", distributed_c10d._get_default_store())
        call = _calls[ranks] + 1
        while (own := distributed_c10d.PrefixStore(str(call), store)).check([GIVEN_UP]):
            call += 1
        _calls[ranks] = call
        return own

    def use_device(self, device: torch.device) -> None:
        """Set the device used for collectives."""
        self._device = _meeting_place(self.group, device)

    def begin(self) -> None:
        """Give signs of life from now on."""
        threading.Thread(target=self._beat, daemon=True).start()

    def end(self, error: BaseException | None) -> None:
        """Give no more signs of life, and tell the others what stopped this process, if anything did."""
        self._over.set()
        with suppress(RuntimeError):  # the store is gone
            if isinstance(error, GeneratorExit):
                self._store.set("stopped", self._words("it left the loop over the epochs"))
            elif error is not None and not self._stopped:
                self._tell(error)
            self._store.set(f"over/{self.rank}", "")

    def _words(self, what: str, *, bad_input: bool = False) -> str:
        return json.dumps({"rank": self.rank, "bad input": bad_input, "what": what})

    def _tell(self, error: BaseException) -> None:
        """Say what stopped this process, with time for the others to hear: the store may go with it."""
        kind = "" if isinstance(error, ValueError | ProcessError) else f"{type(error).__name__}: "
        what = f"{kind}{error}".removesuffix(": ") or type(error).__name__
        self._store.set("stopped", self._words(what, bad_input=isinstance(error, ValueError)))
        keys = [f"over/{rank}" for rank in range(self.size) if rank != self.rank]
        until = time.monotonic() + LINGER
        while dist.get_rank() == 0 and time.monotonic() < until and not self._store.check(keys):
            time.sleep(0.05)

    def _beat(self) -> None:
        beats = 0
        with suppress(RuntimeError):  # the store is gone, and so is its process
            while True:
                beats += 1
                self._store.set(f"alive/{self.rank}", str(beats))
                if self._over.wait(BEAT):
                    return

    def check_peers(self) -> None:
        """Raise what stopped another process, if anything did; asks only now and then."""
        if time.monotonic() - self._looked > LOOK:
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        with self._asking():
            if self._store.check(["stopped"]):
                self._raise(json.loads(self._store.get("stopped")))
            if self._store.check([GIVEN_UP]):
                who = self._store.get(GIVEN_UP).decode()
                self._stop(f"process {who} of {self.size} waited {LATE:.0f} s for others and gave up")
            for rank in range(self.size):
                self._hear(rank)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The store may be gone."""
        try:
            yield
        except RuntimeError as error:
            if self._stopped:
                raise
            self._stop(f"the store of the process group is gone, and its process with it: {error}")

    def _raise(self, stop: dict[str, Any]) -> None:
        kind = ValueError if stop["bad input"] else ProcessError
        self._stop(f"process {stop['rank']} of {self.size} stopped: {stop['what']}", kind)

    def _hear(self, rank: int) -> None:
        """Notice when a process that gave signs of life gives none any more."""
        key = f"alive/{rank}"
        if rank == self.rank or not self._store.check([key]):
            return
        beat, now = self._store.get(key), time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != beat:
            self._seen[rank] = (beat, now)
        elif now - self._seen[rank][1] > SILENT:
            self._stop(f"process {rank} of {self.size} gave no sign of life for {SILENT:.0f} s")

    def _stop(self, message: str, kind: type[Exception] = ProcessError) -> NoReturn:
        self._stopped = True
        raise kind(message) from None

    def exchange(self, where: str, value: Any = None) -> list[Any]:
        """Wait for all processes at a point of that name; the value of each, by rank."""
        keys = [f"{where}/{rank}" for rank in range(self.size)]
        came, pauses = time.monotonic(), _pauses()
        with self._asking():
            self._store.set(keys[self.rank], json.dumps(value))
            while not self._store.check(keys):
                self.check_peers()
                if time.monotonic() - came > LATE:
                    self._miss()
                time.sleep(next(pauses))
            return [json.loads(self._store.get(key)) for key in keys]

    def _miss(self) -> None:
        """Refuse to wait longer for a process that did not even begin; one that works may take long."""
        for rank in range(self.size):
            if rank != self.rank and not self._store.check([f"alive/{rank}"]):
                self._store.set(GIVEN_UP, str(self.rank))
                self._stop(
                    f"process {rank} of {self.size} did not come to this call within {LATE:.0f} s: "
                    "every process of the group must make this call, each with its own part of the "
                    "data; for one process alone pass group=False"
                )

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        return self._in_place(x, lambda moved: dist.all_reduce(moved, group=self.group, async_op=True))

    def broadcast(self, x: Tensor) -> Tensor:
        """What the first process holds, in place."""
        source = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        return self._in_place(
            x, lambda moved: dist.broadcast(moved, source, group=self.group, async_op=True)
        )

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all, by rank; their lengths may differ."""
        sizes = self.all_reduce(
            torch.eye(self.size, dtype=torch.int64, device="cpu")[self.rank] * len(x)
        ).tolist()
        room = x.new_zeros(max(sizes), *x.shape[1:])
        room[: len(x)] = x
        moved = room.to(self._device)
        self.exchanged += moved.nbytes
        parts = [torch.empty_like(moved) for _ in sizes]
        self._finish(dist.all_gather(parts, moved, group=self.group, async_op=True))
        return [part[:size].to(x.device) for part, size in zip(parts, sizes, strict=True)]

    def _in_place(self, x: Tensor, work: Any) -> Tensor:
        """Exchange a tensor where the group does, in its memory's order, whatever its strides are."""
        moved = x.to(self._device).contiguous()
        self.exchanged += moved.nbytes
        self._finish(work(moved))
        return x if moved is x else x.copy_(moved)

    def _finish(self, work: Any) -> None:
        """Wait for a collective, but not for a process that is gone."""
        for pause in _pauses():
            if work.is_completed():
                break
            self.check_peers()
            time.sleep(pause)
        with self.exchanging():
            work.wait()

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Say what became of the other processes where an exchange with them fails in the block."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            self._look()
            said = str(error).splitlines()[0].rpartition("] ")[2]
            self._stop(f"another process is gone: {said.partition('.')[0]}")


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same; numbers to rounding, which machines do apart."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def _pauses() -> Iterator[float]:
    """Short ones first."""
    pause = 1e-4
    while True:
        yield pause
        pause = min(1.1 * pause, 0.1)


def _meeting_place(group: Any, device: torch.device) -> torch.device:
    """Where tensors lie that a group exchanges: its backend decides."""
    if str(dist.get_backend(group)) != "nccl":
        return torch.device("cpu")
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


@contextmanager
def together(group: Any) -> Iterator[Processes]:
    """The processes that share the work of a block; what stops one of them stops them all."""
    if not _many(group):
        yield Processes()
        return
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in the group that it was given")
    ranks = Group(group)
    ranks.begin()
    try:
        yield ranks
    except BaseException as error:
        ranks.end(error)
        raise
    ranks.end(None)


def _many(group: Any) -> bool:
    if group is False or not dist.is_available() or not dist.is_initialized():
        return False
    return dist.get_world_size(group) != 1


@contextmanager
def launched(device: str | None) -> Iterator[tuple[Processes, str | None]]:
    """Join the processes that `torchrun` started, if it did, for the length of the block."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2 or not dist.is_available():
        yield Processes(), device
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available() and device in {None, "cuda"}
    if gpus:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
