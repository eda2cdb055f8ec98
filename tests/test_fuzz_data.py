"""Hostile folders of images and of parquet, and arguments: loaded as planned, or refused in a line.

Each case is made from a seed: a plan of splits, classes and pixels, a folder that holds it, what lies
beside it and must change nothing, and at most one fault that must be refused by name.
"""

import io
import json
import os
import random
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pfc
from tests.test_fuzz import in_time

CLASSES = (
    *("cat", "dog", "Cat", "a b", "grün", "日本", "x" * 60, "cl-ass", "1", "2", "10", "crash-test"),
    *("val_x", "naïve", "C++", "a.b", "%20", "$HOME", "-rf", "'q'", "[x]", "*"),
)
SPLIT_FOLDERS = {"train": ("train", "Train", "training"), "test": ("test", "TEST", "eval", "evaluation")}
SUFFIXES = {".png": "PNG", ".PNG": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".ppm": "PPM"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFC_CACHE", str(tmp_path / "cache"))


@dataclass
class Plan:
    """What a folder is to hold.

    Args:
        splits: Of each split its rows: the label, its class in words, and the pixels.
        fault: A part of the message that must come; `None` if all must be loaded.
        rest: Files that lie there besides, and are told.
    """

    splits: dict[str, list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    fault: str | None = None
    rest: int = 0


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pictures(rng, count, grey):
    shape = (count, 3, 4) if grey else (count, 3, 4, 3)
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, np.uint8)


def nfd(name):
    return unicodedata.normalize("NFD", name)


# Folders of images.


def image_folder(root, rng):
    """Make a folder of images; what it holds."""
    plan, grey = Plan(), rng.random() < 0.4
    classes = rng.sample(CLASSES, rng.randint(2, 5))
    names = rng.choice((["train"], ["train"], ["train", "test"], ["train", "test"]))
    bare = names == ["train"] and rng.random() < 0.7
    folders = {split: root if bare else root / rng.choice(SPLIT_FOLDERS[split]) for split in names}
    for split in names:
        rows = []
        for name in classes:
            form = nfd if rng.random() < 0.2 else str
            own = put_class(
                folders[split] / form(name), rng, pictures(rng, rng.randint(1, 4), grey), root
            )
            rows += [(unicodedata.normalize("NFC", name), place, pixels) for place, pixels in own]
        plan.splits[split] = [
            (label, pixels) for label, _, pixels in sorted(rows, key=lambda r: order(r))
        ]
    for _ in range(rng.choice((0, 0, 1, 2))):
        plan.rest += rng.choice(BESIDE)(root, folders["train"], classes, rng)
    if rng.random() < 0.5:
        plan.fault = rng.choice(FAULTS)(root, folders, classes, rng)
    return plan


def order(row):
    return [unicodedata.normalize("NFC", part) for part in (row[0], *row[1].parts)]


def put_class(folder, rng, images, root):
    """Put the images of a class into its folder, or behind a link; each with its place in it."""
    home = folder
    if rng.random() < 0.2:
        home = root.parent / "elsewhere" / f"{rng.randrange(10**9)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(home, target_is_directory=True)
    rows = []
    for i, pixels in enumerate(images):
        suffix = rng.choice(list(SUFFIXES))
        stem = rng.choice((
            f"{i}",
            f"test_{i}",
            f"grün{i}",
            f"a b{i}",
            f"ILSVRC_val_{i}",
            f"{i}\n",
            f"-{i}",
        ))
        place = Path(rng.choice(("", "", "deep", "deep/train"))) / f"{i}{stem}{suffix}"
        file = home / place
        file.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(pixels, SUFFIXES[suffix])
        if rng.random() < 0.1:
            real = root.parent / "elsewhere" / f"{rng.randrange(10**9)}.bin"
            real.parent.mkdir(exist_ok=True)
            real.write_bytes(data)
            file.symlink_to(real)
        else:
            file.write_bytes(data)
        rows.append((place, pixels))
    return rows


def hidden(root, train, classes, rng):
    folder = rng.choice((root, train))
    (folder / ".ipynb_checkpoints").mkdir(exist_ok=True)
    (folder / ".ipynb_checkpoints" / "a.png").write_bytes(b"no image")
    (folder / ".DS_Store").write_bytes(b"\0")
    return 0


def document(root, train, classes, rng):
    (root / rng.choice(("README.md", "README", "LICENSE", "LICENSE.txt", "card.md"))).write_text("words")
    return 0


def stray(root, train, classes, rng):
    path = train / f"stray{rng.randrange(10**9)}.png"
    path.write_bytes(rng.choice((b"no image", encoded(np.zeros((9, 9), np.uint8)))))
    return 1


def unknown(root, train, classes, rng):
    inside = [path for path in train.iterdir() if path.is_dir() and path.name[0] != "."]
    name = rng.choice(("Thumbs.db", "notes.txt", "labels.csv", "b.npy", "c.avif", "d", "e.jpg.part"))
    path = rng.choice([train, *inside]) / name
    new = not path.exists()
    path.write_bytes(b"whatever")
    return int(new)


def pipe(root, train, classes, rng):
    os.mkfifo(train / f"pipe{rng.randrange(10**9)}.png")
    return 1


def circle(root, train, classes, rng):
    inside = next(path for path in sorted(train.iterdir()) if path.is_dir() and path.name[0] != ".")
    (inside / f"up{rng.randrange(10**9)}").symlink_to(
        rng.choice((root, train)), target_is_directory=True
    )
    return 1


BESIDE = (hidden, document, stray, unknown, pipe, circle)


def a_class(folders, rng):
    folder = rng.choice(list(folders.values()))
    return rng.choice([
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."
    ])


def not_utf8(root, folders, classes, rng):
    (a_class(folders, rng) / os.fsdecode(b"gr\xfcn.png")).write_bytes(
        encoded(np.zeros((3, 4), np.uint8))
    )
    return "is no UTF-8"


def dangling(root, folders, classes, rng):
    (a_class(folders, rng) / rng.choice(("gone.png", "gone"))).symlink_to(root / "nowhere")
    return "leads nowhere"


def self_link(root, folders, classes, rng):
    (folders["train"] / "self").symlink_to(folders["train"] / "self")
    return "leads nowhere"


def same_split(root, folders, classes, rng):
    if folders["train"] == root:
        return class_called_split(root, folders, classes, rng)
    other = root / next(n for n in ("training", "train") if n != folders["train"].name)
    (other / "cat").mkdir(parents=True)
    (other / "cat" / "0.png").write_bytes(encoded(np.zeros((3, 4), np.uint8)))
    return "are of split 'train'"


def class_called_split(root, folders, classes, rng):
    name = "bus" if folders["train"] != root else rng.choice(("train", "test", "val", "dev", "eval"))
    (root / name).mkdir()
    (root / name / "0.png").write_bytes(encoded(np.zeros((3, 4), np.uint8)))
    return "would be a split"


def empty_class(root, folders, classes, rng):
    (folders["train"] / "void").mkdir()
    if rng.random() < 0.5:
        (folders["train"] / "void" / "notes.txt").write_text("no image")
    return "no image lies in"


def damaged(root, folders, classes, rng):
    data = encoded(np.random.default_rng(0).integers(0, 256, (3, 4), np.uint8))
    content = rng.choice((b"", b"no image", data[: len(data) // 2], b"<html>", b"\x89PNG\r\n\x1a\n"))
    (a_class(folders, rng) / "zz.png").write_bytes(content)
    return "cannot be decoded"


def pointer(root, folders, classes, rng):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (a_class(folders, rng) / "zz.jpg").write_text(text)
    return "Git LFS pointer"


def larger(root, folders, classes, rng):
    (a_class(folders, rng) / "zz.png").write_bytes(encoded(np.zeros((5, 4), np.uint8)))
    return "must have one size"


def two_forms(root, folders, classes, rng):
    for name in ("zoé", nfd("zoé")):
        (folders["train"] / name).mkdir()
        (folders["train"] / name / "0.png").write_bytes(encoded(np.zeros((3, 4), np.uint8)))
    return "two Unicode forms"


def a_folder_called_png(root, folders, classes, rng):
    (folders["train"] / "void.png").mkdir()
    return "no image lies in"


FAULTS = (
    *(not_utf8, dangling, self_link, same_split, class_called_split, empty_class, damaged, pointer),
    *(larger, two_forms, a_folder_called_png),
)


# Folders of parquet.

TYPES = (pa.int64(), pa.int32(), pa.uint8(), pa.int16(), pa.string(), pa.large_string(), "dictionary")
NAMES = ("cat", "dog", "eel", "fox")


def parquet_folder(root, rng):
    """Make a folder of parquet; what it holds."""
    root.mkdir(parents=True)
    plan, grey, kind = Plan(), rng.random() < 0.4, rng.choice(TYPES)
    named = rng.random() < 0.5 and kind not in TYPES[4:]
    columns = rng.choice((("image", "label"), ("img", "fine_label"), ("images", "target")))
    splits = rng.choice((["train"], ["train", "test"], ["train", "test", "validation"]))
    tables = {}
    for split in splits:
        labels = [0, 1, *(rng.randrange(rng.choice((2, 4))) for _ in range(rng.randint(0, 9)))]
        rng.shuffle(labels)
        images = pictures(rng, len(labels), grey)
        plan.splits[split] = [
            (label_name(k, kind, named), x) for k, x in zip(labels, images, strict=True)
        ]
        tables[split] = table(labels, images, kind, named, columns, rng)
    fault = rng.choice(PARQUET_FAULTS) if rng.random() < 0.5 else None
    write_shards(root, tables, rng)
    for _ in range(rng.choice((0, 0, 1))):
        plan.rest += rng.choice((hidden, document, parquet_beside))(root, root, ["."], rng)
    if fault:
        plan.fault = fault(root, columns, rng)
    return plan


def label_name(k, kind, named):
    return NAMES[k] if named or kind in TYPES[4:] else str(k)


def table(labels, images, kind, named, columns, rng):
    cells = [encoded(x) for x in images]
    if rng.random() < 0.5:
        cells = pa.array([{"bytes": c, "path": rng.choice((None, "x.png"))} for c in cells])
    else:
        cells = pa.array(cells, rng.choice((pa.binary(), pa.large_binary())))
    if kind in TYPES[4:]:
        values = pa.array([NAMES[k] for k in labels])
        values = values.dictionary_encode() if kind == "dictionary" else values.cast(kind)
    else:
        values = pa.array(labels, kind)
    made = pa.table({columns[0]: cells, columns[1]: values, "text": ["words"] * len(labels)})
    made = made.select(rng.sample(made.column_names, 3))
    kinds = {columns[0]: {"_type": "Image"}, "text": {"_type": "Value", "dtype": "string"}}
    if named:
        kinds[columns[1]] = {"_type": "ClassLabel", "names": list(NAMES)}
        return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    absent = rng.choice((None, None, "null", {"info": None}, {"info": {"features": None}}, {}))
    if absent is None:
        return made
    return made.replace_schema_metadata({
        "huggingface": json.dumps(None and absent) if 0 else text_of(absent)
    })


def text_of(absent):
    return "{}" if absent == "null" else json.dumps(absent)


def write_shards(root, tables, rng):
    """Write the tables as one file each, or as shards, by one of the hub's ways of naming."""
    way = rng.choice(("plain", "shards", "shards", "hashed", "folders"))
    place = root / rng.choice((".", "data"))
    place.mkdir(exist_ok=True)
    for split, content in tables.items():
        n = len(content)
        parts = 1 if way == "plain" else rng.randint(1, min(3, n))
        cuts = sorted(rng.sample(range(1, n), parts - 1))
        for i, (a, b) in enumerate(zip([0, *cuts], [*cuts, n], strict=True)):
            name = {
                "plain": f"{split}.parquet",
                "shards": f"{split}-{i:05}-of-{parts:05}.parquet",
                "hashed": f"{split}-{i:05}-of-{parts:05}-{rng.randrange(16**8):x}.parquet",
                "folders": f"{split}/{i:04}.parquet",
            }[way]
            (place / name).parent.mkdir(exist_ok=True)
            how = {
                "compression": rng.choice(("snappy", "zstd", "none")),
                "row_group_size": rng.randint(1, 9),
            }
            pq.write_table(content.slice(a, b - a), place / name, write_page_checksum=True, **how)


def parquet_beside(root, train, classes, rng):
    (root / "assets").mkdir(exist_ok=True)
    (root / "assets" / "figure.png").write_bytes(encoded(np.zeros((9, 9), np.uint8)))
    return 1


def some_file(root, rng):
    return rng.choice(sorted(path for path in root.rglob("*.parquet") if path.parts[-2][0] != "."))


def rewritten(root, rng, change):
    file = some_file(root, rng)
    pq.write_table(change(pq.read_table(file)), file)
    return file.name


def cut(root, columns, rng):
    file = some_file(root, rng)
    data = file.read_bytes()
    file.write_bytes(rng.choice((b"", data[: len(data) // 2], b"PAR1", data[:-1], b"no parquet at all")))
    return f"{file.name}' can't be read as parquet"


def parquet_pointer(root, columns, rng):
    file = some_file(root, rng)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return f"{file.name} is a Git LFS pointer"


def page(root, columns, rng):
    """One bit of a page is another: its checksum tells."""
    file = some_file(root, rng)
    about = pq.ParquetFile(file).metadata.row_group(0)
    names = [about.column(i).path_in_schema for i in range(about.num_columns)]
    i = names.index(columns[1])
    chunk, data = about.column(i), bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    return f"column {columns[1]!r} of "


def with_column(content, name, values):
    i = content.column_names.index(name)
    return content.set_column(i, name, values).replace_schema_metadata({})


def floats(root, columns, rng):
    rewritten(root, rng, lambda t: with_column(t, columns[1], pa.array([0.5] * len(t))))
    return "labels must be whole numbers or text"


def lists(root, columns, rng):
    rewritten(root, rng, lambda t: with_column(t, columns[1], pa.array([[1]] * len(t))))
    return "labels must be whole numbers or text"


def missing(root, columns, rng):
    rewritten(root, rng, lambda t: with_column(t, columns[1], pa.array([None] * len(t), pa.int64())))
    return "has no label: None"


def gone(root, columns, rng):
    rewritten(root, rng, lambda t: t.drop_columns([columns[1]]))
    return "column"


def no_image(root, columns, rng):
    rewritten(root, rng, lambda t: with_column(t, columns[0], pa.array([b"text"] * len(t))))
    return "no known image format"


def file_names(root, columns, rng):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cell = {"bytes": None, "path": "0.png"}
    rewritten(root, rng, lambda t: with_column(t, columns[0], pa.array([cell] * len(t), kind)))
    return "does not hold its bytes"


def twice(root, columns, rng):
    rewritten(root, rng, lambda t: t.append_column(columns[1], t[columns[1]]))
    return f"column {columns[1]!r} stands twice"


def no_table(root, columns, rng):
    text = rng.choice(("no json", "[]", '{"info": [1]}', '{"info": {"features": [1]}}'))
    rewritten(root, rng, lambda t: t.replace_schema_metadata({"huggingface": text}))
    return "metadata 'huggingface' of "


def another_series(root, columns, rng):
    file = some_file(root, rng)
    name = rng.choice(("train-00000-of-00009.parquet", "old/train-00000-of-00001.parquet"))
    (root / "more" / name).parent.mkdir(parents=True)
    (root / "more" / name).write_bytes(file.read_bytes())
    return "kinds of files are of split 'train'"


def text_that_is_none(root, columns, rng):
    labels = pa.array([b"gr\xfcn"]).cast(pa.string(), safe=False)
    with_it = pa.concat_arrays([labels] * 50)
    rewritten(root, rng, lambda t: with_column(t, columns[1], with_it[: len(t)]))
    return f"column {columns[1]!r} of "


PARQUET_FAULTS = (
    *(cut, parquet_pointer, page, floats, lists, missing, gone, no_image, file_names, twice, no_table),
    *(another_series, text_that_is_none),
)


# The cases.


@dataclass
class Tally:
    """What became of the cases."""

    loaded: int = 0
    refused: Counter = field(default_factory=Counter)


def check(root, plan):
    """Load all splits of a folder; each holds what was planned, and what lies beside is told."""
    for split, rows in plan.splits.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = pfc.data.load(root, split, progress=False)
        assert set(pfc.data.splits(root, progress=False)) == set(plan.splits)
        assert [images.classes[k] for k in images.labels.tolist()] == [label for label, _ in rows]
        pixels = np.stack([x for _, x in rows])
        assert images.images.permute(0, 2, 3, 1).numpy().squeeze(
            -1 if images.shape[0] == 1 else ()
        ).tolist() == (pixels.tolist())
        told = [str(w.message) for w in caught if "are not read" in str(w.message)]
        assert [int(text.split(" ")[0]) for text in told] == ([plan.rest] if plan.rest else [])


def one_case(make, seed, tmp_path):
    """Make a folder from a seed and load it, also from the cache; the fault if it was refused."""
    root, message = tmp_path / f"{seed}" / "set", None
    plan = make(root, random.Random(seed))
    try:
        with in_time():
            check(root, plan)
            check(root, plan)
    except ValueError as error:
        message = str(error)
    if plan.fault is None:
        assert message is None
    else:
        assert plan.fault in message
        assert "\n" not in message
    return plan.fault


def cases(make, seeds, tmp_path):
    tally = Tally()
    for seed in seeds:
        try:
            fault = one_case(make, seed, tmp_path)
        except BaseException as error:
            raise AssertionError(f"seed {seed} in {tmp_path / str(seed)}: {error!r}") from error
        tally.loaded += fault is None
        tally.refused.update([fault.split(" ", 1)[-1]] if fault else [])
    return tally


@pytest.mark.parametrize("make", [image_folder, parquet_folder])
def test_folders_are_loaded_as_planned_or_refused(make, tmp_path):
    tally = cases(make, range(60), tmp_path)
    assert tally.loaded >= 20
    assert tally.refused.total() >= 15


@pytest.mark.slow
@pytest.mark.parametrize("make", [image_folder, parquet_folder])
def test_many_folders_are_loaded_as_planned_or_refused(make, tmp_path):
    tally = cases(make, range(1000, 4000), tmp_path)
    print(make.__name__, tally)
    assert tally.loaded >= 1000
    assert tally.refused.total() >= 1000
