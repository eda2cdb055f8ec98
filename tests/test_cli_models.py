"""`pfc measure` of models by name: their own preprocessing, and what has no meaning for them."""

import json

import numpy as np
import pytest

import pfc
from pfc.cli import main
from tests.test_cli import refused
from tests.tiny import bert_folder, resnet_folder, sized_images, texts_folder

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Small models and sets, made once."""
    root = tmp_path_factory.mktemp("cli-models")
    resnet_folder(root / "resnet", ["dog", "cat", "eel"])
    bert_folder(root / "bert", ["bad", "good"])
    sized_images(root / "sized")
    texts_folder(root / "texts")
    return root


@pytest.fixture(autouse=True)
def there(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.mark.filterwarnings("default")
def test_a_folder_on_images_of_many_sizes_end_to_end(capsys):
    main([*"measure hf:./resnet --data sized --batch-size 5 --out p.json".split()])
    out, err = capsys.readouterr()
    loaded = pfc.models.load("hf:./resnet")
    name = loaded.preprocessing.name
    assert f"pfc: the images are prepared as hf:./resnet says, by {name}" in err
    words = "pfc: the labels are numbered as hf:./resnet numbers its classes: 'cat' is 1, and 0 in the"
    assert err.count(words) == 1
    assert "24 samples, 3 classes" in out
    assert "sized (test): 24 samples, about the class means of sized, 24 samples" in out
    with pytest.warns(UserWarning, match="numbers its classes"):
        train, test = (loaded.batches("sized", s, batch_size=9) for s in ("train", "test"))
    known = pfc.measure(loaded.model, train, progress=False)
    np.testing.assert_allclose(pfc.load("p.json").table(), known.table(), rtol=1e-5)
    beside = pfc.measure(loaded.model, test, means=known, progress=False)
    found = pfc.load("p-test.json")
    np.testing.assert_allclose(found.table().pfc1, beside.table().pfc1, rtol=1e-5)
    assert found.accuracy == beside.accuracy


@pytest.mark.filterwarnings("default")
def test_options_and_theory_work_with_it(capsys):
    more = "--split test --means train --limit 9 --pool mean --json"
    main([*"measure hf:resnet --data sized".split(), *more.split()])
    said = json.loads(capsys.readouterr().out)
    loaded = pfc.models.load("hf:resnet")
    with pytest.warns(UserWarning, match="numbers its classes"):
        train, test = (loaded.batches("sized", s, 9) for s in ("train", "test"))
    how = {"pool": "mean", "progress": False}
    means = pfc.measure(loaded.model, train, **how)
    known = pfc.measure(loaded.model, test, means=means, **how)
    assert said["about"]["samples"] == 9
    assert said["about"]["means"] == "sized, 9 samples"
    assert said["layers"][known.layers[-1]]["pfc1"] == pytest.approx(
        known.table().pfc1.iloc[-1], rel=1e-6
    )


def test_transport_of_samples_that_are_streamed(capsys):
    layers = ["--layers", "bert.encoder.layer.*"]
    main([*"measure hf:bert --data texts --theory --transport 20 --no-test".split(), *layers])
    out, err = capsys.readouterr()
    assert "transport" in out
    assert "pfc: the texts are prepared as hf:bert says, by" in err
    loaded = pfc.models.load("hf:bert")
    batches = loaded.batches("texts", batch_size=24)
    how = {"layers": "bert.encoder.layer.*", "pool": "mean", "progress": False}
    known = pfc.measure(loaded.model, batches, **how)
    assert f"{known.table().pfc1.iloc[-1]:.4g}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("hf:./resnet", "needs --data: digits, a hub name, or a folder"),
        ("hf:./nothing --data sized", "no folder './nothing'"),
        ("hf:./resnet --data sized --epoch 1", "--epoch belongs to a run; hf:./resnet has its own wei"),
        ("hf:./resnet --data sized --weights w.safetensors", "hf:./resnet has its own weights; give"),
        ("hf:./resnet --data sized --mean 0.5", "has its own preprocessing: leave out --mean and --std"),
        ("ownpair:pair --data sized --std 0.5", "has its own preprocessing: leave out --mean and --std"),
        ("hf:./resnet --data sized --split odd", "no split 'odd' in 'sized'; it has test, train"),
        ("hf:./resnet --data sized --label q", "no column 'q' in split 'train' of 'sized'"),
        ("hf:./resnet --data texts", "no image column(s) in split 'train' of 'texts'"),
        ("hf:./bert --data sized", "no text column(s) in split 'train' of 'sized'"),
        ("hf:./bert --data gaps", "whole numbers without names, and no split has 1"),
        (
            "plain",
            "is no folder of a run, no file of arrays, and no MODULE:FUNCTION, hf:NAME, timm:NAME",
        ),
    ],
)
def test_what_has_no_meaning_is_one_line(here, capsys, arguments, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (here / "ownpair.py").write_text(
        "from torch import nn\ndef pair():\n    return nn.Flatten(), print\n"
    )
    (here / "gaps").mkdir(exist_ok=True)
    content = pa.table({"text": ["a", "b"], "label": [0, 2]})
    pq.write_table(content, here / "gaps" / "train.parquet")
    (here / "blind").mkdir(exist_ok=True)
    for split, labels in {"train": [0, 1], "test": [-1, -1]}.items():
        content = pa.table({"text": ["a", "b"], "label": labels})
        pq.write_table(content, here / "blind" / f"{split}.parquet")
    assert words in refused(capsys, "measure", *arguments.split())


def test_a_column_of_texts_is_chosen_and_told(here, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(here / "texts" / "train.parquet")
    (here / "pairs").mkdir()
    other = pa.array([f"the {text}" for text in rows["text"].to_pylist()][::-1])
    for name in ("question", "key"):
        (here / name).mkdir()
        pq.write_table(rows.append_column(name, other), here / name / "train.parquet")
    assert "'text' and 'question' in split 'train'" in refused(
        capsys, *"measure hf:./bert --data question".split()
    )
    assert "no column 'q' in" in refused(capsys, *"measure hf:./bert --data key --column q".split())
    loaded = pfc.models.load("hf:./bert")
    for data, more, taken, left in (
        ("key", [], "text", "key"),
        ("question", ["--column", "question"], "question", "text"),
    ):
        main([*f"measure hf:./bert --data {data} --no-test --out {data}.json".split(), *more])
        assert f"pfc: the texts are {taken}; --column chooses {left}\n" in capsys.readouterr().err
        batches = loaded.batches(data, text_column=taken)
        known = pfc.measure(loaded.model, batches, pool="mean", progress=False)
        found = pfc.load(f"{data}.json")
        np.testing.assert_allclose(found.table().pfc1, known.table().pfc1, rtol=1e-6)
        assert found.about["data"] == f"{data} ({taken})"


def test_a_column_of_images_is_chosen_for_models_with_and_without_a_preprocessing(here, capsys):
    from io import BytesIO

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(level):
        with BytesIO() as file:
            Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(file, "PNG")
            return file.getvalue()

    levels = {"image": range(8), "mask": [0, 5, 3, 3, 1, 7, 7, 2]}
    content = {name: [png(9 * level) for level in own] for name, own in levels.items()}
    (here / "views").mkdir()
    pq.write_table(pa.table({**content, "label": [0, 1] * 4}), here / "views" / "train.parquet")
    (here / "owneye.py").write_text(
        "import numpy as np\nimport torch\nfrom torch import nn\n"
        "def cut(image):\n    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255\n"
        "def bare():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2))\n"
        "def own():\n    return bare(), cut\n"
    )
    for name in ("bare", "own"):
        loaded, numbers = pfc.models.load(f"owneye:{name}"), []
        for more, taken, left in (([], "image", "mask"), (["--column", "mask"], "mask", "image")):
            main([*f"measure owneye:{name} --data views --out {taken}.json".split(), *more])
            assert f"pfc: the images are {taken}; --column chooses {left}\n" in capsys.readouterr().err
            found = pfc.load(f"{taken}.json")
            assert found.about["data"] == f"views ({taken})"
            batches = loaded.batches("views", image_column=taken)
            known = pfc.measure(loaded.model, batches, progress=False).table().pfc1
            np.testing.assert_allclose(found.table().pfc1, known, rtol=1e-5)
            numbers.append(known.iloc[0])
        assert numbers[0] != pytest.approx(numbers[1], rel=1e-2)


def test_a_network_of_ones_own_with_its_preprocessing(here, capsys):
    (here / "owncut.py").write_text(
        "import numpy as np\nimport torch\nfrom torch import nn\n"
        "def cut(image):\n"
        "    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) / 255\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 3)), cut\n"
    )
    main([*"measure owncut:net --data sized --no-test".split()])
    out, err = capsys.readouterr()
    assert "24 samples, 3 classes" in out
    assert "pfc: the images are prepared as owncut:net says, by cut" in err
    assert "pfc: no --weights, so the weights are those that owncut:net gives" in err
