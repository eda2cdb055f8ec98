"""Many processes: the profile of one, whatever each has of the data; a failure of one stops all."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import pfc
from pfc.processes import together
from tests.models import Net, batched, samples, seeded
from tests.ranks import Ranks

CPU = torch.device("cpu")
SPLITS = {  # which process has which of 12 batches
    "in turn": lambda i, size: i % size,
    "most in the last": lambda i, size: size - 1 if i else 0,
    "all in the last": lambda i, size: size - 1,
    "all in the first": lambda i, size: 0,
}


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


def net():
    layers = lambda: {
        "a": nn.Linear(6, 8),
        "b": nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
        "c": nn.Linear(8, 8),
    }
    return seeded(lambda: Net(layers())).double()


def data(offset=0.0, dtype=torch.float64):
    x, y = samples(n=113, dtype=dtype)
    return batched(x + offset, y, 10)


def numbers(profile):
    """Everything that a profile says, as one dict of tensors."""
    columns = {f"column {name}": torch.tensor(values) for name, values in profile.columns.items()}
    moments = {
        f"{name} {part}": getattr(moments, part)
        for name, moments in profile.moments.items()
        for part in ("count", "scatter")
    }
    means = {f"{name} mean": m.mean + m.low for name, m in profile.moments.items()}
    arrays = {
        f"{i} {name}": array @ array.mT if name == "means" else array
        for i, segment in enumerate(profile.segments)
        for name, array in segment.arrays().items()
    }
    told = {
        "accuracy": torch.tensor(math.nan if profile.accuracy is None else profile.accuracy),
        "samples": torch.tensor(profile.about["samples"]),
        "line": profile.segment().line([0.0, 0.3, 0.5, 1.0]).pfc3,
    }
    return columns | moments | means | arrays | told


def shard(group, rank, batches, split, kwargs):
    size = torch.distributed.get_world_size(group)
    own = [batch for i, batch in enumerate(batches) if SPLITS[split](i, size) == rank]
    return numbers(pfc.measure(net(), own, group=group, progress=False, **kwargs))


def same(found, known, rtol=1e-12):
    if isinstance(found, Exception):
        raise found
    assert found.keys() == known.keys()
    for name, value in known.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=1e-12, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_the_profile_is_that_of_one_process(ranks, size, split):
    known = numbers(pfc.measure(net(), data(), progress=False))
    for found in ranks.run(size, shard, data(), split, {}):
        same(found, known)
