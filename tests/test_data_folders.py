"""What lies in a folder is read or told; its split and its class are never decided silently."""

import json
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pfc.data
from pfc.data import listing, load, parquet
from pfc.data.folders import image_folder
from pfc.data.listing import File, Listing
from tests import test_fuzz_data as fuzz
from tests.test_data import noise, png, table, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFC_CACHE", str(tmp_path / ".cache"))


def put(root, *places):
    """Images at some places of a folder, each of its own."""
    for i, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(len(places), (4, 4), 1)[i]).save(root / place)
    return root


PLAIN = ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png")


@pytest.mark.parametrize("fault", fuzz.FAULTS)
def test_faults_of_folders_are_refused_by_name(fault, tmp_path):
    root = put(tmp_path / "set", *PLAIN)
    folders = {split: root / split for split in ("train", "test")}
    words = fault(root, folders, ["a", "b"], random.Random(0))
    with pytest.raises(ValueError, match=re.escape(words)):
        [load(root, split) for split in folders]


@pytest.mark.parametrize("fault", fuzz.PARQUET_FAULTS)
def test_faults_of_parquet_are_refused_by_name(fault, tmp_path):
    content = pa.table({"image": [png(p) for p in noise(4)], "label": [0, 1, 1, 0]})
    root = tmp_path / "set"
    root.mkdir()
    pq.write_table(content, root / "train.parquet", write_page_checksum=True)
    words = fault(root, ("image", "label"), random.Random(0))
    with pytest.raises(ValueError, match=re.escape(words)):
        load(root)


# Folders of images.


def test_linked_folders_and_files_are_followed_but_not_in_a_circle(tmp_path):
    root = put(tmp_path / "set", "a/0.png", "b/0.png")
    put(tmp_path / "elsewhere", "d/0.png", "one.png")
    (root / "d").symlink_to(tmp_path / "elsewhere/d", target_is_directory=True)
    (root / "a/1.png").symlink_to(tmp_path / "elsewhere/one.png")
    assert load(root).classes == ("a", "b", "d")
    assert load(root).labels.tolist() == [0, 0, 1, 2]
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "b/own").symlink_to(root / "b", target_is_directory=True)
    with pytest.warns(UserWarning, match="2 of 6 files in .* are not read: 'a/up', 'b/own'"):
        assert len(load(root)) == 4


def test_a_class_behind_a_renamed_link_is_read_anew(tmp_path):
    root = put(tmp_path / "set", "a/0.png", "b/0.png")
    put(tmp_path / "elsewhere", "0.png")
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert load(root).labels.tolist() == [0, 1, 2]
    (root / "c").rename(root / "d")
    assert load(root).classes == ("a", "b", "d")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    for split, form in (("train", str), ("test", fuzz.nfd)):
        put(tmp_path / split, f"{form('grün')}/0.png", "rot/0.png")
    assert load(tmp_path, "test").classes == load(tmp_path).classes == ("grün", "rot")
    assert load(tmp_path, "test").labels.tolist() == [0, 1]


def test_the_order_of_the_files_is_that_of_one_unicode_form(tmp_path):
    for name, form in (("linux", str), ("mac", fuzz.nfd)):
        put(tmp_path / name, f"a/{form('ü')}.png", "a/z.png", f"b/{form('é')}.png")
    one, other = (load(tmp_path / name) for name in ("linux", "mac"))
    assert one.fingerprint == other.fingerprint
    assert one.origin.files == other.origin.files


def test_names_that_are_no_utf8_are_shown_as_bytes(tmp_path):
    root = put(tmp_path / "set", "a/0.png", "b/0.png")
    os.rename(root / "a/0.png", os.fsencode(root / "a") + b"/gr\xfcn.png")
    with pytest.raises(ValueError, match=r"the name of b'.*/a/gr\\xfcn.png' is no UTF-8 .*: rename it"):
        load(root)
    os.rename(root, os.fsencode(tmp_path) + b"/s\xe4t")
    with pytest.raises(ValueError, match=r"the name b'.*/s\\xe4t' is no UTF-8: rename the folder"):
        load(tmp_path / os.fsdecode(b"s\xe4t"))


def test_what_is_not_read_is_counted_and_named(tmp_path):
    root = put(tmp_path, *PLAIN, "train/stray.png", "train/a/deep/1.png", ".hidden/0.png", "x.png")
    for name in (
        "notes.txt",
        "train/a/Thumbs.db",
        "README.md",
        "LICENSE",
        "train/b/c.avif",
        ".DS_Store",
    ):
        (root / name).write_text("words")
    words = (
        r"5 of 12 files in .* are not read: 'notes.txt', 'train/a/Thumbs.db', 'train/b/c.avif', "
        "'train/stray.png', 'x.png'$"
    )
    with pytest.warns(UserWarning, match=words):
        assert len(load(root)) == 3


def test_a_flat_test_folder_is_no_split_and_told(tmp_path):
    root = put(tmp_path, "train/a/0.png", "train/b/0.png", "test/0.png", "test/1.png")
    assert pfc.data.splits(root) == ("train",)
    with pytest.warns(UserWarning, match="2 of 4 files in .* are not read: 'test/0.png', 'test/1.png'"):
        load(root)
    with pytest.raises(ValueError, match=r"no split 'test' in .*; it has train$"):
        load(root, "test")
    flat = put(tmp_path / "flat", "train/0.png", "test/1.png")
    with pytest.raises(
        ValueError, match=r"no images in class subfolders; images are files in \.bmp, \.gif"
    ):
        load(flat)


def test_an_empty_split_folder_is_told(tmp_path):
    root = put(tmp_path, "train/a/0.png", "train/b/0.png")
    (root / "test/a").mkdir(parents=True)
    with pytest.warns(UserWarning, match="no image lies in 'test' of "):
        load(root)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            ("bus/0.png", "car/0.png", "train/0.png"),
            "'train' would be a split, beside .* none: 'bus', 'car'",
        ),
        (
            ("bus/0.png", "train/steam/0.png"),
            "'train' would be a split, beside folders .* none: 'bus'; if",
        ),
        (
            (*PLAIN, "val/a/0.png", "dev/a/0.png"),
            "2 folders in .* are of split 'validation': 'dev', 'val'",
        ),
        ((*PLAIN, "Test/a/0.png"), "2 folders in .* are of split 'test': 'Test', 'test'; make them one"),
        (
            ("cat/train/0.png", "cat/test/1.png", "dog/train/0.png", "dog/test/1.png"),
            "every folder of a class would hold a split, such as 'cat/test': put the classes into",
        ),
        (
            [f"set/{place}" for place in PLAIN],
            "would hold a split, such as 'set/test': give the folder in which it lies",
        ),
        (("images/a/0.png", "images/b/0.png"), "has only one class, 'images'; need at least two"),
    ],
)
def test_folders_whose_meaning_is_not_plain_are_refused(places, words, tmp_path):
    put(tmp_path, *places)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_a_class_of_a_split_may_be_called_train(tmp_path):
    put(tmp_path, "train/bus/0.png", "train/train/0.png")
    assert load(tmp_path).classes == ("bus", "train")


def test_a_class_that_a_split_lacks_is_told_and_numbers_stay(tmp_path):
    put(tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "test/b/0.png", "test/c/0.png")
    assert load(tmp_path).labels.tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="split 'test' of .* has no image of 1 of the 3 classes: a$"):
        assert load(tmp_path, "test").labels.tolist() == [1, 2]


def test_folders_called_by_numbers_that_are_not_theirs_are_told(tmp_path):
    put(tmp_path, *(f"{k}/0.png" for k in range(11)))
    words = "numbered in the order of their names as text: '10' is class 2"
    for _ in range(2):  # also from the cache
        with pytest.warns(UserWarning, match=words):
            assert load(tmp_path).classes[:4] == ("0", "1", "10", "2")
    put(tmp_path / "few", *(f"{k}/0.png" for k in range(10)))
    assert load(tmp_path / "few").classes == tuple("0123456789")


def test_a_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    put(tmp_path, *PLAIN)
    whole = os.listdir

    def closed(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return whole(folder)

    monkeypatch.setattr(listing.os, "listdir", closed)
    with pytest.raises(ValueError, match=r"folder '.*/b' can't be read: Permission denied") as caught:
        load(tmp_path)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_a_folder_called_digits_is_meant_by_its_path(tmp_path, monkeypatch):
    put(tmp_path / "digits", "a/0.png", "b/0.png")
    monkeypatch.chdir(tmp_path)
    assert len(load("digits")) == 1797
    assert len(load("./digits")) == len(load(Path("digits"))) == 2


def test_splits_of_other_colours(tmp_path):
    put(tmp_path, *PLAIN)
    Image.fromarray(noise(1, (4, 4))[0]).save(tmp_path / "train/a/1.png")
    test = load(tmp_path, "test")
    assert test.shape == load(tmp_path).shape == (3, 4, 4)
    assert test.images[:, 0].equal(test.images[:, 2])
    (tmp_path / "train/a/1.png").rename(tmp_path / "test/a/1.png")
    with pytest.raises(
        ValueError, match=r"split 'test' of .* has colour images, and the training split gr"
    ):
        load(tmp_path, "test")


def test_the_original_error_is_the_cause(tmp_path):
    put(tmp_path, *PLAIN)
    (tmp_path / "train/a/0.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"row 0 of split 'train' of .* \(train/a/0.png\) cannot be d"
    ) as e:
        load(tmp_path)
    assert isinstance(e.value.__cause__, OSError)


# Folders of parquet.

ROWS = [png(p) for p in noise(4)]


def shards(root, *names, labels=(0, 1, 1, 0)):
    for name in names:
        write((root / name).parent, pa.table({"image": ROWS, "label": list(labels)}), Path(name).name)
    return root


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "split 'train' lacks 1 of its 3 shards: number 1 beside 'train-00000-of-00003.parquet'",
        ),
        (
            ["train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"],
            "split 'train' has a shard twice: 'train-00000-of-00001-aa.parquet', 'train-00000-of-",
        ),
        (
            ["train-00000-of-00001.parquet", "train-00003-of-00001.parquet"],
            "split 'train' has shards beyond its 1: 'train-00003-of-00001.parquet'; move them away",
        ),
        (["train-00000-of-00001.parquet", "training.parquet"], "2 kinds of files are of split 'train'"),
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "2 kinds of files are"),
        (["fine/train/0.parquet", "coarse/train/0.parquet"], "2 kinds of files are of split 'train'"),
        (["val.parquet", "dev.parquet", "train.parquet"], "2 kinds of files are of split 'validation'"),
        (
            ["train_test.parquet"],
            "the name 'train_test.parquet' speaks of several splits, test and train",
        ),
        (["test/train.parquet"], "the name 'test/train.parquet' speaks of several splits"),
        (["train.parquet", "more.parquet"], "2 kinds of files are of split 'train'"),
    ],
)
def test_files_that_make_no_one_set_are_refused(names, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load(shards(tmp_path, *names))


def test_files_without_a_word_for_a_split_are_of_one(tmp_path):
    assert len(load(shards(tmp_path, "a.parquet", "part/b.parquet", "test.parquet"))) == 8


def test_hidden_words_of_a_split_in_capital_letters():
    assert parquet.split_of(("DATA", "Test-00000-of-00001.parquet")) == "test"
    assert parquet.split_of(("Training.parquet",)) == "train"


def test_images_beside_parquet_are_told(tmp_path):
    put(shards(tmp_path, "train.parquet"), "a/0.png")
    with pytest.warns(UserWarning, match="1 of 2 files in .* are not read: 'a/0.png'"):
        assert len(load(tmp_path)) == 4


def named(labels, names):
    return table(ROWS[: len(labels)], labels, names)


def test_names_that_differ_between_the_shards_are_refused(tmp_path):
    write(tmp_path, named([0, 1], ("cat", "dog")), "train-00000-of-00002.parquet")
    write(tmp_path, named([0, 1], ("dog", "cat")), "train-00001-of-00002.parquet")
    words = "name the classes of column 'label' differently; train-00001-of-00002.parquet: class 0 is"
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_names_that_differ_between_the_splits_are_told(tmp_path):
    write(tmp_path, named([0, 1], ("cat", "dog")), "train.parquet")
    write(tmp_path, named([0, 1], ("dog", "cat")), "test.parquet")
    words = "split 'test' of .* and split 'train' name classes differently: class 0 is 'dog' in the "
    for _ in range(2):
        with pytest.warns(UserWarning, match=words):
            assert load(tmp_path, "test").classes == ("dog", "cat")


def test_a_row_is_told_with_its_file(tmp_path):
    write(tmp_path, named([0, 1, 0], ("cat", "dog")), "train-00000-of-00002.parquet")
    write(tmp_path, named([0, 7], ("cat", "dog")), "train-00001-of-00002.parquet")
    words = (
        r"row 4 of split 'train' of .* \(row 1 of train-00001-of-00002.parquet\) has no label: 7 is none"
    )
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_a_column_that_a_shard_lacks_is_told_with_the_shard(tmp_path):
    shards(tmp_path, "train-00000-of-00002.parquet")
    write(tmp_path, pa.table({"image": ROWS, "target": [0] * 4}), "train-00001-of-00002.parquet")
    with pytest.raises(
        ValueError, match=r"no column 'label' in train-00001-of-00002.parquet of split 'tra"
    ):
        load(tmp_path)


@pytest.mark.parametrize("absent", [{}, {"info": None}, {"info": {"features": None}}])
def test_feature_types_may_be_absent(absent, tmp_path):
    content = pa.table({"image": ROWS, "label": [0, 1, 1, 0]})
    write(tmp_path, content.replace_schema_metadata({"huggingface": json.dumps(absent)}))
    assert load(tmp_path).classes == ("0", "1")


@pytest.mark.parametrize("names", [["cat", 3], "ab", {"0": "cat"}])
def test_names_that_are_no_text_are_refused(names, tmp_path):
    kinds = {"label": {"_type": "ClassLabel", "names": names}}
    content = pa.table({"image": ROWS, "label": [0, 1, 1, 0]})
    text = json.dumps({"info": {"features": kinds}})
    write(tmp_path, content.replace_schema_metadata({"huggingface": text}))
    with pytest.raises(
        ValueError, match=r"the names of column 'label' of train-00000-of-00001.parquet must"
    ):
        load(tmp_path)


def test_text_and_numbers_in_one_column_are_told_with_both_files(tmp_path):
    shards(tmp_path, "train.parquet")
    shards(tmp_path, "test.parquet", labels="abba")
    words = r"text in row 0 of split 'test' .* \(test.parquet\) and whole numbers in .*train.parquet"
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_numbers_beyond_any_number_of_classes_are_refused(tmp_path):
    shards(tmp_path, "train.parquet", labels=(0, 2**62, 1, 0))
    with pytest.raises(
        ValueError, match=f"column 'label' .* has the whole number {2**62}: is it no class"
    ):
        load(tmp_path)


def test_a_text_column_in_nfd_is_the_same_class(tmp_path):
    shards(tmp_path, "train.parquet", labels=("grün", fuzz.nfd("grün"), "rot", "rot"))
    assert load(tmp_path).labels.tolist() == [0, 0, 1, 1]


def test_a_dictionary_that_points_outside_is_a_fault_of_the_file(tmp_path, monkeypatch):
    """As of awkward#400: what pyarrow raises when a value is asked for."""
    root = shards(tmp_path, "train.parquet")

    class Torn:
        def column(self, name):
            return self

        def to_pylist(self):
            raise pa.ArrowIndexError("tried to refer to element 3 but array is only 3 long")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: [Torn()])
    with pytest.raises(
        ValueError,
        match=r"column 'label' of '.*train.parquet' can't be read as parquet: ArrowIndexError: tr",
    ):
        load(root)


def test_sixteen_bits_are_refused_and_not_cut(tmp_path):
    """As of torchvision#2218: such images became white."""
    put(tmp_path, "a/0.png", "b/0.png")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a/0.png")
    with pytest.raises(
        ValueError, match=r"\(a/0.png\) cannot be decoded: mode I;16 has more than 8 bits"
    ):
        load(tmp_path)


def test_many_classes_are_read_in_time_that_grows_as_they_do(tmp_path):
    root, about = tmp_path, tmp_path.stat()
    names = [f"c{k:04}" for k in range(4000)]
    files = tuple(File(root / name / "0.png", (name, "0.png"), about) for name in names)
    started = time.perf_counter()
    found = image_folder("many", Listing(root, files, tuple(root / name for name in names), ()))
    assert [k for (k,) in found.read("train", "label")] == list(range(4000))
    assert time.perf_counter() - started < 8  # 0.2 s, and half a minute if each looks at all others
