"""`pfc reproduce`: what is trained, what is drawn, what is told, and that it goes on."""

import json
import shutil
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch
from PIL import Image

import pfc
from pfc import commands
from pfc.cli import main
from pfc.experiments import reproduce as experiment
from pfc.experiments.reproduce import Plan, estimate, reproduce
from pfc.experiments.trainings import Trained, Training, plane
from pfc.training import RECIPES, Recipe

SMALL = {
    "fc": {"width": 8, "blocks": (2,), "epochs": 2, "limit": 40},
    "conv": {"width": 4, "blocks": (1, 2), "epochs": 2, "limit": 40},
}
ITEMS = ("table1", "fig1", "fig2", "fig3", "fig4", "fig5", "claims")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The recipes at a size that trains in a second, on the bundled digits."""
    assert commands.mufm  # imported before the names that it takes are replaced
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, data="digits", **SMALL[recipe.net]))
    for name, (_, classes, whole) in experiment.SETS.items():
        monkeypatch.setitem(experiment.SETS, name, ((1, 8, 8), min(classes, 10), whole))
    steps = {"steps": 200, "classes": 3, "dimensions": 4, "per_class": 5}
    constants = experiment.mufm.Constants(**steps)
    toy = experiment.mufm.Dataset.toy
    monkeypatch.setattr(experiment.mufm.Dataset, "toy", classmethod(lambda cls: toy(constants)))
    monkeypatch.setattr(experiment.mufm, "LAMS", (1e-3, 1e-1))
    task = experiment.mufm.Task
    monkeypatch.setattr(experiment.mufm, "Task", lambda **how: task(constants=constants, **how))


def test_all_is_made_told_and_kept(tmp_path, capsys):
    plan = Plan(sets=("mnist",), seeds=1, out=tmp_path)
    files = {path.name for path in reproduce(plan, progress=False)}
    assert files == {path.name for path in tmp_path.iterdir() if path.is_file()} - {
        *(f"figure1-{name}-{k}.json" for name in plan.sets for k in ("paper", "collapsed")),
        *("figure2.json", "figure3.json"),
    }
    page = (tmp_path / "README.md").read_text()
    for words in (
        "What differs from the paper",
        "### Networks: paper",
        "### Networks: collapsed",
        "### Networks: paper-shuffled",
        "| claim | its number | mnist |",
        "| weight decay straightens the path | weight decay | 0.0005 after 0 |",
        "| plain gradient descent ends within 1e-6 of the minimum | Figure 5 | toy data |",
        "| mnist-wide-0 | fc | 2 | 8 | 40 | cross-entropy | 0.01 | 0.0005 |",
        "![figure3-collapsed](figure3-collapsed.png)",
    ):
        assert words in page
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 1 + 1 + 3 + 1 + 1
    again = [path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/examined.json")]
    reproduce(replace(plan, item="fig3"), progress=False)
    assert again == [path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/examined.json")]
    assert capsys.readouterr().out == ""


def test_the_numbers_are_those_of_the_runs(tmp_path):
    plan = Plan(item="fig1", sets=("cifar10",), seeds=1, out=tmp_path)
    reproduce(plan, progress=False)
    reproduce(replace(plan, item="fig3", train=False), progress=False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["cifar10-paper-0"]
    kept = json.loads((tmp_path / "figure3.json").read_text())["runs"]["cifar10-paper-0"]
    run = pfc.Run(tmp_path / "runs/cifar10-paper-0")
    last = run.profiles[2]
    for metric in ("pfc1", "pfc2", "pfc3"):
        assert kept["trained"][metric] == pytest.approx(last.columns[metric], rel=1e-5)
        line = getattr(last.segment().line([0.0, 0.5, 1.0]), metric)
        assert [kept["line"][metric][i] for i in (0, 50, 100)] == pytest.approx(line.tolist(), rel=1e-5)
    assert kept["stage"] == list(last.segment().layers)
    assert kept["random"]["pfc1"] != kept["trained"]["pfc1"]
    net = replace(run.recipe, zero_start=False).build(run.data(), 0)
    want = pfc.measure(net, run.data().batches(), progress=False).columns["pfc1"]
    assert kept["random"]["pfc1"] == pytest.approx(want, rel=1e-5)


def test_a_stopped_reproduction_goes_on(tmp_path, monkeypatch):
    plan = Plan(item="fig2", sets=("mnist",), seeds=1, out=tmp_path)
    examine = Trained._examine
    monkeypatch.setattr(Trained, "_examine", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, progress=False)
    history = (tmp_path / "runs/mnist-paper-0/history.jsonl").read_bytes()
    monkeypatch.setattr(Trained, "_examine", examine)
    reproduce(plan, progress=False)
    assert (tmp_path / "runs/mnist-paper-0/history.jsonl").read_bytes() == history


def test_another_recipe_is_not_taken_for_this_one(tmp_path, monkeypatch):
    plan = Plan(item="fig1", sets=("mnist",), out=tmp_path)
    reproduce(plan, progress=False)
    monkeypatch.setitem(RECIPES, "mnist-paper", replace(RECIPES["mnist-paper"], weight_decay=0.5))
    with pytest.raises(ValueError, match=r"another training: its weight_decay is 0.01, not 0.5; choose"):
        reproduce(replace(plan, train=False), progress=False)


def test_another_seed_or_other_data_are_not_taken_for_these(tmp_path, monkeypatch):
    plan = Plan(item="table1", sets=("mnist",), seeds=1, out=tmp_path)
    reproduce(plan, progress=False)
    shutil.copytree(tmp_path / "runs/mnist-paper-0", tmp_path / "runs/mnist-paper-1")
    with pytest.raises(ValueError, match=r"mnist-paper-1 holds another training: its seed is 0, not 1"):
        reproduce(replace(plan, seeds=2), progress=False)
    own = Training.images
    other = lambda self: replace(own(self), labels=own(self).labels.flip(0))  # noqa: E731
    monkeypatch.setattr(Training, "images", other)
    with pytest.raises(
        ValueError, match=r"mnist-paper-0 was trained on other data than those in 'digits'"
    ):
        reproduce(plan, progress=False)


DAMAGES = (
    lambda plane: plane["labels"].pop(),
    lambda plane: plane["labels"].__setitem__(0, 99),
    lambda plane: plane["classes"].clear(),
    lambda plane: plane["points"].clear(),
    lambda plane: plane["points"]["stem"].__setitem__(0, ["a", "b"]),
)


def test_a_damaged_examination_is_named_before_anything_is_trained(tmp_path):
    plan = Plan(item="fig1", sets=("mnist",), out=tmp_path)
    reproduce(plan, progress=False)
    path = tmp_path / "runs/mnist-paper-0/examined.json"
    whole = path.read_text()
    for change in DAMAGES:
        content = json.loads(whole)
        del content["checksum"]
        change(content["plane"])
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=str(path)):
            reproduce(replace(plan, item="table1", seeds=1), progress=False)
    assert not (tmp_path / "runs/mnist-collapsed-0").exists()


def test_the_page_keeps_what_other_calls_have_made(tmp_path):
    reproduce(Plan(item="fig3", sets=("mnist",), seeds=1, out=tmp_path), progress=False)
    reproduce(Plan(item="fig4", sets=("mnist",), seeds=1, out=tmp_path), progress=False)
    page = (tmp_path / "README.md").read_text()
    for words in ("| mnist-paper-0 | fc |", "(figure3-paper.png)", "(figure4.png)"):
        assert words in page


def test_side_by_side_trainings_are_those_of_one_process_and_end_at_once_on_an_error(tmp_path):
    """Processes of their own know the package's recipes, and nothing of those of this test."""
    tiny = Recipe(name="mnist-paper", data="digits", **SMALL["fc"])
    long = replace(tiny, epochs=100_000)
    lost = replace(tiny, data=str(tmp_path / "nowhere"))
    plan = Plan(out=tmp_path, jobs=2)
    plan.__dict__["trainings"] = [
        Trained(Training(recipe=recipe, seed=seed), tmp_path / str(seed))
        for seed, recipe in enumerate([long, tiny, lost])  # the first has begun before others end
    ]
    with pytest.raises(ValueError, match="no data set or folder"):
        experiment.run_all(plan, progress=False)
    assert active_children() == []
    assert len(pfc.Run(tmp_path / "0").history) < 100_000
    there, here = (
        pfc.Run(each.folder).profiles[2].columns["pfc1"]
        for each in (
            plan.trainings[1],
            Trained(Training(recipe=tiny, seed=1), tmp_path / "here").run(progress=False),
        )
    )
    assert there == here


def test_what_diverges_is_told_and_the_rest_is_done(tmp_path, monkeypatch, capsys):
    wild = replace(RECIPES["mnist-collapsed"], learning_rate=1e30)
    monkeypatch.setitem(RECIPES, "mnist-collapsed", wild)
    reproduce(Plan(item="fig3", sets=("mnist",), seeds=1, out=tmp_path))
    assert "- mnist-collapsed-0: training diverged: " in (tmp_path / "README.md").read_text()
    assert (
        "1 of 2: mnist-paper-0 done\n2 of 2: mnist-collapsed-0 training diverged"
        in capsys.readouterr().err
    )
    assert (tmp_path / "figure3-paper.png").exists()
    reproduce(Plan(item="fig2", sets=("mnist",), seeds=1, out=tmp_path))  # told again, not tried again
    assert "- mnist-collapsed-0: training diverged: " in (tmp_path / "README.md").read_text()
    assert capsys.readouterr().err == ""


def test_labels_are_dealt_out_anew():
    training = Training(recipe=RECIPES["mnist-paper"], seed=3, shuffled=True)
    images, own = training.images(), replace(training, shuffled=False).images()
    assert training.name == "mnist-paper-shuffled-3"
    assert images.labels.bincount().equal(own.labels.bincount())
    assert 0 < (images.labels != own.labels).sum() < len(own)
    assert images.images.equal(own.images)


def test_the_plane_is_that_of_the_last_class_means():
    digits = pfc.data.load("digits", limit=200)
    torch.manual_seed(0)
    net = pfc.FCResNet(64, 10, width=8, blocks=2, zero_start=False).eval()
    found = plane(net, digits, net.taps)
    keep = digits.labels < 3
    H, y = pfc.features(net, digits.batches(), ["blocks.1"], progress=False)
    H, y = H["blocks.1"][keep].double(), y[keep]
    means = torch.stack([H[y == k].mean(0) for k in range(3)])
    # in the plane the triangle of the class means keeps its sides
    seen = torch.tensor(found["points"]["blocks.1"]).double()
    sides = torch.cdist(means, means)
    whole = torch.stack([seen[torch.tensor(found["labels"]) == k].mean(0) for k in range(3)])
    assert found["labels"].count(0) == min(30, int((y == 0).sum()))
    few = torch.stack([H[y == k][:30].mean(0) for k in range(3)])
    basis = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:2]
    torch.testing.assert_close(
        torch.cdist(whole, whole), torch.cdist(few @ basis.mT, few @ basis.mT), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(torch.cdist(means @ basis.mT, means @ basis.mT), sides)


def test_the_list_trains_nothing(tmp_path, capsys):
    main([
        "reproduce",
        "fig3",
        "--list",
        "--sets",
        "mnist",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "o"),
    ])
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told[:-1]] == [
        *("mnist-paper-0", "mnist-collapsed-0", "mnist-paper-1", "mnist-collapsed-1")
    ]
    assert told[-1].startswith("0 of 4 trainings are done; the others take about 0.0")
    assert not (tmp_path / "o").exists()


def test_an_estimate_is_near_what_it_takes(tmp_path):
    plan = Plan(item="fig1", sets=("cifar10",), out=tmp_path)
    ((trained, seconds),) = plan.costs()
    reproduce(plan, progress=False)
    took = sum(line["seconds"] for line in pfc.Run(trained.folder).history)
    assert seconds / 20 < took < 20 * seconds
    assert list(plan.costs()) == []
    assert list(estimate(plan))[-1].startswith("1 of 1 trainings are done")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "--data takes NAME=FOLDER, such as mnist=data/mnist, got 'mnist'"),
        (["--data", "cifar=x"], "no data set 'cifar'; choose from mnist, fashion_mnist"),
        (["--sets", "svhn"], "no data set 'svhn'; choose from mnist, fashion_mnist"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--seeds", "101"], "seeds must be at most 100, got 101"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--no-train"], "yet: leave out --no-train"),
        (["--data", "mnist=/nowhere/at/all"], "no data set or folder '/nowhere/at/all'"),
    ],
)
def test_refused_before_anything_is_trained(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", "fig2", *arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_data_stays_as_it_is(tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 3).save(tmp_path / split / name / "1.png")
    given = ["--data", f"mnist={tmp_path}", "--out", str(tmp_path / "out"), "--list"]
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", "fig1", "--sets", "mnist", *given])
    assert "lies among the data in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
