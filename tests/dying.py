"""Measures or trains as one process of a group, and dies in the midst of it if it is told to."""

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


def measure(dies):
    """Measure as one of the processes."""
    data = Dying(batched(*samples()), dies=dies)
    torch.manual_seed(0)
    pfc.measure(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)), data, progress=False)


def train(dies):
    """Train as one of them, and die in the second epoch."""
    images = pfc.data.load("digits", limit=100)
    recipe = pfc.Recipe(name="dying", data="digits", width=8, blocks=(1,), epochs=1000, batch_size=50)
    net = recipe.build(images, 0)
    if dies:
        net.register_forward_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if net.training else None
        )
    list(pfc.train(net, images, recipe, progress=False))


def main(rank, port, dying, training):
    torch.set_num_threads(1)
    pfc.processes.SILENT = 4.0
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    (train if training else measure)(rank == dying)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
