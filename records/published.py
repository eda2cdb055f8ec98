"""Measure two networks that others trained and published on CIFAR-10: ResNet-20 and ResNet-56.

    python records/published.py FOLDER WEIGHTS

FOLDER holds CIFAR-10 as parquet, WEIGHTS cifar10-resnet20.safetensors and cifar10-resnet56.safetensors:
the state dicts of akamaster/pytorch_resnet_cifar10 (He et al. 2016, Sec. 4.2), BSD licence. All training
and test images, in float32; about 40 minutes on one core.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pages import environment, keep, layers, page, seeds
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import pfc
from pfc.data import Images, Normalisation
from pfc.files import write_json

RECORD = Path(__file__).parent / "published"
METRICS = ("pfc1", "pfc2", "pfc3")
NETWORKS = {"resnet20": 3, "resnet56": 9}  # blocks in each of three stages
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which they were trained: ImageNet's
FLATTENED = 10_000  # images whose maps are measured flattened, beside all images' pooled ones


class Block(nn.Module):
    """relu(x + f(x)); where the shape changes, x is subsampled and padded with empty channels."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if inside == outside else (2, outside - inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        f = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        side = self.more // 2
        return F.relu(f + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side)))


class ResNet(nn.Module):
    """The network of He et al. for CIFAR-10."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(inside, outside), *(Block(outside, outside) for _ in range(blocks - 1)))
            for inside, outside in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    @property
    def taps(self) -> tuple[str, ...]:
        """All blocks, in order."""
        stages = (("layer1", self.layer1), ("layer2", self.layer2), ("layer3", self.layer3))
        return tuple(f"{name}.{b}" for name, stage in stages for b in range(len(stage)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def images(folder: Path, split: str, limit: int | None = None) -> Images:
    """A split, normalised by the constants of the networks' own training."""
    constants = [tuple(255 * value for value in values) for values in (MEAN, STD)]
    own = Normalisation(*constants, "ImageNet's, with which the networks were trained")
    return replace(pfc.data.load(str(folder), split, limit), normalisation=own)


def network(path: Path, blocks: int) -> ResNet:
    """A published network."""
    net = ResNet(blocks)
    net.load_state_dict(load_file(path))
    return net.eval()


def line(name: str, own: pfc.Profile, test: pfc.Profile, flat: pfc.Profile, seconds: float) -> Any:
    """The numbers of a network."""
    depth = own.effective_depth()
    back = [f"{m.upper()} {len(own.non_monotone_layers(m))}" for m in METRICS]
    taus = [f"{own.tau(m):+.3f}" for m in METRICS]
    return {
        "network": name,
        "accuracy train": own.accuracy,
        "accuracy test": test.accuracy,
        "effective depth": "none"
        if depth is None
        else f"{own.layers[depth]} ({depth + 1} of {len(own.layers)})",
        "tau of PFC1, PFC2, PFC3": ", ".join(taus),
        "layers that step back": ", ".join(back),
        "tau, maps flattened": ", ".join(f"{flat.tau(m):+.3f}" for m in METRICS),
        "CPU s": round(seconds),
    }


def main(folder: Path, weights: Path, names: Sequence[str]) -> None:
    """Measure, and write the record."""
    torch.set_num_threads(1)
    train, test, few = (
        images(folder, "train"),
        images(folder, "test"),
        images(folder, "train", FLATTENED),
    )
    found: dict[str, pfc.Profile] = {}
    lines, parts = [], {}
    for name in names:
        net, started = (
            network(weights / f"cifar10-{name}.safetensors", NETWORKS[name]),
            time.process_time(),
        )
        own = pfc.measure(net, train.batches(), pool="mean")
        other = pfc.measure(net, test.batches(), pool="mean", means=own)
        flat = pfc.measure(net, few.batches())
        found |= {f"{name}-train": own, f"{name}-test": other, f"{name}-flattened": flat}
        lines.append(line(name, own, other, flat, time.process_time() - started))
        parts[f"{name}, pooled maps"] = layers({"train": own, "test": other}, METRICS)
        parts[f"{name}, flattened maps of {FLATTENED:,} training images"] = layers(
            {"train": flat}, METRICS
        )
    keep(RECORD, found, {}, METRICS, segments={"resnet56-train"})  # megabytes each
    about = environment("torch", images=[len(train), len(test)], flattened=FLATTENED, mean=MEAN, std=STD)
    write_json(RECORD / "config.json", about)
    words = {name: f"metrics over the blocks, {name.replace('-', ', ')}" for name in found}
    page(RECORD, {"The networks": seeds(lines), **parts}, words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    given = parser.parse_args()
    main(given.folder, given.weights, given.networks)
