"""Watch collapse in a plain training loop: the digits, the numbers printed and kept.

`python examples/plain.py` takes seconds; `pfc figures runs/plain` draws what it kept.
"""

import argparse

import torch
from torch import nn

import pfc


def main() -> None:
    """Train, measuring every second epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/plain")
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    torch.manual_seed(0)
    digits = pfc.data.load("digits")
    net = pfc.FCResNet(features=64, classes=10, width=64, blocks=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    recorder = pfc.Recorder(
        digits.batches(),
        every=2,
        folder=given.out,
        scalars="blocks.*",
        log=lambda numbers, epoch: print(f"epoch {epoch}: PFC1 {numbers['pfc/pfc1']:.4f}"),
    )
    recorder(net, 0)
    for epoch in range(1, given.epochs + 1):
        order = torch.randperm(len(digits)).split(64)
        for rows in order:
            optimizer.zero_grad()
            logits = net(digits.normalised(rows))
            nn.functional.cross_entropy(logits, digits.labels[rows]).backward()
            optimizer.step()
        recorder(net, epoch)
    print(pfc.load(given.out).profiles[max(recorder.profiles)].verdict())


if __name__ == "__main__":
    main()
