"""Runs and profiles in people's hands: one page of them, and what differs between them."""

from pfc.report.comparison import Comparison as Comparison
from pfc.report.comparison import compare as compare
from pfc.report.page import write as write
