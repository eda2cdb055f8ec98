"""Small residual networks, one of them trained on the digits, and data that are held out."""

import copy
from functools import cache

import torch
from PIL import Image

import pfc
from pfc.cli import main


@cache
def parts():
    """The digits' training and held-out images."""
    return tuple(pfc.data.load("digits", part) for part in ("fit", "held-out"))


@cache
def _trained(kind):
    fit, _ = parts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "conv":  # whose weights are left as they are drawn
            net = pfc.ConvResNet(1, (8, 8), 10, blocks=(1, 2), width=4, zero_start=False)
            return net.eval().double()
        net = pfc.FCResNet(64, 10, width=24, blocks=4)
        step = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(4):
            for i in torch.randperm(len(fit)).split(64):
                step.zero_grad()
                torch.nn.functional.cross_entropy(net(fit.normalised(i)), fit.labels[i]).backward()
                step.step()
    return net.eval().double()


def trained(kind="dense"):
    """A copy of a network in float64, in evaluation mode, and the profile of its training data."""
    return copy.deepcopy(_trained(kind)), _profile(kind)


@cache
def _profile(kind):
    return pfc.measure(_trained(kind), batches(parts()[0]), progress=False)


def batches(images, size=150):
    """Batches in float64."""
    x, y = images.normalised().double(), images.labels
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


def vit(blocks=3):
    """An image transformer with random weights for 8 x 8 grey images."""
    import transformers

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    config = transformers.ViTConfig(num_hidden_layers=blocks, num_labels=10, **sizes, **image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval()


def resnet():
    """A ResNet of transformers with random weights for grey images, three blocks in the last stage."""
    import transformers

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 3], "layer_type": "basic"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.ResNetConfig(num_channels=1, num_labels=10, **sizes)
        return transformers.ResNetForImageClassification(config).eval()


def hooks_of(net):
    """How many hooks there are."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)


def noise(folder, samples=20):
    """A folder of grey images of the digits' size that are none, in two classes."""
    make = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(samples):
            pixels = torch.randint(17, (8, 8), generator=make, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


def act(run, unknown):
    """Everything that commands keep in a run's folder."""
    held = ["--split", "held-out"]
    main(["prune", str(run), "--eps", "0.9", *held])
    main(["exits", str(run), "--eps", "0.9", *held])
    main(["scores", str(run), "--unknown", str(unknown), *held])
