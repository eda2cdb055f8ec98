"""Measures as one process of a group, and dies in the midst of it if it is told to."""

import os
import signal
import sys

import torch
import torch.distributed as dist

import pfc
import pfc.processes
from tests.models import batched, samples


class Dying:
    """Data at whose third batch the process is killed."""

    def __init__(self, batches, dies):
        self.batches, self.dies = batches, dies

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == 2 and self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def main(rank, port, dying):
    torch.set_num_threads(1)
    pfc.processes.SILENT = 4.0
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = Dying(batched(*samples()), dies=rank == dying)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3))
    pfc.measure(model, data, progress=False)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
