"""`pfc prune`, `exits` and `scores`: what they keep in a run's folder, and its place on the page."""

import json
import re
import shutil
import warnings
from html import unescape

import numpy as np
import pytest

import pfc
from pfc import files
from pfc.acting.kept import kept
from pfc.cli import main
from pfc.report.page import html
from pfc.report.sources import sources
from tests.acting import act, noise
from tests.test_cli import refused

NAMES = ("prune", "exits", "scores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a part of the digits, of which nothing was found yet, and images of no class."""
    home = tmp_path_factory.mktemp("acting")
    small = ["--epochs", "3", "--width", "24", "--blocks", "3", "--limit", "600"]
    main(["train", "digits", "--split", "fit", "--out", str(home / "run"), *small])
    noise(home / "noise")
    return home


@pytest.fixture(scope="module")
def found(folder):
    """The same run, of which everything was found."""
    shutil.copytree(folder / "run", folder / "found")
    act(folder / "found", folder / "noise")
    return folder / "found"


@pytest.fixture
def run(found, tmp_path):
    """A copy to be changed, beside the images of no class."""
    shutil.copytree(found.parent / "noise", tmp_path / "noise")
    return shutil.copytree(found, tmp_path / "run")


def of(run, name):
    """What was kept, as it is read."""
    return kept(run, name, pfc.Run(run).profiles[3])


def said(capsys, *arguments):
    capsys.readouterr()
    main([*map(str, arguments)])
    return capsys.readouterr().out


def section(run):
    """The part of the page of a run, without its pictures, and the pictures' texts and sizes."""
    text = html(sources([run]))
    part = "".join(re.findall(r'<details class="acting".*?</details>', text, re.DOTALL))
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', part)
    return unescape(re.sub("<img[^>]*>", "", part)), {unescape(a): len(data) for a, data in pictures}


def test_the_tables_are_those_of_the_functions(run):
    opened = pfc.Run(run)
    profile, held = opened.profiles[3], opened.data("held-out").batches()
    fit, strange = opened.data().batches(), opened.normalised(pfc.data.load(run.parent / "noise"))
    how = {"eps": 0.9, "progress": False}
    cut = pfc.prune(opened.network(), profile, held, fit=fit, **how)
    assert of(run, "prune").table.equals(cut.table())
    assert of(run, "prune").told["change"] == vars(cut.change)
    early = pfc.EarlyExit(opened.network(), profile)
    exits = early.calibrate(held, **how)
    assert of(run, "exits").table.equals(exits.curve)
    assert float(of(run, "exits").told["threshold"]) == early.threshold
    scores = pfc.scores(opened.network(), held, profile, unknown=strange.batches(), progress=False)
    assert of(run, "scores").table.equals(scores.summary())
    assert of(run, "scores").told["unknown_samples"] == len(strange)


def test_the_curve_is_of_the_half_that_did_not_choose(found):
    told, table = of(found, "exits").told, of(found, "exits").table
    row = table.loc[float(told["threshold"])]
    assert row["accuracy"] == told["change"]["after"]
    assert row["share"] == told["share"]
    assert table.index[-1] == np.inf
    whole = of(found, "prune").told["change"]["before"]
    assert table["accuracy"].iloc[-1] == whole == told["change"]["before"], "one half for both"


def test_words_and_json(run, capsys):
    exits = said(capsys, "exits", run, "--eps", "0.9")
    assert re.match(
        r"threshold \S+: \d+.\d% of the samples exit early, \d+.\d% of the operations\n", exits
    )
    scores = said(capsys, "scores", run, "--kind", "span")
    assert scores.startswith(
        "share of the norm in the span of the class means, large of known samples: 359 of "
        "digits (held-out)\n"
    )
    assert len(scores.splitlines()) == 2 + 1 + 4 + 3, "words, heads, layers and baselines"
    for name in NAMES:
        told = json.loads(said(capsys, name, run, "--json"))
        file = files.parse_json((run / f"{name}.json").read_bytes(), "")
        assert {k: v for k, v in file.items() if k not in {"format", "profile", "checksum"}} == told
    assert of(run, "scores").told["kind"] == "cosine", "a second call replaces the first one"
    assert of(run, "scores").told["unknown"] is None


def test_what_is_refused(run, folder, capsys, tmp_path):
    assert "no held-out data beside split 'fit'" in refused(capsys, "exits", run, "--split", "fit")
    assert "eps must be in [0, 1), got 1.5" in refused(capsys, "exits", run, "--eps", "1.5")
    assert "no device 'x' here" in refused(capsys, "scores", run, "--device", "x")
    assert "batch_size must be at least 1" in refused(capsys, "exits", run, "--batch-size", "0")
    assert "name them by --unknown" in refused(capsys, "scores", run, "--unknown-split", "test")
    assert "no split 'x' in" in refused(
        capsys, "scores", run, "--unknown", tmp_path / "noise", "--unknown-split", "x"
    )
    assert "samples of the unknown data that were compared are among" in refused(
        capsys, "scores", run, "--unknown", "digits"
    )
    assert "choose another --out" in refused(capsys, "prune", run, "--out", run / "prune.safetensors")
    assert "holds no run" in refused(capsys, "exits", tmp_path)
    (run / "exits.json").unlink()
    (run / "exits.json").mkdir()
    assert "exits.json is a folder, not a file" in refused(capsys, "exits", run)
    (run / "weights" / "epoch-0003.safetensors").unlink()
    assert "has no weights of epoch 3" in refused(capsys, "prune", run), "those of another epoch"


def test_a_damaged_file_stops_the_report_and_one_of_another_profile_is_left_out(run, capsys):
    path = run / "exits.json"
    text = path.read_text()
    path.write_text(text.replace('"early": [', '"early": [1,', 1))
    assert "exits.json is damaged: its content and its checksum differ" in refused(capsys, "report", run)
    content = files.parse_json(text.encode(), "")
    del content["checksum"]

    def changed(**change):
        path.write_text(json.dumps({**content, **change}))
        return refused(capsys, "report", run)

    table = content["table"]
    assert "table.accuracy is missing" in changed(
        table={name: column for name, column in table.items() if name != "accuracy"}
    )
    assert "columns of the table must be of one length" in changed(table={**table, "low": [0.0]})
    assert "and not empty" in changed(table={name: [] for name in table})
    assert "table.low[0] must be a number from -1 to 1, got 7" in changed(
        table={**table, "low": [7] * len(table["low"])}
    )
    assert "has format 'x'; this version reads 'pfc-exits-1'" in changed(format="x")
    early = [1 + 2e-16] * len(table["early"])  # a sum of fractions
    path.write_text(json.dumps({**content, "table": {**table, "early": early}}))
    assert of(run, "exits").table["early"].tolist() == early
    path.write_text(json.dumps({**content, "profile": "x"}))
    with pytest.warns(
        UserWarning, match=r"exits.json is of another profile, and is left out: call `pfc"
    ):
        assert of(run, "exits") is None
    path.write_text(text)
    scores = files.parse_json((run / "scores.json").read_bytes(), "")
    scores["table"]["layer"][0] = scores["table"]["layer"][1]
    files.write_json(run / "scores.json", {k: v for k, v in scores.items() if k != "checksum"})
    assert "scores.json: each layer must have a name of its own" in refused(capsys, "report", run)


def test_the_page_shows_what_was_found(found):
    words, pictures = section(found)
    assert words.startswith(
        '<details class="acting" open><summary>Fewer blocks, early exits, scores of held-out data<'
    )
    cuts, exits, scores = (of(found, name) for name in NAMES)
    gone, layers = len(cuts.told["removed"]), [*exits.table.index]
    assert layers
    assert f"Cut after {cuts.told['layer']}: {gone} layers can go" in words
    assert "0.9 was the most to be lost." in words
    assert f"With threshold {float(exits.told['threshold']):.4g}, " in words
    first, last = (scores.table["auroc"][name] for name in ("stem", "blocks.2"))
    ends = f"{first:.3f} at stem, {last:.3f} at blocks.2"
    assert f"AUROC, with 95 % intervals, is {ends}; of the logits: max softmax" in words
    assert [*pictures][2] == (f"AUROC of the scores of found, layer by layer: {ends}")
    assert [alt.split(":")[0] for alt in pictures][:2] == [
        "Accuracy of found against the last layer that is kept",
        "Accuracy of found against operations",
    ]
    assert sum(pictures.values()) + len(words) < 60_000


def test_the_page_shows_no_more_than_was_found(run, folder):
    assert section(folder / "run") == ("", {})
    (run / "prune.json").unlink()
    words, pictures = section(run)
    assert "<summary>Early exits, scores of held-out data<" in words
    assert len(pictures) == 2
    main(["scores", str(run)])
    (run / "exits.json").unlink()
    words, pictures = section(run)
    assert not pictures
    assert "Scores: the median cosine to the nearest centred class mean is " in words
    assert "Bands are" not in words
    main(["prune", str(run), "--eps", "0", "--head", "own"])
    main(["exits", str(run), "--eps", "0"])
    words, _ = section(run)
    assert "No layer can go: no cut is sure enough. On digits (held-out): accuracy " in words
    assert "No sample exits early: no threshold is sure enough." in words
    (run / "exits.json").unlink()
    assert "<p>Each point is a cut.</p>" in section(run)[0]


def test_names_in_the_files_stay_text(run):
    content = files.parse_json((run / "scores.json").read_bytes(), "")
    content |= {"data": "<b>x</b>"}
    files.write_json(run / "scores.json", {k: v for k, v in content.items() if k != "checksum"})
    with warnings.catch_warnings(action="error"):
        assert "<b>x" not in html(sources([run]))


def test_the_section_is_folded_among_many_runs(run, tmp_path):
    paths = [run, *(shutil.copytree(run, tmp_path / name) for name in ("b", "c"))]
    text = html(sources(paths))
    assert text.count('<details class="acting"><summary>') == 3
