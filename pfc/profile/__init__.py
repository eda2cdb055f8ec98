"""Measure every layer of a classifier and keep what was found."""

from pfc.profile.costs import Cost as Cost
from pfc.profile.costs import cost as cost
from pfc.profile.measuring import features as features
from pfc.profile.measuring import measure as measure
from pfc.profile.measuring import transport as transport
from pfc.profile.prediction import Prediction as Prediction
from pfc.profile.result import Profile as Profile
from pfc.profile.result import load as load
from pfc.profile.segment import Segment as Segment
from pfc.profile.watching import Monitor as Monitor
