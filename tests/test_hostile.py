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
from pfc.profile.result import CollapseWarning
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
        layers.append((mu + 0.4 * l * a)[y] + spread * (1 - 0.25 * l) * (r + 0.3 * b))
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
    for one in (profile, again):
        assert "nan times" not in str(one.prediction())
        write_json(folder / "t.json", one.prediction().told())
    assert again.table().equals(profile.table())
    assert str(again) == str(profile)
    assert again.verdict() == profile.verdict()
    assert str(again.prediction()) == str(profile.prediction())


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
    case("batches of one", batch=1),
    case("one dimension", K=3, D=1),
    case("two classes", K=2),
    case("two classes in one dimension", K=2, D=1),
    *(case(f"size {s:g}, {d}", size=s, dtype=d) for s in (1e20, 1e-25) for d in (F32, F64)),
    case("size 1e37, float32", size=1e37),
    case("size 1e-36, float32", size=1e-36),
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
    assert len(told) == len(warns), told
    for text, pattern in zip(told, warns, strict=True):
        assert re.search(pattern, text), (text, pattern)
    return profile


@pytest.mark.parametrize(("make", "warns"), SOUND)
def test_every_number_is_right(make, warns, tmp_path):
    data = make()
    profile = measured(data, warns)
    truth = data.truth()
    check_rows(profile, truth)
    check_line(profile.segment(), truth)
    check_path(profile.segment(), truth)
    check_sayings(profile, tmp_path)
