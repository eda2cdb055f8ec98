"""The unconstrained features model with data (MUFM), problem (13) of arXiv 2405.00985, solved."""

from pfc.theory.mufm import flow as flow
from pfc.theory.mufm.expected import Optimum as Optimum
from pfc.theory.mufm.expected import optimum as optimum
from pfc.theory.mufm.flow import expansion as expansion
from pfc.theory.mufm.iterates import iterates as iterates
from pfc.theory.mufm.layered import Layered as Layered
from pfc.theory.mufm.layered import solve_layered as solve_layered
from pfc.theory.mufm.proof import SpuriousMinimaWarning as SpuriousMinimaWarning
from pfc.theory.mufm.solution import Solution as Solution
from pfc.theory.mufm.solving import solve as solve
from pfc.theory.mufm.solving import sweep as sweep
from pfc.theory.mufm.statistics import Statistics as Statistics
from pfc.theory.mufm.statistics import gather as gather
from pfc.theory.trace import Trace as Trace
from pfc.warning import moved

__getattr__ = moved(__name__, {"Iterates": "pfc.theory.mufm:Trace"})
