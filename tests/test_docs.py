"""The README's commands run: `pfc` commands at a small size where they are marked so."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pfc.cli import main

ROOT = Path(__file__).parents[1]
DOCS = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
README = (ROOT / "README.md").read_text()
SMALL = "--limit 200 --epochs 2 --width 16 --blocks 2".split()  # in place of the sizes that are told


def block(mark):
    """Lines of the shell block under a mark."""
    found = re.search(rf"<!-- {mark} -->\n```shell\n(.*?)\n```", README, re.DOTALL)
    assert found, f"the README has no block under {mark}"
    return found[1].splitlines()


def small(command):
    """The same command, made to take seconds: training at a small size."""
    words = shlex.split(command)
    if words[1] not in {"run", "train"}:
        return words[1:]
    told = {option for option in SMALL if option.startswith("--")}
    kept = [w for i, w in enumerate(words) if w not in told and words[i - 1] not in told]
    return kept[1:] + SMALL


def test_pfc_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in block("small"):
        assert command.startswith("pfc ")
        main(small(command))
    assert (tmp_path / "runs" / "digits" / "figures" / "layers.png").exists()
    assert (tmp_path / "runs" / "wide" / "state.safetensors").exists()
    assert (tmp_path / "runs" / "before.json").exists()
    assert "Progressive feedforward collapse" in capsys.readouterr().out


@pytest.mark.parametrize("mark", ["run", "tests"])
def test_set_up_is_one_chain_with_the_constraints(mark):
    (chain,) = block(mark)
    steps = chain.split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1].startswith(".venv/bin/python -m pip install -c constraints.txt -e ")
    tests = ".venv/bin/python -m pytest -n 2 --dist loadfile"
    assert steps[2] == {"run": ".venv/bin/pfc run", "tests": tests}[mark]


def test_ci_takes_its_commands_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install" not in script
    line = next(line for line in script.splitlines() if line.startswith("chain="))
    found = subprocess.run(
        ["bash", "-c", f'{line}\necho "$chain"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == block("tests")


def test_links_of_the_pages_lead_somewhere():
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *DOCS):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.slow
def test_the_main_job_at_full_size(tmp_path, monkeypatch, capsys):
    """`pfc run` as the README has it: the last layer collapses in under two minutes."""
    monkeypatch.chdir(tmp_path)
    main(["run"])
    out = capsys.readouterr().out
    assert "Progressive feedforward collapse holds" in out


def test_speeds_of_the_page_are_the_records():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    engine, network, decode, line, mufm = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
        for name in ("engine", "network", "decode", "line", "mufm")
    )
    one, both = (engine["ratio"][f"passes={p}"] for p in (1, 2))
    assert f"| one pass {one:.2f}, both {both:.2f}; PFC1 within 1e-13" in page
    assert engine["relative_error_of_pfc1"] < 1e-13
    few, more = network["ratio"], network["24 batches"]["ratio"]
    words = (
        "one pass {:.2f}, with cross-layer statistics {:.2f}, two passes {:.2f}, with all metrics {:.2f}"
    )
    assert f"| {words} |".format(*more.values()) in page
    assert "| {:.2f}, {:.2f}; {:.2f}, {:.2f} |".format(*few.values()) in page
    missed = [name for name, ratio in more.items() if ratio > network["aim"][name]]
    assert missed == ["two passes with segments"], "the page says which aim is missed"
    assert f"| {decode['ratio']['pfc']:.2f}; from the cache" in page
    told = "| {one end, float64:.2f} of float64 features, {one end, float32:.2f} of float32 ones |"
    assert told.format(**line["ratio"]) in page
    ends, pixels = mufm["toy"], mufm["real"]["cifar10"]
    longest = max(end["polished to 1e-12"]["milliseconds"] for end in ends.values())
    faster = ends["0.0001"]["descent to within 1e-3 over polished"]
    assert f"| {longest:.1f} ms, {faster:,} times faster |" in page
    assert longest < 60
    assert faster > 1000
    assert all(end["to 1e-8"]["milliseconds"] < 10 for end in ends.values())
    assert f"| {pixels['largest_cpu_seconds']:.2f} s at most |" in page
    assert pixels["largest_cpu_seconds"] <= 1
    assert pixels["largest_above_the_longer_run"] <= 1e-5
    assert len(pixels["rows"]) >= 12
    versions = json.loads((ROOT / "benchmarks" / "versions.json").read_text())["ratio"].values()
    told = [f"{ratio:.2f}" for ratio in versions]
    words = "| {}, {}; {}, {}, {}; {}; {}, {} |"
    assert words.format(*told) in page
    assert all(ratio <= 1.02 for ratio in versions), "the page would have to say so"
    for record in (engine, network, decode):
        for name, ratio in record["ratio"].items():
            aim = record["aim"][name]
            assert ratio <= aim or f"missed: aim {aim:g}" in page, "the page has to say what is missed"
    for name, aim in line["aim"].items():
        assert line["ratio"][name] <= aim
