"""The classifier is whatever gives the logits: accuracy, NC3 and NC4 against plain numbers."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfc
from pfc import Monitor
from pfc.measuring.trial import Recorder
from pfc.taps import pooled
from tests.models import batched, samples, seeded
from tests.oracles import naive_row

X, Y = samples(60)
POINTS = batched(X, Y)
IMAGES = batched(*samples(60, (3, 6, 6)))


class Model(nn.Module):
    """A network that computes `f(self, x)` with the parts that it is given by name."""

    def __init__(self, f, **parts):
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.f(self, x)


class Cosine(nn.Module):
    """A cosine head of three classes.

    Args:
        scale: Multiplies the cosines.
        by_hand: Divide by norms instead of `normalize`.
    """

    def __init__(self, scale=16.0, by_hand=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))
        self.scale, self.by_hand = nn.Parameter(torch.tensor(scale).log()), by_hand

    def forward(self, h):
        unit = (lambda t: t / t.norm(dim=1, keepdim=True)) if self.by_hand else F.normalize
        return self.scale.exp() * F.linear(unit(h), unit(self.weight))


def body():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8))


def pixels():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape))


def linear():
    return nn.Linear(8, 3)


def kind(f, weight, row="body.2", body=body, **parts):
    """How to build a model, its weight K x D, and the row that its classifier reads."""
    parts = dict(body=body, **parts)
    return lambda: Model(f, **{name: make() for name, make in parts.items()}), weight, row


def images(f, head="classifier.input", **parts):
    def weight(m):
        return m.head.weight.flatten(1)

    return kind(f, weight, head, body=pixels, head=lambda: nn.Conv2d(8, 3, 1), **parts)


def unit(m):
    return F.normalize(m.head.weight)


HEADS = {
    "linear": kind(lambda s, x: s.fc(s.body(x)), lambda m: m.fc.weight, fc=linear),
    "halved": kind(lambda s, x: {"logits": s.fc(s.body(x)) / 2}, lambda m: m.fc.weight, fc=linear),
    "probabilities": kind(lambda s, x: s.fc(s.body(x)).softmax(1), lambda m: m.fc.weight, fc=linear),
    "tied": kind(
        lambda s, x: F.linear(s.body(x), s.emb.weight),
        lambda m: m.emb.weight,
        emb=lambda: nn.Embedding(3, 8),
    ),
    "functional": kind(
        lambda s, x: s.body(x) @ s.W.T + s.b, lambda m: m.W, W=lambda: matrix(3, 8), b=lambda: matrix(3)
    ),
    "functional, D x K": kind(
        lambda s, x: torch.addmm(s.b, s.body(x), s.W),
        lambda m: m.W.T,
        W=lambda: matrix(8, 3),
        b=lambda: matrix(3),
    ),
    "einsum": kind(
        lambda s, x: torch.einsum("bd,kd->bk", s.body(x), s.W), lambda m: m.W, W=lambda: matrix(3, 8)
    ),
    "einsum, D x K": kind(
        lambda s, x: torch.einsum("bd,dk->bk", s.body(x), s.W), lambda m: m.W.T, W=lambda: matrix(8, 3)
    ),
    "cosine": kind(lambda s, x: s.head(s.body(x)), unit, head=Cosine),
    "cosine by hand": kind(lambda s, x: s.head(s.body(x)), unit, head=lambda: Cosine(by_hand=True)),
    "dropout before and after": kind(
        lambda s, x: F.dropout(s.fc(s.body(x)), 0.5, s.training), lambda m: m.fc.weight, fc=linear
    ),
    "soft cap": kind(
        lambda s, x: 30 * torch.tanh(s.fc(s.body(x)) / 30), lambda m: m.fc.weight, fc=linear
    ),
    "clamped": kind(lambda s, x: s.fc(s.body(x)).clamp(-50, 50), lambda m: m.fc.weight, fc=linear),
    "log of probabilities": kind(
        lambda s, x: s.fc(s.body(x)).softmax(1).log(), lambda m: m.fc.weight, fc=linear
    ),
    "the first classes": kind(
        lambda s, x: s.fc(s.body(x))[:, :3], lambda m: m.fc.weight[:3], fc=lambda: nn.Linear(8, 5)
    ),
    "weight normalised": kind(
        lambda s, x: s.fc(s.body(x)),
        lambda m: m.fc.weight,
        row="body",
        fc=lambda: nn.utils.parametrizations.weight_norm(linear()),
    ),
    "cosine, scaled features": kind(
        lambda s, x: (16 * F.normalize(s.body(x))) @ F.normalize(s.W).T,
        lambda m: F.normalize(m.W),
        W=lambda: matrix(3, 8),
    ),
    "linear, of normalised features": kind(
        lambda s, x: s.head(F.normalize(s.body(x))),
        lambda m: m.head.weight,
        row="classifier.input",
        head=linear,
    ),
    "one pixel": images(
        lambda s, x: s.head(s.pool(s.body(x))), "pool", pool=lambda: nn.AdaptiveAvgPool2d(1)
    ),
    "convolution, then mean": images(lambda s, x: s.head(s.body(x)).mean((2, 3))),
    "convolution, then pooling": images(
        lambda s, x: F.adaptive_avg_pool2d(s.head(s.body(x)), 1).flatten(1)
    ),
    "mean, then convolution": images(
        lambda s, x: s.head(s.pool(s.body(x))).flatten(1), "pool", pool=lambda: nn.AdaptiveAvgPool2d(1)
    ),
}


def read(model, row, x):
    """What the classifier reads of each sample, by plain hooks."""
    kept = []
    module = model.get_submodule("head" if row == "classifier.input" else row)
    if row == "classifier.input":
        handle = module.register_forward_pre_hook(lambda _m, a: kept.append(pooled(a[0], "mean")))
    else:
        handle = module.register_forward_hook(lambda _m, _a, out: kept.append(out.flatten(1)))
    with torch.no_grad():
        answer = model(x)
    handle.remove()
    return kept[0], (answer["logits"] if isinstance(answer, dict) else answer).flatten(1)


@pytest.mark.parametrize("name", HEADS)
def test_of_every_head_the_numbers_are_plain_ones(name):
    make, weight, row = HEADS[name]
    model = seeded(make).double().eval()
    points = IMAGES if {"convolution,", "convolution", "pixel"} & {*name.split()} else POINTS
    data = [(x.double(), y) for x, y in points]
    profile = pfc.measure(model, data, progress=False)
    assert profile.about["at_classifier"] == row == profile.layers[-1]
    assert "unknown" not in profile.about["chosen"]
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    H, logits = read(model, row, x)
    W, table = weight(model).detach().numpy(), profile.table()
    want = naive_row(H.numpy(), y.numpy(), "class", W, np.zeros(3))
    np.testing.assert_allclose(table.loc[row, "nc3"], want["nc3"], rtol=1e-9)
    assert profile.accuracy == int((logits.argmax(1) == y).sum()) / len(y)
    means = torch.stack([H[y == k].mean(0) for k in range(3)])
    nearest = torch.cdist(H, means).argmin(1)
    assert table.loc[row, "nc4"] == int((nearest != logits.argmax(1)).sum()) / len(y)
    assert table["nc3"].notna().sum() == 1


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_no_row(name):
    make, _, _ = HEADS[name]
    model, points = (
        seeded(make),
        IMAGES if {"convolution,", "convolution", "pixel"} & {*name.split()} else POINTS,
    )
    assert not {"fc", "head"} & {*pfc.measure(model, points, progress=False).layers}
    if name not in {"tied", "weight normalised"}:  # parts of which never run by themselves
        assert not {"fc", "head"} & {*pfc.measure(model, points, layers="**", progress=False).layers}


def test_logits_that_are_named_as_layers_are_refused():
    model = seeded(HEADS["linear"][0])
    with pytest.raises(ValueError, match=r"layer 'fc' gives the logits, .* they are no features"):
        pfc.measure(model, POINTS, layers=["body", "fc"], progress=False)


ONE = {
    "a logit": (lambda h: h, 0.0),
    "a vector of logits": (lambda h: h[:, 0], 0.0),
    "a probability": (torch.sigmoid, 0.5),
    "a squeezed probability": (lambda h: nn.Sigmoid()(h).squeeze(-1), 0.5),
    "its logarithm": (F.logsigmoid, math.log(0.5)),
}


@pytest.mark.parametrize("name", ONE)
def test_one_logit_is_two_classes(name):
    form, threshold = ONE[name]
    model = seeded(lambda: Model(lambda s, x: form(s.fc(s.body(x))), body=body(), fc=nn.Linear(8, 1)))
    y = Y.clamp(max=1)
    with torch.no_grad():
        answers = (model(X).reshape(-1) > threshold).long()
    profile = pfc.measure(model, batched(X, y), progress=False)
    assert 0 < answers.sum() < len(y)
    assert profile.accuracy == int((answers == y).sum()) / len(y)
    assert profile.table()["nc4"].notna().tolist() == [False, False, True]
    assert profile.table()["nc3"].isna().all()


def test_one_output_of_three_classes_answers_nothing():
    model = seeded(lambda: Model(lambda s, x: s.fc(s.body(x)), body=body(), fc=nn.Linear(8, 1)))
    assert pfc.measure(model, POINTS, progress=False).accuracy is None


@pytest.mark.parametrize("factor", [-1.0, torch.tensor(-2.0), torch.tensor([1.0, 2.0, 3.0])], ids=str)
def test_what_turns_the_order_of_the_classes_is_no_classifier(factor):
    model = seeded(lambda: Model(lambda s, x: s.fc(s.body(x)) * factor, body=body(), fc=nn.Linear(8, 3)))
    profile = pfc.measure(model, POINTS, layers="body", progress=False)
    assert profile.about["classifier"] is None
    assert profile.accuracy is None


def test_an_order_that_is_turned_in_place_and_in_inference_mode_is_seen():
    turned = torch.inference_mode()(lambda s, x: s.fc(s.body(x)).mul_(-1))
    model = seeded(lambda: Model(turned, body=body(), fc=linear()))
    profile = pfc.measure(model, POINTS, layers="body", progress=False)
    assert profile.about["classifier"] is None


def test_an_unknown_head_is_told_and_a_weight_may_be_given():
    def distances(s, x):
        return -torch.cdist(s.body(x), s.W)

    model = seeded(lambda: Model(distances, body=body(), W=matrix(3, 8)))
    profile = pfc.measure(model, POINTS, progress=False)
    assert "no classifier found: give it as classifier=" in str(profile).splitlines()[0]
    assert profile.accuracy is None
    given = pfc.measure(model, POINTS, classifier=model.W.detach().numpy(), progress=False)
    assert given.accuracy == int((model(X).argmax(1) == Y).sum()) / len(Y)
    assert given.about["at_classifier"] == "body.2"
    assert given.table()["nc3"].notna().tolist() == [False, False, True]


ORDER = [2, 0, 1]
PERMUTED = {
    "linear": lambda s, x: s.fc(s.body(x))[:, ORDER],
    "functional": lambda s, x: (s.body(x) @ s.W.T).index_select(1, torch.tensor(ORDER)),
}


@pytest.mark.parametrize("name", PERMUTED)
def test_classes_in_another_order_than_the_rows_of_the_weight_are_told(name):
    model = seeded(lambda: Model(PERMUTED[name], body=body(), fc=linear(), W=matrix(3, 8)))
    profile = pfc.measure(model, POINTS, progress=False)
    with torch.no_grad():
        accuracy = int((model(X).argmax(1) == Y).sum()) / len(Y)
    assert profile.accuracy == accuracy
    assert "the logits are not in the order of the weight's rows" in profile.about["chosen"]
    assert profile.table()["nc3"].isna().all()
    W = (model.fc.weight if name == "linear" else model.W).detach()[ORDER]
    given = pfc.measure(model, POINTS, classifier=W, progress=False)
    assert given.about["at_classifier"] == "body.2"
    assert given.accuracy == accuracy
    H = model.body(X).detach().double().numpy()
    want = naive_row(H, Y.numpy(), "class", W.double().numpy(), np.zeros(3))
    np.testing.assert_allclose(given.table().loc["body.2", "nc3"], want["nc3"], rtol=1e-6)


class Adapter(nn.Module):
    """A linear layer and a low-rank one beside it."""

    def __init__(self):
        super().__init__()
        self.base, self.A, self.B = linear(), nn.Linear(8, 2), nn.Linear(2, 3)

    def forward(self, h):
        return self.base(h) + self.B(self.A(h))


def test_a_named_classifier_of_several_products_gives_its_logits():
    model = seeded(lambda: Model(lambda s, x: s.fc(s.body(x)), body=body(), fc=Adapter()))
    profile = pfc.measure(model, POINTS, classifier="fc", progress=False)
    assert profile.layers == ("body",)
    assert profile.accuracy == int((model(X).argmax(1) == Y).sum()) / len(Y)
    with pytest.raises(ValueError, match="layer 'fc' gives the logits"):
        pfc.measure(model, POINTS, classifier="fc", layers=["body", "fc"], progress=False)


def test_a_lazy_layer_is_measured():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy layers are new to torch
        model = seeded(lambda: Model(lambda s, x: s.fc(s.body(x)), body=body(), fc=nn.LazyLinear(3)))
        profile = pfc.measure(model, POINTS, progress=False)
    assert profile.accuracy == int((model(X).argmax(1) == Y).sum()) / len(Y)
    assert profile.about["at_classifier"] == "body.2"


def test_several_sigmoids_that_are_scaled_still_answer():
    model = seeded(lambda: Model(lambda s, x: s.fc(s.body(x)).sigmoid() * 0.9, body=body(), fc=linear()))
    profile = pfc.measure(model, POINTS, progress=False)
    assert profile.accuracy == int((model(X).argmax(1) == Y).sum()) / len(Y)


def test_how_a_tensor_was_made_is_not_printed_with_all_that_went_in():
    recorder = Recorder(nn.Linear(2, 2))
    with recorder:
        h = X + 0
        for _ in range(60):
            h = h + h
    assert len(repr(recorder.made(h))) < 200


def test_what_the_model_calls_logits_are_its_answers():
    def distances(s, x):
        return {"logits": -torch.cdist(s.body(x), s.W)}

    model = seeded(lambda: Model(distances, body=body(), W=matrix(3, 8)))
    profile = pfc.measure(model, POINTS, progress=False)
    assert profile.accuracy == int((model(X)["logits"].argmax(1) == Y).sum()) / len(Y)
    assert "no weight K x D found: give it as classifier=" in profile.about["chosen"]


def test_a_probe_may_be_given_to_a_network_of_features():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.GLU()))
    W, b = torch.randn(3, 8), torch.randn(3)
    profile = pfc.measure(model, POINTS, classifier=(W, b), progress=False)
    with torch.no_grad():
        answers = (model(X) @ W.T + b).argmax(1)
    assert profile.accuracy == int((answers == Y).sum()) / len(Y)
    assert profile.about["at_classifier"] == "1"
    with pytest.raises(ValueError, match=r"the bias of classifier must be of shape \(3,\), got \(2,\)"):
        pfc.measure(model, POINTS, classifier=(W, b[:2]), progress=False)


def test_a_functional_head_that_reads_no_modules_output_is_told():
    model = seeded(lambda: Model(lambda s, x: s.body(x).tanh() @ s.W.T, body=body(), W=matrix(3, 8)))
    profile = pfc.measure(model, POINTS, progress=False)
    assert "what the classifier reads must be a module's input or output" in profile.about["chosen"]
    assert profile.accuracy == int((model(X).argmax(1) == Y).sum()) / len(Y)
    assert profile.table()[["nc3", "nc4"]].isna().all(axis=None)


def test_a_head_of_tokens_laid_end_to_end_is_told():
    def answers(s, x):
        return s.fc(s.body(x).reshape(-1, 8)).reshape(len(x), 5, 3).mean(1)

    x, y = samples(40, (5, 6))
    model = seeded(lambda: Model(answers, body=nn.Linear(6, 8), fc=linear()))
    profile = pfc.measure(model, batched(x, y), progress=False)
    assert profile.layers == ("body",)
    assert "what the classifier reads must be a module's input or output" in profile.about["chosen"]
    assert profile.accuracy == int((model(x).argmax(1) == y).sum()) / len(y)


def test_the_weight_of_a_monitor_is_that_of_now():
    model = seeded(HEADS["cosine"][0])
    monitor = Monitor(model)
    for x, y in POINTS:
        with monitor.batch(y):
            model(x)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(9)))
    known = pfc.measure(model, POINTS, passes=1, progress=False).table()["nc3"].iloc[-1]
    np.testing.assert_allclose(monitor.profile().table()["nc3"].iloc[-1], known, rtol=1e-9)
