"""A small training step on the CPU without what Python does in it: torch's operations, one by one."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from pfc.nets import Block, ConvResNet, FCResNet, Stage
from pfc.training.speed import WARM, is_plain

LONG = 1_000  # steps of a size that are worth a trace, which takes as long as half as many; measured
ATEN = torch.ops.aten

PARTS = {  # that do the same in each step
    *(FCResNet, ConvResNet, Stage, Block, nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Flatten),
}

Replay = Callable[[Tensor], Tensor]


class TracedSteps:
    """A training step on the CPU, traced once for each size of a batch, then repeated to the same bits.

    A step of a small network spends much of its time on modules, on autograd's graph and on the
    optimizer's lists. What Python does in a step is done while it is traced alone, so that this is for
    networks of ours as they are built, until they are changed. It leaves no gradients behind. The
    learning rate must be a tensor, or is a constant of the trace.

    Args:
        step: Takes a batch, leaves the network a step further, and gives a tensor.
        sizes: Of how many batches to come each size is.
    """

    def __init__(self, step: Replay, sizes: Mapping[int, int]) -> None:
        self.step = step
        self.often = {size for size, number in sizes.items() if number >= LONG}
        self.seen: Counter[int] = Counter()
        self.kept: dict[int, Replay] = {}

    @staticmethod
    def may(net: nn.Module, device: torch.device) -> bool:
        """Whether all that a step does is known: a network of ours, on the CPU, not listened to."""
        if device.type != "cpu" or not is_plain(net):
            return False
        # batch normalisation without a momentum averages by a count, which a trace would not follow
        return all(
            type(part) in PARTS and vars(part).get("momentum", 0) is not None for part in net.modules()
        )

    def renew(self) -> None:
        """Make plain steps from now on, as the network is another, and may become yet another."""
        self.kept.clear()
        self.often.clear()

    def __call__(self, batch: Tensor) -> Tensor:
        """Make a step."""
        size = len(batch)
        if size in self.kept:
            return self.kept[size](batch)
        self.seen[size] += 1
        if size not in self.often or self.seen[size] <= WARM:
            return self.step(batch)
        told, self.kept[size] = traced(self.step, batch)
        return told


def traced(step: Replay, batch: Tensor) -> tuple[Tensor, Replay]:
    """Make a step once, and what makes it again with other batches of this size."""
    from torch.fx.experimental.proxy_tensor import make_fx

    told: list[Tensor] = []

    def told_as_well(given: Tensor) -> Tensor:
        told.append(step(given))
        return told[0]

    module = make_fx(told_as_well)(batch)
    for node in module.graph.nodes:
        if (same := _same(node)) is not None:
            node.replace_all_uses_with(same)
    module.graph.eliminate_dead_code(_lasts)
    held = _lifted(module)
    module.graph.eliminate_dead_code(_lasts)
    for node in module.graph.nodes:
        if isinstance(node.target, OpOverload):
            node.target = _named(node.target)
    module.recompile()

    @torch.inference_mode()
    def replay(batch: Tensor) -> Tensor:
        again: Tensor = module.forward(batch, *held)
        return again

    return told[0], replay


def _same(node: Node) -> Node | None:
    """An earlier node of the same numbers, if there is one."""
    before = node.all_input_nodes[0] if node.all_input_nodes else node
    if node.target is ATEN.detach.default:  # what autograd keeps
        return before
    if node.target is before.target is ATEN.t.default:
        return before.all_input_nodes[0]
    if node.target is ATEN.view.default and before.target is ATEN.sum.dim_IntList:
        given: Any = before.args
        summed, axes, *keeps = given
        left = [n for i, n in enumerate(before.meta["val"].shape) if i not in axes]
        if keeps == [True] and left == node.args[1] and len(before.users) == 1:
            before.args = summed, axes, False  # axes that the view drops are not kept at all
            return before
    return None


def _lifted(module: GraphModule) -> list[Tensor]:
    """Let a graph's tensors and their transposes be arguments, which are at hand; these tensors."""
    graph, places, held = module.graph, dict[tuple[str, bool], Node](), list[Tensor]()
    start = next(node for node in graph.nodes if node.op != "placeholder")
    transposes = graph.find_nodes(op="call_function", target=ATEN.t.default)
    for node in [*transposes, *graph.find_nodes(op="get_attr")]:
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if source.op == "get_attr":
            key = source.target, node is source
            if key not in places:
                with graph.inserting_before(start):
                    places[key] = graph.placeholder(node.name)
                tensor = getattr(module, source.target).detach()
                held.append(tensor if node is source else tensor.t())
            node.replace_all_uses_with(places[key])
    return held


def _lasts(node: Node) -> bool:
    """Whether a node is kept although nobody reads its result."""
    writes = isinstance(node.target, OpOverload) and node.target._schema.is_mutable
    return writes or node.op in {"placeholder", "output"}


@cache
def _named(operation: OpOverload) -> Any:
    """An operation that generated code finds by one name, and calls without a frame of Python."""
    call: Any = partial(operation._op)
    call.__name__, call.__module__ = operation.name().replace("::", "_").replace(".", "_"), "traced"
    return call
