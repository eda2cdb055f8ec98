"""Is the map from a segment's first to its last features an optimal transport map?"""

from pfc.theory.transport.cycles import Cycles as Cycles
from pfc.theory.transport.exact import Exact as Exact
from pfc.theory.transport.exact import Subset as Subset
from pfc.theory.transport.gelbrich import Gelbrich as Gelbrich
from pfc.theory.transport.semidiscrete import SemiDiscrete as SemiDiscrete
from pfc.theory.transport.verdict import Gap as Gap
from pfc.theory.transport.verdict import gap as gap
from pfc.theory.transport.verdict import restored as restored
from pfc.warning import moved

__getattr__ = moved(__name__, {"Atoms": "pfc.theory.transport:SemiDiscrete"})
