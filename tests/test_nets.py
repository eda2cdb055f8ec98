"""Networks of the paper: blocks x + f(x) in stages of one shape, with named tap points."""

import inspect

import pytest
import torch
from torch import nn

import pfc
from pfc.nets import Block, ConvResNet, FCResNet


def outputs(net, x):
    """Output of every tap point, by plain hooks."""
    seen = {}
    modules = dict(net.named_modules())
    handles = [
        modules[name].register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.clone()})
        )
        for name in net.taps
    ]
    logits = net.eval()(x)
    for handle in handles:
        handle.remove()
    return seen, logits


def test_table_one_for_mnist():
    net = pfc.RECIPES["mnist"].build(blank(1, 28, 28))
    assert net.taps == ("stem", *(f"blocks.{b}" for b in range(10)))
    seen, logits = outputs(net, torch.randn(2, 1, 28, 28))
    assert {tuple(h.shape) for h in seen.values()} == {(2, 1000)}
    assert logits.shape == (2, 10)
    assert list(seen) == list(net.taps)


def blank(*shape, classes=10):
    """Images of a shape; only shape and classes matter."""
    from pfc.data import Images, Normalisation

    images = torch.zeros(classes, *shape, dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    constants = Normalisation((0.0,) * shape[0], (1.0,) * shape[0], "none")
    return Images(images, torch.arange(classes), names, constants, "blank", "train")


@pytest.mark.parametrize(
    ("recipe", "size", "sides"),
    [("fashion_mnist", 28, (28, 14)), ("cifar10", 32, (32, 16, 8)), ("stl10", 96, (96, 48, 24, 12))],
)
def test_stages_have_one_shape_each(recipe, size, sides):
    from dataclasses import replace

    recipe = replace(pfc.RECIPES[recipe], width=2)
    net = recipe.build(blank(3, size, size))
    seen, logits = outputs(net, torch.randn(1, 3, size, size))
    assert [len(stage) - 1 for stage in net.stage_taps] == list(recipe.blocks)
    for s, (stage, side) in enumerate(zip(net.stage_taps, sides, strict=True)):
        assert {tuple(seen[name].shape[1:]) for name in stage} == {(2 * 2**s, side, side)}
    assert list(seen) == list(net.taps)
    assert logits.shape == (1, 10)


@pytest.mark.parametrize("form", ["relu(Wx)", "W relu(Vx)"])
@pytest.mark.parametrize("normalise", ["batch", "none"])
def test_a_block_is_its_formula(form, normalise):
    net = FCResNet(5, 3, width=6, blocks=1, form=form, normalise=normalise, zero_start=False).eval()
    block = net.blocks[0]
    x = torch.randn(4, 6)
    linear = [m for m in block.f if isinstance(m, nn.Linear)]
    inner = linear[0](x)
    if normalise == "batch":
        inner = inner / (1 + 1e-5) ** 0.5  # the running statistics of a new layer are 0 and 1
    f = inner.relu() if form == "relu(Wx)" else linear[1](inner.relu())
    torch.testing.assert_close(block(x), x + f)


def test_nothing_stands_after_the_sum():
    """Negative numbers pass a block: there is no relu after x + f(x)."""
    torch.manual_seed(0)
    block = Block(3, nn.Linear, None, "relu(Wx)", zero_start=False)
    assert (block(-10 * torch.ones(1, 3)) < 0).all()


def test_zero_start_is_the_identity():
    net = FCResNet(5, 3, width=6, blocks=3)
    seen, _ = outputs(net, torch.randn(4, 5))
    assert seen["blocks.2"].equal(seen["stem"])
    seen, _ = outputs(ConvResNet(1, (8, 8), 3, blocks=(1, 2), width=2), torch.randn(2, 1, 8, 8))
    assert seen["stages.1.blocks.1"].equal(seen["stages.1.reduce"])


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (9, 12)])
def test_flattening_instead_of_pooling(size):
    net = ConvResNet(1, size, 3, blocks=(1, 1, 1), width=2, head="flatten")
    assert net(torch.randn(2, 1, *size)).shape == (2, 3)
    assert net.classifier.in_features == 8 * -(-size[0] // 4) * -(-size[1] // 4)


def test_weights_depend_on_the_seed_alone():
    recipe, data = pfc.RECIPES["digits"], blank(1, 8, 8)
    state = torch.get_rng_state()
    a, b, c = recipe.build(data, 1), recipe.build(data, 1), recipe.build(data, 2)
    assert torch.get_rng_state().equal(state)
    assert a.stem[0].weight.equal(b.stem[0].weight)
    assert not a.stem[0].weight.equal(c.stem[0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, r"at least one block, got blocks=\(0,\)"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"form": "relu(x)"}, "form must be 'relu\\(Wx\\)' or 'W relu\\(Vx\\)', got 'relu\\(x\\)'"),
        ({"normalise": "layer"}, "normalise must be 'batch' or 'none', got 'layer'"),
        ({"form": "relu(Wx)", "zero_start": True}, "needs zero_start=False"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    from pfc.nets import check

    told = {"blocks": 1, "width": 4, "form": "W relu(Vx)", "normalise": "none", "zero_start": False}
    told |= options
    told["blocks"] = [told["blocks"]]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(check)(**told, head="pool")
    with pytest.raises(ValueError, match="head must be 'pool' or 'flatten', got 'mean'"):
        check([1], 4, "relu(Wx)", "none", False, "mean")
