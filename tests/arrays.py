"""Features at hand, measured as `pfc.measure_features` does it, in small blocks."""

from unittest.mock import patch

import pfc
from pfc.measuring import arrays


def profile_of(layers, y, *, weighting="class", W=None, b=None, batch=17, paired=True, **more):
    """The profile of arrays N x D by name; the last is the input of the classifier `W`, `b`."""
    head = W if b is None else (W, b)
    how = {"weighting": weighting, "segments": paired, "progress": False, **more}
    with patch.multiple(arrays, BLOCK=0, LEAST=batch):
        return pfc.measure_features(layers, y, classifier=head, **how)
