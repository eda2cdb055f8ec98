"""A report's page as a file: the profiles' numbers, read back again, and bad input refused."""

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import pfc
from pfc import files
from pfc.cli import main
from pfc.data import load as load_data
from pfc.profile import page_data
from pfc.report import data, planes, words
from pfc.report.sources import Source, sources
from tests.reports import MARKUP, features, odd, trained
from tests.test_cli import refused


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("report") / "first")


@pytest.fixture(scope="module")
def page(run):
    return pfc.report.write(run.folder)


def of_page(path):
    """The JSON that stands in a page."""
    text = path.read_text()
    return json.loads(text.split(page_data.OPENING)[1].split(page_data.CLOSING)[0])


def of_profiles(profiles, name="x"):
    """A source of profiles at hand."""
    source = Source(path=pfc.files.Path(f"{name}.json"), name=name)
    source.__dict__.update(profiles=profiles, run=None, tests={})
    return source


def test_a_page_stands_in_the_runs_folder_and_needs_nothing_beside(run, page):
    assert page == run.folder / "report.html"
    text = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "connect-src" not in text
    assert "default-src 'none'" in text
    before = page.read_bytes()
    assert pfc.report.write([run.folder]).read_bytes() == before, "the same run gives the same bytes"


def test_numbers_read_back_to_five_digits(run, page):
    read = pfc.load(page)["first"]
    assert read.keys() == run.profiles.keys()
    for epoch, profile in run.profiles.items():
        back = read[epoch]
        assert (back.layers, back.shapes, back.about) == (profile.layers, profile.shapes, profile.about)
        assert back.columns.keys() == profile.columns.keys()
        for name, values in profile.columns.items():
            np.testing.assert_allclose(back.columns[name], values, rtol=5e-5)
        assert back.segments == ()
        assert not back.moments
    assert all(math.isnan(p) for p in read[0].columns["position"]), "blocks start as the identity"
    assert str(read[4]).splitlines()[0] == str(run.profiles[4]).splitlines()[0]


def test_verdict_theory_and_how_it_was_made_stand_in_words(run, page):
    text, last = page.read_text(), run.profiles[4]
    told = [*last.verdict().splitlines(), *last.prediction().sentences(), run.config["seed"]]
    told += [run.config["data"]["fingerprint"], run.config["versions"]["torch"], "accuracy, held-out"]
    for sentence in told:
        assert str(sentence).replace("'", "&#x27;") in text


def test_a_runs_page_shows_the_images_that_are_decided_last(run, page, tmp_path):
    text, last = page.read_text(), run.profiles[4]
    (picture,) = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"', text)
    assert picture[0] == "The 24 images of digits that first decides last"
    assert base64.b64decode(picture[1]).startswith(b"\x89PNG")
    assert len(picture[1]) < 15_000
    images = run.data()
    found = pfc.scores(run.network(), images.batches(), last, progress=False)
    never = (found.hardest(24).depth == 4).sum()
    assert "24 of 200 images, each with its class, the class whose mean it was" in text
    assert f"for good; {never} of them are not even at the last layer." in text


@pytest.mark.parametrize("gone", ["data", "weights", "means", "changed"])
def test_a_page_of_a_run_whose_data_are_not_at_hand_has_no_images(run, tmp_path, monkeypatch, gone):
    folder = tmp_path / "gone"
    shutil.copytree(run.folder, folder)
    if gone in {"data", "changed"}:
        config = json.loads((folder / "config.json").read_text())
        config["data"] |= {"spec": "owner/name"} if gone == "data" else {"fingerprint": "0" * 64}
        files.write_json(folder / "config.json", {k: v for k, v in config.items() if k != "checksum"})
    if gone == "data":

        def fetched(*_):
            raise AssertionError("data that are elsewhere were asked for")

        monkeypatch.setattr(pfc.Run, "data", fetched)
    if gone == "weights":
        (folder / "weights" / "epoch-0004.safetensors").unlink()
    if gone == "means":
        run.profiles[4].save(folder / "profiles" / "epoch-0004.json", means=False)
    text = pfc.report.write(folder).read_text()
    assert "<img" not in text
    assert run.profiles[4].verdict().splitlines()[0] in text


def test_lines_and_tests_of_a_run_are_the_profiles(run, page):
    told = of_page(page)["runs"][0]
    for each in told["epochs"]:
        profile = run.profiles[each["epoch"]]
        (line,) = each["lines"]
        t = torch.linspace(0, 1, len(line["pfc2"]), dtype=torch.float64)
        predicted = profile.segment().line(t)
        for metric, values in line.items():
            np.testing.assert_allclose(values, getattr(predicted, metric), rtol=5e-5)
    (test,) = told["tests"]
    kept = pfc.load(run.folder / "profiles" / "held-out.json")
    assert (test["split"], test["samples"]) == ("held-out", kept.about["samples"])
    np.testing.assert_allclose(test["columns"]["pfc3"], kept.columns["pfc3"], rtol=5e-5)


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


@pytest.mark.parametrize(("classes", "kind"), [(4, "<i2"), (23, "<i1")])
def test_cosines_and_confusion_are_the_geometry(classes, kind):
    X, y = features(classes, 6 * classes)
    profile = pfc.measure_features(X, y, progress=False)
    (kept,) = data._matrices({0: profile})
    one = np.iinfo(kind).max
    for l, H in enumerate(X.values()):
        M = np.stack([H[y == k].mean(0) for k in range(classes)])
        M -= M.mean(0)
        for value, (r, c) in zip(
            unpacked(kept["gram"][l], kind), zip(*np.triu_indices(classes, 1), strict=True), strict=True
        ):
            cosine = M[r] @ M[c] / np.linalg.norm(M[r]) / np.linalg.norm(M[c])
            assert value / one == pytest.approx(cosine, abs=0.51 / one)
        flat = [v for n in kept["confusion"][l] for v in ([0] * -n if n < 0 else [n])]
        means = np.stack([H[y == k].mean(0) for k in range(classes)])
        nearest = [np.argmin([np.linalg.norm(h - m) for m in means]) for h in H]
        counts = np.zeros((classes, classes), int)
        for own, found in zip(y, nearest, strict=True):
            counts[own, found] += 1
        assert flat == counts.flatten().tolist()


def test_an_undefined_cosine_is_told_from_all_others():
    gram = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert unpacked(data._cosines(gram), "<i2").tolist() == [-(2**15)]


def test_planes_are_turned_towards_the_layer_before():
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        A, B = torch.randn(2, 6, 2, generator=rng, dtype=torch.float64)
        R = planes.turned(A, B)
        assert torch.allclose(R.mT @ R, torch.eye(2, dtype=torch.float64), atol=1e-12)
        least = (A @ R - B).norm()
        for angle, flip in product(np.linspace(0, 2 * np.pi, 721), (1, -1)):
            c, s = np.cos(angle), np.sin(angle)
            other = torch.tensor([[c, -s * flip], [s, c * flip]], dtype=torch.float64)
            assert least <= (A @ other - B).norm() + 1e-12
        assert (A @ R @ planes.turned(A @ R, A) - A).norm() < 1e-10


def test_maps_keep_means_samples_and_their_share(run):
    profile = run.profiles[4]
    kept = planes.plane(profile, 50)
    assert kept["labels"] == profile.sample.labels[:50].tolist()
    for layer, here in zip(profile.layers, kept["layers"], strict=True):
        means, points = (
            unpacked(here[what], kind).reshape(-1, 2) / top * planes.REACH
            for what, kind, top in (("means", "<i2", 32767), ("points", "i1", 127))
        )
        own, seen = profile.sample.means[layer], profile.sample.points[layer][:50]
        largest = float(torch.cat([own, seen]).abs().max())
        for found, true, room in ((means, own, 1e-4), (points, seen, 1e-2)):
            apart = [
                torch.cdist(torch.as_tensor(x).double(), torch.as_tensor(x).double())
                for x in (found, true)
            ]
            np.testing.assert_allclose(apart[0], apart[1] / largest, atol=2 * room)
        M = profile.moments[layer].mean
        values = np.linalg.svd((M - M.mean(0)).numpy(), compute_uv=False) ** 2
        assert here["share"] == pytest.approx(values[:2].sum() / values.sum(), abs=1e-4)


def test_epochs_matrices_and_maps_are_thinned_with_both_ends():
    assert data.spread([0, 1, 2, 3, 4, 5, 6], 3) == [0, 3, 6]
    assert data.spread([0, 1], 3) == [0, 1]
    assert data.spread([0, 1, 2], 1) == [2]
    X, y = features(3, 60)
    profile = pfc.measure_features(X, y, progress=False)
    told = data.of_source(of_profiles({e: profile for e in range(0, 200, 2)}))
    epochs = [each["epoch"] for each in told["epochs"]]
    assert (len(epochs), epochs[0], epochs[-1]) == (30, 0, 198)
    assert [each["epoch"] for each in told["matrices"]][:: data.MATRICES - 1] == [0, 198]
    assert [each["epoch"] for each in told["planes"]][:: data.PLANES - 1] == [0, 198]
    many = pfc.measure_features(*features(23, 115), progress=False)
    told = data.of_source(of_profiles({0: many, 5: many}))
    assert [each["epoch"] for each in told["matrices"]] == [5]


@pytest.mark.parametrize("epochs", [11, 40])
def test_a_page_keeps_within_its_bytes(epochs):
    digits = load_data("digits", limit=300)
    torch.manual_seed(0)
    net = pfc.FCResNet(features=64, classes=10, width=64, blocks=10, zero_start=False)
    profile = pfc.measure(net, digits.batches(), progress=False)
    from pfc.report.page import html

    names = ("a", "b", "c")
    pages = [
        len(html([of_profiles({e: profile for e in range(epochs)}, n) for n in names[:runs]]).encode())
        for runs in (1, 3)
    ]
    a_run = (pages[1] - pages[0]) / 2
    assert a_run < 60_000
    assert pages[0] - a_run < 100_000


def test_no_name_ends_the_numbers(tmp_path):
    profiles = odd(tmp_path)
    path = pfc.report.write(str(tmp_path / "*.json"), tmp_path / "all.html")
    text = path.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert MARKUP not in text
    assert "<!--" not in text
    read = pfc.load(path)
    assert read.keys() == profiles.keys()
    for name, profile in profiles.items():
        assert read[name][0].layers == profile.layers
        assert read[name][0].about == profile.about
    assert "There is no verdict: pfc3 was not measured; it needs passes=2." in text


def test_pages_that_are_damaged_or_something_else_are_refused(page, tmp_path):
    text = page.read_text()

    def refuse(content, match):
        path = tmp_path / "p.html"
        path.write_text(content)
        with pytest.raises(ValueError, match=match):
            pfc.load(path)

    refuse("<html></html>", 'is no page of a report: there is no element with id "pfc-data"')
    refuse(text.replace('"pfc1":[', '"pfc1":[9,', 1), "is damaged: its content and its checksum differ")
    refuse(text.replace('"runs":[', '"runs":[,', 1), "is not JSON")
    refuse(text.replace("pfc-report-1", "pfc-report-7", 1), "was written by a newer pfc")
    content = of_page(page)
    del content["checksum"]

    def changed(change):
        other = json.loads(json.dumps(content))
        change(other["runs"][0])
        return page_data.block(other)

    refuse(changed(lambda run: run.pop("layers")), r"runs\[0\].layers is missing")
    refuse(changed(lambda run: run["layers"].append("x")), "layers, shapes and columns must be as many")
    refuse(changed(lambda run: run["about"].update(samples=-1)), "about.samples must be a whole number")
    with pytest.raises(ValueError, match="no file"):
        pfc.load(tmp_path / "none.html")


def test_sources_and_places_are_refused(run, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="needs a run's folder or a profile's"):
        pfc.report.write([])
    with pytest.raises(ValueError, match=r"ends in .html, got .*page.json"):
        pfc.report.write(run.folder, tmp_path / "page.json")
    (tmp_path / "d.html").mkdir()
    assert "d.html is a folder, not a file" in refused(
        capsys, "report", run.folder, "--out", tmp_path / "d.html"
    )
    assert "does not exist" in refused(capsys, "report", tmp_path / "nowhere")
    assert "holds no run" in refused(capsys, "report", tmp_path)
    assert "no run or profile matches" in refused(capsys, "report", str(tmp_path / "x*"))
    assert "got none" in refused(capsys, "report")
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(capsys, "report", torn)


def test_the_command_says_what_it_wrote(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", str(run.folder)])
    assert capsys.readouterr().out == f"{run.folder / 'report.html'}\n"
    X, y = features(3, 60)
    for name in ("a", "b"):
        pfc.measure_features(X, y, progress=False).save(tmp_path / f"{name}.json")
    main(["report", "a.json", "b.json"])
    assert capsys.readouterr().out == "report.html\n"
    assert pfc.load("report.html").keys() == {"a", "b"}
    main(["report", "a.json", "--out", "sub/a.html"])
    assert (tmp_path / "sub" / "a.html").exists()


def test_the_command_of_a_run_makes_it_again(run, tmp_path, capsys):
    changed = replace(run.recipe, zero_start=False, weight_decay=0.0, epochs=1, blocks=(2,))
    config = {**run.config, "recipe": json.loads(json.dumps(vars(changed)))}
    told = words.command(config)
    main([*told.split()[1:], "--out", str(tmp_path / "again")])
    again = pfc.Run(tmp_path / "again")
    assert again.recipe == changed
    assert again.config["data"] == run.config["data"]
    assert words.command(again.config) == told
    assert "--no-zero-start" in told


def test_a_recipe_of_ones_own_has_no_command(run, tmp_path):
    assert words.command({**run.config, "recipe": {**run.config["recipe"], "name": "own"}}) is None
    without = {**run.config["recipe"], "name": "mnist-paper", "limit": None}
    assert words.command({**run.config, "recipe": without}) is None, "no option takes a limit away"
    more = {"precision": "bfloat16", "measure_every": 2, "compiled": True}
    data = {"spec": "a folder", "label_column": "coarse_label", "split": "train"}
    told = words.command({"recipe": run.config["recipe"], "data": data, "seed": 3, **more})
    for part in (
        "--data 'a folder'",
        "--label coarse_label",
        "--seed 3",
        "--precision bfloat16",
        "--measure-every 2",
        "--compile",
    ):
        assert part in told
    (source,) = sources([run.folder])
    assert dict(words.facts(source))["command"].startswith("pfc train digits --blocks 3 --limit 200")
    (tmp_path / "p").mkdir()
    pfc.measure_features(*features(3, 60), progress=False).save(tmp_path / "p" / "x.json")
    (single,) = sources([tmp_path / "p" / "x.json"])
    assert dict(words.facts(single))["made by"] == "measuring; a saved profile keeps no command"
