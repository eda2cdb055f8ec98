"""What measuring makes: nothing larger than a batch, and nothing whose size grows with the samples."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pfc
from pfc.prototypes import Prototypes
from tests.models import samples, seeded

BATCH, WIDE, LAYERS, CLASSES = 12, 300, 4, 3
OWN = 4 * BATCH * WIDE  # bytes of a batch of one layer


class Largest(TorchDispatchMode):
    """The largest memory that any operation's result stands in, in bytes, and the operation's name."""

    def __init__(self):
        super().__init__()
        self.found = (0, "")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.found = max(self.found, (tensor.untyped_storage().nbytes(), str(func)))
        return out


class Widths(nn.Module):
    """Residual layers that need no matrix as large as a batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(LAYERS, WIDE))
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
        self.head = nn.Linear(WIDE, CLASSES)

    def forward(self, x):
        for scale, block in zip(self.scale, self.blocks, strict=True):
            x = block(torch.addcmul(x, x.tanh(), scale))
        return self.head(x)


def largest(n, **options):
    x, y = samples(n, (WIDE,), CLASSES)
    data = [(x[i : i + BATCH].clone(), y[i : i + BATCH].clone()) for i in range(0, n, BATCH)]
    with Largest() as seen:
        pfc.measure(seeded(Widths), data, layers="blocks.*", progress=False, **options)
    return seen.found


@pytest.fixture
def _small_tiles(monkeypatch):
    monkeypatch.setitem(pfc.tiles.TILE, "cpu", 400)
    monkeypatch.setattr(pfc.tiles._kept, "arrays", {})
    monkeypatch.setattr("pfc.measuring.decisions.WAITING", 400)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("options", [{}, {"passes": 1}, {"segments": False}], ids=str)
@pytest.mark.parametrize("n", [48, 240])  # of 240 samples the paths are the largest
def test_nothing_larger_than_a_batch_is_made(n, options):
    size, where = largest(n, **options)
    assert size <= OWN, where


def test_crowded_class_means_are_seen_without_a_list_of_pairs():
    K, R = 200, 100
    points = torch.randn(K, R, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points[0] *= 1e6
    with Largest() as seen:
        assert Prototypes(points, torch.tensor(1e-9, dtype=torch.float64)).crowded
    assert seen.found[0] <= 8 * K * K, seen.found[1]


@pytest.mark.usefixtures("_small_tiles")
def test_the_largest_is_seen():
    with Largest() as seen:
        torch.zeros(BATCH, WIDE).double()
    assert seen.found[0] == 2 * OWN
