"""Figures 4 and 5 from Python: what is returned, kept, gone on with and refused; nothing is printed."""

import json
import math
from dataclasses import replace

import pytest
import torch

import pfc
from pfc.experiments import mufm
from pfc.experiments.mufm import Constants, Dataset, Task
from pfc.strict_json import plain
from pfc.theory import ufm
from pfc.theory.mufm import SpuriousMinimaWarning
from pfc.training import Run

SMALL = Constants(classes=3, dimensions=4, per_class=6, steps=30, restarts=0)
LAMS = [1e-1, 1e-3]


def task(folder, constants=SMALL, **how):
    return Task(data=Dataset.toy(constants), constants=constants, folder=folder, **how)


def test_iterations_are_returned_and_kept(tmp_path, capsys):
    found = mufm.iterations(task(tmp_path / "a"))
    assert capsys.readouterr().out == ""
    assert [path.name for path in found.files] == ["figure4.json", "figure4.png", "figure4.svg"]
    assert sorted(found.files) == sorted((tmp_path / "a").iterdir())
    kept = json.loads(found.files[0].read_text())
    for name in ("data", "ends", "ways"):
        assert kept[name] == plain(getattr(found, name)), name
    assert found.table().loc["UFM, closed form", "objective"] == ufm.optimum(3, 4, 6).objective
    assert found.ends["MUFM, descent"]["steps"] == 30
    for words in ("UFM, closed form", "gradient_norm", f"MUFM: {found.proven}."):
        assert words in str(found)


def test_ways_that_a_model_does_not_have_are_left_out(tmp_path):
    entropy = mufm.iterations(task(tmp_path, replace(SMALL, loss="ce"), descent=False))
    assert (entropy.ways, len(entropy.files)) == ({}, 1)
    assert list(entropy.ends) == ["data", "MUFM, ours", "UFM, closed form"]
    toy = Dataset.toy(SMALL)
    odd = Dataset("odd", toy.X[:-1], toy.y[:-1], real=True)
    found = mufm.iterations(Task(data=odd, constants=SMALL, folder=tmp_path))
    assert list(found.ends) == ["data", "MUFM, ours", "UFM, ours", "MUFM, descent"]
    assert json.loads(found.files[0].read_text())["settings"]["centred"], "real data are centred"
    biased = mufm.iterations(task(tmp_path, bias="free", descent=False))
    assert list(biased.ways) == ["UFM, ours"]


def test_a_sweep_is_returned_and_goes_on(tmp_path, capsys, monkeypatch):
    found = mufm.sweep(task(tmp_path), LAMS)
    assert capsys.readouterr().out == ""
    assert (
        [row["lam"] for row in found.solutions] == [row["lam"] for row in found.descent] == [1e-3, 1e-1]
    )
    kept = json.loads((tmp_path / "figure5.json").read_text())
    assert kept["solutions"] == found.solutions
    assert list(found.table().index) == [1e-3, 1e-1]
    assert "steps of gradient descent end" in str(found)
    solved, real = [], pfc.theory.mufm.solve

    def solve(*arguments, lam, **how):
        solved.append(lam)
        return real(*arguments, lam=lam, **how)

    monkeypatch.setattr(pfc.theory.mufm, "solve", solve)
    more = mufm.sweep(task(tmp_path), [1e-2, 1e-3])
    assert solved == [1e-2]
    assert [row["lam"] for row in more.solutions] == [1e-3, 1e-2], "of what was asked for"
    kept = json.loads((tmp_path / "figure5.json").read_text())
    assert [row["lam"] for row in kept["solutions"]] == [1e-3, 1e-2, 1e-1]


def changed(path, change):
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content["settings"])
    path.write_text(json.dumps(content))


def test_settings_of_another_version_have_the_defaults_and_words_do_not_count(tmp_path):
    path, ours = tmp_path / "figure5.json", task(tmp_path)
    mufm.sweep(ours, [1e-3])
    changed(path, lambda s: (s["constants"].pop("start"), s["sources"].update(loss="in other words")))
    assert len(mufm.sweep(ours, LAMS).solutions) == 2
    changed(path, lambda s: s["constants"].pop("steps"))  # 30, and not the default
    with pytest.raises(ValueError, match=r"holds a sweep with another steps: choose another folder"):
        mufm.sweep(ours, LAMS)
    changed(path, lambda s: s["constants"].update(steps=30, depth=2))
    with pytest.raises(ValueError, match=r"holds a sweep with another depth: choose another folder"):
        mufm.sweep(ours, LAMS)
    with pytest.raises(ValueError, match=r"holds a sweep with another descent: choose another folder"):
        mufm.sweep(task(tmp_path, descent=False), LAMS)


def test_cross_entropy_is_proven_too(tmp_path):
    entropy = replace(SMALL, loss="ce")
    found = mufm.sweep(task(tmp_path, entropy, descent=False), [0.1])
    assert found.solutions[0]["certified"]
    assert found.solutions[0]["gap"] < 1e-9
    assert "1 of 1 are proven to be within a relative 1e-04 of the minimum." in str(found)
    assert found.expected == [], "squared loss alone has a closed form"
    again = mufm.sweep(task(tmp_path, entropy, descent=False), [0.1])
    assert str(again) == str(found)
    square = replace(entropy, classes=4, dimensions=2, per_class=2, sigma=0.2, seed=3, restarts=4)
    constants = replace(square, weight_decay=8e-3)
    with pytest.warns(SpuriousMinimaWarning):
        apart = mufm.sweep(task(tmp_path / "b", constants, descent=False), [5e-3])
    spread = 100 * apart.solutions[0]["spread"]
    told = f"lam 0.005: its 5 starts ended in different minima, {spread:.3g} % apart."
    assert told in str(apart)


def test_the_closed_form_stands_beside_the_toy_data_it_is_of(tmp_path):
    found = mufm.sweep(task(tmp_path, descent=False), LAMS)
    for row, lam in zip(found.expected, sorted(LAMS), strict=True):
        known = pfc.theory.mufm.optimum(3, 4, 6, lam=lam, sigma=0.5)
        assert (row["lam"], row["pfc1"], row["moved"]) == (lam, known.pfc1, known.relative_displacement)
    toy = Dataset.toy(SMALL)
    for how in (
        {"centre": True},
        {"bias": "free"},
        {"data": Dataset("real", toy.X, toy.y, real=True)},
        {"constants": replace(SMALL, dimensions=2)},
    ):
        given = {"data": toy, "constants": SMALL, "descent": False, **how}
        assert Task(**given).expected(0.1) is None, how


def test_whether_the_mean_was_taken_off_is_told(tmp_path):
    toy = Dataset.toy(SMALL)
    values = []
    for centre in (True, False):
        folder = tmp_path / str(centre)
        one = Task(data=toy, constants=SMALL, centre=centre, descent=False, folder=folder)
        values.append(mufm.sweep(one, [0.1]).solutions[0]["objective"])
        kept = json.loads((folder / "figure5.json").read_text())
        assert kept["settings"]["centred"] is centre
        assert ("centred" in one.title) is centre
        X = toy.X - toy.X.mean(0) if centre else toy.X
        known = pfc.theory.mufm.solve(X, toy.y, lam=0.1).objective
        assert values[-1] == pytest.approx(known, rel=1e-12)
        ways = mufm.iterations(one)
        assert ways.ways["MUFM, ours"]["objective"][-1] == pytest.approx(
            pfc.theory.mufm.solve(X, toy.y, lam=0.005).objective, rel=1e-9
        )
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_pixels_and_features_are_data(tmp_path):
    digits = pfc.data.load("digits", limit=40)
    pixels = Dataset.pixels(digits)
    assert pixels.X.equal(digits.images.flatten(1).float() / 255)
    recipe = pfc.Recipe(name="tiny", data="digits", width=6, blocks=(2,), epochs=1, loss="mse")
    net = recipe.build(digits)
    list(pfc.train(net, digits, recipe, folder=tmp_path / "run", progress=False))
    features = Dataset.features(Run(tmp_path / "run"))
    known, y = pfc.features(net, digits.batches(), ["stem"], progress=False)
    torch.testing.assert_close(features.X, known["stem"])
    assert features.y.equal(y)
    assert features.name == "40 features of stem of run on digits"
    with pytest.raises(
        ValueError, match=r"layer must name one layer, 'blocks\.\*' names blocks\.0, block"
    ):
        Dataset.features(Run(tmp_path / "run"), digits, layer="blocks.*")


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: Constants(lam=0.0), "lam must be a positive number, got 0.0"),
        (lambda: Constants(feature_decay=math.inf), "feature_decay must be a positive number, got inf"),
        (lambda: Constants(step=-1.0), "step must be a positive number, got -1.0"),
        (lambda: Constants(steps=0), "steps must be at least 1, got 0"),
        (lambda: Constants(restarts=-1), "restarts must be at least 0, got -1"),
        (lambda: Constants(seed=-1), "seed must be at least 0, got -1"),
        (lambda: task("a", bias="free"), "gradient descent has no bias; leave one of them out"),
        (lambda: mufm.coefficients([]), "lams needs at least one coefficient, such as 1e-4 1e-3"),
        (lambda: mufm.sweep(task("a"), [1.0, -2.0]), "lams must be a positive number, got -2.0"),
    ],
)
def test_what_has_no_meaning_is_refused_before_it_is_solved(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
