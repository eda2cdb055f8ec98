"""From a model and batches to a profile of every layer."""

from pfc.measuring.collecting import features as features
from pfc.measuring.collecting import transport as transport
from pfc.measuring.costs import Cost as Cost
from pfc.measuring.costs import cost as cost
from pfc.measuring.entry import measure as measure
from pfc.measuring.entry import measure_features as measure_features
from pfc.measuring.monitor import Monitor as Monitor
from pfc.measuring.similarity import cka as cka
