"""Runs that are killed go on to the same bytes: the benchmark, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path):
    command = [sys.executable, BENCHMARKS / "kill.py", "--tries", "3", "--seed", "5"]
    subprocess.run([*command, "--json", tmp_path / "kill.json"], check=True, capture_output=True)
    record = json.loads((tmp_path / "kill.json").read_text())
    assert [sum(kills.values()) for kills in record["kills"].values()] == [1, 1, 1]
    assert all(done >= 1 for done in record["folders_done_and_compared"].values())


def test_the_record_is_of_fifty_kills():
    record = json.loads((BENCHMARKS / "kill.json").read_text())
    kinds = ("kills", "left_on_disk")
    assert [sum(sum(n.values()) for n in record[kind].values()) for kind in kinds] == [50, 50]
    assert record["tries"] == 50
    assert record["verdict"].endswith("byte for byte")
    half = sum(left.get("a file half written", 0) for left in record["left_on_disk"].values())
    assert half >= 10, "writes are hit"
