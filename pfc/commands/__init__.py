"""What the commands do: each a thin reading of arguments around the package's own functions."""

from pfc.commands.acting import exits as exits
from pfc.commands.acting import prune as prune
from pfc.commands.acting import scores as scores
from pfc.commands.comparing import compare as compare
from pfc.commands.measuring import measure as measure
from pfc.commands.models import mufm as mufm
from pfc.commands.profiles import figures as figures
from pfc.commands.report import report as report
from pfc.commands.reproduce import reproduce as reproduce
from pfc.commands.training import run as run
from pfc.commands.training import train as train
