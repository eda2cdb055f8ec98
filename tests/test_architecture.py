"""The house: imports point one way, importing does nothing, the pages tell the truth."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pfc

ROOT = Path(__file__).parents[1]


def test_imports_point_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "3 kept, 0 broken" in result.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, pfc; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_measuring_loads_no_plots_and_no_data_sets():
    code = (
        "import sys; from pfc import measure, FCResNet; "
        "print([m for m in ('matplotlib', 'datasets', 'sklearn', 'pandas', 'scipy', 'transformers') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_module_has_its_line_in_the_architecture():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for path in sorted((ROOT / "pfc").rglob("*.py")):
        name = path.relative_to(ROOT / "pfc").name if path.name != "__init__.py" else path.parent.name
        if path.parent != ROOT / "pfc" or path.name != "__init__.py":
            assert name in page, f"{name} has no line in ARCHITECTURE.md"


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "pfc/__init__.py"
    assert f"## {pfc.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {pfc.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_torch_is_pinned_in_the_constraints_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [d for d in project["dependencies"] if d.startswith("torch")]
    assert torch == "torch>=2.6"
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()
    for heavy in ("torchvision", "timm"):
        assert heavy not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("drawer", ["utils", "helpers", "misc", "common"])
def test_there_is_no_drawer(drawer):
    assert not list(ROOT.glob(f"pfc/**/*{drawer}*"))


MAKES = {
    "zeros",
    "empty",
    "arange",
    "ones",
    "tensor",
    "eye",
    "full",
    "linspace",
    "as_tensor",
    "randn",
    "randperm",
}


def test_every_new_tensor_says_where_it_lies():
    """Else it would lie on the user's default device, which is none of ours."""
    silent = []
    for file in (ROOT / "pfc").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), keywords=given):
                    if name in MAKES and not any(k.arg in {"device", None} for k in given):
                        silent.append(f"{file}:{node.lineno}")
    assert not silent
