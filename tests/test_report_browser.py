"""A report's page in a real browser: one state of all views; keys, readers, dark, narrow, paper."""

import csv
import io
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

import pfc
from pfc.report.data import short
from tests.acting import act, noise
from tests.reports import MARKUP, odd, trained

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WHERE = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(WHERE is None, reason=f"no browser: none of {', '.join(BROWSERS)}")
OUTSIDE = re.compile(r"^(?!file:|data:|blob:)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    made = [trained(folder / "deep"), trained(folder / "flat", seed=1, blocks=(2,))]
    act(made[0].folder, noise(folder / "noise"))
    return made


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=WHERE, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser):
    """Opens a page; what it asks of the network, and what goes wrong in it, is kept."""
    contexts = []

    def open_page(path, width=1180, **how):
        context = browser.new_context(viewport={"width": width, "height": 900}, **how)
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        context.route(OUTSIDE, lambda route: (page.wrong.append(route.request.url), route.abort()))
        page.on("request", lambda r: page.wrong.append(r.url) if OUTSIDE.match(r.url) else None)
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (page.wrong.append("a dialog"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def both(runs, opened):
    """The page of two runs of different depth."""
    return opened(pfc.report.write([run.folder for run in runs], runs[0].folder.parent / "both.html"))


@pytest.fixture(autouse=True)
def nothing_is_wrong(request):
    yield
    if "both" in request.fixturenames:
        assert request.getfixturevalue("both").wrong == []


def settle(page):
    """Wait for the frame in which a change is drawn."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )
    settle(page)


def told(page):
    """What each slider of a chart tells."""
    plots = page.locator("#curves [role=slider]")
    return {p.get_attribute("aria-label"): p.get_attribute("aria-valuetext") for p in plots.all()}


def marked(page):
    """The marked layer's number, as each view has it."""
    rows = page.locator("#tables table:first-of-type tr[aria-current]").all()
    views = {
        page.locator("#layer").input_value(),
        *(str(1 + int(r.evaluate("r => r.rowIndex - 1"))) for r in rows),
    }
    layers = page.locator("#curves figure:nth-child(odd) [role=slider]").all()
    return views | {p.get_attribute("aria-valuenow") for p in layers}


def number(value):
    """As it is told: four of the page's five digits."""
    return f"{float(f'{short(value):.4g}'):g}"


def test_the_epoch_slider_moves_every_view(runs, both):
    slide(both, "layer", 2)
    for at, epoch in enumerate(sorted(runs[0].profiles)):
        slide(both, "epoch", at)
        profiles = [run.profiles[epoch] for run in runs]
        for figure, metric in ((1, "pfc1"), (3, "pfc2"), (5, "pfc3")):
            plot = both.locator(f"#curves figure:nth-child({figure}) [role=slider]")
            text = plot.get_attribute("aria-valuetext")
            for run, profile in zip(runs, profiles, strict=True):
                value = number(profile.columns[metric][1])
                assert f"{run.folder.name} {value} at blocks.0" in text
        first = both.locator("#tables caption").first.inner_text()
        assert first == f"deep, epoch {epoch}"
        cells = both.locator("#tables table").first.locator("tr").nth(2).locator("td").all_inner_texts()
        assert number(profiles[0].columns["pfc1"][1]) in cells
        assert both.locator("#tables table").count() == (2 if epoch == 4 else 1), "test data of the end"
    slide(both, "epoch", 0)
    assert "Nothing moves yet" in both.locator("#curves-note").inner_text()
    assert all(
        "NaN" not in svg for svg in both.locator("svg").evaluate_all("l => l.map(e => e.outerHTML)")
    )


def test_keys_and_pointer_mark_a_layer_everywhere(both):
    slide(both, "epoch", 9)
    slide(both, "layer", 1)
    chart = both.locator("#curves [role=slider]").first
    chart.focus()
    for key, layer in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 4), ("Home", 1)):
        both.keyboard.press(key)
        settle(both)
        assert marked(both) == {str(layer)}
    assert chart.evaluate("e => e === document.activeElement")
    both.keyboard.press("End")
    box = chart.bounding_box()
    both.mouse.move(box["x"] + 50, box["y"] + 60)
    settle(both)
    assert marked(both) == {"1"}
    both.locator("#tables table").first.locator("tbody tr").nth(2).hover()
    settle(both)
    assert marked(both) == {"3"}
    epochs = both.locator("#curves [role=slider]").nth(1)
    epochs.focus()
    both.keyboard.press("Home")
    settle(both)
    assert both.locator("#epoch").input_value() == "0"
    both.keyboard.press("End")
    settle(both)


def lines(page):
    return page.locator("#curves figure:first-child svg .line").evaluate_all(
        "l => l.map(e => [e.getAttribute('stroke'), e.getAttribute('points')])"
    )


def test_runs_are_switched_off_and_on_and_the_detail_changes(both):
    assert {stroke for stroke, _ in lines(both)} == {"var(--run-0)", "var(--run-1)"}
    both.get_by_label("flat", exact=True).uncheck()
    settle(both)
    assert {stroke for stroke, _ in lines(both)} == {"var(--run-0)"}
    assert not any("flat" in label for label in told(both))
    both.get_by_label("deep", exact=True).uncheck()
    settle(both)
    assert lines(both) == []
    for name in ("deep", "flat"):
        both.get_by_label(name, exact=True).check()
    both.locator("#detail").select_option(label="flat")
    settle(both)
    assert both.locator("#tables caption").first.inner_text() == "flat, epoch 4"
    both.locator("#detail").select_option(label="deep")
    both.locator("#test").uncheck()
    settle(both)
    assert both.locator("#tables table").count() == 1
    both.locator("#test").check()
    settle(both)


def points(page, figure=1):
    """Coordinates of a run's line, from its SVG."""
    found = page.locator(f"#curves figure:nth-child({figure}) svg .line").first.get_attribute("points")
    return np.array([[float(v) for v in point.split(",")] for point in found.split()])


def test_axes_are_the_place_on_the_path_or_the_number_and_linear_or_logarithmic(runs, both):
    profile = runs[0].profiles[4]
    place, pfc1 = (np.array(profile.columns[name]) for name in ("position", "pfc1"))

    def shown(x, scale):
        both.locator("#x").select_option(x)
        both.locator("#log").select_option(scale)
        settle(both)
        return points(both).T

    def straight(a, b):
        """Whether one is an affine map of the other, to the drawing's tenth of a pixel."""
        fit = np.polyval(np.polyfit(a, b, 1), a)
        return np.abs(fit - b).max() < 0.1

    x, y = shown("path", "log")
    assert straight(place, x)
    assert straight(np.log(pfc1), y)
    assert not straight(pfc1, y)
    x, y = shown("number", "linear")
    assert straight(np.arange(len(place)), x)
    assert straight(pfc1, y)
    shown("path", "log")


def test_another_column_is_drawn(runs, both):
    both.locator("#column").select_option("cdnv")
    settle(both)
    cdnv = number(runs[0].profiles[4].columns["cdnv"][2])
    assert any(label.startswith("cdnv over the layers") for label in told(both))
    assert any(f"deep {cdnv} at" in text for text in told(both).values())
    both.locator("#column").select_option("nc1")
    settle(both)


def test_matrices_tell_each_cell_and_the_map_keeps_distances(runs, both):
    slide(both, "layer", 3)
    layer, profile = "blocks.1", runs[0].profiles[4]
    known, sample = profile.geometry[layer], profile.sample
    cosine = float(known.gram[2, 7] / known.norm[2] / known.norm[7])
    cosines, confusion = (both.locator(f"#planes figure:nth-child({i})") for i in (1, 2))

    def told_at(figure, row, column):
        frame = figure.locator("svg .frame").bounding_box()
        side = frame["width"] / 10
        both.mouse.move(frame["x"] + (column + 0.5) * side, frame["y"] + (row + 0.5) * side)
        return figure.locator(".read").inner_text()

    cosines.scroll_into_view_if_needed()
    for row, column in ((2, 7), (7, 2)):
        text = told_at(cosines, row, column)
        assert text.startswith(f"Means of {row} and {column}: cosine ")
        assert float(text.split()[-1][:-1]) == pytest.approx(cosine, abs=6e-3 * abs(cosine))
    count, hits = (int(part[4]) for part in (known.count, known.hits))
    own = f"Of {count} samples of class 4, {hits} are nearest to the mean of 4."
    assert told_at(confusion, 4, 4) == own
    spots = both.locator("#planes .mean").evaluate_all(
        "l => l.map((e) => [e.cx.baseVal.value, e.cy.baseVal.value])"
    )
    drawn, true = np.array(spots), sample.means[layer].double().numpy()
    apart = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (drawn, true)]
    np.testing.assert_allclose(apart[0] / apart[0].max(), apart[1] / apart[1].max(), atol=1e-3)
    both.mouse.move(5, 5)
    settle(both)
    assert "Closest two means" in cosines.locator(".read").inner_text()


def saved(page, button):
    with page.expect_download() as found:
        button.click()
    return found.value.path().read_bytes()


def test_downloads_hold_what_is_seen(runs, both):
    chart = both.locator("#curves figure").first
    kinds = {kind: saved(both, chart.get_by_text(kind, exact=True)) for kind in ("SVG", "PNG", "CSV")}
    svg = ElementTree.fromstring(kinds["SVG"])
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"PFC1 over the layers" in kinds["SVG"]
    assert kinds["PNG"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(kinds["CSV"].decode())))
    expected = [v for run in runs for v in run.profiles[4].columns["pfc1"]]
    np.testing.assert_allclose([float(row["pfc1"]) for row in rows], expected, rtol=5e-5)
    every = list(csv.DictReader(io.StringIO(saved(both, both.locator("#csv")).decode())))
    layers = sum(len(p.layers) for run in runs for p in [*run.profiles.values(), run.profiles[4]])
    assert len(every) == layers
    assert {row["data"] for row in every} == {"digits (fit)", "held-out"}


def test_the_table_is_copied(runs, both):
    both.context.grant_permissions(["clipboard-read", "clipboard-write"])
    both.locator("#copy").click()
    both.get_by_text("Copied.").wait_for(timeout=2000)
    head, *rows = both.evaluate("navigator.clipboard.readText()").splitlines()
    assert head.split("\t")[:3] == ["layer", "position", "pfc1"]
    assert rows[0].split("\t")[:3] == ["stem", "0", number(runs[0].profiles[4].columns["pfc1"][0])]


def axe(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readers_find_nothing_amiss(both, scheme):
    both.emulate_media(color_scheme=scheme)
    settle(both)
    assert axe(both) == []
    assert both.locator(".acting img").count() == 3
    assert both.locator(".acting img").first.evaluate("image => image.naturalWidth") == 585
    ground = both.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")
    both.emulate_media(color_scheme="light")


def test_a_narrow_screen_and_paper_hold_it_all(both):
    across = "[document.documentElement.scrollWidth, innerWidth]"
    both.set_viewport_size({"width": 420, "height": 900})
    settle(both)
    wide, room = both.evaluate(across)
    assert wide <= room == 420
    both.locator("summary").first.click()  # folded, and yet on paper
    both.emulate_media(media="print")
    both.set_viewport_size({"width": 690, "height": 900})
    settle(both)
    wide, room = both.evaluate(across)
    assert wide <= room
    assert not both.locator("#controls").is_visible()
    assert both.locator("#state").is_visible()
    assert both.locator("details .theory li").first.is_visible()
    both.emulate_media(media="screen")
    both.locator("summary").first.click()
    both.set_viewport_size({"width": 1180, "height": 900})
    settle(both)


def test_profiles_of_all_kinds_are_shown_and_their_names_stay_text(opened, tmp_path):
    profiles = odd(tmp_path)
    page = opened(pfc.report.write(str(tmp_path / "*.json"), tmp_path / "all.html"))
    assert page.locator("#at-epoch").is_hidden()
    assert page.locator("#curves figure").count() == 4, "no charts over epochs"
    assert page.locator("img, b b, td b").count() == 0
    for i, name in enumerate(sorted(profiles)):
        page.locator("#detail").select_option(index=i)
        settle(page)
        heads = page.locator("#tables tbody th").all_inner_texts()
        assert heads == list(profiles[name].layers)
        assert page.locator("#tables caption").first.inner_text() == name
    labels = " ".join(told(page))
    assert MARKUP in labels
    assert "collapsed goes from 0 to 0" in labels, "zero has its place on a logarithmic scale"
    assert axe(page) == []
    assert page.wrong == []


def test_a_run_that_was_measured_once_has_no_slider(opened, tmp_path):
    odd(tmp_path)
    page = opened(pfc.report.write(tmp_path / "one-pass.json", tmp_path / "one.html"))
    assert page.locator("#runs").is_hidden()
    assert page.locator("#curves figure").count() == 3
    assert "No confusion of nearest means was kept here." in page.locator("#planes").inner_text()
    assert page.wrong == []


def test_the_guard_sees_what_goes_wrong(opened, tmp_path):
    """A page that would load something is seen to do so: the other tests can fail."""
    path = tmp_path / "bad.html"
    path.write_text('<img src="https://example.org/x.png"><script>no_such_name()</script>')
    page = opened(path)
    page.wait_for_timeout(50)
    assert any("example.org" in each for each in page.wrong)
    assert any("no_such_name" in each for each in page.wrong)
    page.wrong.clear()
    assert json.dumps(page.wrong) == "[]"
