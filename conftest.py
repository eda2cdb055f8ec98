"""Run the Python blocks of the Markdown pages as tests; one thread each where tests run side by side.

An `output` block under a Python block is what that one prints: the same words, and numbers within two
percent, as processors round differently.
"""

import math
import os
import re
from contextlib import redirect_stdout
from io import StringIO

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


def run(example: Example) -> None:
    """Run a Python block, and keep what it prints."""
    with redirect_stdout(StringIO()) as printed:
        PythonEvaluator()(example)
    example.namespace["printed"] = printed.getvalue()


def compare(example: Example) -> str | None:
    """What is wrong with the output under a block; `None` if nothing."""
    told, printed = str(example.parsed), example.namespace.get("printed", "")
    words = [NUMBER.sub("#", text).split() for text in (told, printed)]
    pairs = zip(*(map(float, NUMBER.findall(text)) for text in (told, printed)), strict=False)
    if words[0] == words[1] and all(math.isclose(a, b, rel_tol=0.02) for a, b in pairs):
        return None
    return f"the block above prints\n{printed}"


pytest_collect_file = Sybil(
    parsers=[SkipParser(), CodeBlockParser("python", run), CodeBlockParser("output", compare)],
    patterns=["*.md"],
    excludes=["records/*"],
).pytest()
