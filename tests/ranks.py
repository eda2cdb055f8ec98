"""Three processes of one gloo group that wait for work: started once, as starting takes seconds."""

import multiprocessing as mp
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SIZE = 3


class Ranks:
    """Processes that call a function of a test module, each with its rank's group."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context, port = mp.get_context("forkserver"), free_port()
        context.set_forkserver_preload(["tests.test_processes"])  # imports once for all of them
        self.pipes: list[Connection] = []
        self.workers = []
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            worker.start()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(group, rank, *args)` in each of the first processes: results, or errors as text."""
        for pipe in self.pipes[:size]:
            pipe.send_bytes(pickle.dumps((size, function, args)))
        return [pickle.loads(pipe.recv_bytes()) for pipe in self.pipes[:size]]

    def close(self) -> None:
        """Let them go."""
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps(None))
        for worker in self.workers:
            worker.join(20)
            worker.kill()


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _serve(rank: int, port: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=SIZE)
    groups = {size: dist.new_group(list(range(size))) for size in range(1, SIZE)} | {SIZE: None}
    while (task := pickle.loads(pipe.recv_bytes())) is not None:
        size, function, args = task
        try:
            answer = function(groups[size], rank, *args)
        except Exception as error:
            answer = error
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
