"""Residual networks of the paper: blocks x + f(x), in stages of one shape, with named tap points."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

Form = Literal["relu(Wx)", "W relu(Vx)"]
Normalise = Literal["batch", "none"]
Head = Literal["pool", "flatten"]

Layer = Callable[[int, int], nn.Module]
Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """A residual block x + f(x) without a nonlinearity after the sum, Eq. (3) of arXiv 2405.00985.

    Args:
        width: Features or channels that enter and leave.
        linear: Makes a bias-carrying linear map from and to a width (dense or convolution).
        norm: Makes the normalisation of a width, or `None` for none.
        form: f as `"relu(Wx)"`, one linear map, or as `"W relu(Vx)"`, two.
        zero_start: Start with W = 0, so that the block is the identity at the first epoch.
            It belongs to `"W relu(Vx)"`: relu(Wx) could never leave W = 0.
    """

    def __init__(
        self, width: int, linear: Layer, norm: Norm | None, form: Form, *, zero_start: bool
    ) -> None:
        super().__init__()
        inner: list[nn.Module] = [linear(width, width)]
        if norm is not None:
            inner.append(norm(width))
        inner.append(nn.ReLU())
        if form == "W relu(Vx)":
            inner.append(linear(width, width))
            for parameter in inner[-1].parameters() if zero_start else ():
                nn.init.zeros_(parameter)
        self.f = nn.Sequential(*inner)

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Add the shallow network's answer to its input."""
        out: Tensor = x + self.f(x)
        return out


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inside, outside, kernel_size=3, stride=stride, padding=1)


def _entry(inside: int, outside: int, stride: int, norm: Norm | None) -> nn.Sequential:
    """What makes a stage's shape: a convolution, the blocks' normalisation, relu."""
    norms = [] if norm is None else [norm(outside)]
    return nn.Sequential(_conv(inside, outside, stride), *norms, nn.ReLU())


def one_of(choice: Any, **values: str) -> None:
    """Refuse what is none of the values of a literal type, by its name."""
    for name, value in values.items():
        if value not in get_args(choice):
            raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(choice)))}, got {value!r}")


def check(
    blocks: Sequence[int], width: int, form: str, normalise: str, zero_start: bool, head: str
) -> None:
    """Refuse options of a network that have no meaning."""
    if not blocks or min(blocks) < 1:
        raise ValueError(f"every stage needs at least one block, got blocks={tuple(blocks)}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    one_of(Form, form=form)
    one_of(Normalise, normalise=normalise)
    one_of(Head, head=head)
    if zero_start and form == "relu(Wx)":
        raise ValueError(
            "form='relu(Wx)' needs zero_start=False (--no-zero-start): it would never leave W = 0"
        )


class FCResNet(nn.Module):
    """Fully connected residual network: Table I's network for MNIST (1 stage, width 1000, 10 blocks).

    The stem is relu(W x) to `width` (normalised like the blocks), then come the blocks, then a
    linear classifier that reads the last block's output.

    Args:
        features: Numbers in one input sample; an image is flattened.
        classes: Outputs of the classifier, K.
        width: Dimension of every tapped layer. Table I: 1000.
        blocks: Number of residual blocks. Table I: 10.
        form: f of x + f(x). Ours; the paper names relu(Wx) and a "shallow network".
        normalise: `"batch"` puts batch normalisation before each relu of a block. Ours; the paper
            does not say.
        zero_start: Whether each block starts as the identity. Ours; the paper does not say.

    Raises:
        ValueError: If an option has no meaning.

    Examples:
        >>> net = FCResNet(features=64, classes=10, width=32, blocks=2)
        >>> net.taps
        ('stem', 'blocks.0', 'blocks.1')
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        width: int = 1000,
        blocks: int = 10,
        form: Form = "W relu(Vx)",
        normalise: Normalise = "batch",
        zero_start: bool = True,
    ) -> None:
        super().__init__()
        check([blocks], width, form, normalise, zero_start, "flatten")
        norm = nn.BatchNorm1d if normalise == "batch" else None
        self.stem = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(Block(width, nn.Linear, norm, form, zero_start=zero_start) for _ in range(blocks))
        )
        self.classifier = nn.Linear(width, classes)

    @property
    def stage_taps(self) -> tuple[tuple[str, ...], ...]:
        """Names of the tap points, stage by stage; a stage's layers have one shape."""
        return (("stem", *(f"blocks.{b}" for b in range(len(self.blocks)))),)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all tap points in the order of the forward pass."""
        return self.stage_taps[0]

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "_ K"]:
        """Logits of a batch, or of the samples of it that reach the end (`pfc.EarlyExit`)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x.flatten(1))))
        return logits


class Stage(nn.Module):
    """Blocks of one shape, behind the layer that makes this shape (none in the first stage).

    Args:
        reduce: The strided layer from the stage before, or `None`.
        blocks: The residual blocks.
    """

    def __init__(self, reduce: nn.Module | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.reduce = reduce
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "_ _ _ _"]:
        """Make this stage's shape, then run its blocks."""
        out: Tensor = self.blocks(x if self.reduce is None else self.reduce(x))
        return out


class ConvResNet(nn.Module):
    """Convolutional residual network in stages: Table I's networks for images other than MNIST.

    Each stage after the first begins with a strided convolution that halves the image and doubles
    the channels; within a stage all layers have one shape, which is what the geodesic line needs.

    Args:
        channels: Channels of an input image.
        size: Height and width in pixels; `head="flatten"` needs them.
        classes: Outputs of the classifier, K.
        blocks: Residual blocks in each stage. Table I, e.g. (2, 3, 4) for CIFAR-10.
        width: Channels of the first stage; each later one has twice as many. Ours (ResNet-18's);
            Table I's numbers are not in the text we have.
        form: f of x + f(x) with 3 x 3 convolutions. Ours; the paper says "shallow network".
        normalise: `"batch"` puts batch normalisation before each relu. Ours; the paper does not say.
        zero_start: Whether each block starts as the identity. Ours; the paper does not say.
        head: `"pool"` averages over the image before the classifier, `"flatten"` does not. Ours; the
            paper does not say.

    Raises:
        ValueError: If an option has no meaning.

    Examples:
        >>> ConvResNet(3, (32, 32), 10, blocks=(1, 1), width=8).stage_taps
        (('stem', 'stages.0.blocks.0'), ('stages.1.reduce', 'stages.1.blocks.0'))
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        *,
        blocks: Sequence[int] = (2, 3, 4),
        width: int = 64,
        form: Form = "W relu(Vx)",
        normalise: Normalise = "batch",
        zero_start: bool = True,
        head: Head = "pool",
    ) -> None:
        super().__init__()
        check(blocks, width, form, normalise, zero_start, head)
        norm = nn.BatchNorm2d if normalise == "batch" else None
        widths = [width * 2**s for s in range(len(blocks))]
        self.stem = _entry(channels, width, 1, norm)
        self.stages = nn.Sequential()
        for s, (w, count) in enumerate(zip(widths, blocks, strict=True)):
            reduce = _entry(widths[s - 1], w, 2, norm) if s else None
            parts = [Block(w, _conv, norm, form, zero_start=zero_start) for _ in range(count)]
            self.stages.append(Stage(reduce, parts))
        pool = [nn.AdaptiveAvgPool2d(1)] if head == "pool" else []
        pixels = 1 if head == "pool" else prod(-(-side // 2 ** (len(blocks) - 1)) for side in size)
        self.head = nn.Sequential(*pool, nn.Flatten())
        self.classifier = nn.Linear(widths[-1] * pixels, classes)

    @property
    def stage_taps(self) -> tuple[tuple[str, ...], ...]:
        """Names of the tap points, stage by stage; a stage's layers have one shape."""
        return tuple(
            (
                f"stages.{s}.reduce" if s else "stem",
                *(f"stages.{s}.blocks.{b}" for b in range(len(_blocks_of(stage)))),
            )
            for s, stage in enumerate(self.stages)
        )

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all tap points in the order of the forward pass."""
        return tuple(name for stage in self.stage_taps for name in stage)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "_ K"]:
        """Logits of a batch, or of the samples of it that reach the end (`pfc.EarlyExit`)."""
        logits: Tensor = self.classifier(self.head(self.stages(self.stem(x))))
        return logits


def _blocks_of(stage: nn.Module) -> nn.Sequential:
    """The blocks that a stage has, which may have become fewer."""
    assert isinstance(stage, Stage)
    return stage.blocks
