"""The wheel, the sdist and the site: built as a release would build them."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pfc

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both distributions; hatchling is there, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_has_the_package_and_what_lies_beside_its_modules(built):
    names = zipfile.ZipFile(built[0]).namelist()
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "pfc").rglob("*") if _shipped(path)}
    assert {name for name in names if name.startswith("pfc/")} == tracked
    assert "pfc/py.typed" in tracked
    text = zipfile.ZipFile(built[0]).read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert f"Version: {pfc.__version__}\n" in text
    assert "Classifier: Typing :: Typed" in text


def _shipped(path):
    return path.is_file() and "__pycache__" not in path.parts


def test_the_sdist_has_what_the_wheel_is_made_of_and_its_tests(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[1]).getnames()}
    wanted = ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "mkdocs.yml", "conftest.py")
    assert {*wanted, "pfc/py.typed", "tests/test_package.py", "docs/index.md"} <= names


def test_the_installed_wheel_runs_without_the_sources(built, tmp_path):
    target = str(tmp_path / "site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target]
    done = subprocess.run([*pip, str(built[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path.insert(0, {target!r}); import pfc; print(pfc.__file__, pfc.FCResNet)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.startswith(target), run.stderr


def test_the_site_is_built_without_a_complaint_and_has_every_page(tmp_path):
    """Strict: a link that leads nowhere, or a name that is not found, is an error."""
    pytest.importorskip("zensical")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    assert "No issues found" in said
    for page in (ROOT / "docs").glob("*.md"):
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / name).exists(), page.name
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "<math" in api
    assert "$$" not in api


def test_every_page_stands_in_the_navigation():
    listed = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_every_public_name_stands_in_the_api():
    told = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    modules = {"data", "experiments", "figures", "losses", "metrics", "models"}
    modules |= {"moments", "report", "theory"}
    lacks = [n for n in pfc.__all__ if n not in modules and f"pfc.{n}" not in told]
    assert lacks in ([], ["RECIPES"])
