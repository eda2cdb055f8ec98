"""Files: one format check, a checksum in each, the same bytes every time, and no pickle anywhere."""

import json
import math
import os
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

import pfc
from pfc import files, schema
from pfc.files import check_format, check_place, read_json, read_tensors, write_json, write_tensors
from pfc.schema import Array, check_arrays, defaults_of, form_of, list_of, object_of, restored
from pfc.training import Run

ANY = object_of({})
PICKLED = (
    r"is a pickle, and a pickle is never loaded: convert weights with safetensors\.torch\.save_file"
)


def test_a_newer_version_is_refused_by_name_and_all_else_as_unknown():
    path = Path("p.json")
    check_format("pfc-profile-1", "pfc-profile-1", path)
    for newer in ("pfc-profile-2", "pfc-profile-10"):
        message = (
            f"p.json was written by a newer pfc \\({newer}\\); this one reads pfc-profile-1: update pfc"
        )
        with pytest.raises(ValueError, match=message):
            check_format(newer, "pfc-profile-1", path)
    unknown = ("pfc-profile-0", "pfc-profile-02", "pfc-run-2", "pfc-profile-2x", None, 2, ["a"] * 99)
    for other in unknown:
        with pytest.raises(ValueError, match=r"has format .{1,70}; this version reads 'pfc-profile-1'"):
            check_format(other, "pfc-profile-1", path)


def test_json_comes_back_and_a_changed_number_is_seen(tmp_path):
    path, content = (
        tmp_path / "a.json",
        {"format": "f-1", "x": 0.1, "y": [math.nan, math.inf], "z": None},
    )
    write_json(path, content)
    known = {"format": "f-1", "x": 0.1, "y": ["nan", "inf"], "z": None}
    assert read_json(path, "f-1", ANY) == known
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))
    assert read_json(path, "f-1", ANY) == known, "space between the parts means nothing"
    path.write_text(text.replace("0.1", "0.3"))
    with pytest.raises(ValueError, match=r"a.json is damaged: .* take the checksum out"):
        read_json(path, "f-1", ANY)
    path.write_text('{"format": "f-1", "x": 0.3}')
    assert read_json(path, "f-1", ANY)["x"] == 0.3, "older files have no checksum"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON: 'utf-8' codec"),
        (b'{"a": NaN}', "is not JSON: NaN is no number of JSON"),
        (b'{"a": 1e999}', "is not JSON: 1e999 is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"a": 1, "a": 1}', "is not JSON: the name 'a' stands twice"),
        (b'{"a": ' * 10_000 + b"1" + b"}" * 10_000, "is not JSON: maximum recursion depth"),
        (b'{"a": ' * 60 + b"1" + b"}" * 60, "is not JSON: it is nested more than 50 deep"),
        (b'{"a": "\\ud800"}', "is not JSON: 'utf-8' codec can't encode"),
        (b"[1]", "holds a JSON list, not an object"),
    ],
    ids=["cut", "bytes", "nan", "float", "int", "twice", "deep", "deeper", "surrogate", "list"],
)
def test_what_is_no_strict_json_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"a.json {message}"):
        read_json(tmp_path / "a.json", "f-1", ANY)


def test_what_cannot_be_read_is_told_by_name(tmp_path):
    for read in (lambda p: read_json(p, "f-1", ANY), read_tensors):
        with pytest.raises(ValueError, match=r"no file .*nowhere"):
            read(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=f"{tmp_path} is no file"):
            read(tmp_path)
        with pytest.raises(ValueError, match="can't be read: File name too long"):
            read(tmp_path / ("a" * 300))


def test_tensors_come_back_and_a_changed_bit_is_seen(tmp_path):
    path = tmp_path / "a.safetensors"
    kinds = (torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
    tensors = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in kinds}
    tensors |= {"empty": torch.zeros(0, 3), "one": torch.tensor(3.0)}
    turned = torch.tensor([1 + 2j]).conj()
    tensors |= {"conjugate": turned, "negative": turned.imag, "tied": tensors["one"]}
    write_tensors(path, tensors, format="f-1", note="\N{LATIN SMALL LETTER E WITH ACUTE}\x01")
    again, about = read_tensors(path, "f-1")
    assert about == {"format": "f-1", "note": "\N{LATIN SMALL LETTER E WITH ACUTE}\x01"}
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        assert again[name].equal(tensor)
    with pytest.raises(ValueError, match="has format 'f-1'; this version reads 'g-1'"):
        read_tensors(path, "g-1")
    whole = path.read_bytes()
    for at in (-1, whole.index(b'"note":"') + 9):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"a.safetensors is (damaged|not a safetensors file)"):
            read_tensors(path)


def test_tensors_are_the_same_bytes_every_time(tmp_path):
    about = {"format": "f-1", "epoch": "1", "c": "2", "d": "3"}
    for i in range(8):  # the library draws the order of the metadata for each file
        write_tensors(tmp_path / str(i), {"a": torch.ones(2)}, **about)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1


def test_tensors_are_written_as_the_library_writes_those_of_torch(tmp_path, monkeypatch):
    kinds = sorted(files.OF_NUMPY, key=str)
    tensors = {str(kind): torch.arange(-3, 3).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"empty": torch.zeros(0, 3), "one": torch.tensor(3.0), "turned": torch.eye(4)[:, :3].t()}
    tensors["tied"] = tensors["one"]
    with monkeypatch.context() as alone:
        alone.setattr("safetensors.torch.save_file", None)
        write_tensors(tmp_path / "numpy", tensors, format="f-1")
    monkeypatch.setattr(files, "OF_NUMPY", set())
    write_tensors(tmp_path / "torch", tensors, format="f-1")
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "torch").read_bytes()


def test_a_pickle_is_refused_wherever_a_path_is_taken(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps(Harm()))
    (tmp_path / "text.pkl").write_bytes(pickle.dumps(Harm(), protocol=0))
    for path in list(tmp_path.iterdir()):
        takes = [pfc.load, read_tensors, Run, pfc.data.load]
        for take in takes:
            with pytest.raises(ValueError, match=f"{path.name} {PICKLED}"):
                take(path)
        if path.name == "text.pkl":
            continue  # its bytes are text: only its ending tells
        for ending, take in ((".json", pfc.load), (".safetensors", read_tensors)):
            other = path.with_suffix(ending)
            path.rename(other)
            with pytest.raises(ValueError, match=f"{other.name} {PICKLED}"):
                take(other)
            other.rename(path)
    assert not (tmp_path / "harm").exists()
    sound = tmp_path / "sound.pt"
    write_tensors(sound, {"a": torch.zeros(2)})
    assert read_tensors(sound)[0]["a"].equal(torch.zeros(2)), "a name is no proof"


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    mine = [".p.json.bak", ".p.json", ".python.disabled", ".p.json.123456789", "p.json.12345678"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    torn = tmp_path / ".p.json.ab_12xyz"
    torn.mkdir()
    (torn / ".tmpAbCdEf").write_bytes(b"half")
    (tmp_path / ".p-theory.json.ab_12xyz").mkdir()
    check_place(tmp_path / "p.json", "p-theory.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mine)


@dataclass(frozen=True)
class Part:
    """A part of a file."""

    size: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Whole:
    """What a file holds."""

    name: str
    way: Literal["up", "down"]
    sure: bool
    mean: float
    part: Part | None
    parts: tuple[Part, ...]


TOLD = {
    "name": "a",
    "way": "up",
    "sure": True,
    "mean": "nan",
    "part": None,
    "parts": [{"size": 2, "shares": [1, 0.5, "inf"]}],
}


def test_a_dataclass_comes_back_from_its_form():
    form_of(Whole)(TOLD, "it")
    again = restored(Whole, TOLD)
    assert (again.name, again.way, again.sure, again.part) == ("a", "up", True, None)
    assert math.isnan(again.mean)
    assert again.parts == (Part(2, (1.0, 0.5, math.inf)),)
    assert restored(Whole, {**TOLD, "part": {"size": 1, "shares": []}}).part == Part(1, ())


@dataclass(frozen=True)
class Longer(Part):
    """A part to which a later version added fields."""

    way: Literal["up", "down"] = "down"
    names: tuple[str, ...] = field(default_factory=lambda: ("a",))


def test_a_field_with_a_default_may_be_absent():
    old = {"size": 2, "shares": [1]}
    form_of(Longer)(old, "it")
    assert restored(Longer, old) == Longer(2, (1.0,), "down", ("a",))
    assert defaults_of(Longer) == {"way": "down", "names": ("a",)}
    new = {**old, "way": "up", "names": []}
    form_of(Longer)(new, "it")
    assert restored(Longer, new) == Longer(2, (1.0,), "up", ())
    for change, message in (
        ({"way": "left"}, "it.way must be one of 'up', 'down', got 'left'"),
        ({"other": 1}, "it.other is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            form_of(Longer)({**old, **change}, "it")
    with pytest.raises(ValueError, match=r"it.shares is missing"):
        form_of(Longer)({"size": 2}, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "it.name must be text, got 1"),
        ({"way": "left"}, "it.way must be one of 'up', 'down', got 'left'"),
        ({"sure": 1}, "it.sure must be true or false, got 1"),
        ({"mean": "one"}, "it.mean must be a number, got 'one'"),
        ({"mean": True}, "it.mean must be a number, got True"),
        ({"part": []}, r"it.part must be an object, got \[\]"),
        ({"part": {"size": 1}}, "it.part.shares is missing"),
        (
            {"parts": [{"size": 1.0, "shares": []}]},
            r"it.parts\[0\].size must be a whole number, got 1.0",
        ),
        ({"parts": [{"size": 2**60, "shares": []}]}, r"it.parts\[0\].size must be a whole number"),
        ({"more": 1}, "it.more is unknown"),
    ],
)
def test_a_form_says_where_and_what(change, message):
    with pytest.raises(ValueError, match=message):
        form_of(Whole)({**TOLD, **change}, "it")


@pytest.mark.parametrize(
    ("form", "good", "bad", "message"),
    [
        (schema.COUNT, [0, 5], [-1, True, 0.0, None], "a whole number of at least 0"),
        (schema.POSITIVE, [1], [0, "1"], "a whole number above 0"),
        (schema.FINITE, [-1.5, 2], ["nan", None], "a finite number"),
        (schema.FRACTION, [0, 0.5, 1, "nan"], [1.1, -0.1, "inf", True], "a number from 0 to 1"),
        (list_of(schema.TEXT), [[], ["a"]], ["a", {}], "a list"),
        (object_of({}, others=schema.TEXT), [{"a": "b"}], [[]], "an object"),
        (object_of({}, others=schema.TEXT), [{}], [{"a": 1}], "text"),
    ],
)
def test_kinds_of_values(form, good, bad, message):
    for value in good:
        form(value, "it")
    for value in bad:
        with pytest.raises(ValueError, match=f"must be {message}, got "):
            form(value, "it")


def test_arrays_share_their_lengths():
    holds = {"a": Array("K D"), "b": Array("2 K"), "c": Array("N", torch.uint8)}
    x = torch.zeros(3, 4, dtype=torch.float64)
    good = {"a": x, "b": x[:2, :3].clone(), "c": torch.zeros(0, dtype=torch.uint8)}
    sizes = {"D": 4}
    check_arrays(good, holds, sizes, "f: ")
    assert sizes == {"D": 4, "K": 3, "N": 0}
    for change, message in (
        ({"b": x}, r"f: b must be torch.float64 of shape \[2, 3\], got torch.float64 of \[3, 4\]"),
        ({"a": x.float()}, r"f: a must be torch.float64 of shape \['K', 4\], got torch.float32"),
        ({"a": x[None]}, r"f: a must be torch.float64 of shape \['K', 4\], got torch.float64 of \[1, 3"),
        ({"a": x + math.inf}, "f: a must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_arrays({**good, **change}, holds, {"D": 4}, "f: ")
    with pytest.raises(ValueError, match="f: c is missing"):
        check_arrays({"a": x, "b": good["b"]}, holds, {}, "f: ")


@pytest.mark.parametrize("when", ["made", "removed"])
def test_an_interrupt_while_the_folder_of_a_new_file_is_made_or_removed_leaves_nothing(
    when, tmp_path, monkeypatch
):
    make = tempfile.mkdtemp

    def made(*args, **kwargs):
        make(*args, **kwargs)
        raise KeyboardInterrupt

    def removed(self):
        self._finalizer.detach()
        raise KeyboardInterrupt

    if when == "made":
        monkeypatch.setattr(tempfile, "mkdtemp", made)
    else:
        monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", removed)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ([] if when == "made" else ["x.json"])
