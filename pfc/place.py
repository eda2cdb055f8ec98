"""Where to compute: a device that exists, by name."""

import torch
from torch import nn


def device_of(name: str | torch.device | None, model: nn.Module) -> torch.device:
    """The device of that name, or the model's own.

    Args:
        name: Such as `"cpu"`, `"cuda"` or `"cuda:1"`; `None` for the place of the model's first tensor.
        model: The network.

    Returns:
        The device.

    Raises:
        ValueError: If there is no such device here.
    """
    if name is None:
        tensors = (*model.parameters(), *model.buffers())
        return tensors[0].device if tensors else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {str(name)!r} here: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("device 'meta' holds no numbers; name one such as 'cpu' or 'cuda'")
    return device
