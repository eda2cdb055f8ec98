"""Models by name, each with its own preprocessing and its own numbering of the classes."""

from pfc.models.loaded import Loaded as Loaded
from pfc.models.loading import load as load
from pfc.models.samples import Samples as Samples
