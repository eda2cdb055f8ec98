"""What makes a model's inputs of images or texts: its own preprocessing, in one form."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pfc.data.columns import Content
from pfc.foreign import attribute

Inputs = Tensor | dict[str, Tensor]
UNKNOWN = 10**9  # what transformers calls the length of a tokenizer that knows none is far beyond; ours


@runtime_checkable
class Preprocessing(Protocol):
    """Images or texts in, the inputs of one batch out."""

    content: ClassVar[Content]

    @property
    def name(self) -> str:
        """What it is called in a message."""

    def __call__(self, contents: Iterable[Any]) -> Inputs:
        """The inputs of a batch, whose contents are taken one by one."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A function of one image that gives a tensor, as torchvision's and timm's.

    Args:
        of_image: Takes a Pillow image.
    """

    of_image: Callable[[Any], Any]
    content: ClassVar[Content] = "image"

    @property
    def name(self) -> str:
        """The function's."""
        return _name_of(self.of_image)

    def __call__(self, contents: Iterable[Any]) -> Tensor:
        """A tensor of as many images, B x C x H x W."""
        return _of_one_shape([self._one(image) for image in contents], torch.stack, self.name)

    def _one(self, image: Any) -> Tensor:
        found = self.of_image(image)
        if not isinstance(found, Tensor):
            raise ValueError(f"{self.name} gave {type(found).__name__} of an image, not a tensor")
        return found


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """An image processor of transformers, called with one image at a time.

    Args:
        processor: Gives a batch of one image as named tensors.
    """

    processor: Callable[..., Mapping[str, Any]]
    content: ClassVar[Content] = "image"

    @property
    def name(self) -> str:
        """The processor's."""
        return _name_of(self.processor)

    def __call__(self, contents: Iterable[Any]) -> dict[str, Tensor]:
        """Named tensors of as many images, such as `pixel_values`."""
        each = [dict(self.processor(images=image, return_tensors="pt")) for image in contents]
        return {key: _of_one_shape([one[key] for one in each], torch.cat, self.name) for key in each[0]}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of transformers; a batch is padded to its longest text, and has an attention mask.

    Args:
        tokenizer: Gives named tensors of texts.
        most: Tokens at which a text is cut; `None` for no limit.
    """

    tokenizer: Callable[..., Mapping[str, Any]]
    most: int | None
    content: ClassVar[Content] = "text"

    @property
    def name(self) -> str:
        """The tokenizer's."""
        return _name_of(self.tokenizer)

    def __call__(self, contents: Iterable[Any]) -> dict[str, Tensor]:
        """Named tensors B x T of as many texts, `input_ids` and `attention_mask` among them."""
        cut = {"truncation": True, "max_length": self.most} if self.most else {}
        found = self.tokenizer(
            list(contents), padding=True, return_attention_mask=True, return_tensors="pt", **cut
        )
        return dict(found)


def longest(tokenizer: Any, model: nn.Module) -> int | None:
    """Tokens that a model of texts takes at most, as far as it and its tokenizer know."""
    config = attribute(model, "config")
    places = attribute(config, "max_position_embeddings")
    if isinstance(places, int):
        places -= _unused_places(model)
    known = (attribute(tokenizer, "model_max_length"), places)
    return min((most for most in known if isinstance(most, int) and 0 < most < UNKNOWN), default=None)


def _unused_places(model: nn.Module) -> int:
    """Positions that no token has: RoBERTa and its kin count from the one after the padding's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = attribute(module, "padding_idx")
            return 0 if padding is None else padding + 1
    return 0


def _of_one_shape(found: list[Tensor], join: Callable[[list[Tensor]], Tensor], name: str) -> Tensor:
    """The tensors of a batch as one."""
    for tensor in found:
        if tensor.shape != found[0].shape:
            raise ValueError(
                f"{name} gives tensors of several shapes, {(*found[0].shape,)} and {(*tensor.shape,)}, "
                "which make no batch: take batches of 1"
            )
    return join(found)


def _name_of(function: Any) -> str:
    return str(attribute(function, "__name__") or type(function).__name__)
