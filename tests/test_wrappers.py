"""Networks that are wrapped or parametrised: measured as they run, and trained on to the same bits."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import pfc
from pfc.taps import unwrapped
from pfc.theory.collapse import collapse
from tests.models import Plain

DATA = [
    (torch.randn(20, 6, generator=torch.Generator().manual_seed(i)), torch.arange(20) % 3)
    for i in (1, 2)
]


def net():
    torch.manual_seed(0)
    return Plain()


def on_each_block(change):
    def changed(model):
        for block in model.blocks:
            change(next(m for m in block.modules() if isinstance(m, nn.Linear)))
        return model

    return changed


def hooked(model):
    model.blocks[0].register_forward_hook(lambda _module, _args, output: 1.5 * output)
    model.blocks[1].register_forward_pre_hook(lambda _module, args: (args[0] + 0.1,))
    model.classifier.weight.register_hook(lambda slope: slope / 2)
    return model


WRAPPERS = {
    "none": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled parallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "orthogonal": on_each_block(parametrizations.orthogonal),
    "weight norm": on_each_block(parametrizations.weight_norm),
    "spectral norm": on_each_block(parametrizations.spectral_norm),
    "pruned": on_each_block(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3)),
    "hooks": hooked,
}


def measured(model):
    return pfc.measure(model, DATA, layers="blocks.*", progress=False).table()


def by_hand(model):
    """The features of both blocks in evaluation, read by hooks of our own and measured as arrays."""
    inner, rows = unwrapped(model).eval(), ([], [])
    for block, kept in zip(inner.blocks, rows, strict=True):
        block.register_forward_hook(lambda _m, _a, output, kept=kept: kept.append(output.clone()))
    with torch.no_grad():
        for x, _ in DATA:
            inner(x)
    return [torch.cat(kept) for kept in rows], torch.cat([y for _, y in DATA])


def trained(model, measuring):
    """All that training leaves, with gradients pending where it was measured."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for i, (x, y) in enumerate(DATA):
            nn.functional.cross_entropy(model(x), y).backward()
            if measuring and i == 0:
                measured(model)
        optimizer.step()
        optimizer.zero_grad()
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_is_measured_as_it_runs(name):
    model = WRAPPERS[name](net())
    trained(model, False)
    table = measured(model)
    for i, H in enumerate((known := by_hand(model))[0]):
        expected = collapse(H, known[1])
        assert table["pfc1"].iloc[i] == pytest.approx(expected.pfc1, rel=1e-10)
        assert table["pfc2"].iloc[i] == pytest.approx(expected.pfc2, rel=1e-10)
        assert table["pfc3"].iloc[i] == expected.pfc3


@pytest.mark.parametrize("name", WRAPPERS)
def test_training_goes_on_to_the_same_bits(name):
    with_, without = (trained(WRAPPERS[name](net()), measuring) for measuring in (True, False))
    assert all(torch.equal(*pair) for pair in zip(with_, without, strict=True))
