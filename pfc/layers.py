"""Choose layers: by name, by glob, as modules, or those that nets of known form have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from pfc.foreign import attribute
from pfc.schema import some
from pfc.taps import unwrapped

Layers = str | nn.Module | Sequence[str | nn.Module] | None

CLASSIFIER_INPUT = "classifier.input"

# Residual blocks of nets in wide use, by the name of their class: torchvision, timm, transformers.
KNOWN_BLOCKS = frozenset({
    *("BasicBlock", "Bottleneck", "CNBlock", "EncoderBlock", "InvertedResidual", "MBConv"),
    *("Block", "ConvNeXtBlock", "ResNetBasicLayer", "ResNetBottleNeckLayer", "ViTLayer"),
    *("ConvNextLayer", "ConvNextV2Layer", "BeitLayer", "DeiTLayer", "Dinov2Layer", "ViTMAELayer"),
    *("SwinTransformerBlock", "SwinLayer", "TransformerEncoderLayer", "TransformerDecoderLayer"),
    *("BertLayer", "RobertaLayer", "XLMRobertaLayer", "ElectraLayer", "MPNetLayer", "TransformerBlock"),
    *(
        "DebertaLayer",
        "DebertaV2Layer",
        "ModernBertEncoderLayer",
        "BartEncoderLayer",
        "BartDecoderLayer",
    ),
    *("CLIPEncoderLayer", "SiglipEncoderLayer", "T5Block", "GPT2Block", "GPTNeoBlock", "GPTNeoXLayer"),
    *("GPTJBlock", "OPTDecoderLayer", "BloomBlock", "FalconDecoderLayer", "LlamaDecoderLayer"),
    *("MistralDecoderLayer", "MixtralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"),
    *("GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer", "PhiDecoderLayer"),
    *("Phi3DecoderLayer", "CohereDecoderLayer", "OlmoDecoderLayer", "Olmo2DecoderLayer"),
    *("StableLmDecoderLayer", "Starcoder2DecoderLayer", "GraniteDecoderLayer", "SmolLM3DecoderLayer"),
})


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """Every module below the unwrapped model by its name, without the wrappers' own parts."""
    names = {}
    for name, module in unwrapped(model).named_modules():
        clean = ".".join(part for part in name.split(".") if part != "_orig_mod")
        if clean:
            names[clean] = module  # of a compiled child the inner module: its hooks run eagerly
    return names


def choose(model: nn.Module, layers: Layers) -> tuple[dict[str, nn.Module], bool]:
    """Modules to be tapped, and whether the classifier's input is asked for.

    Args:
        model: The network, wrapped or not.
        layers: Names, globs such as `"blocks.*"`, or modules of the network; `None` takes the first of
            the `defaults`.

    Returns:
        Names and modules in the order of their definition; true if the classifier's input is wanted.

    Raises:
        ValueError: If a name, glob or module matches nothing, or a module takes no hooks.
    """
    refuse_scripted(unwrapped(model))
    if layers is None:
        return dict(defaults(model)[0].modules), True
    names, wanted = module_names(model), _listed(layers)
    chosen: set[str] = set()
    for layer in wanted:
        if not isinstance(layer, str) or layer != CLASSIFIER_INPUT:
            chosen.update(_matches(layer, names))
    if not wanted:
        raise ValueError("layers is empty; name at least one layer, or leave it out")
    for name in chosen:
        refuse_scripted(names[name], name)
    return {n: m for n, m in names.items() if n in chosen}, wants_input(layers)


def wants_input(layers: Layers) -> bool:
    """Whether the classifier's input is asked for."""
    return layers is None or CLASSIFIER_INPUT in [
        each for each in _listed(layers) if isinstance(each, str)
    ]


def by_name(model: nn.Module, layers: Layers) -> set[str]:
    """Layers that are asked for one by one, not by a glob."""
    names = module_names(model)
    wanted = [each for each in _listed(layers) if isinstance(each, nn.Module) or each in names]
    return {name for layer in wanted for name in _matches(layer, names)}


def refuse_scripted(module: nn.Module, name: str | None = None) -> None:
    """Refuse a module of which torch lets nobody see the output."""
    if isinstance(module, torch.jit.ScriptModule):
        what = "the model" if name is None else f"layer {name!r}"
        raise ValueError(f"{what} is a ScriptModule, which takes no hooks: measure the original model")


def _listed(layers: Layers) -> list[str | nn.Module]:
    return [layers] if isinstance(layers, str | nn.Module) else [*(layers or ())]


def _matches(layer: str | nn.Module, names: Mapping[str, nn.Module]) -> list[str]:
    if isinstance(layer, nn.Module):
        inner = unwrapped(layer)
        found = [name for name, module in names.items() if module is inner]
        if not found:
            raise ValueError(f"module {type(layer).__name__} is not a part of the model")
        return found
    if layer in names:
        return [layer]
    found = [name for name in names if fnmatchcase(name, layer) and _same_depth(name, layer)]
    if not found:
        raise ValueError(f"no layer matches {layer!r}; the model has {some(names, 40)}")
    return found


def _same_depth(name: str, glob: str) -> bool:
    """A star stands for one part of a name, as in a path: `blocks.*` is not `blocks.0.f`."""
    return "**" in glob or name.count(".") == glob.count(".")


@dataclass(frozen=True, eq=False)
class Choice:
    """Layers that may be measured where none is named.

    Args:
        how: How they were chosen, in words.
        modules: The layers by name.
        chain: The lists of modules of one class among them, each of whose modules must read what the
            one before gives.
        wraps: The one of them that may hold the network itself, which the next choice opens.
    """

    how: str
    modules: Mapping[str, nn.Module]
    chain: str = ""
    wraps: str | None = None


def defaults(model: nn.Module) -> list[Choice]:
    """Choices in the order of preference, of which a look at the model takes the first that fits.

    The net's own `taps`, else the residual blocks of known nets; else the outermost lists of modules of
    one class that have children of their own, and the direct children, each wrapper of a network opened.

    Args:
        model: The network, wrapped or not.

    Returns:
        One choice or more.

    Raises:
        ValueError: If the model has no modules.
    """
    net, names = unwrapped(model), module_names(model)
    own = attribute(net, "taps")
    if isinstance(own, tuple) and own and all(name in names for name in own):
        return [Choice("the net's own tap points", {name: names[name] for name in own})]
    blocks = {n: m for n, m in names.items() if type(m).__name__ in KNOWN_BLOCKS}
    if outer := _outermost(blocks):
        return [Choice("residual blocks", outer)]
    if not names:
        raise ValueError(f"the model {type(net).__name__} has no modules to tap")
    return [*_lists(names), *_children(names)]


def _outermost(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {n: m for n, m in modules.items() if not any(n.startswith(f"{b}.") for b in modules)}


def _lists(names: Mapping[str, nn.Module]) -> Iterator[Choice]:
    """The outermost lists of modules, each by itself."""
    lists = {name: module for name, module in names.items() if _is_list(module)}
    for name, module in _outermost(lists).items():
        members = {f"{name}.{child}": part for child, part in module.named_children()}
        yield Choice(f"modules of {name}", members, chain=name)


def _is_list(module: nn.Module) -> bool:
    parts = [*module.children()]
    alike = len({type(part) for part in parts}) == 1 and all([*part.children()] for part in parts)
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(parts) > 1 and alike


def _children(names: Mapping[str, nn.Module]) -> Iterator[Choice]:
    """The direct children, then with those of the only one that has children in its place, and so on."""
    level = {n: m for n, m in names.items() if "." not in n}
    while True:
        inner = _wrapped(level)
        yield Choice("direct children", level, wraps=inner)
        if inner is None:
            return
        opened = {n: m for n, m in names.items() if n.rpartition(".")[0] == inner}
        level = {
            name: module
            for each, part in level.items()
            for name, module in (opened if each == inner else {each: part}).items()
        }


def _wrapped(level: Mapping[str, nn.Module]) -> str | None:
    """The only module that has children of its own, and parameters where there are others."""
    found = [
        name
        for name, module in level.items()
        if [*module.children()]
        and not isinstance(module, torch.jit.ScriptModule)
        and (len(level) == 1 or any(True for _ in module.parameters()))
    ]
    return found[0] if len(found) == 1 else None
