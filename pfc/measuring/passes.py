"""The two passes: a model runs every batch, and its features go to a state that knows nothing of it."""

from collections.abc import Iterable

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import Fingerprint
from pfc.measuring.loader import Batch
from pfc.measuring.sums import Sums
from pfc.measuring.survey import Survey
from pfc.progress import Step

LOOK = 64  # batches between two looks at a device for features that are not finite; ours


def first_pass(
    survey: Survey, batches: Iterable[Batch], sums: Sums, inputs: Fingerprint | None, step: Step
) -> int:
    """Feed the features of all batches to `sums`, the inputs to their fingerprint; counts batches."""
    done = 0
    for batch in batches:
        done = batch.number + 1
        with sums.batch(batch.labels.to(sums.device), batch.number) as see:
            if inputs is not None:
                inputs.update(batch)
            survey.forward(batch, sums.device, see)
        if sums.device.type in SYNCHRONOUS_DEVICES or done % LOOK == 0:
            sums.check_finite()
        step(done, "pass 1")
    sums.check_finite()
    return done


def second_pass(
    survey: Survey,
    batches: Iterable[Batch],
    decisions: Decisions,
    inputs: Fingerprint,
    step: Step,
    done: int,
) -> None:
    """Feed the features of all batches again, and the classifier's answers, to `decisions`."""
    device = decisions.classes.device
    for batch in batches:
        inputs.update(batch)
        see, answered = decisions.batch(batch.labels.to(device), batch.number)
        answers = survey.forward(batch, device, see)
        if answers is not None:
            answered(answers)
        step(done + batch.number + 1, "pass 2")
