"""A small training step on the CPU without what Python does in it: torch's operations, one by one."""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from pfc.training.speed import is_plain

LONG = 500  # steps of a size before it is traced, which takes about as long as it then saves in as many

Replay = Callable[[Tensor], Tensor]


class TracedSteps:
    """A training step on the CPU, traced once for each size of a batch, then repeated to the same bits.

    A step of a small network spends much of its time on modules, on autograd's graph and on the
    optimizer's lists. What Python does in a step is done while it is traced alone, so that this is for
    networks of ours without hooks. The learning rate must be a tensor, or is a constant of the trace.

    Args:
        step: Takes a batch, leaves the network a step further, and gives a tensor.
    """

    def __init__(self, step: Replay) -> None:
        self.step = step
        self.seen: Counter[int] = Counter()
        self.kept: dict[int, Replay] = {}

    @staticmethod
    def may(net: nn.Module, device: torch.device) -> bool:
        """Whether all that a step does is known: a network of ours, on the CPU, not listened to."""
        return device.type == "cpu" and is_plain(net)

    def forget(self) -> None:
        """Trace again, as the network is another."""
        self.kept.clear()

    def __call__(self, batch: Tensor) -> Tensor:
        """Make a step."""
        size = len(batch)
        if size in self.kept:
            return self.kept[size](batch)
        self.seen[size] += 1
        if self.seen[size] <= LONG:
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
    held = _lifted(module)
    for node in module.graph.nodes:
        if (same := _same(node)) is not None:
            node.replace_all_uses_with(same)
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


def _lifted(module: GraphModule) -> list[Tensor]:
    """Let the tensors of a graph be arguments, which are read faster than attributes; these tensors."""
    places: dict[str, Node] = {}
    start = next(node for node in module.graph.nodes if node.op != "placeholder")
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in places:
            with module.graph.inserting_before(start):
                places[node.target] = module.graph.placeholder(node.target)
        node.replace_all_uses_with(places[node.target])
    return [getattr(module, name).detach() for name in places]


def _same(node: Node) -> Node | None:
    """The node of the same numbers: autograd detaches what it keeps, and transposes there and back."""
    turned, detached = torch.ops.aten.t.default, torch.ops.aten.detach.default
    if node.target is detached:
        return node.all_input_nodes[0]
    twice = node.target is turned and node.all_input_nodes[0].target is turned
    return node.all_input_nodes[0].all_input_nodes[0] if twice else None


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
