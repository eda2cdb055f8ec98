"""The two passes: a model runs every batch, and its features go to a state that knows nothing of it."""

from collections.abc import Iterable

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import Fingerprint
from pfc.measuring.loader import Batch
from pfc.measuring.sums import Sums
from pfc.measuring.survey import Survey
from pfc.processes import Processes
from pfc.progress import Step

LOOK = 64  # batches between two looks at a device for features that are not finite; ours


def first_pass(
    survey: Survey,
    batches: Iterable[Batch],
    sums: Sums,
    inputs: Fingerprint | None,
    ranks: Processes,
    step: Step,
) -> tuple[int, int]:
    """Feed the features of all batches to `sums`, and the inputs to their fingerprint.

    Returns:
        The number of batches, and the samples of the largest.
    """
    done = largest = 0
    for batch in batches:
        ranks.check_peers()
        largest, done = max(largest, len(batch)), batch.number + 1
        with sums.batch(batch.labels, batch.number) as see:
            if inputs is not None:
                inputs.update(batch)
            survey.forward(batch, see)
        if sums.device.type in SYNCHRONOUS_DEVICES or done % LOOK == 0:
            sums.check_finite()
        step(done, "pass 1")
    sums.check_finite()
    return done, largest


def second_pass(
    survey: Survey,
    batches: Iterable[Batch],
    decisions: Decisions,
    inputs: Fingerprint,
    ranks: Processes,
    step: Step,
    done: int,
) -> None:
    """Feed the features of all batches again, and the classifier's answers, to `decisions`."""
    for batch in batches:
        ranks.check_peers()
        inputs.update(batch)
        answers = survey.forward(batch, decisions.batch(batch.labels, batch.number))
        if answers is not None and decisions.answerable:
            decisions.compare(answers, batch.labels)
        step(done + batch.number + 1, "pass 2")
