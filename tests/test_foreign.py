"""Errors of models, loaders and data of others: told with what ran, the original as the cause."""

import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import pfc
from pfc.foreign import in_words, told

X, Y = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def measure(model, data, **kwargs):
    return pfc.measure(model, data, progress=False, **kwargs)


class Rows(Dataset):
    """Samples, one of which can't be had."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        if i == 25:
            raise OSError(f"image {i} is truncated")
        return X[i], Y[i]


class Breaks:
    """Batches that can't be begun or go no further."""

    def __init__(self, error, after):
        self.error, self.after = error, after

    def __iter__(self):
        if self.after < 0:
            raise self.error
        return self._batches()

    def _batches(self):
        for i in range(4):
            if i == self.after:
                raise self.error
            yield X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]


@pytest.mark.parametrize(
    ("data", "message", "cause"),
    [
        (
            Breaks(RuntimeError("no file"), 2),
            "the data failed at batch 2: RuntimeError: no file",
            RuntimeError,
        ),
        (Breaks(ValueError("odd"), 0), "the data failed at batch 0: ValueError: odd", ValueError),
        (Breaks(KeyError("x"), -1), "the data failed before their first batch: KeyError: 'x'", KeyError),
        (Breaks(IndexError(), 1), "the data failed at batch 1: IndexError$", IndexError),
        (DataLoader(Rows(), 10), "the data failed at batch 2: OSError: image 25 is truncated", OSError),
        (
            DataLoader(Rows(), 10, num_workers=1),
            "the data failed at batch 2: OSError: image 25 is truncated$",
            OSError,
        ),
    ],
)
def test_what_a_loader_raises_is_told_with_its_batch(data, message, cause):
    with pytest.raises(ValueError, match=message) as caught:
        measure(net(), data)
    assert type(caught.value.__cause__) is cause


class Unsized:
    """A loader whose length is nobody's business."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        return iter([(X, Y)])

    def __len__(self):
        raise self.error


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("no"), ValueError("no")])
def test_data_that_do_not_know_their_length_are_measured(error):
    assert measure(net(), Unsized(error)).about["samples"] == 40


class Once(IterableDataset):
    """Reads a stream that ends."""

    def __init__(self):
        self.rows = iter([*zip(X, Y, strict=True)])

    def __iter__(self):
        return self.rows


def test_a_loader_that_is_used_up_is_told():
    loader = DataLoader(Once(), 20)
    with pytest.raises(
        ValueError, match=r"gave no batch when they were read again: .* used up after one"
    ):
        measure(net(), loader)
    with pytest.raises(ValueError, match="gave no batch at all; is the loader empty, or used up"):
        measure(net(), loader)


class InPlace(nn.Module):
    """Writes to what it is given."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x.sub_(0.5))


def test_a_model_that_writes_to_its_inputs_is_told():
    with pytest.raises(
        ValueError, match=r"the model writes to its inputs, which the data keep: .*x.clone"
    ):
        measure(InPlace(), [(X.clone(), Y)])
    fresh = DataLoader(torch.utils.data.TensorDataset(X.clone(), Y), 10)
    with pytest.warns(UserWarning, match="few samples"):
        assert measure(InPlace(), fresh).about["samples"] == 40


class Text(nn.Module):
    """Reads the first token."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embed(input_ids)[:, 0])


def texts(*, masked):
    """Texts in another order each time, padded with token 1 to the longest of their batch."""
    g = torch.Generator().manual_seed(3)
    rows = [
        (torch.randint(3, 50, (int(n),), generator=g), k)
        for n, k in zip(torch.randint(2, 20, (80,), generator=g), [0, 1, 2, 3] * 20, strict=True)
    ]

    def pad(batch):
        ids = nn.utils.rnn.pad_sequence([row for row, _ in batch], batch_first=True, padding_value=1)
        mask = {"attention_mask": (ids != 1).long()} if masked else {}
        return {"input_ids": ids, **mask, "labels": torch.tensor([k for _, k in batch])}

    return DataLoader(rows, 8, shuffle=True, collate_fn=pad)


def test_padding_is_no_augmentation():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"padded to the longest of their batch, .* attention_mask"):
        measure(Text(), texts(masked=False), pool="cls")
    with pytest.warns(UserWarning, match="few samples"):
        assert measure(Text(), texts(masked=True), pool="cls").about["samples"] == 80


class Refuses(nn.Module):
    """Checks its input as some models do."""

    def __init__(self, error):
        super().__init__()
        self.error, self.body, self.head = error, nn.Linear(8, 8), nn.Linear(8, 4)
        self.body.register_forward_pre_hook(self._check)

    def _check(self, module, args):
        if not bool((args[0][:, 0] != 99).all()):
            raise self.error

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    "error", [ValueError("wrong size"), AssertionError("wrong size"), OSError("wrong size")]
)
def test_what_a_model_raises_is_told_with_layer_and_batch(error):
    bad = X.clone()
    bad[25, 0] = 99
    batches = [*zip(bad.split(10), Y.split(10), strict=True)]
    kind = type(error).__name__
    with pytest.raises(
        ValueError, match=f"Refuses failed in layer 'body' on batch 2 of 10 samples: {kind}: wrong size"
    ) as caught:
        measure(Refuses(error), batches)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (torch.eye(4)[Y], r"of one-hot labels take y.argmax\(1\)"),
        (torch.eye(4)[Y] * 0.9 + 0.025, r"of soft labels or scores take y.argmax\(1\)"),
        (
            (torch.eye(4)[Y] + torch.eye(4)[Y - 1]).long(),
            "a sample of several classes, or of none, has no class mean",
        ),
        (torch.zeros(40, 6, 6).long(), "pixels or patches have no class of their own here"),
        (torch.arange(160).reshape(40, 4) - 100, "of tokens, one label each, take pool='tokens'"),
    ],
)
def test_labels_of_other_tasks_are_named(labels, remedy):
    with pytest.raises(ValueError, match=remedy):
        measure(net(), [(X, labels)])


def test_errors_of_ours_come_through_and_others_are_in_words():
    with pytest.raises(ValueError, match=r"^limit must be at least 1, got 0$"), told("something failed"):
        measure(net(), [(X, Y)], limit=0)
    assert in_words(KeyError()) == "KeyError"
    with pytest.raises(KeyboardInterrupt), told("something failed"):
        raise KeyboardInterrupt


class Named(Dataset):
    """Rows as Hugging Face data sets give them, which know the names of their classes."""

    def __init__(self):
        label = type("ClassLabel", (), {"names": ["ant", "bee", "cat", "dog"]})()
        self.features = {"label": label}

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i]


@pytest.mark.parametrize(
    "names", ["ant bee cat dog", "Ant Bee Cat Dog", "LABEL_0 LABEL_1 LABEL_2 LABEL_3"]
)
def test_classes_that_are_the_networks_own_need_no_word(names):
    model = net()
    model.config = type("Config", (), {"id2label": dict(enumerate(names.split()))})()
    assert measure(model, DataLoader(Named(), 10)).about["samples"] == 40


def test_names_by_other_than_the_numbers_of_classes_need_no_word():
    model = net()
    model.config = type("Config", (), {"id2label": {0: "bee", "1": "ant"}})()
    assert measure(model, DataLoader(Named(), 10)).about["samples"] == 40


def test_data_without_names_need_no_word():
    model = net()
    model.config = type("Config", (), {"id2label": dict(enumerate(["bee", "ant", "cat", "dog"]))})()
    assert measure(model, [*DataLoader(Named(), 10)]).about["samples"] == 40


def test_classes_that_the_network_names_differently_are_told():
    model = net()
    model.config = type("Config", (), {"id2label": dict(enumerate(["bee", "ant", "cat", "dog"]))})()
    words = "not those of the model's id2label: class 0 is 'ant' in the one and 'bee' in the other"
    with pytest.warns(UserWarning, match=words):
        measure(model, DataLoader(Named(), 10))


class Stops(Rows):
    """Raises what the protocol of iterators takes for an end."""

    def __getitem__(self, i):
        if i == 25:
            raise StopIteration
        return X[i], Y[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_end_early_are_refused(workers):
    with pytest.raises(ValueError, match=r"the data (ended after 2 of 4 batches|failed at batch 2)"):
        measure(net(), DataLoader(Stops(), 10, num_workers=workers))


class AtOnce(nn.Module):
    """Fails in its first forward pass."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        raise ValueError("wrong size")


def test_the_first_forward_pass_is_told_like_any_other():
    with pytest.raises(
        ValueError, match="AtOnce failed on batch 0 of 40 samples: ValueError: wrong size"
    ):
        measure(AtOnce(), [(X, Y)])


class Speechless(Exception):
    """Has no words."""

    def __str__(self):
        raise RuntimeError


def test_messages_of_several_lines_and_of_none():
    trace = 'Caught E in worker 0.\nOriginal Traceback (most recent call last):\n  File "a.py", line 1\n'
    told_ = in_words(RuntimeError(trace + "    raise\n    ^^^^^\nRuntimeError: first: line\n  second\n"))
    assert told_ == "RuntimeError: first: line\n  second"
    assert in_words(Speechless()) == "Speechless"


def broken(*_):
    raise RuntimeError("out of order")


class Property(Dataset):
    """Samples, an attribute of which can't be had."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i]


def with_broken(kind, name):
    """A class of the same kind whose attribute of that name raises."""
    return type("Broken", (kind,), {name: property(broken)})


@pytest.mark.parametrize("name", ["classes", "features"])
def test_what_an_attribute_of_a_dataset_raises_is_told(name):
    data = DataLoader(with_broken(Property, name)(), 10)
    with pytest.raises(ValueError, match=f"^'{name}' of Broken failed: RuntimeError: out of order$"):
        measure(net(), data)


@pytest.mark.parametrize("name", ["name", "dataset", "batch_sampler", "sampler"])
def test_what_an_attribute_of_a_loader_raises_is_told(name):
    data = with_broken(list, name)([(X, Y)])
    with pytest.raises(ValueError, match=f"^'{name}' of Broken failed: RuntimeError: out of order$"):
        measure(net(), data)


@pytest.mark.parametrize("name", ["taps", "config", "max_norm"])
def test_what_an_attribute_of_a_model_raises_is_told(name):
    model = with_broken(nn.Sequential, name)(*net())
    with pytest.raises(ValueError, match=f"^'{name}' of Broken failed: RuntimeError: out of order$"):
        measure(model, [(X, Y)])


@pytest.mark.parametrize("which", [True, False])
def test_what_a_change_of_mode_raises_is_told(which):
    def train(self, mode=True):
        if mode == which:
            broken()
        return nn.Module.train(self, mode)

    model = type("Moody", (nn.Sequential,), {"train": train})(*net())
    how = "train.True" if which else "eval"
    with pytest.raises(ValueError, match=f"^{how}.* of Moody failed: RuntimeError: out of order$"):
        measure(model, [(X, Y)])


def monitored(model, data, **how):
    with pfc.Monitor(model, **how).batch(data[0][1]):
        model(data[0][0])


@pytest.mark.parametrize("collect", [pfc.measure, pfc.features, monitored])
def test_what_a_pool_raises_is_told(collect):
    why = r"^pool failed on an output of shape \(2, 16\): RuntimeError: out of order$"
    with pytest.raises(ValueError, match=why):
        collect(net(), [(X, Y)], pool=broken)


class Lazy(Mapping):
    """A batch that reads a column when it is asked for it."""

    def __iter__(self):
        return iter(["x", "labels"])

    def __len__(self):
        return 2

    def __getitem__(self, name):
        broken()


class Restless(list):
    """An iterator that can't be begun again."""

    def __iter__(self):
        broken()

    def __next__(self):
        broken()


def test_batches_and_iterators_that_fail_when_asked_are_told():
    with pytest.raises(ValueError, match=r"^the data failed at batch 0: RuntimeError: out of order$"):
        measure(net(), [Lazy()])
    with pytest.raises(ValueError, match=r"^the data failed before their first batch: RuntimeError"):
        measure(net(), Restless())


class Rotten:
    """An array some of whose rows, or whose shape, can't be read."""

    def __init__(self, rows=40, shape=(40, 8)):
        self.rows, self._shape = rows, shape

    @property
    def shape(self):
        return self._shape or broken()

    def __len__(self):
        return 40

    def __getitem__(self, rows):
        return X[rows].numpy() if rows.stop <= self.rows else broken()


def test_arrays_that_can_not_be_read_are_told():
    for array in (Rotten(rows=0), Rotten(rows=1), Rotten(shape=None)):
        with pytest.raises(ValueError, match=r"^layer 'a' failed: RuntimeError: out of order$"):
            pfc.measure_features({"a": array}, Y, progress=False)
    head = type("Head", (nn.Module,), {"forward": broken})()
    head.weight = nn.Parameter(torch.ones(4, 8))
    why = r"^the classifier failed on 1 rows of 8 features: RuntimeError: out of order$"
    with pytest.raises(ValueError, match=why):
        pfc.measure_features({"a": X}, Y, classifier=head, progress=False)


def test_a_worker_that_dies_is_named():
    command = [sys.executable, "-m", "tests.dying_workers"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 5
    named = r".*, [12]: the data failed.*: .*worker (process |\(pid(\(s\))? )\d+"
    assert not [line for line in lines if not re.match(named, line)]


def test_the_word_of_a_dead_worker_is_of_the_data_wherever_it_comes():
    class Unlucky(nn.Linear):
        @property
        def taps(self):
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 4.")

    class Labels(list):
        def __array__(self, *_, **__):
            Unlucky(8, 4).taps  # noqa: B018

    word = r"^the data failed: RuntimeError: DataLoader worker \(pid 7\)"
    for net, y in ((Unlucky(8, 4), Y), (nn.Linear(8, 4), Labels())):
        with pytest.raises(ValueError, match=word):
            measure(net, [(X, y)])
