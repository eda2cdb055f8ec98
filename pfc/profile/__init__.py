"""What was measured of a classifier: numbers, verdicts, files."""

from pfc.profile.prediction import Prediction as Prediction
from pfc.profile.prediction import load_transport as load_transport
from pfc.profile.profile import Profile as Profile
from pfc.profile.profile import load as load
from pfc.profile.segment import Segment as Segment
from pfc.warning import moved

_MOVED = ("Cost", "Monitor", "cost", "features", "measure", "transport")
__getattr__ = moved(__name__, {name: f"pfc.measuring:{name}" for name in _MOVED})
