"""Features at hand fed to the engine's states: what `measure` does, without a model."""

import torch

from pfc.labels import BatchLabels
from pfc.measuring.assembly import assemble
from pfc.measuring.decisions import Decisions
from pfc.measuring.layout import Layout
from pfc.measuring.sums import Sums
from pfc.nearest import MeansSpan


def profile_of(layers, y, *, weighting="class", W=None, b=None, batch=17, paired=True):
    """The profile of arrays N x D by name; the last is the input of the classifier `W`, `b`."""
    layout = Layout(
        shapes={name: tuple(H.shape[1:]) for name, H in layers.items()},
        paired=paired,
        classifier=None if W is None else "head",
        outputs=0 if W is None else len(W),
        classifier_row=None if W is None else list(layers)[-1],
    )
    parts = [
        ({name: H[rows] for name, H in layers.items()}, BatchLabels.of(y[rows]))
        for rows in torch.arange(len(y)).split(batch)
    ]
    sums = Sums.empty(layout, None)
    for number, (features, labels) in enumerate(parts):
        sums.update(features, labels, number)
    sums.check_finite()
    sums.check()
    spans = {name: MeansSpan.of(moments, weighting) for name, moments in sums.moments.items()}
    decisions = Decisions.about(sums, spans)
    for number, (features, labels) in enumerate(parts):
        see, answered = decisions.batch(labels, number)
        for name, H in features.items():
            see(name, H)
        if W is not None:
            answers = (features[layout.classifier_row] @ W.mT + (0 if b is None else b)).argmax(1)
            answered(answers)
    decisions.check()
    return assemble(sums, decisions, weighting, W=W)
