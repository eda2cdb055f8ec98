"""Run the Python blocks of the Markdown pages as tests; one thread each where tests run side by side."""

import os

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_collect_file = Sybil(
    parsers=[SkipParser(), PythonCodeBlockParser()], patterns=["*.md"], excludes=["records/*"]
).pytest()
