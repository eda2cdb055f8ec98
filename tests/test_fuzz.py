"""Damaged, foreign and hostile files: a reader says in a line what is wrong, or tells what stands there.

Real files are written once. Each case takes one of them, makes a variant of it from a seed, and reads
it: as bytes were damaged (the checksum stays), or as someone may have written it (the checksum is right
or, as in older files, not there), so that what is behind the checksum is tried too.
"""

import json
import math
import random
import re
import resource
import shutil
import signal
import struct
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from safetensors.torch import load_file, save_file

import pfc
from pfc import figures
from pfc.acting.kept import kept
from pfc.cli import main
from pfc.data.loading import _from_cache, _to_cache
from pfc.experiments import mufm
from pfc.measuring import transport
from pfc.profile import load_transport
from pfc.report.acting import acting
from pfc.report.sources import Source
from pfc.strict_json import plain, sealed
from pfc.training import Recipe, Run
from pfc.training.folder import RunFolder
from pfc.training.trainer import Trainer
from tests.acting import act, noise

SECONDS = 20  # a case may take; the slowest takes one
MEGABYTES = 400  # all cases together may add to the process; the files have 200 KB
TINY = Recipe(name="tiny", data="digits", width=6, blocks=(2,), epochs=2, batch_size=64, loss="mse")


@pytest.fixture(scope="module")
def digits():
    return pfc.data.load("digits", limit=40)


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits):
    """A folder with one of every file that the package writes."""
    home = tmp_path_factory.mktemp("real")
    for _ in pfc.train(TINY.build(digits), digits, TINY, folder=home / "run", progress=False):
        pass
    run = Run(home / "run")
    net, profile = run.network(), run.profiles[2]
    profile.save(home / "p.json")
    found = transport(net, digits.batches(), profile, exact=20, progress=False)
    prediction = profile.prediction(transport=found)
    prediction.save(home / "p-theory.json", profile)
    sweep = (
        "mufm --sweep --lams 1e-3 0.1 --classes 3 --dimensions 4 --per-class 4 --steps 20 --restarts 0"
    )
    main([*sweep.split(), "--out", str(home / "sweep")])
    settings = json.loads((home / "sweep/figure5.json").read_text())["settings"]
    (home / "sweep/settings.json").write_text(json.dumps(settings))
    _to_cache(home / "cache.safetensors", replace(digits, limit=None, spec="folder"))
    act(home / "run", noise(home / "noise"))
    return home


# What reads each file, uses all of it, and compares it with what stands there.


def read_profile(home, rng):
    profile = pfc.load(home / "p.json")
    same_profile(profile, home / "p.json")
    _ = str(profile), profile._repr_html_(), profile.table(), profile.non_monotone_layers
    for use in (profile.segment, profile.verdict, profile.prediction, profile.effective_depth):
        with quiet_values():
            _ = str(use())
    with quiet_values():
        _ = (
            profile.segment().line([0, 0.3, 1]),
            profile.law(),
            profile.tau("pfc1"),
            profile.segment().path(),
        )
    if rng.random() < 0.05:
        for draw in (figures.layers, figures.path, figures.certificates):
            with quiet_values():
                draw(profile).canvas.draw()
            pyplot.close("all")


def same_profile(profile, path):
    told, arrays = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    assert list(profile.layers) == told["layers"]
    assert [list(shape) for shape in profile.shapes] == told["shapes"]
    assert profile.about == told["about"]
    columns = {name: [float(x) for x in values] for name, values in told["columns"].items()}
    assert repr({name: list(values) for name, values in profile.columns.items()}) == repr(columns)
    for i, (ours, theirs) in enumerate(zip(profile.segments, told["segments"], strict=True)):
        known = {"sampled": 0, **theirs}
        assert ours.to_dict() == {name: known[name] for name in ours.to_dict()}
        for name, array in ours.arrays().items():
            assert same(array, arrays[f"segment/{i}/{name}"])
    for name, moments in profile.moments.items():
        assert moments.mean.equal(arrays[f"layer/{name}/mean"])


def read_run(home, rng):
    run = Run(home / "run")
    recipe, history, weights = run.recipe, run.history, run.network().state_dict()
    told = json.loads((home / "run/config.json").read_text())
    told.pop("checksum", None)
    usual = {f.name: plain(f.default) for f in fields(Recipe) if f.default is not MISSING}
    told["recipe"] = {**usual, **told["recipe"]}
    told["data"] = {"limit": None, "seed": 0, **told["data"]}
    assert run.config == {"seed": 0, "precision": "float32", "measure_every": None, **told}
    assert as_floats(plain(vars(recipe))) == as_floats(told["recipe"])
    lines = [told_of_line(line) for line in (home / "run/history.jsonl").read_bytes().split(b"\n")]
    assert history == lines[: len(history)]
    assert len(history) >= len(lines) - 1
    for name, tensor in load_file(home / "run/weights/epoch-0002.safetensors").items():
        assert same(weights[name].reshape(tensor.shape), tensor.to(weights[name]))


def told_of_line(text):
    """What a line tells; nothing if it is torn."""
    try:
        return {name: value for name, value in json.loads(text).items() if name != "checksum"}
    except (ValueError, AttributeError, RecursionError):
        return None


def same(a, b):
    """The same numbers, NaN too."""
    return a.shape == b.shape and a.nan_to_num(7).equal(b.nan_to_num(7))


def read_state(home, rng):
    images = pfc.data.load("digits", limit=40)
    run = Trainer(TINY.build(images), images, TINY, 0, None, "float32", None)
    before = torch.get_rng_state()
    try:
        done = RunFolder(home / "run", run.about(None)).open(run, resume=True)
    finally:
        torch.set_rng_state(before)
    assert 0 <= done <= TINY.epochs
    told = load_file(home / "run/state.safetensors")
    for name, tensor in run.net.state_dict().items():
        assert same(tensor, told[f"model/{name}"])


def read_theory(home, rng):
    found = load_transport(home / "p-theory.json", pfc.load(home / "p.json"))
    told = json.loads((home / "p-theory.json").read_text()).get("transport")
    assert (found is None) == (told is None)
    if found is not None:
        assert repr(as_floats(plain(found.to_dict()))) == repr(as_floats(told))
        _ = str(found), found.bounds


def as_floats(value):
    """All numbers as floats, and names in their order."""
    if isinstance(value, dict):
        return {name: as_floats(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [as_floats(part) for part in value]
    small = isinstance(value, int | float) and abs(value) < 1e300
    return float(value) if small or value in ("nan", "inf", "-inf") else value


def read_sweep(home, rng):
    path = home / "sweep/figure5.json"
    settings = json.loads((home / "sweep/settings.json").read_text())
    kept = mufm._kept(path, settings)
    told = json.loads(path.read_text())
    told = {name: told[name] for name in kept}
    told["data"] = {metric: told["data"][metric] for metric in kept["data"]}
    assert repr(as_floats(plain(kept))) == repr(as_floats(told))
    _ = str(mufm.Sweep(kept["data"], kept["solutions"], kept["descent"]))
    if rng.random() < 0.05:
        with quiet_values():
            figures.sweep(kept["solutions"], kept["data"], kept["descent"], title="").canvas.draw()
        pyplot.close("all")


def read_kept(home, rng):
    run = Run(home / "run")
    for name in ("prune", "exits", "scores"):
        found = kept(run.folder, name, run.profiles[2])
        if found is None:
            raise ValueError(f"{home}/run/{name}.json is of another profile")
        told = json.loads((run.folder / f"{name}.json").read_text())
        columns = found.table.reset_index().to_dict("list")
        assert repr(as_floats(plain(columns))) == repr(as_floats(told["table"]))
    if rng.random() < 0.3:
        _ = acting(Source(run.folder, "run"), unfolded=True)


def read_cache(home, rng):
    images = _from_cache(home / "cache.safetensors", "folder", "train")
    if images is None:
        raise ValueError(f"{home}/cache.safetensors is decoded anew")
    told = load_file(home / "cache.safetensors")
    assert images.images.equal(told["images"])
    assert images.labels.equal(told["labels"])
    for x, y in islice(images.batches(16), 1):
        assert len(x) == len(y)
    _ = repr(images)


READERS = {
    "p.json": read_profile,
    "p.safetensors": read_profile,
    "run/config.json": read_run,
    "run/history.jsonl": read_run,
    "run/weights/epoch-0002.safetensors": read_run,
    "run/state.safetensors": read_state,
    "p-theory.json": read_theory,
    "sweep/figure5.json": read_sweep,
    **dict.fromkeys(("run/prune.json", "run/exits.json", "run/scores.json"), read_kept),
    "cache.safetensors": read_cache,
}
COMMANDS = {  # that read the same file, and say the same of it
    "p.json": ["figures", "p.json"],
    "p.safetensors": ["figures", "p.json"],
    "run/config.json": ["measure", "run"],
    "run/prune.json": ["report", "run"],
    "run/weights/epoch-0002.safetensors": ["measure", "run"],
}


@contextmanager
def quiet_values():
    """What has no answer is a ValueError; undefined numbers and odd names may warn."""
    with suppress(ValueError):
        yield


# Variants.

ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        -0.0,
        5e-324,
        1e308,
        -1e308,
        2**53 + 1,
        2**63,
        -(2**63),
        10**400,
    ),
    *("", "nan", "inf", "-inf", "x", "0", "stem", "$x^{", "\x00", "\ud800", "a" * 5000, "1e999"),
    *([], {}, [[]], [None], {"a": {}}, [0] * 5000, [1.0, 2.0], ["stem", "stem"]),
)


def damaged_bytes(data, rng):
    """The bytes with some of them changed, lost, put in, or twice."""
    data, n = bytearray(data), len(data)
    at, size = rng.randrange(n), rng.choice((1, 2, 8, 100, 1000))
    how = rng.choice((
        "flip",
        "flip",
        "flips",
        "cut",
        "insert",
        "delete",
        "twice",
        "zeros",
        "empty",
        "tail",
    ))
    if how in {"flip", "flips"}:
        for _ in range(1 if how == "flip" else size):
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "insert":
        data[at:at] = rng.randbytes(size)
    elif how == "delete":
        del data[at : at + size]
    elif how == "twice":
        data[at:at] = data[at : at + size]
    elif how == "zeros":
        data[at : at + size] = bytes(size)
    elif how == "tail":
        data += rng.randbytes(size)
    else:
        data = bytearray()
    return bytes(data)


def places(value, at=()):
    """Ways to all parts of a JSON value."""
    yield at
    parts = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, part in parts:
        yield from places(part, (*at, name))


def changed_json(content, rng):
    """The content with one of its parts another, gone, new, or elsewhere."""
    *way, name = rng.choice([at for at in places(content) if at and at[0] != "checksum"])
    holder = content
    for step in way:
        holder = holder[step]
    value, how = (
        holder[name],
        rng.choice(("odd", "odd", "odd", "gone", "more", "scaled", "swap", "list")),
    )
    if how == "gone":
        del holder[name]
    elif how == "more" and isinstance(holder, dict):
        holder[rng.choice(("extra", "", "format2", name * 2))] = rng.choice(ODD)
    elif how == "scaled" and isinstance(value, int | float) and not isinstance(value, bool):
        holder[name] = rng.choice((-1, 0, 10, 1e-3, 1e9, 1e300)) * value
    elif how == "swap":
        others = list(holder) if isinstance(holder, dict) else range(len(holder))
        other = rng.choice(list(others))
        holder[name], holder[other] = holder[other], holder[name]
    elif how == "list" and isinstance(value, list):
        holder[name] = rng.choice((value[:-1], value * 2, value[::-1], value[1:], [value]))
    else:
        holder[name] = rng.choice(ODD)
    return content


def written_json(content, rng):
    """A JSON text as someone may have written it, sealed or not."""
    content.pop("checksum", None)
    if rng.random() < 0.5:
        try:
            content = sealed(content)
        except (ValueError, RecursionError):
            pass
    text = json.dumps(content, indent=rng.choice((None, 1)))
    how = rng.random()
    if how < 0.04:
        deep = rng.choice((500, 10_000))
        text = text.rstrip()[:-1] + ', "deep": ' + rng.choice(("[", '{"a":')) * deep + "}"
        text = text if how < 0.01 else text.replace("[" * deep + "}", "[" * deep + "]" * deep + "}")
    elif how < 0.06:
        text = text.rstrip()[:-1] + f", {json.dumps(next(iter(content), 'a'))}: 0}}"
    elif how < 0.08:
        text = text.replace(
            ": 0.", f": {rng.choice(('NaN', 'Infinity', '-Infinity', '1e999', '-'))}0.", 1
        )
    elif how < 0.1:
        text = text.replace("0.", rng.choice(("NaN,", "1e999", "00.", "0x0")), 1)
    return text.encode("utf-8", "surrogatepass")


def changed_tensors(tensors, rng):
    """Tensors of which one is another, gone, new, or elsewhere."""
    name = rng.choice(sorted(tensors))
    tensor, how = tensors[name], rng.randrange(12)
    if how == 0:
        del tensors[name]
    elif how == 1:
        tensors[name] = tensor.to(rng.choice((torch.float16, torch.float32, torch.int64, torch.bool)))
    elif how == 2:
        tensors[name] = tensor.reshape(-1)
    elif how == 3:
        tensors[name] = tensor.reshape(1, *tensor.shape)
    elif how == 4:
        tensors[name] = (
            tensor.mT.contiguous() if tensor.dim() > 1 else tensor.flip(0) if tensor.dim() else tensor
        )
    elif how == 5:
        tensors[name] = tensor[:0].clone() if tensor.dim() else torch.zeros(0)
    elif how == 6:
        tensors[name] = torch.cat([tensor, tensor]) if tensor.dim() else tensor.repeat(3)
    elif how == 7:
        tensors[rng.choice((name + "x", "x", "", "a/b/c", "momentum/x", "segment/9/count"))] = (
            tensor.clone()
        )
    elif how == 8:
        tensors[name] = torch.zeros_like(tensor)
    elif how == 9 and tensor.numel():
        tensors[name] = tensor.clone()
        value = rng.choice((math.nan, math.inf, -math.inf, 1e308, -1.0, 1e-320))
        odd = torch.tensor(value if tensor.is_floating_point() else rng.choice((0, 1, 99))).to(tensor)
        tensors[name].view(-1)[rng.randrange(tensor.numel())] = odd
    elif how == 10:
        tensors[name] = tensor * (1e200 if tensor.is_floating_point() else 3)
    else:
        tensors[name] = tensor.to(
            rng.choice((torch.complex64, torch.bfloat16, torch.uint8, torch.float64))
        )
    return tensors


def lying_header(data, rng):
    """A safetensors file whose header says something else of its bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, huge = header[name], rng.choice((2**31, 2**40, 2**62, 2**63, 2**64, -1))
    how = rng.randrange(9)
    if how == 0:
        entry["data_offsets"][rng.randrange(2)] = huge
    elif how == 1:
        entry["shape"] = rng.choice(([huge], [huge, huge], [0], [], [-1], [1.5], "3", [1] * 1000))
    elif how == 2:
        entry["dtype"] = rng.choice((
            "F16",
            "F8_E4M3",
            "F4",
            "I128",
            "",
            "BOOL",
            "C64",
            "U64",
            "BF16",
            3,
        ))
    elif how == 3:
        entry["data_offsets"] = rng.choice(([0, len(body)], [8, 0], [], [0], [0, 1, 2], None))
    elif how == 4:
        header["__metadata__"] = rng.choice((
            {},
            None,
            [],
            {"format": 1},
            {"a": None},
            "x",
            {"epoch": "9" * 99},
        ))
    elif how == 5:
        header[name + "2"] = entry
    elif how == 6:
        entry["extra"] = {"a": [1]}
    text = json.dumps(header).encode()
    length = (
        len(text) if how < 7 else rng.choice((0, 1, huge % 2**64, len(text) + 1, len(text) - 1, 10**8))
    )
    if how == 8:
        text = rng.choice((b"", b"{}", b"[" * 10_000, b"null", text[:-1], b'{"a":' * 5000))
        length = len(text)
    return struct.pack("<Q", length) + text + body


def variant(home, name, rng):
    """Put a variant of one file in its place."""
    path = home / name
    data, how = path.read_bytes(), rng.random()
    if how < 0.3:
        path.write_bytes(damaged_bytes(data, rng))
    elif name.endswith(".json"):
        path.write_bytes(written_json(changed_json(json.loads(data), rng), rng))
    elif name.endswith(".jsonl"):
        lines = [json.loads(line) for line in data.splitlines()]
        rng.choice((lambda: None, lambda: rng.shuffle(lines), lines.reverse, lines.pop))()
        if lines:
            changed_json(rng.choice(lines), rng)
        path.write_bytes(b"".join(written_json(line, rng).replace(b"\n", b"") + b"\n" for line in lines))
    elif how < 0.6:
        path.write_bytes(lying_header(data, rng))
    else:
        with_tensors(path, data, rng)
    if name == "p.safetensors" and how >= 0.3:
        told = json.loads((home / "p.json").read_text())
        told["arrays"] = sha256(path.read_bytes()).hexdigest()
        (home / "p.json").write_text(
            json.dumps(sealed({k: v for k, v in told.items() if k != "checksum"}))
        )


def with_tensors(path, data, rng):
    size = struct.unpack("<Q", data[:8])[0]
    about = json.loads(data[8 : 8 + size])["__metadata__"]
    del about["checksum"]  # as in an older file
    if rng.random() < 0.1:
        about[rng.choice(("format", "epoch", "pfc"))] = rng.choice((
            "",
            "x",
            "-1",
            "99",
            "pfc-run-2",
            "{}",
            "0",
        ))
    tensors = changed_tensors(load_file(path), rng)
    save_file({k: v.clone() for k, v in tensors.items()}, path, metadata=about)


# The cases.


@contextmanager
def in_time():
    """An exception that is no ValueError if the block takes too long."""

    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Tally:
    """What became of the cases."""

    read: int = 0
    refused: int = 0
    asked: int = 0


def said(message, home, name, capsys, tally):
    """The message is one line that names a file; the command line says it and ends with code 2."""
    assert "\n" not in message
    assert len(message) < 1000 + 3 * len(str(home))
    assert str(home) in message
    if name in COMMANDS and tally.refused % 5 == 0:
        tally.asked += 1
        command, source = COMMANDS[name]
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([command, str(home / source)])
        assert caught.value.code == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("pfc: ")


def cases(seeds, real, tmp_path, capsys):
    """Make and read one variant for each seed."""
    home, tally, peak = tmp_path / "home", Tally(), memory()
    shutil.copytree(real, home)
    names = list(READERS)
    for seed in seeds:
        name, rng = names[seed % len(names)], random.Random(seed)
        variant(home, name, rng)
        try:
            with in_time(), warnings.catch_warnings(action="ignore"):
                READERS[name](home, rng)
            tally.read += 1
        except ValueError as error:
            said(str(error), home, name, capsys, tally)
            tally.refused += 1
        except BaseException as error:
            keep = tmp_path / f"seed-{seed}-{Path(name).name}"
            shutil.copy(home / name, keep)
            raise AssertionError(f"seed {seed}, {name} (kept as {keep}): {error!r}") from error
        for part in (name, "p.json", "run/history.jsonl"):
            shutil.copy(real / part, home / part)
    assert memory() - peak < MEGABYTES
    return tally


def memory():
    """Peak of the process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)


def test_files_as_written_are_read(home, tmp_path, capsys):
    shutil.copytree(home, tmp_path / "home")
    for read in set(READERS.values()):
        read(tmp_path / "home", random.Random(0))


@pytest.mark.parametrize("name", READERS)
def test_files_of_a_newer_version_are_refused_by_name(home, tmp_path, name):
    shutil.copytree(home, tmp_path / "home")
    path = tmp_path / "home" / ("run/config.json" if name.endswith("jsonl") else name)
    data = path.read_bytes()
    ours = re.search(rb"pfc-[a-z]+-1", data)[0]
    path.write_bytes(data.replace(ours, ours[:-1] + b"2"))
    if name == "p.safetensors":
        told = json.loads((tmp_path / "home/p.json").read_text())
        told = {**told, "arrays": sha256(path.read_bytes()).hexdigest()}
        del told["checksum"]
        (tmp_path / "home/p.json").write_text(json.dumps(told))
    newer, old = (ours[:-1] + b"2").decode(), ours.decode()
    message = rf"{path.name} was written by a newer pfc \({newer}\); this one reads {old}: update pfc"
    with pytest.raises(ValueError, match="decoded anew" if name.startswith("cache") else message):
        READERS[name](tmp_path / "home", random.Random(0))


def test_variants_of_files_are_refused_or_read_rightly(home, tmp_path, capsys):
    tally = cases(range(200), home, tmp_path, capsys)
    assert tally.read >= 20
    assert tally.refused >= 100
    assert tally.asked >= 5


@pytest.mark.slow
def test_many_variants_of_files_are_refused_or_read_rightly(home, tmp_path, capsys):
    tally = cases(range(1000, 11_000), home, tmp_path, capsys)
    assert tally.read >= 1000
    assert tally.refused >= 5000
    print(tally)
