"""Sets are loaded as they lie there, limits are balanced, caches are never stale."""

import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

import pfc.data
from pfc.data import Batches, Images, Normalisation, decoding, drawing, load, parquet, splits
from pfc.files import write_tensors

REAL = Path(os.environ.get("PFC_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PFC_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


ROWS = 2000  # of each real file


@pytest.fixture
def real(real_cache, monkeypatch):
    """Gives a folder of the first rows of real data, decoded once in a session."""
    monkeypatch.setenv("PFC_CACHE", str(real_cache / "cache"))

    def folder(name):
        if not (REAL / name).is_dir():
            pytest.skip(f"no real data {name}: PFC_TEST_DATA names the folder that holds it")
        if not (real_cache / name).is_dir():
            for path in (REAL / name).rglob("*.parquet"):
                rows = next(pq.ParquetFile(path).iter_batches(ROWS))
                (made := real_cache / path.relative_to(REAL)).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_batches([rows]), made)
        return real_cache / name

    return folder


def noise(count, size=(4, 5), channels=3, seed=0):
    """Random images, H x W x C, or H x W if grey."""
    shape = (count, *size, channels) if channels > 1 else (count, *size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(pixels, mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, "PNG", **options)
    return file.getvalue()


def table(blobs, labels, names=("cat", "dog"), image="img", label="label", **more):
    """A table as the hub stores it; `names=None` leaves the feature types out."""
    cells = pa.array([{"bytes": blob, "path": None} for blob in blobs], IMAGE)
    columns = {image: cells, label: pa.array(labels), **more}
    made = pa.table({name: column for name, column in columns.items() if name})
    if names is None:
        return made
    kinds = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    text = json.dumps({"info": {"features": {name: kinds[name] for name in kinds if name}}})
    return made.replace_schema_metadata({"huggingface": text})


def write(folder, content, name="train-00000-of-00001.parquet"):
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(content, folder / name)
    return folder


@pytest.fixture
def small(tmp_path):
    """A sound set of six images in two classes with a test split."""
    blobs = [png(pixels) for pixels in noise(8)]
    folder = write(tmp_path / "small", table(blobs[:6], [0, 1, 1, 0, 1, 0]))
    return write(folder, table(blobs[6:], [1, 0]), "test-00000-of-00001.parquet")


# What is loaded.


def test_digits_are_those_of_scikit_learn():
    data, digits = load("digits"), load_digits()
    assert data.images.dtype == torch.uint8
    assert np.array_equal(data.images[:, 0].numpy(), digits.images)
    assert np.array_equal(data.labels.numpy(), digits.target)
    assert data.classes == tuple("0123456789")
    assert (data.shape, len(data), data.spec, data.split) == ((1, 8, 8), 1797, "digits", "train")
    assert load().images.equal(data.images)


@pytest.mark.parametrize(
    ("name", "column", "split"), [("mnist", "image", "train"), ("cifar10", "img", "test")]
)
def test_real_parquet_is_decoded_as_it_lies_there(real, name, column, split):
    folder = real(name)
    data = load(folder, split)
    rows = pq.read_table(next(folder.glob(f"{split}-*")))
    assert len(data) == ROWS
    assert data.labels.tolist() == rows["label"].to_pylist()
    for row in (0, 1, 777, ROWS - 1):
        pixels = np.asarray(Image.open(io.BytesIO(rows[column][row].as_py()["bytes"])))
        assert np.array_equal(data.images[row].permute(1, 2, 0).numpy().squeeze(), pixels)


def test_real_limit_takes_rows_of_the_whole(real):
    whole, part = load(real("mnist")), load(real("mnist"), limit=25)
    assert sorted(part.labels.bincount().tolist()) == [2] * 5 + [3] * 5
    where = [int((whole.images == image).all((1, 2, 3)).nonzero()[0]) for image in part.images]
    assert where == sorted(where)
    assert whole.labels[where].equal(part.labels)
    assert part.normalisation == whole.normalisation


def test_real_classes_are_named(real):
    classes = load(real("cifar10"), "test", limit=10).classes
    assert classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def test_every_split_has_the_constants_of_the_whole_training_split(small):
    train = load(small).images.double()
    constants = load(small, "test", limit=2).normalisation
    assert constants.mean == pytest.approx(train.mean((0, 2, 3)).tolist(), rel=1e-14)
    assert constants.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist(), rel=1e-14)
    assert constants.source == f"all 6 images of split 'train' of {str(small)!r}"


def test_a_set_without_training_split_is_its_own_measure(tmp_path):
    content = table([png(pixels) for pixels in noise(2)], [0, 1])
    data = load(write(tmp_path / "set", content, "test.parquet"), "test")
    assert "split 'test'" in data.normalisation.source


@pytest.mark.filterwarnings("ignore:split .* has no image of")
def test_whole_numbers_without_names_stay_as_they_are(tmp_path):
    blobs = [png(pixels) for pixels in noise(4)]
    folder = write(tmp_path / "set", table(blobs[:3], [7, 3, 10], names=None))
    write(folder, table(blobs[:2], [5, 3], names=None), "test.parquet")
    assert load(folder).classes == load(folder, "test").classes == tuple(map(str, range(11)))
    assert load(folder).labels.tolist() == [7, 3, 10]
    assert load(folder, "test").labels.tolist() == [5, 3]
    assert load(folder).unused == load(folder, "test").unused == (0, 1, 2, 4, 6, 8, 9)


def test_text_labels_are_sorted(tmp_path):
    content = table([png(pixels) for pixels in noise(3)], ["dog", "ant", "dog"], names=None)
    data = load(write(tmp_path / "set", content))
    assert (data.classes, data.labels.tolist()) == (("ant", "dog"), [1, 0, 1])


def test_plain_binary_columns_are_images(tmp_path):
    pixels = noise(2)
    content = pa.table({"x": [png(p) for p in pixels], "target": [0, 1]})
    assert np.array_equal(load(write(tmp_path / "set", content)).images[1, 0], pixels[1, ..., 0])


def test_fine_labels_come_before_coarse_ones_unless_asked(tmp_path):
    blobs = [png(pixels) for pixels in noise(3)]
    content = table(blobs, [0, 1, 2], "abc", label="coarse_label", fine_label=[1, 1, 0])
    kinds = json.loads(content.schema.metadata[b"huggingface"])
    kinds["info"]["features"]["words"] = [{"dtype": "string", "_type": "Value"}]  # a list of text
    kinds["info"]["features"]["fine_label"] = {"_type": "ClassLabel", "names": ["x", "y"]}
    folder = write(tmp_path / "set", content.replace_schema_metadata({"huggingface": json.dumps(kinds)}))
    assert load(folder).labels.tolist() == [1, 1, 0]
    coarse = load(folder, label_column="coarse_label")
    assert (coarse.labels.tolist(), coarse.classes) == ([0, 1, 2], ("a", "b", "c"))


def test_image_column_can_be_named(tmp_path):
    left, right = noise(2, seed=1), noise(2, seed=2)
    content = table([png(p) for p in left], [0, 1], names=None, image="image")
    content = content.append_column("img", table([png(p) for p in right], [0, 1])["img"])
    folder = write(tmp_path / "set", content)
    for column, pixels in ((None, left), ("img", right)):
        data = load(folder, image_column=column)
        assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test-00001-of-00002-ab12.parquet", "test"),
        ("unlabelled-00000-of-00001.parquet", "unlabelled"),
        ("mnist_val.parquet", "validation"),
        ("dev-00000-of-00001.parquet", "validation"),
        ("eval/0000.parquet", "test"),
        ("contest.parquet", "train"),
    ],
)
def test_splits_are_told_by_file_name_as_the_hub_does(name, split):
    assert parquet.split_of(Path(name).parts) == split


def test_shards_are_read_in_order_and_hidden_files_not(tmp_path):
    pixels = noise(4)
    for shard in (1, 0):
        content = table([png(p) for p in pixels[2 * shard : 2 * shard + 2]], [0, 1])
        write(tmp_path / "set", content, f"train-{shard:05}-of-00002.parquet")
    write(tmp_path / "set" / ".old", content)
    data = load(tmp_path / "set")
    assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels)


# Modes of images.


def test_grey_images_have_one_channel(tmp_path):
    pixels = noise(2, channels=1)
    data = load(write(tmp_path / "set", table([png(p) for p in pixels], [0, 1])))
    assert data.shape == (1, 4, 5)
    assert np.array_equal(data.images[:, 0], pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_one_image_that_is_not_grey_makes_all_rgb(tmp_path, mode):
    pixels = noise(3, channels=1)
    blobs = [png(pixels[0]), png(pixels[1], mode), png(pixels[2])]
    data = load(write(tmp_path / "set", table(blobs, [0, 1, 0])))
    for row, blob in enumerate(blobs):
        expected = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
        assert np.array_equal(data.images[row].permute(1, 2, 0), expected)


def test_a_palette_with_transparency_is_rgb_without_a_warning(tmp_path):
    image = Image.fromarray(noise(1)[0]).convert("P")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)))
    data = load(write(tmp_path / "set", table([file.getvalue()] * 2, [0, 1])))
    assert np.array_equal(data.images[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_a_turned_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees clockwise
    pixels = noise(1)[0]
    folder = write(tmp_path / "set", table([png(pixels, exif=exif)] * 2, [0, 1]))
    assert np.array_equal(load(folder).images[0].permute(1, 2, 0), np.rot90(pixels, -1))


# Folders of images.


NOT_READ = pytest.mark.filterwarnings("ignore:.* files in .* are not read", "ignore:split .* has no im")


@pytest.fixture
def pictures(tmp_path):
    """Two splits; the class `ant` is only in the test split."""
    for i, name in enumerate(("train/cat/b.png", "train/bee/deep/a.PNG", "test/ant/a.png")):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(png(noise(3)[i]))
    (tmp_path / "pictures/train/cat/notes.txt").write_text("no image")
    (tmp_path / "pictures/train/stray.png").write_text("of no class")
    (tmp_path / "pictures/train/bee/.hidden.png").write_text("no image")
    return tmp_path / "pictures"


@NOT_READ
def test_image_folder_has_the_classes_of_all_splits(pictures):
    (pictures / "test/cat").mkdir()
    (pictures / "test/cat/c.png").write_bytes(png(noise(1)[0]))
    train, test = load(pictures), load(pictures, "test")
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2], [0, 2])
    assert np.array_equal(train.images.permute(0, 2, 3, 1), noise(3)[[1, 0]])


@NOT_READ
def test_image_folder_without_splits_is_for_training(pictures):
    assert load(pictures / "train").classes == ("bee", "cat")


def test_a_split_is_told_by_whole_names_of_folders_alone(tmp_path):
    for name in ("crash-test/ILSVRC2012_val_00000293.png", "crash-test/b.png", "car/test.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(noise(1)[0]))
    data = load(tmp_path)
    assert (data.split, data.classes, data.labels.tolist()) == (
        "train",
        ("car", "crash-test"),
        [0, 1, 1],
    )


def test_broken_file_of_an_image_folder_is_named(pictures):
    (pictures / "train/cat/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"row 1 of split 'train'.* \(.*cat/b.png\) cannot be dec"):
        load(pictures)


# The hub.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serves one set of 600 images under a hub name, by the real library, from parquet."""
    pixels = noise(600)
    content = table([png(p) for p in pixels], [i % 2 for i in range(600)])
    folder = write(tmp_path / "served", content)
    real_load, asked = datasets.load_dataset, []

    def load_dataset(name):
        asked.append((name, datasets.are_progress_bars_disabled()))
        return real_load("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "arrow"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return pixels, asked


def test_hub_set_is_loaded_by_name_and_cached(hub, monkeypatch):
    pixels, asked = hub
    data = load("owner/animals", progress=False)
    assert asked == [("owner/animals", True)]
    assert not datasets.are_progress_bars_disabled()
    assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels)
    assert (data.classes, data.spec) == (("cat", "dog"), "owner/animals")
    monkeypatch.setattr(decoding, "_pixels", None)
    assert load("owner/animals", progress=False).images.equal(data.images)


def test_progress_bars_that_were_off_stay_off(hub):
    datasets.disable_progress_bars()
    try:
        load("owner/animals", progress=False)
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


def test_hub_split_that_does_not_exist_lists_the_others(hub):
    with pytest.raises(ValueError, match="no split 'test' in 'owner/animals'; it has train"):
        load("owner/animals", "test", progress=False)


def test_without_network_the_error_says_offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="offline: there is no folder 'ylecun/nowhere', and the hub"):
        load("ylecun/nowhere")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("gone"),
            "no folder and no hub data set 'a/b': go",
        ),
        (ConnectionError("no route"), "offline: .*'digits' and local folders need no network"),
        (
            RuntimeError("scripts are not supported"),
            "'a/b' cannot be loaded: RuntimeError: scripts are not",
        ),
        (
            datasets.exceptions.DatasetGenerationError("torn"),
            "'a/b' cannot be loaded: DatasetGenerationError: torn",
        ),
    ],
)
def test_what_the_hub_says_is_passed_on(monkeypatch, error, message):
    def load_dataset(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=message):
        load("a/b")


# Limits.


def naive_quotas(counts, limit):
    """Give one image at a time to the class that has fewest and is not exhausted."""
    quotas = [0] * len(counts)
    for _ in range(min(limit, sum(counts))):
        open_ = [k for k in range(len(counts)) if quotas[k] < counts[k]]
        quotas[min(open_, key=lambda k: quotas[k])] += 1
    return quotas


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.integers(0, 70),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_limits_are_balanced_ordered_seeded_and_nested(counts, extra, seed, random):
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    limit = len(counts) + extra
    chosen = drawing.balanced(torch.tensor(labels), limit, seed)
    got = torch.tensor(labels)[chosen].bincount(minlength=len(counts)).tolist()
    assert sorted(got) == sorted(naive_quotas(counts, limit))
    assert all(q == c or q >= max(got) - 1 for q, c in zip(got, counts, strict=True))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.equal(drawing.balanced(torch.tensor(labels), limit, seed))
    assert set(chosen.tolist()) <= set(drawing.balanced(torch.tensor(labels), limit + 1, seed).tolist())


def test_seeds_choose_other_images():
    first, second = (load("digits", limit=50, seed=seed).images for seed in (0, 1))
    assert not first.equal(second)


def test_a_limit_does_not_touch_the_random_state():
    before = torch.random.get_rng_state()
    load("digits", limit=50)
    assert before.equal(torch.random.get_rng_state())


def test_a_limit_above_the_size_gives_all():
    assert load("digits", limit=5000).images.equal(load("digits").images)


@pytest.mark.parametrize("limit", [-1, 0, 9])
def test_limit_below_the_number_of_classes_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit must be at least 10, .*, got {limit}"):
        load("digits", limit=limit)


# The cache.


def never(*_):
    raise AssertionError("decoded again")


def test_second_load_does_not_decode(small, monkeypatch):
    first = load(small, "test")
    monkeypatch.setattr(decoding, "_decode", never)
    again = load(small, "test")
    assert again.images.equal(first.images)
    assert again.labels.equal(first.labels)
    assert (again.classes, again.normalisation) == (first.classes, first.normalisation)


def test_cache_holds_nothing_but_whole_safetensors_files(small, cache):
    load(small, "test")
    assert sorted(f.name.rsplit("-", 1)[0] for f in cache.iterdir()) == [
        "small-test",
        "small-train",
    ]
    assert {f.suffix for f in cache.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("damage", ["cut", "image", "label", "empty", "foreign"])
def test_a_damaged_cache_file_is_decoded_anew(small, cache, damage):
    first = load(small)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-1 if damage == "image" else -first.images.numel() - 1] ^= 1
    if damage == "foreign":
        write_tensors(file, {"other": torch.zeros(1)}, pfc="{}")
    else:
        file.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    assert load(small).images.equal(first.images)
    assert load(small).labels.equal(first.labels)


def test_a_changed_source_is_read_again(small):
    load(small)
    write(small, table([png(pixels) for pixels in noise(3, seed=9)], [1, 0, 1]))
    assert load(small).labels.tolist() == [1, 0, 1]


def test_a_touched_source_of_equal_size_is_read_again(small):
    before = load(small).labels
    file = small / "train-00000-of-00001.parquet"
    size = file.stat().st_size
    write(small, table([png(pixels) for pixels in noise(6)], [1, 0, 0, 1, 0, 1]))
    os.utime(file, ns=(0, 0))
    assert file.stat().st_size == size
    assert load(small).labels.equal(1 - before)


def test_a_source_of_another_size_and_equal_time_is_read_again(small):
    file = small / "train-00000-of-00001.parquet"
    os.utime(file, ns=(0, 0))
    load(small)
    write(small, table([png(pixels) for pixels in noise(3)], [1, 0, 1]))
    os.utime(file, ns=(0, 0))
    assert len(load(small)) == 3


@pytest.mark.filterwarnings("ignore:split .* has no image of")
def test_columns_have_caches_of_their_own(small):
    write(small, table([png(p) for p in noise(2)], [0, 1], names=None, other=[8, 4]))
    assert load(small).classes == ("0", "1")
    assert load(small, label_column="other").labels.tolist() == [8, 4]
    assert load(small).labels.tolist() == [0, 1]


def test_writing_into_a_loaded_set_does_not_write_into_the_cache(small):
    load(small)
    cached = load(small)
    before = cached.images.clone()
    cached.images.zero_()
    assert load(small).images.equal(before)


def test_a_cache_that_cannot_be_written_is_only_a_warning(small, cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="no cache, so the next load decodes anew"):
        assert len(load(small)) == 6


def test_progress_shows_only_for_many_images(small, monkeypatch, capsys):
    monkeypatch.setattr("pfc.progress.QUIET_SECONDS", -1.0)
    load(small)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decoding, "MANY", 2)
    load(small, "test", progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PFC_CACHE", str(small / ".cache"))
    load(small)
    assert f"decoding split 'train' of {str(small)!r}: 0 of 6" in capsys.readouterr().err


# Errors.


@pytest.mark.parametrize("spec", ["mnits", "no/such/folder", "/no/such", "../nowhere"])
def test_unknown_names_are_refused(spec):
    with pytest.raises(ValueError, match=f"no data set or folder '{spec}'; give 'digits', a hub na"):
        load(spec)


def test_the_digits_have_a_fixed_hold_out():
    whole, fit, held_out = (load("digits", split) for split in splits("digits"))
    assert (len(whole), len(fit), len(held_out)) == (1797, 1438, 359)
    both = torch.cat([fit.images, held_out.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.images.flatten(1).tolist())
    assert (held_out.labels.bincount() / whole.labels.bincount() - 0.2).abs().max() < 0.004
    assert held_out.normalisation == fit.normalisation != whole.normalisation
    assert load("digits", "held-out").images.equal(held_out.images)
    with pytest.raises(ValueError, match="no split 'test' in 'digits'; it has train, fit, held-out"):
        load("digits", "test")


@pytest.mark.parametrize(
    ("have", "split", "apart"),
    [
        (("train", "test", "validation"), "train", "test"),
        (("train", "validation"), "train", "validation"),
        (("train",), "train", None),
        (("train", "test"), "test", None),
    ],
)
def test_the_split_kept_apart(have, split, apart, tmp_path):
    for name in have:
        for k in "ab":
            (tmp_path / name / k).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / name / k / "0.png")
    assert set(splits(tmp_path)) == set(have)
    assert pfc.data.held_out(tmp_path, split) == apart


def test_splits_are_listed(small):
    with pytest.raises(ValueError, match=r"no split 'dev' in .*small'; it has test, train$"):
        load(small, "dev")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(noise(1)[0]))
    with pytest.raises(ValueError, match="flat' has no parquet files and no images in class subfo"):
        load(tmp_path / "flat")


GOOD = [png(pixels) for pixels in noise(3)]
OTHER = png(noise(1, size=(6, 5))[0])
DEEP = png(np.zeros((4, 5), np.uint16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([], pa.array([], pa.int64())), "split 'train' of '.*set' is empty"),
        (table(GOOD, [1, 1, 1]), "split 'train' .* has only one class, 'dog'; need at least two"),
        (table(GOOD, ["a"] * 3, None), "has only one class, 'a'; need at least two"),
        (table(GOOD, [0, 1, -1]), "row 2 of split 'train' .* has no label: -1 is none of"),
        (table(GOOD, [0, 1, -1], None), "row 2 of split 'train' .* has no label: -1 is none of"),
        (table(GOOD, [0, None, 1], None), "row 1 of .* has no label: None is none of the classes"),
        (table(GOOD, [0, 2, 1]), "row 1 of .* has no label: 2 is none of the classes"),
        (table(GOOD, [0.5, 1, 2], None), "labels must be whole numbers or text, got 0.5 in column"),
        (table(GOOD, [[0], [1], [2]], None), r"labels must be whole numbers or text, got \[0\]"),
        (
            table([*GOOD, OTHER], [0, 1, 0, 1]),
            "one size: in split 'train' .* row 0 is 4 x 5, row 3 6",
        ),
        (
            table([*GOOD[:2], GOOD[2][:-40]], [0, 1, 0]),
            "row 2 of split 'train' .* cannot be decoded",
        ),
        (
            table([b"text", *GOOD], [0, 1, 0, 1]),
            "row 0 of .* cannot be decoded: no known image form",
        ),
        (
            table([*GOOD, None], [0, 1, 0, 1]),
            "row 3 of .* cannot be decoded: no known image format",
        ),
        (table([DEEP, DEEP], [0, 1]), "row 0 of .* mode I;16 has more than 8 bits a channel"),
        (
            pa.table({"a": [1], "label": [0]}),
            "no image column.* by image_column= .*; there are a, label",
        ),
        (
            table(GOOD, [0, 1, 0], None, label="y"),
            "no label column.* by label_column= .*; there are img",
        ),
        (
            pa.table({"a": [b""], "b": [b""], "label": [0]}),
            r"2 image column\(s\) in split 'train' of",
        ),
    ],
)
def test_rows_that_are_no_labelled_images_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "set", content))


@pytest.mark.parametrize("which", ["image_column", "label_column"])
def test_a_column_that_does_not_exist_is_refused(small, which):
    with pytest.raises(ValueError, match=r"no column 'pix' in split 'train' .*; it has img, label$"):
        load(small, **{which: "pix"})


# The types.


def test_normalised_digits_have_mean_0_and_deviation_1():
    x = load("digits").normalised().double()
    assert float(x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.std(correction=0)) == pytest.approx(1, rel=1e-6)


def test_normalised_takes_slices_and_indices(small):
    data = load(small)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (data.normalisation.mean, data.normalisation.std)
    )
    index = torch.tensor([4, 0])
    assert torch.allclose(data.normalised(index), (data.images[index] - mean) / std)
    assert data.normalised(slice(1, 3)).equal(data.normalised()[1:3])
    assert data.images.dtype == torch.uint8


def test_constants_are_exact_for_extreme_pixels():
    images = torch.zeros(5000, 1, 1, 1, dtype=torch.uint8)
    images[-1] = 255
    constants = Normalisation.of(images, "test")
    assert constants.mean == (255 / 5000,)
    assert constants.std == (255 * 4999**0.5 / 5000,)


def test_a_constant_channel_becomes_zero(tmp_path):
    pixels = noise(2)
    pixels[..., 1] = 77
    data = load(write(tmp_path / "set", table([png(p) for p in pixels], [0, 1])))
    assert data.normalisation.std[1] == 1
    assert not data.normalised()[:, 1].any()


def test_batches_are_the_normalised_set_as_often_as_one_likes(small):
    data = load(small)
    batches = data.batches(4)
    assert (len(batches), batches.classes) == (2, data.classes)
    for _ in range(2):
        x, y = zip(*batches, strict=True)
        assert [len(part) for part in y] == [4, 2]
        assert torch.cat(x).equal(data.normalised())
        assert torch.cat(y).equal(data.labels)


def test_empty_batches_are_refused(small):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(load(small), 0)


def test_to_moves_pixels_labels_and_constants(small):
    moved = load(small).to("meta")
    devices = {moved.images.device, moved.labels.device, moved.normalised().device}
    assert devices == {torch.device("meta")}


def test_repr_says_what_it_is(small):
    text = repr(load(small))
    assert text == f"Images({str(small)!r}, 'train': 6 of 3 x 4 x 5, 2 classes: cat, dog)"


def test_repr_of_many_classes_is_short():
    digits = load("digits", limit=20)
    names = tuple(f"c{k}" for k in range(100))
    many = Images(digits.images, digits.labels, names, digits.normalisation, "x", "train")
    assert repr(many).endswith("100 classes: c0, c1, c2, c3, c4, c5, c6, c7, c8, ...)")


def test_parts_that_do_not_belong_together_are_refused():
    digits = load("digits")
    constants = Normalisation((0.0, 0.0), (1.0, 1.0), "made up")
    with pytest.raises(ValueError, match=r"1797 images of 1 channels need .* not 1797, 2"):
        Images(digits.images, digits.labels, digits.classes, constants, "x", "train")


@pytest.mark.parametrize("std", [(0.0,), (float("nan"),), (1.0, 1.0)])
def test_deviations_that_are_not_positive_are_refused(std):
    with pytest.raises(ValueError, match="need a positive std for every mean"):
        Normalisation((1.0,), std, "made up")
