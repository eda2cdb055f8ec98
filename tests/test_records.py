"""Records can be read by this version, and their pages tell the numbers they hold."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pfc

RECORDS = Path(__file__).parents[1] / "records"
OTHERS = {"acting", "paper-scale", "reproduce", "stl10-collapsed"}  # records that keep no profiles
PROFILES = sorted(p for p in RECORDS.glob("*/*.json") if p.parent.name not in OTHERS)


@pytest.mark.parametrize(
    "path", [p for p in PROFILES if p.name != "config.json"], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_a_record_holds_the_numbers_of_its_page(path):
    profile = pfc.load(path)
    page = (path.parent / "README.md").read_text()
    for metric in ("pfc1", "pfc2", "pfc3"):
        for value in profile.columns[metric]:
            assert f"| {value:.4f} |" in page
    for segment in profile.segments:
        assert set(segment.curves) <= {"measured", "means", "etf"}
        assert segment.position()[-1] == pytest.approx(1)


def test_the_digits_recipe_collapses_on_every_seed_of_the_record():
    page = (RECORDS / "digits" / "README.md").read_text()
    for seed in range(5):
        assert f"| {seed} | 350 | " in page
    profile = pfc.load(RECORDS / "digits" / "profile.json")
    assert profile.accuracy == 1
    assert profile.columns["pfc3"][-1] == 1
    assert all(profile.non_monotone_layers(metric) == [] for metric in ("pfc1", "pfc2", "pfc3"))


def test_weight_decay_straightens_the_path_on_every_seed_of_the_record():
    lines = (RECORDS / "theory" / "results.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if row["epoch"] == 350]
    for seed in range(5):
        own = sorted((r["weight_decay"], r["straightness"]) for r in last if r["seed"] == seed)
        assert [decay for decay, _ in own] == [0, 5e-4, 5e-3, 6e-3]
        assert all(a < b for (_, a), (_, b) in pairwise(own))
    assert all(row["ratio"] >= 1 for row in last)
    page = (RECORDS / "theory" / "README.md").read_text()
    for row in last:
        assert f"| {row['straightness']:.4f} | {row['energy_ratio']:.3f} | {row['ratio']:.6g} |" in page


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in RECORDS.glob("mufm/*/figure5.json")))
def test_sweeps_of_the_record_agree_with_theorem_4_and_bound_what_they_claim(folder):
    sweep = json.loads((RECORDS / "mufm" / folder / "figure5.json").read_text())
    rows = sweep["solutions"]
    assert len(rows) >= 12
    assert all(a["lam"] < b["lam"] and a["pfc1"] < b["pfc1"] for a, b in pairwise(rows))
    assert all(row["pfc1"] < sweep["data"]["pfc1"] for row in rows)
    assert all(row["certified"] == (row["gap"] <= 1e-4) for row in rows)
    assert set(sweep["settings"]["constants"]) == set(sweep["settings"]["sources"])


def test_sentences_collapse_in_training_and_about_its_means_not_in_the_test():
    record = RECORDS / "sst2-sentiment"
    train, test = (pfc.load(record / f"{name}-cls.json") for name in ("train", "test"))
    assert test.about["means"] == "sst2 train, 6920 samples"
    assert train.columns["pfc3"][0] > 0.99
    assert max(test.columns["pfc3"]) < 0.78
    pairs = zip(train.columns["pfc1"], test.columns["pfc1"], strict=True)
    assert all(6 < b / a < 51 for a, b in pairs)
    assert all(a < b for a, b in pairwise(test.columns["pfc1"][:-1]))
    mean = pfc.load(record / "test-mean.json")
    assert mean.columns["pfc3"][1] > mean.accuracy
    assert all(a > b for a, b in pairwise(mean.columns["pfc3"][1:]))


def test_next_words_come_nearer_to_their_means_layer_by_layer():
    record = RECORDS / "sst2-next-word"
    untrained, train, test = (pfc.load(record / f"{n}.json") for n in ("untrained", "train", "test"))
    assert train.non_monotone_layers("pfc3") == []
    assert test.non_monotone_layers("pfc3") == ["transformer.h.3"]
    assert untrained.columns["pfc3"][-1] < untrained.columns["pfc3"][0]
    assert train.non_monotone_layers("pfc1") == [f"transformer.h.{k}" for k in (1, 2, 3)]
    assert all(1.25 < value < 1.28 for value in train.columns["pfc2"][:-1])
    share = [b / a for a, b in zip(train.columns["pfc1"], test.columns["pfc1"], strict=True)]
    assert all(1.03 < s < 1.05 for s in share[1:])


def test_the_search_of_recipes_says_what_its_runs_say():
    folder = RECORDS / "recipes-search"
    lines = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))
    page = (folder / "README.md").read_text()
    assert page.startswith((folder / "NOTES.md").read_text().rstrip())
    assert page.count("| diverged |") == sum("error" in line for line in lines)
    done = [line for line in lines if "error" not in line]
    for line in done:
        for metric in ("pfc1", "pfc2"):
            assert f"| {line[metric][0]:.3g} to {line[metric][-1]:.3g} |" in page
    ends = {
        (
            line["set"],
            line["changes"].get("loss", "cross-entropy"),
            *map(repr, line["changes"].values()),
        ): (
            line["pfc1"][-1],
            line["pfc2"][-1],
            line["effective_depth"],
        )
        for line in done
    }
    conv = {key: end for key, end in ends.items() if key[0] != "mnist"}
    assert all((pfc2 < 0.25) == (key[1] == "mse") for key, (_, pfc2, _) in conv.items())
    cifar10 = {key: end for key, end in ends.items() if key[0] == "cifar10"}
    assert {depth for *_, depth in cifar10.values()} == {8, 9, 10}
    assert all(0.57 < pfc2 < 0.84 for key, (_, pfc2, _) in cifar10.items() if key[1] != "mse")
    own = [end for key, end in ends.items() if key[0] == "mnist"]
    assert min(pfc2 for _, pfc2, _ in own) < 0.07
    assert {depth for *_, depth in own} >= {1, 10, None}


@pytest.mark.parametrize(("name", "blocks", "last"), [("resnet20", 9, 0.9956), ("resnet56", 27, 0.9998)])
def test_the_effective_depth_of_published_networks_is_their_depth(name, blocks, last):
    record = RECORDS / "published"
    train, test, flat = (pfc.load(record / f"{name}-{k}.json") for k in ("train", "test", "flattened"))
    assert (train.effective_depth(), len(train.layers)) == (blocks - 1, blocks)
    assert all(p.non_monotone_layers("pfc3") == [] for p in (train, test, flat))
    assert train.columns["pfc3"][-1] == pytest.approx(last, abs=1e-4)
    assert len(train.non_monotone_layers("pfc1")) == {"resnet20": 1, "resnet56": 5}[name]
    assert not any(layer.startswith("layer3") for layer in train.non_monotone_layers("pfc1"))
    assert test.about["means"] == "cifar10, 50000 samples"


def test_mufm_has_the_networks_frame_where_it_moves_as_far():
    lines = (RECORDS / "decay" / "results.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        own, solutions = row["network"], row["solutions"]
        assert all(s["gap"] <= 1e-8 for s in solutions)
        assert all(a["pfc2"] < b["pfc2"] and a["moved"] > b["moved"] for a, b in pairwise(solutions))
        if row["decay"] < 1e-3:
            assert own["moved"] > solutions[0]["moved"]
            continue
        lams, moved = ([np.log(s["lam"]) for s in solutions], [s["moved"] for s in solutions])
        lam = np.interp(own["moved"], moved[::-1], lams[::-1])
        pfc1, pfc2 = (np.interp(lam, lams, [s[m] for s in solutions]) for m in ("pfc1", "pfc2"))
        assert abs(pfc2 - own["pfc2"]) < 0.003
        assert 0.8 < pfc1 / own["pfc1"] < 0.83


def test_published_networks_and_trainings_stand_on_the_page_of_all_records():
    page = (RECORDS / "README.md").read_text()
    kept = json.loads((RECORDS / "reproduce" / "claims.json").read_text())["answers"]
    assert {answer["kind"] for answer in kept} >= {"paper", "collapsed", "weight decay", "Figure 5"}
    for kind in ("published", "transformers", "paper", "collapsed"):
        assert f"### Networks: {kind}" in page
    for answer in kept:
        if answer["of"] > 1 and answer["verdict"] == "confirmed":
            assert f"yes {answer['held']}/{answer['of']}" in page
    for folder in RECORDS.glob("*/README.md"):
        assert f"]({folder.parent.name}/README.md)" in page


def test_scores_of_the_record_are_those_of_its_page():
    told = json.loads((RECORDS / "acting" / "scores.json").read_text())
    page = (RECORDS / "acting" / "scores.md").read_text()
    for loss, found in told["digits"].items():
        rows = [row for row in told["runs"] if row["loss"] == loss]
        assert {(row["seed"], *row["unknown"]) for row in rows} == {
            (seed, k, k + 1) for seed in range(5) for k in range(0, 10, 2)
        }
        for kind in ("cosine", "distance", "span", "depth"):
            means = np.mean([row[kind] for row in rows], axis=0)
            np.testing.assert_allclose(means, [each["mean"] for each in found[kind]], atol=1e-5)
            told_at = " | ".join(f"{means[l]:.3f}" for l in (0, 3, -1))
            assert f"| {kind} | {told_at} |" in page
        gains = [each["gain"] for each in found["cosine"]]
        assert all(0.002 <= gain < 0.0065 for gain in gains[3:])
        assert 0 < int(np.argmax(gains)) < len(gains) - 1
        assert found["distance"][-1]["gain"] < 0.004 > found["span"][-1]["gain"]
        nc5, centred = (np.mean([row[c] for row in rows], axis=0) for c in ("nc5", "centred"))
        assert (np.diff(nc5) < 0).all()
        assert abs(centred[-1] - centred[0]) < 0.04
    mnist = told["mnist"]
    assert mnist["cosine"][-1] > mnist["max softmax"] > mnist["distance"][-1]
