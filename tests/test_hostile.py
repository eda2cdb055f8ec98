"""Hostile numbers: a table of data at which measuring must be right, or say in a word what is wrong.

Each case goes through `pfc.measure` with a model that hands out the features it is given. What is
right is said by `hostile_twins.Truth`, exact on the stored numbers: every metric within 1e-9 relative,
also where the storage is bf16 or fp16, for what was stored is the truth. A nearest-mean decision may go
either way where two squared distances differ by less than 1e-12 of their size.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfc
from pfc.files import write_json
from pfc.line import ENDS
from pfc.measuring.fingerprint import MOST, Fingerprint
from pfc.measuring.loader import Batch
from pfc.warning import CollapseWarning
from tests.hostile_twins import Truth
from tests.models import batched
from tests.test_path import numbers

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SIGNED = ("pfc2", "nc2_norm", "nc2_angle", "nc2_max_angle", "nc3")  # near 0 they are differences
DECIDED = ("pfc3", "nc4")


class Handed(nn.Module):
    """Hands out layer after layer of the features that it is given, and classifies the last.

    Args:
        layers: How many.
        W: The classifier's weights.
    """

    def __init__(self, layers, W):
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(layers))
        self.fc = nn.Linear(W.shape[1], W.shape[0], dtype=W.dtype)
        with torch.no_grad():
            self.fc.weight.copy_(W)
            self.fc.bias.zero_()

    def forward(self, x):
        for l, layer in enumerate(self.layers):
            h = layer(x[:, l])
        return self.fc(h)


@dataclass
class Loader:
    """Batches of one pass after the other; the last go on."""

    passes: list[list]
    begun: int = 0

    def __iter__(self):
        self.begun += 1
        return iter(self.passes[min(self.begun, len(self.passes)) - 1])


@dataclass
class Data:
    """Features of a stack of layers (N x L x D), labels, and the classifier's weights."""

    x: Tensor
    y: Tensor
    W: Tensor = field(default=None)
    batch: int = 25
    again: Callable = None  # makes the second pass's batches from the first's
    batches: list = None

    def measured(self, **options):
        batches = self.batches or batched(self.x, self.y, self.batch)
        passes = [batches, self.again(batches)] if self.again else [batches]
        model = Handed(self.x.shape[1], self.weights())
        return pfc.measure(model, Loader(passes), layers="layers.*", progress=False, **options)

    def weights(self):
        if self.W is not None:
            return self.W
        g = torch.Generator().manual_seed(9)
        K = int(self.y.max()) + 1
        return torch.randn(max(K, 2), self.x.shape[2], generator=g, dtype=F64).to(self.x.dtype)

    def truth(self, weighting="class"):
        W = self.weights()
        with torch.no_grad():
            answers = Handed(self.x.shape[1], W)(self.x).argmax(1)
        layers = [self.x[:, l].double().numpy() for l in range(self.x.shape[1])]
        return Truth(layers, self.y.numpy(), weighting, W.double().numpy(), answers.numpy())


def classes(
    *, K=4, D=6, L=3, n=15, counts=None, offset=0.0, spread=1.0, size=1.0, dtype=F32, seed=0, **how
):
    """Gaussian classes that move and shrink from layer to layer; `counts` or `n` samples of each."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(K), torch.tensor(counts or [n] * K))
    y = y[torch.randperm(len(y), generator=g)]
    mu, r = (torch.randn(size, generator=g, dtype=F64) for size in ((K, D), (len(y), D)))
    layers = []
    for l in range(L):
        a, b = (torch.randn(X.shape, generator=g, dtype=F64) for X in (mu, r))
        layers.append((mu + 0.4 * l * a)[y] + spread * (1 - 0.5 * l / (L - 1)) * (r + 0.3 * b))
    return Data((size * torch.stack(layers, dim=1) + offset).to(dtype), y, **how)


# What is right


def agree(got, want, unsure=0.0, *, rtol=1e-9, atol=0.0):
    """Equal within the tolerance; NaN and the infinities as they are."""
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol + unsure)


def check_rows(profile, truth):
    table = profile.table()
    for l, name in enumerate(profile.layers):
        for column, want in truth.row(l).items():
            try:
                if column in DECIDED and isinstance(want, tuple):
                    agree(table.loc[name, column], *want, atol=1e-12)
                else:
                    agree(table.loc[name, column], want, atol=1e-12 if column in SIGNED else 0.0)
            except AssertionError as error:
                raise AssertionError(f"{name} {column}: {error}") from None


def check_line(segment, truth):
    t = [0.0, 0.2, 0.55, 0.9, 1.0]
    for end in ENDS:
        found = segment.line(t, end)
        if truth.end(end) is None:
            assert found.pfc2.isnan().all()
            continue
        for i, at in enumerate(t):
            pfc1, pfc2, pfc3 = truth.line(at, end)
            agree(found.pfc1[i], pfc1, rtol=1e-8 if at == 0.9 else 1e-9, atol=0.0)
            agree(found.pfc2[i], pfc2, atol=1e-11)
            agree(found.pfc3[i], *pfc3, atol=1e-12)
        found = segment.certify(end)
        check_theorems(found, truth, end)


def check_theorems(found, truth, end):
    one, known = found.theorem1, truth.theorem1(end)
    largest = np.abs(known["slacks"]).max()
    agree(one.align, known["align"], atol=1e-12)
    agree(one.b01, known["b01"], rtol=1e-9 + 1e-12 / max(abs(known["align"]), 1e-9))
    agree(one.slacks, known["slacks"], atol=1e-10 * largest)
    biggest = np.abs(known["d"]).max()
    agree(one.d, known["d"], atol=1e-10 * biggest if math.isfinite(biggest) else 0.0)
    agree(one.turns, known["turns"], rtol=1e-6)
    assert one.monotone == known["monotone"]
    turns = truth.pfc2_turns(end) if truth.K > 2 else []
    agree(found.theorem2.turns, turns, rtol=1e-6)


def check_path(segment, truth):
    for kind, known in truth.positions().items():
        agree(segment.position(kind), known, atol=1e-12)
    found, known = numbers(segment.path()), truth.path()
    for name, value in known.items():
        agree(found[name], value, atol=1e-7 if name.startswith("angles") else 0.0)
    of_samples = [truth.path_of(i) for i in range(truth.N)]
    for name in ("length", "straightness", "steps.0"):
        values = np.array([p[name] for p in of_samples])
        if np.isfinite(values).all():
            median = np.quantile(values, 0.5, weights=truth.w, method="inverted_cdf")
            agree(segment.path().over_samples(name), median, rtol=1e-6)


def check_sayings(profile, folder):
    """All that can be said is said without a warning, and a file keeps the profile."""
    profile.save(folder / "p.json")
    again = pfc.load(folder / "p.json")
    said, said_again = profile.prediction(), str(again.prediction())
    write_json(folder / "t.json", said.to_dict())
    assert str(said) == said_again
    assert again.table().equals(profile.table())
    assert str(again) == str(profile)
    assert again.verdict() == profile.verdict()


def shuffled(batches):
    """The same samples in another order."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    return batched(x[order], y[order], 7)


def case(words, *warns, **how):
    """A row of the table: its words, what is to be measured, and the warnings that are due."""
    return pytest.param(lambda: classes(**how), warns, id=words)


SOUND = [
    *(case(f"offset {o:g}, {d}", offset=o, dtype=d) for o in (1e3, 1e4, 1e6) for d in (F32, F64)),
    *(
        case(f"spread {s:g} at {o:g}, float64", spread=s, offset=o, dtype=F64)
        for s in (1e-3, 1e-6)
        for o in (0.0, 1e3, 1e6)
    ),
    case("spread 1e-3, float32", spread=1e-3),
    case("no spread at all", spread=0.0, n=16, D=40, offset=0.3, dtype=F64),
    case("spread 1e-6, float32", spread=1e-6),
    case("spread 1e-3 at 10, float32", spread=1e-3, offset=10.0),
    case("means 1e-3 apart at 1e6", size=1e-3, offset=1e6, dtype=F64),
    case("means 1e-6 apart at 1e6", size=1e-6, offset=1e6, dtype=F64),
    case("means 1e-7 apart at 1e8", size=1e-7, offset=1e8, dtype=F64),
    *(case(f"offset {o:g}, {d}", offset=o, dtype=d) for d in (BF16, F16) for o in (0.0, 10.0)),
    case("spread 1e-2, bf16", spread=1e-2, dtype=BF16),
    case("1,000 classes in 40 dimensions", K=1000, D=40, L=2, n=2, batch=500),
    case("1,000 samples to one", K=3, counts=[1000, 1, 30], batch=200),
    case("1,000 samples to one at 1e4", K=3, counts=[1000, 1, 30], offset=1e4, batch=200),
    case("a last batch of one", n=19),
    case("batches of one", batch=1, n=5),
    case("one dimension", K=3, D=1),
    case("two classes", K=2),
    case("two classes in one dimension", K=2, D=1),
    *(case(f"size {s:g}, {d}", size=s, dtype=d) for s in (1e20, 1e-25) for d in (F32, F64)),
    case("size 1e37, float32", size=1e37),
    case("size 1e-36, float32", size=1e-36),
    case("denormal float32", size=1e-42),
    case("lengths beyond float32", size=3e37, D=300, W=torch.full((4, 300), 1e-4)),
    *(
        case(f"size {s:g}, float64", size=s, dtype=F64)
        for s in (1e100, 1e-100, 1e150, 1e-150, 1e160, 1e-160, 1e-170, 1e290, 1e-290)
    ),
    case("size 1e160 at 1e164", size=1e160, offset=1e164, dtype=F64),
    case("size 1e160, spread 1e-5", size=1e160, spread=1e-5, dtype=F64),
    case("a missing class", r"classes \[1\] have no sample", counts=[15, 0, 15, 15]),
    case("one sample a class", "every class has one sample", n=1),
    case("in another order", again=shuffled),
    case("in another order at 1e6", offset=1e6, again=shuffled),
    case("in another order, 1e-7 at 1e6", size=1e-7, offset=1e6, D=90, dtype=F64, again=shuffled),
    case("in another order, 1e-170", size=1e-170, dtype=F64, again=shuffled),
    case("in another order, 1e160", size=1e160, dtype=F64, again=shuffled),
    pytest.param(
        lambda: classes(K=1000, D=1024, L=2, n=2, batch=500),
        (),
        id="1,000 classes in 1,024 dimensions",
        marks=pytest.mark.slow,
    ),
]


def measured(data, warns=(), **options):
    """Measured, and warned as expected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        profile = data.measured(**options)
    told = [str(w.message) for w in caught]
    assert all(issubclass(w.category, CollapseWarning) for w in caught), told
    told = [text for text in told if not re.search("few samples a class|have one sample, which", text)]
    assert len(told) == len(warns), told
    for text, pattern in zip(told, warns, strict=True):
        assert re.search(pattern, text), (text, pattern)
    return profile


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_every_number_is_right_where_samples_are_weighted(offset):
    data = classes(K=3, counts=[1000, 1, 30], offset=offset, batch=200)
    profile, truth = measured(data, weighting="sample"), data.truth("sample")
    check_rows(profile, truth)
    check_line(profile.segment(), truth)
    check_path(profile.segment(), truth)


def test_one_pass_says_the_same():
    data = classes(offset=1e6, size=1e-3, dtype=F64)
    one, two = measured(data, passes=1).table(), measured(data).table()
    assert one.equals(two[list(one)])


@pytest.mark.parametrize(("make", "warns"), SOUND)
def test_every_number_is_right(make, warns, tmp_path):
    data = make()
    profile = measured(data, warns)
    truth = data.truth()
    check_rows(profile, truth)
    check_line(profile.segment(), truth)
    check_path(profile.segment(), truth)
    check_sayings(profile, tmp_path)


# What is refused, by a text


def with_(value, at, l=0, dtype=F32):
    """Features with a hostile entry in one batch of the first pass, and so of the second."""
    data = classes(dtype=dtype)
    data.x[at, l, 2] = value
    return data


def later(value, at, l=0):
    """Features whose hostile entry appears in the second pass alone."""

    def again(batches):
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        x[at, l, 2] = value
        return batched(x, y, 25)

    return classes(again=again)


def batches_of(change, **how):
    """Batches of which one was changed."""
    data = classes(**how)
    data.batches = change(batched(data.x, data.y, data.batch))
    return data


def grown(first, then, l=slice(None)):
    """float64 features that have one size in the first batch and another after it."""
    data = classes(dtype=F64)
    data.x[:25, l] *= first
    data.x[25:, l] *= then
    return data


def relabelled(batches):
    """Two samples of different classes with each other's labels."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    i, j = int((y == 0).nonzero()[0]), int((y == 1).nonzero()[0])
    y[[i, j]] = y[[j, i]]
    return batched(x, y, 25)


def other_label(label):
    return lambda: batches_of(lambda b: [*b[:1], (b[1][0], torch.full_like(b[1][1], label)), *b[2:]])


NOT_FINITE = "layer 'layers.{}' gave NaN or infinite features on batch {}"
OTHER = "the second pass saw different samples from the first"

REFUSED = [
    *(
        (f"{value} in {where}, {dtype}", lambda v=value, a=at, d=dtype: with_(v, a, 1, d),
         NOT_FINITE.format(1, batch))
        for value in (math.nan, math.inf, -math.inf)
        for where, at, batch in (("the first batch", 3, 0), ("the last batch", 59, 2))
        for dtype in (F32, F64, BF16)
    ),
    *(
        (f"{value} in the second pass only, layer {l}", lambda v=value, l=l: later(v, 59, l), OTHER)
        for value in (math.nan, math.inf)
        for l in (0, 1, 2)
    ),
    ("label -1", other_label(-1), "labels of batch 1 must not be negative, got -1; count classes"),
    ("label K", other_label(4), r"batch 1 has the label 4, but there are 4 classes \(0..3\)"),
    ("float labels", lambda: batches_of(lambda b: [(x, y.float()) for x, y in b]),
     r"labels of batch 0 must be integer class indices .* got torch.float32"),
    ("one-hot labels", lambda: batches_of(lambda b: [(x, torch.eye(4).long()[y]) for x, y in b]),
     r"got torch.int64 of shape \(25, 4\); of one-hot labels take y.argmax\(1\)"),
    ("too few labels", lambda: batches_of(lambda b: [b[0], (b[1][0], b[1][1][:-1])]),
     r"gave shape \(25, 6\) on batch 1 of 24 samples"),
    ("too few labels at once", lambda: batches_of(lambda b: [(b[0][0], b[0][1][:-1]), b[1]]),
     r"gave shape \(25, 6\) on batch 0 of 24 samples"),
    ("too many labels", lambda: batches_of(lambda b: [b[0], (b[1][0][:-1], b[1][1])]),
     r"gave shape \(24, 6\) on batch 1 of 25 samples"),
    ("one class", lambda: classes(K=1, n=30), "need samples of at least 2 classes, got 1"),
    ("no batch", lambda: batches_of(lambda b: iter_of_none()), "is the loader empty"),
    ("an empty batch", lambda: batches_of(lambda b: [b[0], (b[1][0][:0], b[1][1][:0])]),
     "batch 1 has no sample"),
    ("batches that change shape", lambda: batches_of(lambda b: [b[0], (b[1][0][:, :, :5], b[1][1])]),
     r"gave shape \(25, 5\) on batch 1 of 25 samples; a sample's shape was \(6,\) before"),
    ("other samples in the second pass", lambda: classes(again=moved), OTHER),
    ("one other sample at 1e6", lambda: classes(offset=1e6, again=one_moved), OTHER),
    ("one other sample of 1e-170", lambda: classes(size=1e-170, dtype=F64, again=one_doubled), OTHER),
    ("one other sample of 1e160", lambda: classes(size=1e160, dtype=F64, again=one_doubled), OTHER),
    ("other labels in the second pass", lambda: classes(again=relabelled), OTHER),
    ("other labels, means 1e-5 apart at 1e6",
     lambda: classes(size=1e-5, offset=1e6, dtype=F64, again=relabelled), OTHER),
    ("one sample fewer", lambda: classes(again=shortened), OTHER),
    ("one sample more", lambda: classes(again=lambda b: [*b, (b[0][0][:1], b[0][1][:1])]), OTHER),
    ("no batch in the second pass", lambda: classes(again=lambda b: []), "used up after one reading"),
    ("float64 features that grow from 1e-170 to 1", lambda: grown(1e-170, 1.0),
     r"layer 'layers.0' gave features of 4.21 on batch 1, the first were near 6.62e-170"),
    ("float64 features that grow from 1 to 1e160", lambda: grown(1.0, 1e160),
     r"layer 'layers.0' gave features of 4.21e\+160 on batch 1, the first were near 1: float64 cannot"),
    ("a layer of 1e-170 beside layers of 1", lambda: grown(1e-170, 1e-170, 1),
     r"layer 'layers.1' has features of at most 4.24e-170, another of its shape of 4.49: float64"),
]  # fmt: skip


def iter_of_none():
    """A loader without batches."""
    return Loader([[]])


def moved(batches):
    """All samples a little off."""
    return [(x + 0.01, y) for x, y in batches]


def shortened(batches):
    """All samples but the last."""
    return [*batches[:-1], (batches[-1][0][:-1], batches[-1][1][:-1])]


def one_moved(batches):
    """The same samples, one of which has one entry a little off."""
    return change_one(batches, lambda x: x + 0.25)


def one_doubled(batches):
    """The same samples, one of which has one entry doubled."""
    return change_one(batches, lambda x: 2 * x)


def change_one(batches, change):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    x[59, 2, 4] = change(x[59, 2, 4])
    return batched(x, y, 25)


@pytest.mark.parametrize(("make", "text"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_has_no_meaning_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make().measured()


class Drifting(Handed):
    """Adds something to its second layer from the second pass on."""

    def __init__(self, layers, W, more):
        super().__init__(layers, W)
        self.more, self.runs = more, 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x + self.more if self.runs > 4 else x)  # a first look and three batches


@pytest.mark.parametrize("more", [math.nan, math.inf, 0.1])
def test_features_that_change_though_the_inputs_do_not_are_noticed(more):
    data = classes()
    model = Drifting(3, data.weights(), more)
    with pytest.raises(ValueError, match=r"different features from the first at layer 'layers\.0'"):
        pfc.measure(model, batched(data.x, data.y, 25), layers="layers.*", progress=False)


# What is undefined: NaN (or infinity), and a warning that names the layer


def exact(*layers, y=(0, 0, 1, 1, 2, 2), **how):
    """Layers of small whole numbers, given as rows of a sample each."""
    x = torch.stack([torch.tensor(layer, dtype=F64).reshape(len(y), -1) for layer in layers], dim=1)
    return Data(x, torch.tensor(y), **how)


COINCIDE = "layer 'layers.{}': the class means span 0 dimensions, not 2: they coincide or are collinear"
NO_NC3 = "layer 'layers.1': nc3 is undefined, for the classifier's weights are zero or no numbers"
OF_MEANS = ("pfc2", "nc1", "fuzziness", "nc2_norm", "nc2_angle", "nc2_max_angle")
SAME = [[5.0, 7]] * 6
ROUND_ZERO = [[1.0, 0], [-1, 0], [0, 2], [0, -2], [3, 3], [-3, -3]]
TRIANGLE = [[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, -1], [-1, -1]]


def nothing(l, **known):
    """NaN in all that speaks of the means; the rest as given."""
    return {(l, column): math.nan for column in OF_MEANS} | {(l, c): v for c, v in known.items()}


def mirrored(n=2000, spread=1000.0):
    """Classes of many samples whose means coincide exactly, before a triangle."""
    g = torch.Generator().manual_seed(4)
    half = torch.randint(-1000, 1001, (3, n, 2), generator=g).double() * spread / 1000
    first = torch.cat([half, -half], dim=1).reshape(-1, 2)
    last = torch.tensor(TRIANGLE[::2]).double().repeat_interleave(2 * n, dim=0)
    return Data(torch.stack([first, last], dim=1), torch.arange(3).repeat_interleave(2 * n), batch=999)


def twins():
    """Random classes, two of which have the same samples, the later one in another order."""
    x = torch.randn(5, 16, 2, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    x[3] = x[1].flip(0)
    return Data(x.reshape(-1, 2, 7), torch.arange(5).repeat_interleave(16))


UNDEFINED = {
    "all features equal": (
        lambda: exact(SAME, SAME),
        (COINCIDE.format(0), COINCIDE.format(1)),
        nothing(0, pfc1=math.nan, cdnv=math.nan, pfc3=1 / 3)
        | nothing(1, pfc1=math.nan, cdnv=math.nan, nc3=math.nan, position=math.nan),
    ),
    "all features equal at an offset that rounds": (
        lambda: classes(K=3, size=0.0, offset=0.1, L=2, dtype=F64),
        (COINCIDE.format(0), COINCIDE.format(1)),
        nothing(0, pfc1=math.nan, cdnv=math.nan, pfc3=1 / 3) | nothing(1, pfc1=math.nan, cdnv=math.nan),
    ),
    "all features zero": (
        lambda: exact([[0.0, 0]] * 6, [[0.0, 0]] * 6),
        (COINCIDE.format(0), COINCIDE.format(1)),
        nothing(0, pfc1=math.nan, cdnv=math.nan, pfc3=1 / 3) | nothing(1, pfc1=math.nan, cdnv=math.nan),
    ),
    "means coincide, samples do not": (
        lambda: exact(ROUND_ZERO, TRIANGLE),
        (COINCIDE.format(0),),
        nothing(0, pfc1=math.inf, cdnv=math.inf, pfc3=1 / 3) | {(1, "pfc1"): 0.0, (1, "pfc3"): 1.0},
    ),
    "means coincide at 1e6, in one": (
        lambda: exact(np.array(ROUND_ZERO) / 1024 + 1e6, np.array(TRIANGLE) + 1e6),
        (COINCIDE.format(0),),
        nothing(0, pfc1=math.inf, cdnv=math.inf, pfc3=1 / 3) | {(1, "pfc1"): 0.0, (1, "pfc3"): 1.0},
    ),
    "means coincide, samples of 1e160": (
        lambda: exact(1e160 * np.array(ROUND_ZERO), 1e160 * np.array(TRIANGLE)),
        (COINCIDE.format(0),),
        nothing(0, pfc1=math.inf, cdnv=math.inf, pfc3=1 / 3) | {(1, "pfc1"): 0.0, (1, "pfc3"): 1.0},
    ),
    "means of thousands coincide": (
        mirrored,
        (COINCIDE.format(0),),
        nothing(0, pfc1=math.inf, cdnv=math.inf, pfc3=1 / 3) | {(1, "pfc1"): 0.0, (1, "nc1"): 0.0},
    ),
    "two of three means coincide": (
        lambda: exact(TRIANGLE, [[0.1, 1], [0.3, 1], [0.3, 1], [0.1, 1], [3, 5], [3, 5]]),
        ("layer 'layers.1': the class means span 1 dimensions, not 2",),
        {(1, "cdnv"): math.inf, (1, "pfc3"): 4 / 6},
    ),
    "the same samples in two of five classes": (
        twins,
        (
            "layer 'layers.0': the class means span 3 dimensions, not 4",
            "layer 'layers.1': the class means span 3 dimensions, not 4",
        ),
        {(0, "cdnv"): math.inf, (1, "cdnv"): math.inf},
    ),
    "all equal, weighted by sample": (
        lambda: exact(*[[[0.1, 0.1 * 1.7]] * 12] * 2, y=(0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4)),
        (COINCIDE.format(0), COINCIDE.format(1)),
        nothing(0, pfc1=math.nan, cdnv=math.nan, pfc3=3 / 12) | nothing(1),
    ),
    "a mean is the mean of all": (
        lambda: exact(TRIANGLE, [[0.1, 0], [0.1, 0], [0.2, 3], [0.2, -3], [0.3, 0], [0.3, 0]]),
        (
            "layer 'layers.1': the class means span 1 dimensions, not 2",
            "layer 'layers.1': nc2_angle and nc2_max_angle undefined, "
            "for a class mean is the mean of all",
        ),
        {(1, "nc2_angle"): math.nan, (1, "nc2_max_angle"): math.nan, (1, "nc2_norm"): 3**0.5 / 2},
    ),
    "a classifier of zeros": (
        lambda: exact(TRIANGLE, TRIANGLE, W=torch.zeros(3, 2, dtype=F64)),
        (NO_NC3,),
        {(1, "nc3"): math.nan, (1, "nc4"): 4 / 6, (1, "pfc1"): 0.0},
    ),
    "answers that overflow": (
        lambda: Data(
            torch.tensor(TRIANGLE).half()[:, None] * 30000,
            torch.tensor([0, 0, 1, 1, 2, 2]),
            torch.tensor([[30.0, 30], [60, 60], [1, 1]]).half(),
        ),
        ("layer 'fc': the classifier gave NaN or infinite answers, so accuracy and nc4 are undefined",),
        {(0, "nc4"): math.nan, (0, "pfc3"): 1.0, (0, "pfc1"): 0.0},
    ),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_undefined_is_nan_and_says_so(name, tmp_path):
    make, warns, known = UNDEFINED[name]
    weighting = "sample" if "by sample" in name else "class"
    profile = measured(make(), [re.escape(text) for text in warns], weighting=weighting)
    table = profile.table()
    for (l, column), want in known.items():
        agree(table[column].iloc[l], want, atol=1e-12)
    if "overflow" in name:
        assert profile.accuracy is None
    if profile.segments:
        check_sayings(profile, tmp_path)


def test_where_nothing_moves_everything_says_so(tmp_path):
    profile = measured(exact(TRIANGLE, TRIANGLE, TRIANGLE))
    check_sayings(profile, tmp_path)
    assert profile.verdict().split("\n")[0] == (
        "Of progressive feedforward collapse nothing can be said from layers.0 to layers.2: "
        "nothing moves between these layers."
    )
    table = profile.prediction().table()
    assert not table.loc["measured", "pfc1_falls"]
    assert math.isnan(table.loc["measured", "pfc2_from"])
    lines = str(profile.prediction()).split("\n")
    assert next(line for line in lines if line.startswith("measured")).split()[2] == "constant"
    assert profile.prediction().sentences() == [
        "Nothing moves between the layers: the line is a point, and theory says nothing."
    ]


def test_what_moves_but_does_not_change_is_said_so():
    profile = measured(exact(np.array(ROUND_ZERO) + TRIANGLE, np.array(ROUND_ZERO) + TRIANGLE + 1.0))
    one, two, *_ = profile.prediction().sentences()
    assert "on the line to the measured features PFC1 does not change" in one
    assert "on the line to the measured features PFC2 does not change" in two


def test_an_undefined_metric_leaves_nothing_to_judge():
    profile = measured(exact(ROUND_ZERO, TRIANGLE), [COINCIDE.format(0)])
    assert profile.verdict().startswith(
        "Of progressive feedforward collapse nothing can be said from layers.0 to layers.1: "
        "PFC2 is undefined at layers.0."
    )


def test_denormal_numbers_that_the_processor_flushes_change_nothing():
    data = classes()
    known = measured(data)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        again = measured(data)
        t = [0.0, 0.3, 1.0]
        for end in ENDS:
            for metric in ("pfc1", "pfc2", "pfc3"):
                one, two = (getattr(p.segment().line(t, end), metric) for p in (known, again))
                assert one.equal(two)
        assert again.table().equals(known.table())
        assert again.prediction().to_dict() == known.prediction().to_dict()
    finally:
        torch.set_flush_denormal(False)


def test_a_scaled_segment_comes_back_in_its_unit(tmp_path):
    profile = measured(classes(size=1e160, dtype=F64))
    assert set(profile.about["exponents"]) == set(profile.layers)
    profile.save(tmp_path / "p.json")
    again = pfc.load(tmp_path / "p.json")
    assert again.segment().path().to_dict() == profile.segment().path().to_dict()
    assert again.segment().certify() == profile.segment().certify()
    assert 1e160 < again.segment().path().length < 1e162
    assert again.segment().path().energy == math.inf
    assert measured(classes(dtype=F64)).about["exponents"] == {}


def test_layers_of_other_shapes_have_scales_of_their_own():
    data = classes(dtype=F64)
    x = data.x.clone()
    x[:, 1] *= 1e-170
    alone = measured(Data(x, data.y), segments=False)
    assert set(alone.about["exponents"]) == {"layers.1"}
    check_rows(alone, Data(data.x, data.y).truth())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.usefixtures("engine")
def test_marks_of_inputs_are_the_same_by_every_way(dtype):
    x = 3 + torch.randn(20, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3, 1, 2], x[4, 0, 0] = float("nan"), float("inf")
    marks = Fingerprint(keep_marks=True)
    for rows in torch.arange(20).split(6):
        marks.update(Batch(0, (x[rows],), {}, rows % 3))
    wave = torch.cos(torch.arange(35, dtype=F64) * 2.399963229728653)
    known = (x.flatten(1).double() @ wave).nan_to_num(0.0, MOST, -MOST).clamp(-MOST, MOST)
    found = torch.cat(marks.marks)
    assert found[:, 0].tolist() == (torch.arange(20) % 3).tolist()
    torch.testing.assert_close(found[:, 1], known - known[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [1e-8, 1e-3, 1e-2])
def test_inputs_are_known_again_though_their_offset_rounds(spread):
    """The marks of 3,000 numbers at 1e6 round by much."""
    x = 1e6 + spread * torch.randn(64, 3000, generator=torch.Generator().manual_seed(0), dtype=F64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    first = Fingerprint()
    for rows in torch.arange(64).split(20):
        first.update(Batch(0, (x[rows],), {}, rows % 3))
    again = first.fresh()
    for rows in order.split(7):
        again.update(Batch(0, (x[rows],), {}, rows % 3))
    first.compare(again)
    again.update(Batch(0, (x[:1] + 1e-3,), {}, torch.tensor([0])))
    with pytest.raises(ValueError, match="23 of class 0 after 22"):
        first.compare(again)
