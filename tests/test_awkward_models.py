"""Models as users have them: adapters, wrappers, tokens first, scripted parts, lists as one argument."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import pfc
from pfc import Monitor
from tests.models import batched, samples, seeded
from tests.oracles import naive_row
from tests.test_taps import content, hooks

X, Y = samples()
POINTS = batched(X, Y)


def measured(model, data=POINTS, **options):
    return pfc.measure(model, data, progress=False, **options)


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


# A model is left as it was


class Adapted(nn.Linear):
    """A linear layer with a low-rank adapter that evaluation merges into the weight, as loralib does."""

    def __init__(self, width, out):
        super().__init__(width, out)
        self.weight.requires_grad = False
        self.A, self.B = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(out, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.B @ self.A)
            self.merged = not mode
        return self

    def forward(self, x):
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.A.T @ self.B.T


class Merges(nn.Module):
    """An adapter around a linear layer, whose weight it changes in evaluation."""

    def __init__(self):
        super().__init__()
        self.base, self.A = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 6))

    def train(self, mode=True):
        if mode != self.training:
            self.base.weight.data += (-1 if mode else 1) * self.A
        return super().train(mode)

    def forward(self, x):
        return self.base(x)


class Counts(nn.Module):
    """Counts its calls in one buffer in place and in another anew, and may fail."""

    def __init__(self, fails=False):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.fails = fails

    def forward(self, x):
        self.calls += 1
        self.total = self.total + len(x)
        if self.fails:
            raise RuntimeError("broken")
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_weights_and_buffers_are_put_back_to_the_bit(training, fails):
    parts = [Adapted(6, 8), Counts(fails), nn.Embedding(4, 8, max_norm=0.1), nn.Linear(8, 3)]
    model = seeded(lambda: nn.ModuleList(parts))
    model.forward = lambda x: model[3](model[1](model[0](x)) + model[2](torch.tensor(1)))
    model.train(training)
    before = {name: content(t) for name, t in model.state_dict().items()}
    flags = [(module.training, getattr(module, "merged", None)) for module in model.modules()]
    buffers = [id(b) for b in model.buffers()]
    if fails:
        with pytest.raises(
            ValueError, match="failed in layer '1' on batch 0 of 10 samples: RuntimeError"
        ):
            measured(model)
    else:
        measured(model)
    assert {name: content(t) for name, t in model.state_dict().items()} == before
    assert [(module.training, getattr(module, "merged", None)) for module in model.modules()] == flags
    assert [id(b) for b in model.buffers()] == buffers
    assert not hooks(model)


def test_a_layer_that_an_adapter_around_it_writes_to_is_put_back_to_the_bit():
    model = seeded(lambda: nn.Sequential(Merges(), nn.Tanh(), nn.Linear(8, 3)))
    before = content(model[0].base.weight)
    measured(model)
    assert content(model[0].base.weight) == before


# Default layers


class Around(nn.Module):
    """A network with parts beside it.

    Args:
        parts: By name; `net` is the network.
        first: A part that runs before the network.
    """

    def __init__(self, first=None, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.first = first

    def forward(self, x):
        return self.net(x if self.first is None else self.get_submodule(self.first)(x))


class Half(nn.Module):
    """Input normalisation without parameters."""

    def forward(self, x):
        return (x - 0.5) / 2


def test_a_wrapper_with_a_loss_is_opened():
    model = Around(net=seeded(net), loss=nn.CrossEntropyLoss())
    profile, bare = measured(model), measured(seeded(net))
    assert [name.removeprefix("net.") for name in profile.layers] == list(bare.layers)
    np.testing.assert_array_equal(profile.table(), bare.table())
    assert profile.about["chosen"] == "direct children (4 of 5: loss is not seen)"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.Sequential(Half(), net()), ["0", "1.0", "1.1", "1.2", "1.3"]),
        (lambda: Around("norm", norm=Half(), net=net()), ["norm", "net.0", "net.1", "net.2", "net.3"]),
        (lambda: Around(net=Around("norm", norm=Half(), net=net())),
         ["net.norm", "net.net.0", "net.net.1", "net.net.2", "net.net.3"]),
        (lambda: nn.Sequential(net()[:4], nn.Dropout(), net()[4]), ["0.0", "0.1", "0.2", "0.3", "1"]),
        (lambda: nn.Sequential(net()[:4], nn.Linear(8, 8), net()[4]), ["0", "1"]),
    ],
    ids=["in a sequence", "normalised", "twice", "backbone and head", "a layer beside it"],
)  # fmt: skip
def test_wrappers_are_opened_where_nothing_else_has_weights(make, names):
    assert list(measured(seeded(make)).layers) == names


def test_a_list_of_modules_of_one_class_is_chosen():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.f(x)

    layers = nn.ModuleList([Mine(), Mine(), Mine()])
    parts = dict(stem=nn.Linear(6, 8), tower=layers, neck=nn.Linear(8, 8), fc=nn.Linear(8, 3))
    model = seeded(lambda: Around(net=nn.Identity(), **parts))
    model.forward = lambda x: model.fc(model.neck(layers[2](layers[1](layers[0](model.stem(x))))))
    profile = measured(model)
    assert profile.layers == ("tower.0", "tower.1", "tower.2", "classifier.input")
    assert profile.about["chosen"] == "modules of tower"


def test_a_list_whose_modules_run_side_by_side_is_no_chain():
    experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))])
    parts = dict(stem=nn.Linear(6, 8), experts=experts, neck=nn.Linear(8, 8), fc=nn.Linear(8, 3))
    model = seeded(lambda: nn.ModuleDict(parts))

    def forward(x):
        h = parts["stem"](x)
        return parts["fc"](parts["neck"](experts[0](h) + experts[1](h)))

    model.forward = forward
    profile = measured(model)
    assert profile.layers == ("stem", "neck")
    assert profile.about["chosen"] == "direct children (2 of 3: experts is not seen)"


# Tokens first


class Encoder(nn.Module):
    """A transformer encoder of tokens first, samples second, of which the mean is classified."""

    def __init__(self, batch_first=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.tower = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.fc, self.batch_first = nn.Linear(8, 3), batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        return self.fc(self.tower(x).mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("T", [2, 3, 5])
@pytest.mark.parametrize("pool", ["flatten", "mean", "cls"])
def test_layers_of_tokens_first_are_those_of_samples_first(T, pool):
    x, y = samples(40, (T, 8))
    first, second = (seeded(lambda b=b: Encoder(b)).double() for b in (False, True))
    data = batched(x.double(), y)
    profile, want = measured(first, data, pool=pool), measured(second, data, pool=pool)
    assert profile.layers == want.layers
    assert profile.layers[:3] == ("tower.layers.0", "tower.layers.1", "tower.layers.2")
    np.testing.assert_allclose(profile.table(), want.table(), rtol=1e-9)


# A last batch of one sample


class Squeezes(nn.Module):
    """A convolutional network that squeezes all axes of one away, also that of a single sample."""

    def __init__(self):
        super().__init__()
        self.c, self.p = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.a, self.h = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.h(self.a(self.p(self.c(x)).squeeze()))


def test_a_last_batch_of_one_sample_may_be_squeezed():
    x, y = samples(33, (3, 6, 6), K=4)
    model = seeded(Squeezes).double()
    whole, parts = (measured(model, batched(x.double(), y, size)) for size in (33, 32))
    np.testing.assert_allclose(parts.table(), whole.table(), rtol=1e-9)
    assert parts.accuracy == whole.accuracy


def test_a_classifier_without_logits_for_each_sample_is_told():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            out = self.fc(self.a(x))
            return out if len(x) != 7 else out[:5]

    with pytest.raises(ValueError, match=r"classifier 'fc' gave shape \(5, 3\) on batch 4 of 7 samples"):
        measured(seeded(Drops))


# What torch can not watch


def test_a_scripted_part_is_left_out_and_told():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8)))
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), scripted, nn.Linear(8, 3)))
    profile = measured(model)
    assert profile.about["chosen"] == "direct children (1 of 2: 1 is not seen)"
    assert profile.layers == ("0", "classifier.input")
    with pytest.raises(ValueError, match="layer '1' is a ScriptModule, which takes no hooks"):
        measured(model, layers=["0", "1"])


def test_an_exported_program_is_refused_by_name():
    exported = torch.export.export(net().eval(), (X[:2],)).module()
    with pytest.raises(ValueError, match=r"has no evaluation mode .*torch.export made it, measure the"):
        measured(exported)


def test_weights_that_hold_no_numbers_are_refused():
    with torch.device("meta"):
        model = net()
    with pytest.raises(ValueError, match=r"'meta', which holds no numbers: load them \(model.to_empty"):
        measured(model)


@dataclass(slots=True)
class Slots:
    """An output without a dictionary."""

    logits: torch.Tensor


def test_an_output_of_slots_is_read():
    model = Around(net=seeded(net), out=nn.Identity())
    model.forward = lambda x: Slots(model.net(x))
    assert measured(model).accuracy == measured(seeded(net)).accuracy


def test_what_a_model_raises_is_told_with_its_layer_and_batch():
    model = seeded(net)
    data = [*POINTS, (X[:3, :5], Y[:3])]
    with pytest.raises(
        ValueError, match=r"Sequential failed in layer '0' on batch 5 of 3 samples"
    ) as caught:
        measured(model, data)
    assert isinstance(caught.value.__cause__, RuntimeError)


# Inputs that are one argument


class Views(nn.Module):
    """Reads a list of two views, or two arguments.

    Args:
        apart: Whether the views are two arguments.
    """

    def __init__(self, apart=False):
        super().__init__()
        self.a, self.fc = nn.Linear(12, 8), nn.Linear(8, 3)
        if apart:
            self.forward = lambda one, two: self.run([one, two])

    def run(self, views):
        return self.fc(torch.relu(self.a(torch.cat(views, 1))))

    def forward(self, views):
        return self.run(views)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_one_argument_or_several_as_the_forward_says(kind):
    data = [(kind([x, x + 1]), y) for x, y in POINTS]
    one, two = measured(seeded(Views), data), measured(seeded(lambda: Views(apart=True)), data)
    assert one.table().equals(two.table())
    assert one.table().equals(measured(seeded(Views), data, limit=47).table())


def test_a_dict_is_one_argument_where_the_forward_has_no_such_names():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch):
            return self.net(batch["x"] + batch["z"])

    profile = measured(seeded(Reads), [{"x": x, "z": 0 * x, "labels": y} for x, y in POINTS])
    assert profile.table().equals(measured(seeded(net)).table().rename(lambda name: f"net.{name}"))


class Packed(nn.Module):
    """An LSTM of packed sequences."""

    def __init__(self):
        super().__init__()
        self.l, self.fc = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, packed):
        assert isinstance(packed, PackedSequence)
        return self.fc(self.l(packed)[1][0][-1])


@pytest.mark.parametrize("limit", [None, 30])
def test_a_packed_sequence_is_one_argument(limit):
    x = torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(1))
    parts = [row[: 2 + i % 4] for i, row in enumerate(x)]
    y, model = torch.arange(40) % 3, seeded(Packed)
    profile = measured(model, [(pack_sequence(parts, enforce_sorted=False), y)], limit=limit)
    n = limit or 40
    with torch.no_grad():
        H = torch.stack([model.l(row[:, None])[1][0][-1, 0] for row in parts[:n]])
        right = int((model.fc(H).argmax(1) == y[:n]).sum())
    assert profile.layers == ("classifier.input",)
    assert "l gave no vector a sample" in profile.about["chosen"]
    np.testing.assert_allclose(
        profile.table()["pfc1"].iloc[0], naive_row(H.double().numpy(), y[:n].numpy())["pfc1"], rtol=1e-4
    )
    assert profile.accuracy == right / n


# Layers that run again in the backward pass


class Checkpointed(nn.Module):
    """Runs its middle again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.fc, self.reentrant = nn.Linear(8, 3), reentrant

    def forward(self, x):
        return self.fc(checkpoint(self.b, self.a(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_pass_inside_the_monitors_block_is_not_seen(reentrant):
    model = seeded(lambda: Checkpointed(reentrant))
    monitor = Monitor(model)
    for x, y in POINTS:
        with monitor.batch(y):
            F.cross_entropy(model(x), y).backward()
    known = measured(model, passes=1)
    np.testing.assert_allclose(monitor.profile().table(), known.table(), rtol=1e-9)
    assert known.layers == ("a", "b")
