"""Many processes: the profile of one, whatever each has of the data; a failure of one stops all."""

import json
import math
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import pfc
from pfc.measuring.loader import statistics_device
from pfc.processes import ProcessError, Processes, together
from pfc.training import Recipe, Run
from pfc.training.trainer import _share
from tests.models import Net, batched, samples, seeded
from tests.ranks import Ranks, free_port
from tests.test_recorder import nothing, steps

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
    def make():
        b = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        return Net({"a": nn.Linear(6, 8), "b": b, "c": nn.Linear(8, 8)})

    return seeded(make).double()


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
    means = {f"{name} mean": m.mean + m.mean_error for name, m in profile.moments.items()}
    arrays = {
        f"{i} {name}": array @ array.mT if name == "means" else array
        for i, segment in enumerate(profile.segments)
        for name, array in segment.arrays().items()
    }
    told = {
        "accuracy": torch.tensor(math.nan if profile.accuracy is None else profile.accuracy),
        "samples": torch.tensor(profile.about["samples"]),
    }
    line = {
        f"{i} line": segment.line([0.0, 0.3, 0.5, 1.0]).pfc3
        for i, segment in enumerate(profile.segments)
    }
    return columns | moments | means | arrays | told | line


def shard(group, rank, batches, split, kwargs):
    size = torch.distributed.get_world_size(group)
    own = [batch for i, batch in enumerate(batches) if SPLITS[split](i, size) == rank]
    return numbers(pfc.measure(net(), own, group=group, progress=False, **kwargs))


def same(found, known, rtol=1e-12, atol=1e-12):
    if isinstance(found, Exception):
        raise found
    assert found.keys() == known.keys()
    for name, value in known.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_the_profile_is_that_of_one_process(ranks, size, split):
    known = numbers(pfc.measure(net(), data(), progress=False))
    for found in ranks.run(size, shard, data(), split, {}):
        same(found, known)


CASES = {
    "offset": (data(1e6), {}),
    "single precision": ([(x.double(), y) for x, y in data(1e3, torch.float32)], {}),
    "one pass": (data(), {"passes": 1}),
    "weighted by samples": (data(), {"weighting": "sample"}),
    "no segments": (data(), {"segments": False}),
    "more classes than samples have": (data(), {"classes": 3, "layers": ["a", "b"]}),
    "on the host": (data(), {"statistics": "host"}),
    "beyond squares": ([(x * 10.0 ** (160 - i), y) for i, (x, y) in enumerate(data())], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_measuring_is_that_of_one_process(ranks, case):
    batches, kwargs = CASES[case]
    known = numbers(pfc.measure(net(), batches, progress=False, **kwargs))
    for found in ranks.run(3, shard, batches, "most in the last", kwargs):
        same(found, known, rtol=1e-12 if case != "offset" else 1e-11)


def maps(group, rank, batches):
    """Of a network whose maps lie otherwise in memory in every second process."""
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(*convs, nn.Tanh(), nn.Flatten(), nn.Linear(100, 3))
    lie = [torch.contiguous_format, torch.channels_last][rank % 2]
    net = net.double().to(memory_format=lie)
    own = batches if group is False else batches[rank::2]
    own = [(x.contiguous(memory_format=lie), y) for x, y in own]
    return numbers(pfc.measure(net, own, layers=["0", "1"], group=group, progress=False))


def test_processes_whose_maps_lie_otherwise_agree(ranks):
    x, y = samples(60, (3, 5, 5))
    batches = batched(x.double(), y, 7)
    known = maps(False, 0, batches)
    for found in ranks.run(2, maps, batches):
        same(found, known)


def kept(profile):
    """What is kept of the classes and of the sample, up to the signs of directions."""
    classes = {
        f"{layer} {name}": torch.as_tensor(part)
        for layer, geometry in profile.geometry.items()
        for name, part in geometry.arrays().items()
    }
    points = {f"{layer} points": part.abs() for layer, part in profile.sample.points.items()}
    return classes | points | {"labels": profile.sample.labels}


def with_kept(group, rank, batches, K):
    size = torch.distributed.get_world_size(group)
    own = two_classes(batches, K)[rank::size]
    profile = pfc.measure(net(), own, classes=K, group=group, progress=False)
    return kept(profile)


def two_classes(batches, K):
    return [(x, y.clamp(max=K - 1)) for x, y in batches]


@pytest.mark.parametrize("K", [2, 3])
def test_classes_and_sample_are_those_of_one_process(ranks, K):
    known = kept(pfc.measure(net(), two_classes(data(), K), classes=K, progress=False))
    for found in ranks.run(3, with_kept, data(), K):
        same(found, known, rtol=1e-5, atol=1e-5)


def about_means(group, rank, batches, known):
    size = torch.distributed.get_world_size(group)
    means = pfc.measure(net(), known, group=False, progress=False)
    profile = pfc.measure(net(), batches[rank::size], means=means, group=group, progress=False)
    return numbers(profile) | kept(profile)


def test_data_about_other_means_are_as_in_one_process(ranks):
    train, test = data(), batched(*samples(n=71, seed=1, dtype=torch.float64), 10)
    means = pfc.measure(net(), train, progress=False)
    about = pfc.measure(net(), test, means=means, progress=False)
    for found in ranks.run(3, about_means, test, train):
        same(found, numbers(about) | kept(about), rtol=1e-5, atol=1e-5)
        same({n: found[n] for n in numbers(about)}, numbers(about))


class Words(nn.Module):
    """Mixes each token with those before it, and names the next one."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, ids, attention_mask=None):
        h = self.embedding(ids)
        return self.head(torch.tanh(self.mix(h.cumsum(1))))


def words(sizes=(3, 4, 4, 2)):
    g = torch.Generator().manual_seed(0)
    found = []
    for i, n in enumerate(sizes):
        ids = torch.randint(i, 9 - i, (n, 5 + i), generator=g)
        mask = (torch.arange(5 + i) < torch.randint(3, 6 + i, (n, 1), generator=g)).long()
        found.append({"ids": ids, "attention_mask": mask, "labels": ids})
    return found


def next_words(group, rank, batches):
    size = torch.distributed.get_world_size(group)
    how = {"pool": "tokens", "shift": 1, "progress": False}
    profile = pfc.measure(seeded(Words).double(), batches[rank::size], group=group, **how)
    return numbers(profile) | kept(profile) | {"labels": torch.tensor(profile.about["labels"])}


def test_tokens_are_as_in_one_process(ranks):
    """No process has seen all of the words."""
    how = {"pool": "tokens", "shift": 1, "progress": False}
    profile = pfc.measure(seeded(Words).double(), words(), **how)
    known = numbers(profile) | kept(profile) | {"labels": torch.tensor(profile.about["labels"])}
    for found in ranks.run(3, next_words, words()):
        same(found, known, rtol=1e-5, atol=1e-5)


def erred(group, rank):
    size = torch.distributed.get_world_size(group) if group is None else 1
    own = data()[rank::size] if group is None else data()
    return dict(pfc.measure(net(), own, group=group, intervals=True, progress=False).errors)


def test_standard_errors_of_processes_are_those_of_one(ranks):
    known = erred(False, 0)
    for found in ranks.run(2, erred):
        for metric, values in known.items():
            np.testing.assert_allclose(found[metric], values, rtol=1e-10)


def headless(group, rank, batches):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-1, 1, 48).view(8, 6))
        model[0].bias.zero_()
    return numbers(pfc.measure(model, batches[rank], layers=["0", "1"], group=group, progress=False))


def test_classes_that_only_one_process_has_seen(ranks):
    """Nothing tells how many there are: the labels of all processes do."""
    x, y = samples(n=60, K=5, dtype=torch.float64)
    parts = [[(x[y == k], y[y == k]) for k in own] for own in ([0], [3, 1], [4, 2])]
    whole = headless(False, 0, [[*parts[0], *parts[1], *parts[2]]])
    for found in ranks.run(3, headless, parts):
        same(found, whole)


def exchanged(group, rank, kwargs):
    size = torch.distributed.get_world_size(group)
    profile = pfc.measure(net(), data()[rank::size], group=group, progress=False, **kwargs)
    told = {"processes": size, "samples": 113, **kwargs}
    return profile.about["exchanged"], pfc.measuring.cost(profile.shapes, 3, **told)


@pytest.mark.parametrize("kwargs", [{"passes": 1}, {"passes": 2}, {"passes": 2, "intervals": True}])
def test_what_is_exchanged_is_known_beforehand(ranks, kwargs):
    marks = 8 * (3 + 2 * 40)  # of three processes with 40 samples at most
    if kwargs["passes"] == 2:  # and their coordinates at three layers
        marks += 8 * 40 * (3 + 2 * 3)
    for found, known in ranks.run(3, exchanged, {**kwargs, "segments": False}):
        assert found == known.exchanged + marks
    for found, known in ranks.run(2, exchanged, kwargs):
        lines = 0 if kwargs["passes"] == 1 else 3 * 113 * 16
        assert known.exchanged < found <= known.exchanged + known.of_samples + lines


def test_statistics_that_the_device_has_no_room_for_are_kept_by_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 9000))
    cuda = torch.device("cuda", 0)
    for statistics, size, home in (
        (None, 600, cuda),
        (None, 800, CPU),
        ("device", 800, cuda),
        ("host", 1, CPU),
    ):
        assert statistics_device(cuda, statistics, size) == home
    with pytest.raises(ValueError, match="statistics must be 'device', 'host' or None, got 'disk'"):
        statistics_device(CPU, "disk", 0)


def wide(group, rank):
    """1,000 classes of two samples and 100,000 features, which two layers make of 16 numbers."""
    size = torch.distributed.get_world_size(group)
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 100_000), nn.Tanh()))
    x, y = samples(n=2000, shape=(16,), K=1000)
    own = batched(x[rank::size], y[rank::size], 100)
    how = {"layers": ["1"], "classes": 1000, "statistics": "host", "progress": False}
    profile = pfc.measure(model, own, group=group, **how)
    return dict(profile.columns), profile.about["exchanged"]


@pytest.mark.slow
def test_a_thousand_classes_of_a_hundred_thousand_features(ranks):
    """The state is 2.4 GB a process, and 4.9 GB while the first finds the basis."""
    first, second = ranks.run(2, wide)
    np.testing.assert_equal(first, second)
    columns, exchanged = first
    marks = 8 * (2 + 2 * 1000)  # of two processes with 1,000 samples each
    known = pfc.measuring.cost([(100_000,)], 1000, processes=2).exchanged + marks
    assert exchanged == pytest.approx(known, rel=1e-6)
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 100_000), nn.Tanh()))
    x, y = samples(n=2000, shape=(16,), K=1000)
    within = torch.zeros(1000, dtype=torch.float64)
    M = torch.zeros(1000, 100_000, dtype=torch.float64)
    with torch.no_grad():
        for k in range(1000):
            H = model(x[y == k]).double()
            M[k] = H.mean(0)
            within[k] = (H - M[k]).square().sum(1).mean()
    M -= M.mean(0)
    G = M @ M.T
    etf = (torch.eye(1000, dtype=torch.float64) - 1 / 1000) / 999**0.5
    assert columns["pfc1"][0] == pytest.approx(float(within.mean() / G.trace() * 1000), rel=1e-6)
    assert columns["pfc2"][0] == pytest.approx(float((G / G.norm() - etf).norm()), rel=1e-6)


def padded(group, rank, x, y, shuffle, limit):
    size = torch.distributed.get_world_size(group)
    sampler = DistributedSampler(TensorDataset(x, y), size, rank, shuffle=shuffle)
    loader = DataLoader(sampler.dataset, batch_size=10, sampler=sampler)
    return numbers(pfc.measure(net(), loader, group=group, limit=limit, progress=False))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_that_a_sampler_repeats_count_once(ranks, size, shuffle):
    """113 samples make no even parts for 2 or 3 processes."""
    x, y = samples(n=113, dtype=torch.float64)
    known = numbers(pfc.measure(net(), batched(x, y), progress=False))
    for found in ranks.run(size, padded, x, y, shuffle, None):
        same(found, known)


def test_a_limit_is_of_all_processes_together(ranks):
    x, y = samples(n=113, dtype=torch.float64)
    known = numbers(pfc.measure(net(), batched(x[:50], y[:50]), progress=False))
    for found in ranks.run(3, padded, x, y, False, 50):
        same(found, known)


class Even:
    """Parts made even by some library that repeats samples in a way of its own."""

    def __init__(self, x, y, size, rank):
        self.dataset = TensorDataset(x, y)
        own = torch.arange(rank, size * math.ceil(len(x) / size), size) % len(x)
        self.batches = batched(x[own], y[own])

    def __iter__(self):
        return iter(self.batches)


def measured(group, rank, batches, kwargs=None):
    return numbers(pfc.measure(net(), batches[rank], group=group, progress=False, **(kwargs or {})))


def refused(ranks, size, batches, message, kind=ValueError, **kwargs):
    """Every process ends with an error of that kind and text, none of them late."""
    for error in ranks.run(size, measured, batches, kwargs):
        with pytest.raises(kind, match=message):
            raise error


def test_samples_that_another_sampler_repeats_are_refused(ranks):
    x, y = samples(n=113, dtype=torch.float64)
    parts = [Even(x, y, 2, rank) for rank in range(2)]
    refused(ranks, 2, parts, "saw 114 samples of a dataset of 113.*drop the last 1")


def test_the_same_samples_in_another_order_in_every_process_are_refused(ranks):
    orders = [data(), data()[::-1], [*data()[3:], *data()[:3]]]
    refused(ranks, 3, orders, "each of the 3 processes was given the same 113 samples")


def of_everything(group, rank, batches, kwargs):
    """The profile of data that every process reads whole, beside one process's, and what is told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = numbers(pfc.measure(net(), batches, group=group, progress=False, **kwargs))
        known = numbers(pfc.measure(net(), batches, group=False, progress=False, **kwargs))
    told = [str(each.message) for each in caught]
    return found, known, [text for text in told if not text.startswith("few samples")]


@pytest.mark.parametrize("kwargs", [{}, {"limit": 37}, {"passes": 1}])
@pytest.mark.parametrize("size", [2, 3])
def test_of_the_same_batches_each_process_takes_its_part(ranks, size, kwargs):
    loader = DataLoader(TensorDataset(*samples(n=113, dtype=torch.float64)), 10)
    for rank, (found, known, told) in enumerate(ranks.run(size, of_everything, loader, kwargs)):
        same(found, known)
        message = (
            f"each of the {size} processes was given the same batches: each takes one of every {size}"
        )
        assert [text.partition(";")[0] for text in told] == ([] if rank else [message])


def test_data_that_only_begin_the_same_are_refused(ranks):
    with_more = [data()[:6], data()]
    for error in ranks.run(2, measured, with_more):
        with pytest.raises(ValueError, match=r"begin with the same batch and then read other data"):
            raise error


def test_of_fewer_batches_than_processes_some_have_none(ranks):
    for found, known, _ in ranks.run(
        3, of_everything, batched(*samples(n=20, dtype=torch.float64), 10), {}
    ):
        same(found, known)


def test_no_data_at_all_are_refused(ranks):
    refused(ranks, 2, [[], []], "the data gave no batch at all")


def test_bad_input_of_one_process_stops_all(ranks):
    bad = data()
    bad[3] = (bad[3][0], bad[3][1] - 5)
    refused(ranks, 3, [data()[:4], bad[4:] + bad[3:4], []], "labels of batch 8 must not be negative")


def test_what_only_one_process_has_in_the_second_pass_is_noticed(ranks):
    x, y = samples(n=40, dtype=torch.float64)
    parts = [batched(x, y), Changing(batched(x + 1, y))]
    refused(ranks, 2, parts, "saw different samples from the first: the inputs of class 0")


class Changing:
    """Other inputs at each pass."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([(x + self.passes, y) for x, y in self.batches])


def of_layers(group, rank):
    layers = ["a", "b"] if rank else ["a", "c"]
    pfc.measure(net(), data()[rank::2], layers=layers, group=group, progress=False)


def test_other_layers_in_another_process_are_refused(ranks):
    for error in ranks.run(2, of_layers):
        with pytest.raises(ValueError, match=r"process 1 measures a \(8,\), b \(8,\).*process 0 a .*c"):
            raise error


def alone(group, rank):
    return numbers(pfc.measure(net(), data(), group=False, progress=False))


def test_a_process_may_measure_alone(ranks):
    known = numbers(pfc.measure(net(), data(), progress=False))
    for found in ranks.run(3, alone):
        same(found, known)


def early(group, rank):
    """Only the first process measures."""
    import pfc.processes

    late, pfc.processes.LATE = pfc.processes.LATE, 1.0
    try:
        if rank == 0:
            pfc.measure(net(), data(), group=group, progress=False)
    finally:
        pfc.processes.LATE = late


def test_a_process_that_does_not_come_is_named(ranks):
    error, other = ranks.run(2, early)
    assert other is None
    with pytest.raises(
        ProcessError, match=r"process 1 of 2 did not come to this call within 1 s: every"
    ):
        raise error


def test_processes_find_each_other_again(ranks):
    """After a call that one of them never made, and whoever comes first."""
    known = numbers(pfc.measure(net(), data(), progress=False))
    ranks.run(2, early)
    for found in ranks.run(2, shard, data(), "in turn", {}):
        same(found, known)


def sums(group, rank):
    with together(group) as ranks:
        parts = ranks.gather(torch.arange(rank, dtype=torch.float64)[:, None] + rank)
        lead = ranks.broadcast(torch.full((2, 3), float(rank)).T)
        total = ranks.all_reduce(torch.full((2, 3), rank + 1).T)
        return (
            [part.tolist() for part in parts],
            lead.tolist(),
            total.tolist(),
            ranks.exchange("x", f"r{rank}"),
        )


def test_what_processes_exchange(ranks):
    for parts, lead, total, told in ranks.run(3, sums):
        assert parts == [[], [[1.0]], [[2.0], [3.0]]]
        assert lead == [[0.0, 0.0]] * 3
        assert total == [[6, 6]] * 3
        assert told == ["r0", "r1", "r2"]


def dying(dying, training):
    """What two processes said, of which one was killed; they may take a minute."""
    command, port = [sys.executable, "-m", "tests.dying"], str(free_port())
    both = [
        subprocess.Popen(
            [*command, str(rank), port, str(dying), str(training)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert both[dying].returncode == -9
    assert both[1 - dying].returncode == 1
    return said[1 - dying]


@pytest.mark.parametrize(
    ("which", "known"),
    [
        (0, "the store of the process group is gone"),  # which the first process has
        (1, "process 1 of 2 gave no sign of life for 4 s"),
    ],
)
def test_a_process_that_is_killed_stops_the_other(which, known):
    assert f"ProcessError: {known}" in dying(which, 0)


def test_a_process_that_is_killed_while_it_trains_stops_the_other():
    assert "ProcessError: another process is gone: " in dying(1, 1)


PLAIN = Recipe(
    name="plain", data="digits", width=8, blocks=(2,), normalise="none", epochs=2, batch_size=33
)


def trained(group, rank, recipe, folder=None, stop=None, dropout=0.0):
    """Train some epochs; the weights, the last epoch's numbers, and the profile where there is one."""
    images = pfc.data.load("digits", limit=100)  # batches of 33, 33 and 34: one sample joins the last
    net = recipe.build(images, rank)  # the first one's weights are those of the run
    if dropout:
        net.blocks[0].f.append(nn.Dropout(dropout))
    torch.manual_seed(7 + rank)
    run = pfc.train(net, images, recipe, folder=folder, resume=True, group=group, progress=False)
    epochs = list(islice(run, stop))
    run.close()
    profile = epochs[-1].profile
    return net.state_dict(), (epochs[-1].loss, epochs[-1].accuracy), profile and numbers(profile)


def test_training_over_processes_is_that_of_one(ranks):
    """Without batch normalisation: the same batches, gradients and steps, to rounding."""
    weights, epoch, profile = trained(False, 0, PLAIN)
    for size in (2, 3):
        for found in ranks.run(size, trained, PLAIN):
            same(found[0], weights, rtol=1e-4, atol=1e-6)
            assert found[1] == pytest.approx(epoch, rel=1e-5)
            torch.testing.assert_close(
                found[2]["column pfc1"], profile["column pfc1"], rtol=1e-4, atol=0
            )


def bits(found, known):
    for each in found:
        if isinstance(each, Exception):
            raise each
        for name, value in known[0].items():
            assert each[0][name].equal(value), name
        assert each[1] == known[1]


def test_a_run_over_processes_resumes_to_the_same_bits(ranks, tmp_path):
    """With batch normalisation and dropout, whose random states are kept of every process."""
    recipe = replace(PLAIN, normalise="batch", epochs=4)
    whole = ranks.run(2, trained, recipe, tmp_path / "whole", None, 0.5)
    bits(whole[1:], whole[0])
    ranks.run(2, trained, recipe, tmp_path / "cut", 3, 0.5)
    bits(ranks.run(2, trained, recipe, tmp_path / "cut", None, 0.5), whole[0])
    for name in ("state", "weights/epoch-0004", "profiles/epoch-0004"):
        one, other = (tmp_path / run / f"{name}.safetensors" for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name


def test_one_process_resumes_what_several_began(ranks, tmp_path):
    for found in ranks.run(3, trained, PLAIN, tmp_path, 2):
        assert not isinstance(found, Exception), found
    begun = json.loads((tmp_path / "config.json").read_text())
    assert begun["processes"] == 3
    weights, _, _ = trained(False, 0, PLAIN, tmp_path)
    same(weights, trained(False, 0, PLAIN)[0], rtol=1e-4, atol=1e-6)


def test_a_run_that_can_not_begin_stops_all_processes(ranks, tmp_path):
    ranks.run(2, trained, PLAIN, tmp_path, 2)
    for error in ranks.run(2, trained, replace(PLAIN, momentum=0.5), tmp_path):
        with pytest.raises(ValueError, match=r"holds another run: its momentum is 0\.9, not 0\.5"):
            raise error


@pytest.mark.parametrize(
    ("size", "samples", "shares"),
    [(2, 5, [3, 2]), (3, 5, [3, 2, 0]), (3, 1, [1, 0, 0]), (3, 6, [2, 2, 2]), (1, 4, [4])],
)
def test_every_sample_of_a_batch_counts_once(size, samples, shares):
    batch = torch.arange(10, 10 + samples)
    parts = [_share(batch, Processes(rank, size)) for rank in range(size)]
    assert [counts for _, counts in parts] == shares
    assert all(len(index) >= min(2, samples) for index, _ in parts)
    counted = torch.cat([index[:counts] for index, counts in parts])
    assert counted.sort().values.equal(batch)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "pfc"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def test_measuring_under_torchrun(tmp_path):
    """Two processes measure other data; one prints, keeps and says what was found, each notice once."""
    images = pfc.data.load("digits", limit=101)
    list(pfc.train(PLAIN.build(images, 0), images, PLAIN, folder=tmp_path / "run", progress=False))
    for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        (folder := tmp_path / "other" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(16 - image[0].numpy()).save(folder / f"{i}.png")
    (tmp_path / "other" / "0" / "notes.bin").write_text("no image")
    data, out = str(tmp_path / "other"), str(tmp_path / "2.json")
    how = ["--data", data, "--no-test", "--out", out, "--theory", "--transport", "0"]
    told = torchrun("measure", str(tmp_path / "run"), *how)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("Progressive feedforward collapse") == 1
    for notice in ("pfc: these are not the data of", "pfc: 1 of 102 files in"):
        assert told.stderr.count(notice) == 1, notice
    found, run = pfc.load(tmp_path / "2.json"), Run(tmp_path / "run")
    assert found.about["processes"] == 2
    with pytest.warns(UserWarning, match="1 of 102 files"):
        other = run.normalised(pfc.data.load(data))
    known = pfc.measure(run.network(), other.batches(), progress=False)
    same(numbers(found), numbers(known), rtol=1e-5, atol=1e-5)  # float32 in batches of another size


@pytest.mark.slow
def test_training_under_torchrun(tmp_path):
    changes = ["--epochs", "1", "--width", "8", "--blocks", "2", "--limit", "101"]
    told = torchrun("train", "digits", "--out", str(tmp_path / "run"), *changes)
    assert told.returncode == 0, told.stderr
    assert (
        told.stdout
        == f"{(run := tmp_path / 'run')}: pfc measure {run}, pfc figures {run}, pfc report {run}\n"
    )
    assert told.stderr.count("epoch 1:") == 1
    wrong = torchrun("measure", str(tmp_path / "run"), "--classifier", "none")
    assert wrong.returncode == 1
    assert "pfc: classifier 'none' is no linear layer of the model" in wrong.stderr


def in_turn(group, rank):
    """Calls of which some fail, in one process first, without any other meeting of the processes."""
    told = []
    for bad in (False, True, False, True, True, False):
        own = data()[rank::3]
        if bad:
            own[-1] = (own[-1][0], own[-1][1] - 5 * (rank == 1))
        try:
            told.append(pfc.measure(net(), own, group=group, progress=False).about["samples"])
        except ValueError:
            told.append("refused")
    return told


def test_calls_stay_in_step_after_an_error(ranks):
    for told in ranks.run(3, in_turn):
        assert told == [113, "refused", 113, "refused", "refused", 113]


def apart(group, rank, kwargs):
    pfc.measure(net(), data()[rank::2], group=group, progress=False, **(kwargs if rank else {}))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weighting": "sample"}, "process 1 has weighting='sample', process 0 'class': every process"),
        ({"passes": 1}, "process 1 has passes=1, process 0 2: every process needs the same"),
        ({"segments": False}, "process 1 has segments=False, process 0 True"),
        ({"passes": 3}, "passes must be 1 or 2, got 3"),
        ({"device": "nowhere"}, "no device 'nowhere' here"),
    ],
)
def test_arguments_must_be_the_same_in_all_processes(ranks, kwargs, message):
    for error in ranks.run(2, apart, kwargs):
        with pytest.raises(ValueError, match=message):
            raise error


def other_network(group, rank):
    model = net()
    with torch.no_grad():
        model.fc.bias += 1e-3 * rank
    pfc.measure(model, data()[rank::2], group=group, progress=False)


def test_another_network_in_a_process_is_refused(ranks):
    for error in ranks.run(2, other_network):
        with pytest.raises(ValueError, match="process 1 has network="):
            raise error


def with_statistics(momentum=0.1):
    """A network whose batch normalisation learns other statistics in each process."""

    def make():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 3))

    return seeded(make).double()


def train_a_step(model, rank, n):
    """A step on the process's own data; DistributedDataParallel averages the gradients."""
    x, y = samples(n=40, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(n):
        rows = slice(10 * rank + step, 10 * rank + step + 10)
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()


def of_own_statistics(group, rank, measuring):
    """Weights and statistics of distributed training after a measurement or without one."""
    model = nn.parallel.DistributedDataParallel(
        with_statistics(), process_group=group, broadcast_buffers=False
    )
    train_a_step(model, rank, 3)
    own, found = model.module[1].running_mean.clone(), None
    told = []
    if measuring:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = pfc.measure(model, data()[rank::2], group=group, progress=False)
        told = [str(each.message) for each in caught]
        assert torch.equal(model.module[1].running_mean, own)
    first = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    for tensor in first.values():
        torch.distributed.broadcast(tensor, 0, group=group)
    known = with_statistics()
    known.load_state_dict(first)
    train_a_step(model, rank, 3)
    after = {name: t.clone() for name, t in model.module.state_dict().items()}
    known = pfc.measure(known, data(), group=False, progress=False).table()
    return known, (found and found.table()), own, after, told


def test_batch_statistics_of_the_first_process_are_measured_and_each_keeps_its_own(ranks):
    measured_, plain = (ranks.run(2, of_own_statistics, measuring) for measuring in (True, False))
    (known, table, own, _, told), (_, other, others_own, _, silence) = measured_
    assert not torch.equal(own, others_own), "the processes' statistics differ"
    np.testing.assert_allclose(table, known, rtol=1e-9)
    np.testing.assert_array_equal(table, other)
    assert told == [
        "the processes hold different buffers, such as batch statistics: those of process 0 are "
        "measured, and each has its own again afterwards"
    ]
    assert silence == []
    for with_, without in zip(measured_, plain, strict=True):
        for name, tensor in with_[3].items():
            assert torch.equal(tensor, without[3][name]), f"{name}: measuring changes nothing"


def flat(group, rank):
    """FSDP of the first kind: what measuring says, and of the remedy it names the table."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FullyShardedDataParallel

    whole = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = FullyShardedDataParallel(net(), process_group=group, device_id=CPU)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    known = pfc.measure(whole, data(), group=False, progress=False).table()
    copy = net()
    for p in copy.parameters():
        nn.init.zeros_(p)
    copy.load_state_dict(state)
    found = pfc.measure(copy, data()[rank::2], group=group, progress=False).table()
    said = []
    for measuring in (
        lambda: pfc.measure(model, data()[rank::2], group=group),
        lambda: pfc.Monitor(model),
    ):
        with pytest.raises(
            ValueError, match="the model is wrapped in FullyShardedDataParallel"
        ) as caught:
            measuring()
        said.append(str(caught.value))
    return known, found, said


def test_flat_parameters_are_refused_and_the_remedy_works(ranks):
    for known, found, said in ranks.run(2, flat):
        np.testing.assert_allclose(found, known, rtol=1e-9)
        assert all("get_model_state_dict" in each for each in said)


def overlapping(group, rank):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pfc.measure(net(), data()[4 * rank : 4 * rank + 6], group=group, progress=False)
    return [str(each.message) for each in caught]


def test_samples_that_are_in_two_processes_are_told(ranks):
    """Batches 4 and 5 are in both of two processes."""
    for (told,) in ranks.run(2, overlapping):
        assert told.startswith("20 sample(s) of a process are in another too and count in both")


def left(group, rank):
    images = pfc.data.load("digits", limit=100)
    run = pfc.train(PLAIN.build(images, 0), images, PLAIN, group=group, progress=False)
    if rank:
        next(run)
        run.close()
    else:
        list(run)


def test_leaving_the_loop_in_one_process_is_told_to_the_others(ranks):
    error, _ = ranks.run(2, left)
    with pytest.raises(ProcessError, match="process 1 of 2 stopped: it left the loop over the epochs"):
        raise error


def exits(group, rank):
    """One process leaves by `sys.exit` in the midst of its data, and the other hears of it."""

    def batches():
        for number, batch in enumerate(data()):
            if rank == 1 and number == 1:
                sys.exit(3)
            yield batch

    class Own:
        def __iter__(self):
            return batches()

    with suppress(SystemExit):
        pfc.measure(net(), Own(), group=group, progress=False)


def test_a_process_that_exits_says_how(ranks):
    error, _ = ranks.run(2, exits)
    with pytest.raises(ProcessError, match=r"^process 1 of 2 stopped: SystemExit: 3$"):
        raise error


def functional(group, rank, size):
    """Of a functional head, and some processes without a batch, each process's NC3."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.W = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return self.body(x) @ nn.functional.normalize(self.W).T

    model = seeded(Head).double()
    own = data() if rank == size - 1 else []
    return pfc.measure(model, own, group=group, progress=False).table()["nc3"].tolist()


def test_a_process_without_a_batch_knows_a_functional_weight(ranks):
    (alone,) = ranks.run(1, functional, 1)
    for nc3 in ranks.run(3, functional, 3):
        np.testing.assert_allclose(nc3, alone, rtol=1e-12)


def sharded(group, rank, size):
    """Tables of a network, whole, then with its parameters spread over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = net(), init_device_mesh("cpu", (size,))
    whole = pfc.measure(model, data(), group=False, progress=False)
    for layer in (model.a, model.c, model.fc, model):
        fully_shard(layer, mesh=mesh)
    parts = data()[rank::size]
    together_ = pfc.measure(model, parts, group=group, progress=False)
    found = (together_, pfc.measure(model, data(), group=False, progress=False))
    return whole.table(), *(profile.table() for profile in found)


def sharded_and_trained(group, rank, measuring):
    """Sharded weights after training, with a measurement between; of the same batches it is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = net(), init_device_mesh("cpu", (2,))
    for layer in (model.a, model.c, model.fc, model):
        fully_shard(layer, mesh=mesh)
    train_a_step(model, rank, 2)
    if measuring:
        pfc.measure(model, data()[rank::2], group=group, progress=False)
        with pytest.raises(ValueError, match="with sharded weights each needs its own part"):
            pfc.measure(model, data(), group=group, progress=False)
    train_a_step(model, rank, 2)
    return {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}


class OwnMode(torch.nn.Linear):
    """A layer with a `train` of its own, as of merged adapters: its weights are compared afterwards."""

    def train(self, mode=True):
        return super().train(mode)


def own_mode_sharded(group, rank):
    """The layers measured of a sharded network with such a layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(OwnMode(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    parts = [(torch.randn(12, 6, generator=torch.Generator().manual_seed(rank)), torch.arange(12) % 3)]
    return pfc.measure(model, parts, group=group, layers="0", progress=False).layers


@pytest.mark.timeout(60)
def test_sharded_weights_are_compared_without_processes_outside_their_mesh(ranks):
    assert ranks.run(2, own_mode_sharded) == [("0",), ("0",)]


def test_sharded_parameters_train_on_to_the_same_bits(ranks):
    measured_, plain = (ranks.run(2, sharded_and_trained, measuring) for measuring in (True, False))
    for with_, without in zip(measured_, plain, strict=True):
        for name, tensor in with_.items():
            assert torch.equal(tensor, without[name])


def test_sharded_parameters_are_measured_as_whole_ones(ranks):
    for whole, together_, alone in ranks.run(3, sharded, 3):
        np.testing.assert_allclose(together_, whole, rtol=1e-9)
        np.testing.assert_allclose(alone, whole, rtol=1e-9)


class Failing(list):
    """Batches of which the last can't be read, once they have been read so often."""

    left = 6  # twice in the trial, twice for each of two epochs

    def __iter__(self):
        self.left -= 1
        yield from self[:-1]
        if self.left < 2:
            raise OSError("the disk is gone")
        yield self[-1]


def recorded_by_many(group, rank, kind, recording, folder, failing=()):
    """Weights and statistics after a distributed training, recorded or not."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def make():
        parts = {"a": nn.Linear(6, 8), "norm": nn.BatchNorm1d(8), "drop": nn.Dropout(0.3)}
        return Net({**parts, "b": nn.Linear(8, 8)})

    net = seeded(make)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(net, process_group=group, broadcast_buffers=False)
    else:
        for part in (net.a, net.b, net):
            fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
        model = net
    own, logs = [(x.float(), y) for x, y in data()[:6]][rank::2], []
    seen = Failing(own) if rank in failing else own
    recorder = pfc.Recorder(seen, folder=folder, log=lambda d, e: logs.append(e), group=group)
    with warnings.catch_warnings(action="ignore"):
        losses = steps(recorder if recording else nothing, own, model, epochs=2)
    whole = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in net.state_dict().items()}
    samples_seen = [profile.about["samples"] for profile in recorder.profiles.values()]
    return losses, {name: t.clone() for name, t in whole.items()}, samples_seen, logs


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_many_processes_end_with_the_same_bits_and_one_of_them_writes(ranks, kind, tmp_path):
    recorded, plain = (
        ranks.run(2, recorded_by_many, kind, on, tmp_path / str(on)) for on in (True, False)
    )
    for rank, (found, known) in enumerate(zip(recorded, plain, strict=True)):
        for each in (found, known):
            if isinstance(each, Exception):
                raise each
        assert found[0] == known[0]
        for name, tensor in known[1].items():
            assert torch.equal(found[1][name], tensor), name
        assert found[2:] == ([60, 60], [1, 2] if rank == 0 else [])
        assert known[2:] == ([], [])
    assert list(pfc.Run(tmp_path / "True").profiles) == [1, 2]
    assert not (tmp_path / "False").exists()


def test_what_fails_in_one_process_costs_no_process_a_bit(ranks):
    recorded, plain = (ranks.run(2, recorded_by_many, "ddp", on, None, [1] * on) for on in (True, False))
    for found, known in zip(recorded, plain, strict=True):
        if isinstance(found, Exception):
            raise found
        assert found[0] == known[0]
        for name, tensor in known[1].items():
            assert torch.equal(found[1][name], tensor), name
        assert found[2] == [60], "of the first epoch alone"


def test_what_fails_with_sharded_weights_is_raised(ranks):
    """The others may wait in a forward pass for the weights of the one that failed."""
    for error in ranks.run(2, recorded_by_many, "fsdp2", True, None, [0, 1]):
        assert "the disk is gone" in str(error)


def recording_refused(group, rank, folder):
    pfc.Recorder(data()[rank::2], folder=folder, group=group).check(net())


def test_a_folder_that_the_first_process_refuses_stops_all(ranks, tmp_path):
    (tmp_path / "run").write_text("a")
    found = ranks.run(2, recording_refused, tmp_path / "run")
    assert all("is a file: choose another folder" in str(error) for error in found), found
