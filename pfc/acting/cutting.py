"""A copy of a network without the blocks after a layer: really removed, or identities."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pfc.foreign import attribute
from pfc.layers import module_names


@dataclass(frozen=True)
class Removal:
    """What a network goes without.

    Args:
        name: Of a list of modules, or of one module that becomes the identity.
        start: The first of the list that goes; `None` of one module.
        stop: The first after it that stays.
    """

    name: str
    start: int | None = None
    stop: int = 0

    def apply(self, net: nn.Module) -> None:
        """Remove it in place."""
        if self.start is None:
            net.set_submodule(self.name, nn.Identity())
        else:
            del _list(net.get_submodule(self.name))[self.start : self.stop]

    def line(self) -> str:
        """The same as a line of Python, of a network that is called `net`."""
        if self.start is None:
            return f"net.set_submodule({self.name!r}, torch.nn.Identity())"
        return f"del net.get_submodule({self.name!r})[{self.start}:{self.stop}]"


def removals(net: nn.Module, layers: Sequence[str], kept: int) -> list[Removal]:
    """What goes after the layer of this number, the innermost first; of lists all between."""
    layer = layers[kept]
    away = [name for name in layers[kept + 1 :] if not layer.startswith(f"{name}.")]
    found: dict[str, Removal] = {}
    for name in away:
        parent, _, child = name.rpartition(".")
        outer = _holder(net, name)
        if not isinstance(outer, nn.Sequential | nn.ModuleList):
            found[name] = Removal(name)
            continue
        children = [*outer._modules]  # `named_children` leaves out what is repeated
        prefix = f"{parent}." if parent else ""
        own = layer.removeprefix(prefix).partition(".")[0] if layer.startswith(prefix) else ""
        start = children.index(own) + 1 if own in children else 0
        found[parent] = Removal(parent, start, children.index(child) + 1)
    return sorted(found.values(), key=lambda each: -each.name.count(".") - bool(each.name))


def without(net: nn.Module, gone: Sequence[Removal]) -> nn.Module:
    """A copy of a network without some of its modules, which shares its weights."""
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    made: nn.Module = copy.deepcopy(net, shared)
    for each in gone:
        told = [*_told(made, each)]
        each.apply(made)
        for config, name, value in told:
            setattr(config, name, value)
    return made


def lines(net: nn.Module, gone: Sequence[Removal]) -> list[str]:
    """How the same is done to a network that is called `net`, a line of Python each."""
    told = [(name, value) for each in gone for _, name, value in _told(net, each)]
    return [each.line() for each in gone] + [f"net.config.{name} = {value}" for name, value in told]


def _told(net: nn.Module, gone: Removal) -> Iterator[tuple[Any, str, Any]]:
    """What the configuration of a network of transformers must say, so that it can be loaded again."""
    config = attribute(net, "config")
    if config is None or gone.start is None:
        return
    before = len(_list(net.get_submodule(gone.name)))
    after = before - (gone.stop - gone.start)
    if getattr(config, "num_hidden_layers", None) == before:
        yield config, "num_hidden_layers", after
    depths = getattr(config, "depths", None)
    if isinstance(depths, list) and depths and depths[-1] == before:
        yield config, "depths", [*depths[:-1], after]


def _list(module: nn.Module) -> Any:
    assert isinstance(module, nn.Sequential | nn.ModuleList), type(module)
    return module


def _holder(net: nn.Module, name: str) -> nn.Module:
    """The module that a layer is a child of."""
    if name not in module_names(net):
        raise ValueError(f"layer {name!r} of the profile is none of {type(net).__name__}'s")
    try:
        outer = net.get_submodule(name.rpartition(".")[0])
        known = name.rpartition(".")[2] in outer._modules
    except AttributeError:
        known = False
    if not known:
        raise ValueError(f"layer {name!r} is of a compiled module: prune the network, then compile it")
    return outer
