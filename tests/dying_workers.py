"""Measures with loaders whose workers die in different ways, and prints what is said of each."""

import gc
import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pfc

HOW = {
    "exits": lambda: sys.exit(3),
    "ends": sys.exit,
    "ends at once": lambda: os._exit(4),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Fatal(Dataset):
    """Samples, at one of which the process dies."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i == 25:
            self.how()
        return torch.ones(8), i % 4


def main():
    """One line for each way, of one worker or two in turn."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for workers, (way, how) in zip((1, 2, 1, 2, 2), [*HOW.items(), *HOW.items()], strict=False):
        said = ""
        gc.collect()  # of the loader before: a worker that finalises it waits for threads it has not
        try:
            pfc.measure(net, DataLoader(Fatal(how), 10, num_workers=workers), progress=False)
        except ValueError as error:
            said = str(error)
        print(f"{way}, {workers}: {said}", flush=True)


if __name__ == "__main__":
    main()
