"""Run the Python blocks of the Markdown pages as tests."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[SkipParser(), PythonCodeBlockParser()], patterns=["*.md"], excludes=["records/*"]
).pytest()
