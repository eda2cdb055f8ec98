"""Models by name: their own preprocessing, their classes, and data that are streamed through it."""

import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import pfc
from pfc.data.sources import find
from pfc.models import preprocessing, samples
from pfc.models.matching import matched
from tests.tiny import bert_folder, resnet_folder, sized_images, texts_folder

pytest.importorskip("transformers")
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Small models and sets, made once."""
    root = tmp_path_factory.mktemp("named")
    resnet_folder(root / "resnet", ["dog", "cat", "eel"])
    resnet_folder(root / "nameless", None)
    bert_folder(root / "bert", ["bad", "good"])
    sized_images(root / "sized")
    texts_folder(root / "texts")
    return root


def load(here, name):
    return pfc.models.load(f"hf:{here / name}")


def by_hand(here, loaded, size, split="train"):
    """Batches that the processor makes of all images at once, with the model's numbers."""
    files = sorted((here / "sized" / split).rglob("*.png"))
    images = [Image.open(file).convert("RGB") for file in files]
    x = loaded.preprocessing.processor(images=images, return_tensors="pt")["pixel_values"]
    y = torch.tensor([["dog", "cat", "eel"].index(file.parent.name) for file in files])
    cuts = range(0, len(y), size)
    return [{"pixel_values": x[i : i + size], "labels": y[i : i + size]} for i in cuts]


def same(found, known):
    assert len(found) == len(known)
    for a, b in zip(found, known, strict=True):
        assert {*a} == {*b}
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def streamed(here):
    """A ResNet and its batches of images of many sizes, whose classes stand in another order."""
    loaded = load(here, "resnet")
    with pytest.warns(UserWarning, match=r"numbers its classes: 'cat' is 1, and 0 in the data"):
        return loaded, loaded.batches(here / "sized", batch_size=7)


# Images.


def test_batches_are_those_of_the_processor_in_each_pass(here, streamed):
    loaded, batches = streamed
    same([*batches], by_hand(here, loaded, 7))
    same([*batches], [*batches])
    assert batches.classes == loaded.classes == ("dog", "cat", "eel")
    assert batches.name == "sized"
    assert not loaded.model.training
    assert repr(batches.samples) == (
        f"Samples('sized': 24 images, 3 classes, by {loaded.preprocessing.name})"
    )
    assert repr(loaded).endswith(
        f"resnet': ResNetForImageClassification, 3 classes, preprocessing: {loaded.preprocessing.name})"
    )


def test_measured_is_what_batches_by_hand_give(here, streamed):
    with pytest.raises(ValueError, match=r"images must have one size"):
        pfc.data.load(here / "sized", progress=False)
    loaded, batches = streamed
    found = pfc.measure(loaded.model, batches, **QUIET)
    known = pfc.measure(loaded.model, by_hand(here, loaded, 7), **QUIET)
    np.testing.assert_allclose(found.table(), known.table(), rtol=1e-10)
    assert found.accuracy == known.accuracy
    assert found.about["data"] == "sized"


def test_another_preprocessing_gives_other_numbers(here, streamed):
    loaded, batches = streamed
    found = pfc.measure(loaded.model, batches, **QUIET).table().pfc1.iloc[-1]
    raw = [{**batch, "pixel_values": batch["pixel_values"] / 2 + 0.5} for batch in batches]
    assert pfc.measure(loaded.model, raw, **QUIET).table().pfc1.iloc[-1] != pytest.approx(
        found, rel=1e-2
    )


def test_one_image_is_decoded_at_a_time_however_many_there_are(streamed, monkeypatch):
    live, most, total, decode = set(), [0], [0], samples.picture

    def counted(cell, paths):
        image = decode(cell, paths)
        total[0] += 1
        live.add(total[0])
        weakref.finalize(image, live.discard, total[0])
        most[0] = max(most[0], len(live))
        return image

    monkeypatch.setattr(samples, "picture", counted)
    for _ in streamed[1]:
        pass
    assert total[0] == 24
    assert most[0] <= 2
    assert not live


def test_a_limit_takes_the_rows_that_data_of_one_size_would_give(here, tmp_path):
    for i in range(30):
        place = tmp_path / "set" / "train" / ("dog", "cat", "eel")[min(i % 4, 2)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 8 * i, np.uint8)).save(place / f"{i}.png")
    loaded = load(here, "nameless")
    plain = pfc.data.load(tmp_path / "set", limit=11, seed=3, progress=False)
    own = loaded.samples(tmp_path / "set", limit=11, seed=3)
    assert own.labels.tolist() == plain.labels.tolist()
    assert own.classes == plain.classes
    levels = [np.asarray(image)[0, 0, 0] for _, image in own.contents()]
    assert levels == plain.images[:, 0, 0, 0].tolist()
    few = loaded.samples(tmp_path / "set", limit=5, seed=3)
    assert {*few.index.tolist()} < {*own.index.tolist()}
    parts = [own.part(i, 3) for i in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == own.index.tolist()
    assert parts[1].labels.tolist() == own.labels.tolist()[1::3]
    with pytest.raises(ValueError, match=r"limit must be at least 3, one sample a class, got 2"):
        loaded.batches(tmp_path / "set", limit=2)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        loaded.batches(tmp_path / "set", batch_size=0)
    with pytest.raises(ValueError, match=r"no split 'test' in .*; it has train"):
        loaded.batches(tmp_path / "set", "test")


def test_the_bundled_digits_are_prepared_as_other_images(here):
    loaded = load(here, "nameless")
    stream = loaded.batches("digits", "held-out", batch_size=100)
    digits = pfc.data.load("digits", "held-out")
    assert stream.name == "digits (held-out)"
    assert torch.cat([batch["labels"] for batch in stream]).equal(digits.labels)
    first = next(stream.samples.contents())[1]
    assert first.mode == "RGB"
    grey = (digits.images[0, 0].double() * 255 / 16).floor()
    assert np.asarray(first)[..., 1].tolist() == grey.tolist()
    with pytest.raises(ValueError, match=r"no column 'y' in 'digits', which have none"):
        loaded.batches("digits", label_column="y")


def test_a_damaged_image_and_a_failing_preprocessing_are_told_by_their_row(here, tmp_path):
    sized_images(tmp_path / "set")
    victim = tmp_path / "set" / "train" / "dog" / "3.png"
    victim.write_bytes(victim.read_bytes()[:60])
    loaded = load(here, "nameless")
    with pytest.raises(ValueError, match=r"row 11 of split 'train' .*dog/3.png\) cannot be decoded"):
        [*loaded.batches(tmp_path / "set")]
    sized_images(tmp_path / "set")

    def fails(image):
        if image.size == SIZE_OF_FOUR:
            raise KeyError("gone")
        return torch.zeros(3, 2, 2)

    own = pfc.models.Loaded("mine", nn.Flatten(), preprocessing.Transform(fails))
    with pytest.raises(ValueError, match=r"fails failed on row 4 of .*cat/4.png\): KeyError: 'gone'"):
        [*own.batches(tmp_path / "set")]
    own = pfc.models.Loaded("mine", nn.Flatten(), preprocessing.Transform(lambda image: 3))
    with pytest.raises(ValueError, match=r"<lambda> gave int of an image, not a tensor"):
        [*own.batches(tmp_path / "set")]
    sizes = preprocessing.Transform(lambda image: torch.zeros(3, *image.size))
    own = pfc.models.Loaded("mine", nn.Flatten(), sizes)
    with pytest.raises(ValueError, match=r"tensors of several shapes, \(3, 17, 12\) and \(3, 18, 13\)"):
        [*own.batches(tmp_path / "set")]


SIZE_OF_FOUR = (21, 16)


def test_images_that_are_missing_behind_their_labels_are_told(here):
    whole = load(here, "nameless").samples(here / "sized")
    read = whole.source.read
    short = {"read": lambda split, column, rows: [*read(split, column, rows)][:20]}
    found = samples.replace(whole, source=samples.replace(whole.source, **short))
    with pytest.raises(ValueError, match=r"row 20 of split 'train' .* has a label and no 'image'"):
        [*found.batches(7)]


@pytest.mark.parametrize("group", [1, 7, 300, 10_000])
def test_some_rows_of_parquet_are_those_of_all(tmp_path, group):
    rows = {"image": [f"{i}".encode() for i in range(700)], "label": [i % 3 for i in range(700)]}
    for k in range(2):
        part = {name: column[350 * k : 350 * k + 350] for name, column in rows.items()}
        file = tmp_path / f"train-0000{k}-of-00002.parquet"
        pq.write_table(pa.table(part), file, row_group_size=group)
    source = find(str(tmp_path), False)
    for seed, n in enumerate((1, 3, 200, 700)):
        chosen = np.sort(np.random.default_rng(seed).permutation(700)[:n])
        found = [cell for some in source.read("train", "image", chosen) for cell in some]
        assert found == [rows["image"][i] for i in chosen]
    assert [*source.read("train", "image", np.arange(0))] == []


def test_some_rows_of_a_set_on_the_hub_are_those_of_all(monkeypatch):
    import datasets

    rows = {"text": [f"{i}" for i in range(600)], "label": [i % 2 for i in range(600)]}
    given = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: given)
    source = find("some/one", False)
    for chosen in ([0, 255, 256, 599], [3], range(600)):
        found = [x for some in source.read("train", "text", np.array(chosen)) for x in some]
        assert found == [rows["text"][i] for i in chosen]


def test_row_groups_that_hold_no_chosen_row_are_not_read(tmp_path, monkeypatch):
    table = pa.table({"image": [b"x"] * 90, "label": [0, 1, 1] * 30})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=10)
    read, asked = pq.ParquetFile.iter_batches, []

    def noted(self, *args, row_groups=None, **how):
        asked.append(row_groups)
        return read(self, *args, row_groups=row_groups, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    source = find(str(tmp_path), False)
    assert [*source.read("train", "image", np.array([5, 31, 39, 88]))]
    assert asked == [[0, 3, 8]]


# Classes.


@pytest.mark.parametrize(
    ("data", "own", "named", "numbers", "classes", "words"),
    [
        ("a b c", "a b c", True, None, "a b c", None),
        ("A b", "a B", True, None, "a B", None),
        ("a b c", "c a b", True, (1, 2, 0), "c a b", "as M numbers its classes: 'a' is 1, and 0 in the"),
        ("b c", "a b c", True, (1, 2), "a b c", "'b' is 1, and 0 in the data"),
        ("a b", "a b c", True, None, "a b c", None),
        ("a d", "a b c", True, None, "a d", "classes are not those of M: class 1 is 'd' in the one"),
        ("b a", "a a b", True, None, "b a", "class 0 is 'b' in the one and 'a' in the other"),
        ("a a b", "a a b", True, None, "a a b", None),
        ("b B", "a b", True, None, "b B", "class 0 is 'b' in the one and 'a'"),
        ("0 1", "a b", False, None, "a b", None),
        ("0 1 2", "a b", False, None, "0 1 2", None),
        ("a b", "", True, None, "a b", None),
    ],
)
def test_classes_are_matched_by_their_names(data, own, named, numbers, classes, words):
    found = matched(data.split(), own.split(), "M", named=named)
    assert found.numbers == numbers
    assert found.classes == tuple(classes.split())
    assert found.told is None if words is None else words in found.told
    assert found.differ == ("in the one" in str(words))
    y = torch.arange(len(data.split()))
    if numbers is not None:
        for k, name in enumerate(data.split()):
            assert own.split()[found.renumbered(y)[k]].casefold() == name.casefold()
    else:
        assert found.renumbered(y) is y


def test_other_classes_are_told_once(here, tmp_path):
    sized_images(tmp_path / "other", ("ant", "bee", "cow"))
    loaded = load(here, "resnet")
    batches = loaded.batches(tmp_path / "other")  # without a warning: measure gives it
    assert batches.classes == ("ant", "bee", "cow")
    with pytest.warns(UserWarning, match=r"id2label: class 0 is 'ant' in the one and 'dog' in the ot"):
        pfc.measure(loaded.model, batches, **QUIET)
    own = pfc.models.Loaded("timm:x", nn.Flatten(), loaded.preprocessing, ("dog", "cat", "eel"))
    with pytest.warns(UserWarning, match=r"not those of timm:x: class 0 is 'ant' in the one and 'dog'"):
        own.batches(tmp_path / "other")


# Texts.


def test_texts_are_tokenised_in_batches_with_a_mask(here):
    loaded = load(here, "bert")
    batches = loaded.batches(here / "texts", batch_size=2)
    rows = pq.read_table(here / "texts" / "train.parquet").to_pylist()
    tokenizer = loaded.preprocessing.tokenizer
    known = []
    for i in range(0, len(rows), 2):
        part = rows[i : i + 2]
        texts = [row["text"] for row in part]
        inputs = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        known.append({**inputs, "labels": torch.tensor([row["label"] for row in part])})
    assert {"input_ids", "attention_mask"} <= {*known[0]}
    assert {batch["input_ids"].shape[1] for batch in known} > {8}  # 8 is where texts are cut
    same([*batches], known)
    same([*batches], known)
    assert batches.classes == ("bad", "good")  # whole numbers without names are the model's
    found = pfc.measure(loaded.model, batches, pool="mean", **QUIET)
    hand = pfc.measure(loaded.model, known, pool="mean", **QUIET)
    np.testing.assert_allclose(found.table(), hand.table(), rtol=1e-10)


def test_a_column_of_texts_is_found_or_named(here, tmp_path):
    loaded = load(here, "bert")
    content = {"a": ["good film", "bad plot"], "b": ["x", "y"], "label": ["good", "bad"]}
    pq.write_table(pa.table(content), tmp_path / "train.parquet")
    words = r"2 text column\(s\) in .*; choose by text_column= \(pfc measure --column\); there are a, b"
    with pytest.raises(ValueError, match=words):
        loaded.batches(tmp_path)
    (batch,) = loaded.batches(tmp_path, text_column="a")
    assert batch["labels"].tolist() == [1, 0]  # in the order of texts, as in the model's
    with pytest.raises(ValueError, match=r"takes texts, so there is no column 'a' of images"):
        loaded.batches(tmp_path, image_column="a")
    with pytest.raises(ValueError, match=r"takes images, so there is no column 'a' of texts"):
        load(here, "resnet").batches(tmp_path, text_column="a")
    with pytest.raises(ValueError, match=r"no image column\(s\) in"):
        load(here, "resnet").batches(tmp_path)
    with pytest.raises(ValueError, match=r"no text column\(s\) in"):
        loaded.batches(here / "sized")
    content["a"][1] = None
    pq.write_table(pa.table(content), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"row 1 of split 'train' .* has no text, but None"):
        [*loaded.batches(tmp_path, text_column="a")]


def test_of_several_columns_of_labels_the_one_that_was_taken_is_told(here, tmp_path):
    content = {"text": ["good", "bad", "film"], "label": [0, 1, 1], "target": [1, 0, 1]}
    pq.write_table(pa.table(content), tmp_path / "test.parquet")
    for column, chosen in ((None, "label"), ("target", "target")):
        found = load(here, "bert").samples(tmp_path, "test", label_column=column)
        assert found.chosen_labels == chosen
        assert {*found.other_labels} == {"label", "target"} - {chosen}
        assert found.name == f"{tmp_path.name} (test, {chosen})"
        assert found.labels.tolist() == content[chosen]


@pytest.mark.parametrize(
    ("pair", "column"),
    [
        (("question", "sentence"), "sentence"),
        (("text", "text_pair"), "text"),
        (("sentence", "sentence2"), "sentence"),
        (("text", "sentence"), "text"),
        (("premise", "hypothesis"), "premise"),
    ],
)
def test_half_of_a_pair_of_texts_is_never_taken_unasked(here, tmp_path, pair, column):
    content = {name: [f"{name} good", "bad"] for name in (*pair, "key")}
    pq.write_table(pa.table({**content, "label": [1, 0]}), tmp_path / "train.parquet")
    loaded = load(here, "bert")
    words = (
        r"'\w+' and '\w+' in split 'train' .* are texts of one sample, .* by text_column= \(pfc measure"
    )
    with pytest.raises(ValueError, match=words) as told:
        loaded.samples(tmp_path)
    assert all(repr(name) in str(told.value) for name in pair)
    assert "key" not in str(told.value).partition(str(tmp_path))[0]
    found = loaded.samples(tmp_path, text_column=column)
    assert next(found.contents()) == (0, f"{column} good")
    assert found.name == f"{tmp_path.name} ({column})"
    pq.write_table(pa.table({pair[0]: ["good", "bad"], "label": [1, 0]}), tmp_path / "train.parquet")
    found = loaded.samples(tmp_path)  # alone it is no half
    assert found.chosen_contents is None
    assert found.name == tmp_path.name


@pytest.mark.parametrize(
    ("length", "places", "most"),
    [(512, None, 512), (10**30, 64, 64), (512, 64, 64), (32, 64, 32), (10**30, -1, None)],
)
def test_texts_are_cut_where_the_tokenizer_or_the_model_ends(length, places, most):
    tokenizer = type("T", (), {"model_max_length": length})()
    model = nn.Linear(2, 2)
    model.config = type("C", (), {} if places is None else {"max_position_embeddings": places})()
    assert preprocessing.longest(tokenizer, model) == most
    assert preprocessing.longest(type("T", (), {})(), nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("kind", "padding", "most"),
    [("Bert", 1, 12), ("Roberta", 1, 10), ("XLMRoberta", 3, 8), ("Camembert", 1, 10), ("MPNet", 1, 10)],
)
def test_the_longest_text_is_the_longest_that_the_model_takes(kind, padding, most):
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=9, max_position_embeddings=12, pad_token_id=padding, **sizes
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    assert preprocessing.longest(type("T", (), {"model_max_length": 512})(), model) == most
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


def test_texts_longer_than_the_model_takes_are_measured(here, tmp_path):
    bert_folder(tmp_path / "roberta", ["bad", "good"], kind="Roberta", most=512, places=6)
    loaded = pfc.models.load(f"hf:{tmp_path / 'roberta'}")
    batches = loaded.batches(here / "texts")
    (batch,) = batches
    assert batch["input_ids"].shape == (24, 5)  # position 0 is the padding's
    assert pfc.measure(loaded.model, batches, pool="mean", **QUIET).about["samples"] == 24
