"""Comparisons of runs over their seeds, and their command."""

import inspect
import math
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import pfc
from pfc.cli import main
from pfc.intervals import student, welch
from pfc.profile.columns import PFC


def profile(seed: int, spread: float = 1.0, layers=("a", "b"), K: int = 3) -> pfc.Profile:
    """Two layers of features, the second more collapsed."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(60) % K
    M = 3 * torch.randn(K, 4, generator=torch.Generator().manual_seed(99))
    noise = spread * torch.randn(60, 4, generator=generator)
    found = {name: M[y] + noise / (l + 1) for l, name in enumerate(layers)}
    return pfc.measure_features(found, y, progress=False)


@pytest.fixture(scope="module")
def groups():
    return tuple([profile(seed, spread) for seed in range(n)] for spread, n in ((1.0, 4), (1.6, 3)))


def test_student_and_welch_are_scipys():
    a, b = [1.0, 1.5, 0.7, 1.1], [2.0, 2.9, 2.2]
    known = stats.t.interval(0.9, 3, np.mean(a), stats.sem(a))
    assert student(a, 0.9) == pytest.approx(known, rel=1e-12)
    known = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.9)
    assert welch(a, b, 0.9) == pytest.approx((known.low, known.high), rel=1e-12)
    for values in ([1.0], [1.0, math.nan], [1.0, math.inf]):
        assert all(map(math.isnan, student(values)))
        assert all(map(math.isnan, welch(values, b)))
    assert welch([1.0, 1.0], [2.0, 2.0]) == (1.0, 1.0)


def test_the_table_has_means_differences_and_welchs_interval(groups):
    a, b = groups
    found = pfc.compare(a, b, names=("a", "b"), level=0.9).table(["pfc1", "cdnv"])
    assert list(found.columns) == ["a", "b", "difference", "low", "high"]
    assert list(found.index) == [(m, l) for m in ("pfc1", "cdnv") for l in ("a", "b")]
    of_a, of_b = ([p.table().loc["b", "cdnv"] for p in group] for group in groups)
    row = found.loc[("cdnv", "b")]
    assert row.difference == pytest.approx(np.mean(of_b) - np.mean(of_a), rel=1e-12)
    assert (row.low, row.high) == pytest.approx(welch(of_a, of_b, 0.9), rel=1e-12)


def test_runs_of_the_same_seeds_are_paired(tmp_path):
    paths = [runs(tmp_path, name, width) for name, width in (("wide", 16), ("slim", 8))]
    comparison = pfc.compare(*paths)
    assert [group.seeds for group in comparison.groups] == [(0, 1), (0, 1)]
    assert [group.name for group in comparison.groups] == ["wide-*", "slim-*"]
    of_wide, of_slim = (
        [p.table().loc["blocks.0", "pfc2"] for p in group.profiles] for group in comparison.groups
    )
    row = comparison.table().loc[("pfc2", "blocks.0")]
    apart = [b - a for a, b in zip(of_wide, of_slim, strict=True)]
    assert (row.low, row.high) == pytest.approx(student(apart), rel=1e-12)
    assert "(95 % intervals over 2 paired seeds)" in comparison.sentences()[0]
    assert comparison.summary().loc["slim-*", "accuracy"] == pytest.approx(
        np.mean([p.accuracy for p in comparison.groups[1].profiles])
    )


def runs(folder, name: str, width: int) -> str:
    """Two short runs, and a glob of them."""
    digits = pfc.data.load("digits", limit=60)
    recipe = replace(pfc.RECIPES["digits"], epochs=1, width=width, blocks=(1,))
    for seed in (0, 1):
        net = recipe.build(digits, seed)
        where = {"folder": folder / f"{name}-{seed}", "seed": seed, "progress": False}
        for _ in pfc.train(net, digits, recipe, **where):
            pass
    return str(folder / f"{name}-*")


def test_a_sentence_says_what_is_more_collapsed_and_what_is_not_sure(groups):
    a, b = groups
    (words,) = pfc.compare(a, b, names=("tight", "loose")).sentences()
    assert words.startswith(
        "At b, loose against tight (95 % intervals over 4 and 3 seeds): less collapsed"
    )
    (words,) = pfc.compare(b, a, names=("loose", "tight")).sentences()
    assert "tight against loose" in words
    assert ": more collapsed by PFC1" in words
    (words,) = pfc.compare(a, a[::-1], names=("one", "other")).sentences()
    assert words.count("does not differ beyond what seeds do") == len(PFC)
    (words,) = pfc.compare(a[0], b[0]).sentences()
    assert (
        "At b, b against a (b and a are single networks: nothing is known of other seeds): less" in words
    )
    assert "difference" not in words


def test_networks_of_other_layers_are_compared_at_their_last():
    a, b = profile(0), profile(0, layers=("a", "c", "d"))
    found = pfc.compare(a, b, names=("two", "three"))
    assert found.layers == ["a", "last layer"]
    row = found.table().loc[("pfc1", "last layer")]
    assert (row.two, row.three) == (a.columns["pfc1"][-1], b.columns["pfc1"][-1])
    assert found.sentences()[0].startswith("At their last layers, three against two")
    assert found.summary().layers.tolist() == [2, 3]
    (words,) = pfc.compare(a, profile(1, K=2)).sentences()
    assert "PFC2" in words


def test_what_can_not_be_compared_is_refused(groups, tmp_path):
    a, b = groups
    for given, message in (
        ((a,), "need at least two groups to compare, got 1"),
        ((a, []), "a group is of profiles, or a path of runs, got nothing"),
        ((a, str(tmp_path / "none")), "none does not exist: give a run's folder or a profile's .json"),
        ((a, str(tmp_path / "n*")), r"no run or profile matches .*n\*"),
        ((a, str(tmp_path)), "holds no run: there is no config.json in it"),
    ):
        with pytest.raises(ValueError, match=message):
            pfc.compare(*given)
    with pytest.raises(ValueError, match="names must be 2 different ones, got x, x"):
        pfc.compare(a, b, names=("x", "x"))
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), such as 0.95, got 2"):
        pfc.compare(a, b, level=2.0)
    with pytest.raises(ValueError, match=r"metrics must be some of .*, got pfc4"):
        pfc.compare(a, b).table(["pfc4"])


def test_the_figure_has_a_line_a_group_and_a_band_of_its_seeds(groups):
    a, b = groups
    figure = pfc.figures.layers({"tight": a, "loose": b[0]}, metrics=["pfc1"])
    (ax,) = figure.axes
    assert [list(line.get_ydata()) for line in ax.lines] == [
        pytest.approx(np.mean([p.columns["pfc1"] for p in a], axis=0)),
        pytest.approx(b[0].columns["pfc1"]),
    ]
    (band,) = ax.collections
    ends = band.get_paths()[0].vertices[:, 1]
    values = [p.columns["pfc1"] for p in a]
    assert (ends.min(), ends.max()) == pytest.approx((np.min(values), np.max(values)))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["tight (4 seeds: mean, least, largest)", "loose"]
    with pytest.raises(ValueError, match="group 'x' needs one profile or several of the same layers"):
        pfc.figures.layers({"x": [a[0], profile(0, layers=("a", "c"))]})
    with pytest.raises(ValueError, match="need at least one profile, got none"):
        pfc.figures.layers({})


def test_the_command_prints_and_writes_all(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs(tmp_path, "wide", 16)
    main(["compare", "wide-0", "wide-1", "--cka", "--samples", "40", "--out", "found"])
    said = capsys.readouterr().out
    assert "At blocks.0, wide-1 against wide-0 (wide-1 and wide-0 are single" in said
    assert "Linear CKA of wide-0 (rows) and wide-1 (columns), 40 samples:" in said
    names = [f"{name}.{kind}" for name in ("cka", "compare") for kind in ("csv", "png", "svg")]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    profile(0).save("p.json")
    for arguments, message in (
        (["wide-0"], "need at least two groups to compare, got 1"),
        (["wide-0", "wide-1", "--data", "x"], "--data are those that both networks are shown for --cka"),
        (["wide-0", "p.json", "--cka"], "--cka needs networks, so runs' folders, not p.json"),
        (["wide-0", "wide-1", "--metrics", "pfc4"], "metrics must be some of"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["compare", *arguments])
        assert message in capsys.readouterr().err


def test_names_of_sources_are_the_shortest_that_tell_them_apart(tmp_path):
    from pfc.report.sources import sources

    for name in ("x/p", "y/p", "y/q"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        profile(0).save(tmp_path / f"{name}.json")
    found = sources([tmp_path / "x/p.json", str(tmp_path / "y/*.json")])
    assert [source.name for source in found] == ["x/p", "y/p", "y/q"]
    assert [source.name for source in sources([tmp_path / "y/q.json"])] == ["q"]
    assert list(found[0].profiles) == [0]
    assert found[0].seed is None
    assert found[0].config == {}


def test_a_page_of_several_runs_says_what_differs_and_groups_their_seeds(tmp_path):
    from pfc.report.comparison import of_sources
    from pfc.report.sources import sources

    wide, slim = runs(tmp_path, "wide", 16), runs(tmp_path, "slim", 8)
    found = of_sources(sources([slim, wide]))
    assert [group.name for group in found.groups] == [
        f"{n}-0 and 1 more of other seeds" for n in ("slim", "wide")
    ]
    assert [group.seeds for group in found.groups] == [(0, 1), (0, 1)]
    assert of_sources(sources([wide])) is None
    page = pfc.report.write([slim, wide], tmp_path / "both.html").read_text()
    assert "What differs" in page
    assert found.sentences()[0].partition(" (95")[0] in page
    assert "What differs" not in pfc.report.write(wide, tmp_path / "one.html").read_text()


def test_names_that_are_columns_take_nothing_from_them(groups):
    a, b = groups
    table = pfc.compare(a, b, names=("low", "difference")).table(["pfc1"])
    known = pfc.compare(a, b, names=("x", "y")).table(["pfc1"])
    assert list(table.columns) == ["mean of low", "mean of difference", "difference", "low", "high"]
    np.testing.assert_array_equal(table, known)
    of_three = pfc.compare(a, b, a, names=("x", "low of z", "z")).table(["pfc1"])
    assert "mean of low of z" in of_three.columns


def test_rounding_is_no_difference_and_infinities_are_equal(groups):
    a = groups[0][0]
    again = replace(a, columns={n: tuple(x * (1 + 1e-15) for x in v) for n, v in a.columns.items()})
    (words,) = pfc.compare(a, again).sentences()
    assert words.count("does not differ (") == len(PFC)
    infinite = replace(a, columns={**a.columns, "pfc1": (math.inf, math.inf)})
    comparison = pfc.compare(infinite, infinite)
    assert "PFC1 does not differ (inf against inf)" in comparison.sentences()[0]
    assert comparison.table().loc[("pfc1", "b"), "difference"] == 0


def test_what_was_measured_otherwise_is_told(groups):
    a = groups[0][0]
    other = replace(a, about={**a.about, "weighting": "sample", "pool": "mean"})
    with pytest.warns(UserWarning, match="the profiles differ in weighting: class, sample"):
        with pytest.warns(UserWarning, match="the profiles differ in pool: flatten, mean"):
            pfc.compare(a, other)
    for wrong in (3, None):
        with pytest.raises(ValueError, match="a group is of profiles, or a path of runs, got"):
            inspect.unwrap(pfc.compare)(a, wrong)


def told(*paths):
    """A comparison, and what was warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        comparison = pfc.compare(*paths)
    return comparison, [str(each.message) for each in found]


def test_groups_that_are_no_seeds_and_runs_that_are_unfinished_are_told(tmp_path):
    wide, slim = runs(tmp_path, "wide", 16), runs(tmp_path, "slim", 8)
    comparison, said = told(tmp_path / "*-0", tmp_path / "*-1")
    assert said == [f"the networks of *-{i} differ in more than their seed: width" for i in (0, 1)]
    assert "(95 % intervals over 2 and 2 networks)" in comparison.sentences()[0]
    assert told(wide, slim)[1] == []
    shutil.copytree(tmp_path / "wide-0", tmp_path / "wide-copy")
    assert told(wide, slim)[1] == ["some networks of wide-* have the same seed"]
    for path in (tmp_path / "slim-1" / "profiles").glob("epoch-0001.*"):
        path.unlink()
    _, said = told(tmp_path / "slim-0", tmp_path / "slim-1")
    assert said == [
        "slim-1 has reached epoch 0 of 1",
        "the networks were measured at different epochs: 0, 1",
    ]


def test_groups_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for seed in (0, 1):
            profile(seed).save(tmp_path / folder / f"s-{seed}.json")
    comparison = pfc.compare(str(tmp_path / "x" / "s-*"), str(tmp_path / "y" / "s-*"))
    assert [group.name for group in comparison.groups] == ["x/s-*", "y/s-*"]
    main(["compare", *(str(tmp_path / f / "s-0.json") for f in "xy"), "--names", "one", "two"])


def test_a_band_breaks_where_a_network_has_no_number(groups):
    a, b = groups[0][:2]
    unknown = replace(b, columns={**b.columns, "pfc1": (math.nan, b.columns["pfc1"][1])})
    for order in ([a, unknown], [unknown, a]):
        (ax,) = pfc.figures.layers({"x": order}, metrics=["pfc1"]).axes
        ends = ax.collections[0].get_paths()
        points = np.concatenate([path.vertices for path in ends])
        assert points[:, 0].min() == 1  # nothing at the first layer
    looks = {
        (line.get_color(), line.get_marker())
        for line in pfc.figures.layers({str(i): a for i in range(20)}, metrics=["pfc1"]).axes[0].lines
    }
    assert len(looks) == 20


def test_networks_of_other_data_under_one_name_are_told(tmp_path):
    """Without a limit the seed chooses nothing: other images are another kind."""
    for seed in (0, 1):
        images = pfc.data.load("digits")
        images = replace(images, labels=images.labels.roll(seed))
        recipe = replace(pfc.RECIPES["digits"], epochs=1, width=8, blocks=(1,))
        where = {"folder": tmp_path / f"r-{seed}", "seed": seed, "progress": False}
        for _ in pfc.train(recipe.build(images, seed), images, recipe, **where):
            pass
        slim = tmp_path / "single.json"
        pfc.load(tmp_path / f"r-{seed}").profiles[1].save(slim)
    _, said = told(tmp_path / "r-*", slim)
    assert said == ["the networks of r-* differ in more than their seed: fingerprint"]
