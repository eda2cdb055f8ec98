"""Image sets by name, as one uint8 tensor, and features from a file of arrays."""

from pfc.data.arrays import Features as Features
from pfc.data.drawing import stratified as stratified
from pfc.data.images import Batches as Batches
from pfc.data.images import Images as Images
from pfc.data.images import Normalisation as Normalisation
from pfc.data.loading import held_out as held_out
from pfc.data.loading import load as load
from pfc.data.loading import splits as splits
from pfc.data.loading import subset as subset
