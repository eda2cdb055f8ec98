"""Arguments of the functions of `pfc.theory`: of a wrong kind they are refused as what they are."""

import subprocess
import sys


def test_arguments_of_any_kind_are_taken_or_refused_in_words():
    command = [sys.executable, "-m", "tests.theory_arguments"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
