"""Figures and profiles show themselves in notebooks, and leave the user's own matplotlib alone."""

import base64
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from pfc import figures
from pfc.measuring import measure
from tests.test_figures import DRAWN, batches, net


@pytest.fixture(scope="module")
def profile():
    return measure(net(), batches(), progress=False)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_shows_itself(profile, name):
    figure = DRAWN[name](profile)
    with Image.open(BytesIO(figure._repr_png_())) as image:
        image.load()
        assert image.size == pytest.approx(figure.get_size_inches() * 144, abs=1)


def test_a_shown_figure_can_still_be_changed_pickled_and_saved(profile, tmp_path):
    figure = figures.layers(profile)
    before = figure._repr_png_()
    again = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_() == before
    again.axes[0].set_title("a title of the user's own")
    assert again._repr_png_() != before == figure._repr_png_()
    copy = deepcopy(figure)
    copy.axes[0].set_title("another one")
    assert copy._repr_png_() != before == figure._repr_png_()
    assert figure.get_layout_engine() is not None
    figure.savefig(tmp_path / "own.png")
    shown, fresh = (
        figures.save(f, tmp_path / n) for f, n in ((figure, "a"), (figures.layers(profile), "b"))
    )
    assert shown[0].read_bytes() == fresh[0].read_bytes()


USER = {"text.usetex": True, "font.size": 30, "font.family": "monospace", "axes.facecolor": "black"}


def test_the_users_matplotlib_changes_no_figure_and_is_left_alone(profile, tmp_path):
    known = [path.read_bytes() for path in figures.save(figures.layers(profile), tmp_path / "known")]
    with matplotlib.rc_context(USER):
        before = dict(matplotlib.rcParams)
        figure = figures.layers(profile)
        assert figure._repr_png_()
        found = [path.read_bytes() for path in figures.save(figures.layers(profile), tmp_path / "found")]
        assert dict(matplotlib.rcParams) == before
    assert found == known


@pytest.mark.parametrize(("backend", "kept"), [("no-such-backend", False), ("svg", True)])
def test_a_backend_that_is_not_installed_is_not_needed(tmp_path, backend, kept):
    code = (
        "import os, sys, pfc\n"
        "from matplotlib_free import profile\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print(pfc.figures.save(pfc.figures.layers(profile), 'fig.png')[0].name)\n"
        "import matplotlib\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
        f"assert (dict.__getitem__(matplotlib.rcParams, 'backend') == {backend!r}) == {kept}\n"
    )
    (tmp_path / "matplotlib_free.py").write_text(
        "import pfc\n"
        "digits = pfc.data.load('digits')\n"  # enough samples for any first weights to be told of none
        "net = pfc.FCResNet(features=64, classes=10, width=32, blocks=1)\n"
        "profile = pfc.measure(net, digits.batches(), progress=False)\n"
    )
    root = str(Path(__file__).parents[1])
    env = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": False}
    found = subprocess.run(command, **how)
    assert (found.returncode, found.stdout) == (0, "fig.png\n"), found.stderr


CELLS = """
import pfc, sys
digits = pfc.data.load("digits", limit=200)
net = pfc.FCResNet(features=64, classes=10, width=32, blocks=2, zero_start=False)
profile = pfc.measure(net, digits.batches(), progress=False); profile
---
pfc.figures.layers(profile)
---
profile.segment()
---
profile.prediction()
---
assert "matplotlib.pyplot" not in sys.modules
from matplotlib import pyplot
pfc.figures.training({0: profile}, width=3.25)
---
import matplotlib
matplotlib.get_backend(), len(pyplot.get_fignums())
"""


def test_a_notebook_shows_figures_without_magic(tmp_path):
    """A kernel runs the cells one by one: what is the last line of each is shown."""
    pytest.importorskip("ipykernel")
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    root = str(Path(__file__).parents[1])
    env = {"PYTHONPATH": root, "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    nbclient.NotebookClient(notebook, timeout=120).execute(env=os.environ | env)
    outputs = [[o["data"] for o in cell["outputs"] if "data" in o] for cell in notebook.cells]
    assert list(map(len, outputs)) == [1] * 6, "each cell shows one thing, once"
    table, layers, segment, prediction, training, backend = (each for (each,) in outputs)
    assert "<table" in table["text/html"]
    for figure, width in ((layers, 7.0), (training, 3.25)):
        with Image.open(BytesIO(base64.b64decode(figure["image/png"]))) as image:
            assert image.width >= 100 * width * 0.9
    assert segment["text/plain"].startswith("Segment(stem to blocks.1: 3 layers, 10 classes")
    assert "Theorem 1: on the line" in prediction["text/html"]
    assert "inline" in backend["text/plain"]
    assert backend["text/plain"].endswith(", 0)"), "no figure of ours is pyplot's"
