"""Figures of profiles: data in, a matplotlib figure out."""

from pfc.figures.acting import depth as depth
from pfc.figures.acting import operations as operations
from pfc.figures.album import of_profile as of_profile
from pfc.figures.album import of_run as of_run
from pfc.figures.axes import save as save
from pfc.figures.compared import compared as compared
from pfc.figures.compared import similarity as similarity
from pfc.figures.datasets import all_layers as all_layers
from pfc.figures.datasets import all_training as all_training
from pfc.figures.datasets import plane as plane
from pfc.figures.familiar import contact_sheet as contact_sheet
from pfc.figures.familiar import familiarity as familiarity
from pfc.figures.familiar import tunnel as tunnel
from pfc.figures.models import iterations as iterations
from pfc.figures.models import sweep as sweep
from pfc.figures.paper import layers as layers
from pfc.figures.paper import training as training
from pfc.figures.theory import certificates as certificates
from pfc.figures.theory import path as path
