"""What each reader of a run and of a profile refuses behind the checksum, message by message."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from inspect import signature

import pytest
import torch
from safetensors.torch import load_file, save_file

import pfc
from pfc.files import read_tensors
from pfc.measuring import transport
from pfc.theory.transport import restored
from pfc.training import Run
from pfc.training.folder import DEFAULTS, fill, history
from tests.test_fuzz import TINY


@pytest.fixture(scope="module")
def digits():
    return pfc.data.load("digits", limit=40)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    list(pfc.train(TINY.build(digits), digits, TINY, folder=folder, progress=False))
    return folder


@pytest.fixture
def run(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


def rewritten(path, change):
    """Change a file as someone may who knows of no checksum."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content.pop("checksum", None)
        change(content)
        path.write_text(json.dumps(content))
        return
    about = read_tensors(path)[1]
    tensors = load_file(path)
    change(tensors, about)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata=about)


def resumed(run, digits):
    return list(pfc.train(TINY.build(digits), digits, TINY, folder=run, resume=True, progress=False))


def last(run):
    return run / "profiles/epoch-0002.json"


def with_arrays(run, change):
    """Change the arrays of the last profile, and let the JSON file know them."""
    path = last(run).with_suffix(".safetensors")
    rewritten(path, lambda tensors, about: change(tensors))
    digest = sha256(path.read_bytes()).hexdigest()
    rewritten(last(run), lambda content: content.update(arrays=digest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, a: a.update(epoch="3"),
            "state.safetensors: epoch must be a number from 0 to 2, got '3'",
        ),
        (lambda t, a: a.pop("epoch"), "epoch must be a number from 0 to 2, got ''"),
        (lambda t, a: a.update(epoch="-1"), "epoch must be a number from 0 to 2, got '-1'"),
        (
            lambda t, a: t.update({"momentum/stem.0.bias": torch.zeros(5)}),
            "state.safetensors: momentum/stem.0.bias fits no parameter of the network",
        ),
        (
            lambda t, a: t.update({"momentum/other": torch.zeros(5)}),
            "state.safetensors: momentum/other fits no parameter of the network",
        ),
        (
            lambda t, a: t.pop("model/blocks.0.f.1.num_batches_tracked"),
            r"does not fit this network: model/blocks.0.f.1.num_\w+ is nothing, not torch.int64 of \[\]",
        ),
        (
            lambda t, a: t.update({"model/stem.0.bias": torch.zeros(6, dtype=torch.float64)}),
            r"model/stem.0.bias is torch.float64 of \[6\], not torch.float32 of \[6\]",
        ),
        (lambda t, a: t.pop("random/cpu"), "state.safetensors: random/cpu is missing"),
        (
            lambda t, a: t.update({"random/cpu": torch.zeros(7, dtype=torch.uint8)}),
            r"random/cpu must be torch.uint8 of shape \[5056\], got torch.uint8 of \[7\]",
        ),
        (
            lambda t, a: t.update({"random/cpu": torch.full((5056,), 255, dtype=torch.uint8)}),
            "state.safetensors: random is no random state: ",
        ),
    ],
)
def test_a_state_that_cannot_be(run, digits, change, message):
    rewritten(run / "state.safetensors", change)
    with pytest.raises(ValueError, match=message):
        resumed(run, digits)


def test_a_changed_state_is_seen(run, digits):
    path = run / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"state.safetensors is damaged: its content and its checksum"):
        resumed(run, digits)


def test_a_damaged_line_of_the_history_is_refused_and_a_torn_one_is_not(run, digits):
    path = run / "history.jsonl"
    first, second = path.read_text().splitlines()
    assert [line["epoch"] for line in history(run)] == [1, 2]
    path.write_text(f"{first}\n{second.replace('accuracy', 'accurate')}\n")
    with pytest.raises(
        ValueError, match=r"history.jsonl, line 2 is damaged: its content and its checksum"
    ):
        history(run)
    path.write_text(f"{first[:-5]}\n{second}\n")
    with pytest.raises(ValueError, match=r"history.jsonl, line 1 is not JSON"):
        resumed(run, digits)
    path.write_text(f"{second}\n{first}\n")
    with pytest.raises(ValueError, match=r"history.jsonl: epochs must ascend, got \[2, 1\]"):
        history(run)
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"history.jsonl, line 1: loss is missing"):
        history(run)
    path.write_text(f"{first}\n{second[:-9]}")
    assert [line["epoch"] for line in history(run)] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["recipe"].update(width=2**20), r"does not fit this network: .*size mismatch"),
        (lambda c: c["recipe"].update(width=2**40), "config.json tells of no network: Storage size"),
        (lambda c: c["recipe"].update(blocks=[10**9]), "does not fit this network: it has 22 tensors"),
        (
            lambda c: c["recipe"].update(momentum=2.0),
            r"config.json: momentum must lie in \[0, 1\), got 2.0",
        ),
        (lambda c: c["recipe"].update(depth=3), "config.json: recipe.depth is unknown"),
        (
            lambda c: c["data"].update(shape=[1, 8]),
            r"config.json: data.shape must have 3 parts, got \[1, 8",
        ),
        (lambda c: c["data"].update(shape=[2**50] * 3), "config.json tells of no network: "),
    ],
)
def test_a_configuration_that_cannot_be(run, change, message):
    rewritten(run / "config.json", change)
    with pytest.raises(ValueError, match=message):
        Run(run).network()


LATER = ("samples", "names", "fingerprint", "counts", "files", "image_column", "label_column")


def without_what_has_a_default(config):
    """What a version would have written that knew fewer fields."""
    for name in ("decay", "head"):
        del config["recipe"][name], config["sources"][name]
    for name in ("limit", "seed", *LATER):
        del config["data"][name]
    for name in ("seed", "precision", "measure_every"):
        del config[name]


def test_an_old_configuration_is_read_and_resumed(tmp_path, digits):
    whole = replace(digits, limit=None)
    folder, other = tmp_path / "run", replace(TINY, decay=0.5)

    def epochs(recipe):
        net = recipe.build(whole)
        return list(pfc.train(net, whole, recipe, folder=folder, resume=True, progress=False))

    assert len(epochs(TINY)) == 3
    known = Run(folder).config
    rewritten(folder / "config.json", without_what_has_a_default)
    assert Run(folder).recipe == TINY
    data = {name: value for name, value in known["data"].items() if name not in LATER}
    assert Run(folder).config == {**known, "sources": Run(folder).config["sources"], "data": data}
    assert len(Run(folder).data()) == 1797, "of a run without a limit"
    assert epochs(TINY) == []
    with pytest.raises(ValueError, match=r"holds another run: its decay is 0.1, not 0.5; choose"):
        epochs(other)
    rewritten(folder / "config.json", lambda c: c["sources"].update(width="in other words"))
    assert epochs(TINY) == [], "words are no part of what a run is"


def test_defaults_of_a_configuration_are_those_of_train():
    known = signature(pfc.train).parameters
    assert {name: known[name].default for name in DEFAULTS} == DEFAULTS


def test_weights_of_another_kind(run):
    path = run / "weights/epoch-0002.safetensors"
    rewritten(path, lambda t, a: t.update({"stem.0.bias": torch.zeros(6, dtype=torch.int64)}))
    message = "does not fit this network: stem.0.bias must be torch.float32, got torch.int64"
    with pytest.raises(ValueError, match=message):
        Run(run).network()
    half = {name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}
    half["stem.0.bias"] = torch.ones(6).half()
    net = Run(run).network(0)
    fill(net, half, path)
    assert net.stem[0].bias.equal(torch.ones(6)), "another precision is taken"


def test_names_that_are_no_epochs_are_passed_over(run):
    for name in ("epoch-0002-theory.json", "epoch-abc.json", "epoch-2.json"):
        (run / "profiles" / name).write_text("{}")
    assert sorted(Run(run).profiles) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("count", lambda x: 0 * x, "segment/0/count must be of two or more classes with samples"),
        ("count", lambda x: x[:1], r"segment/0/scatter must be torch.float64 of shape \[2, 1\]"),
        ("steps", lambda x: x[:, :1], r"segment/0/steps must be torch.float64 of shape \[10, 2, 2\]"),
        (
            "quantiles",
            lambda x: x[:-1],
            r"segment/0/quantiles must be torch.float64 of shape \[11, 101\]",
        ),
        (
            "curve/measured/starts",
            lambda x: torch.linspace(1, 0, len(x)).double(),
            "measured/starts must ascend from 0 to 1",
        ),
        ("curve/measured/starts", lambda x: x + 2, "measured/starts must ascend from 0 to 1"),
        (
            "curve/measured/stops",
            lambda x: x[1:],
            r"measured/stops must be torch.float64 of shape \[\d+\]",
        ),
        ("curve/measured/stops", None, "measured/stops is missing"),
    ],
)
def test_arrays_that_cannot_be(run, name, change, message):
    def changed(tensors):
        old = tensors.pop(f"segment/0/{name}")
        if change is not None:
            tensors[f"segment/0/{name}"] = change(old)

    with_arrays(run, changed)
    with pytest.raises(ValueError, match=f"epoch-0002.json: .*{message}"):
        pfc.load(last(run))


def test_one_class_is_no_segment(run):
    def changed(tensors):
        for name, axis in {"count": 0, "scatter": 1, "cross": 0, "means": 1, "steps": 0}.items():
            tensors[f"segment/0/{name}"] = tensors[f"segment/0/{name}"].narrow(axis, 0, 1)

    with_arrays(run, changed)
    with pytest.raises(ValueError, match="segment/0/count must be of two or more classes with samples"):
        pfc.load(last(run))


def test_negative_cycles_need_a_witness(run, digits):
    net, profile = Run(run).network(), pfc.load(last(run))
    found = transport(net, digits.batches(), profile, exact=10, progress=False)
    cycles = replace(found.cycles[0], negative=1, witness=())
    with pytest.raises(ValueError, match="no verdict on transport: negative cycles need a witness"):
        restored(replace(found, cycles=(cycles,)).to_dict())


def test_a_cache_of_impossible_labels_is_decoded_anew(digits, tmp_path):
    from pfc.data.loading import _from_cache, _to_cache

    path = tmp_path / "c.safetensors"
    for label, sound in ((9, True), (10, False), (-1, False)):
        labels = digits.labels.clone()
        labels[0] = label
        _to_cache(path, replace(digits, labels=labels))
        assert (_from_cache(path, "digits", "train") is not None) == sound
