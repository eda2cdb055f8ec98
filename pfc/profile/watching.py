"""Measure while training: the features of the training steps' own forward passes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pfc.metrics import Weighting, class_weights
from pfc.moments import BatchLabels
from pfc.place import device_of
from pfc.profile.batches import Batch, checked_labels, exact
from pfc.profile.measuring import assemble
from pfc.profile.passes import FirstPass
from pfc.profile.result import Profile
from pfc.profile.survey import Survey, survey
from pfc.taps import Layers, Pool, eager, undisturbed, unwrapped


class Monitor:
    """Gathers what one pass of `measure` would, from forward passes that are made anyway.

    It costs no forward pass of its own, but for a first look at two samples. Its numbers are of the
    features that training saw, which are not those of the network that training leaves: weights move
    while it gathers, batch normalisation normalises by the batch, dropout drops, data are augmented.
    Over an epoch of ordinary training PFC1 and PFC2 come out higher than `measure` finds them after it
    (`benchmarks/watching.py`: EARLY at first, LATE later): good for a curve, not for a result. Of a
    network in evaluation mode whose weights rest they are exactly those of `measure(..., passes=1)`.

    Only the forward passes inside `batch` are seen. Outside no hook is left; gradients, outputs and
    modes are the training's own. Compiled networks run eagerly inside. Give the labels as the loader
    gives them: of labels on a device each batch must wait for the host to know them.

    Args:
        model: The network in training; wrappers (parallel, compiled) are looked through.
        layers: As for `measure`.
        classes: As for `measure`.
        weighting: As for `measure`.
        segments: As for `measure`: half of the cost.
        pool: As for `measure`.
        classifier: As for `measure`.

    Raises:
        ValueError: If an argument has no meaning.

    Example:
        >>> import pfc
        >>> net = pfc.FCResNet(features=64, classes=10, width=32, blocks=2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> monitor = Monitor(net)
        >>> for x, y in pfc.data.load("digits", limit=100).batches(50):
        ...     with monitor.batch(y):
        ...         logits = net(x)
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(logits, y).backward()
        ...     optimizer.step()
        >>> monitor.profile().about["samples"]
        100
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Layers = None,
        classes: int | None = None,
        weighting: Weighting = "class",
        segments: bool = True,
        pool: Pool = "flatten",
        classifier: str | nn.Module | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if classes is not None and classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        class_weights(torch.ones(2, dtype=torch.float64), weighting)
        self._asked = (model, layers, classifier, pool)
        self._classes, self._weighting, self._paired = classes, weighting, segments
        self._looked: Survey | None = None
        self._first: FirstPass | None = None
        self._number = 0

    @contextmanager
    def batch(self, y: Any) -> Iterator[None]:
        """See the forward pass of the block; a block that fails loses all since the last profile.

        Args:
            y: Class of each sample of the batch.

        Yields:
            Nothing.

        Raises:
            ValueError: If the labels are no class indices, a layer does not run once, or its shape is
                another than before.
        """
        place = device_of(None, self._asked[0])
        labels = BatchLabels.of(checked_labels(y, self._number), exact(place))
        try:
            with eager(), ExitStack() as stack:
                self._watch(Batch(self._number, (), {}, labels), stack)
                yield
            if self._first is None:
                raise ValueError(f"the network did not run in the block of batch {self._number}")
        except BaseException:
            self._first, self._number = None, 0
            raise
        self._number += 1

    def _watch(self, batch: Batch, stack: ExitStack) -> None:
        """See this batch; the very first look needs the inputs, which the network's call brings."""
        if self._looked is not None:
            self._see(batch, stack)
            return

        def look(_net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handle.remove()
            self._looked = self._look(replace(batch, args=args, kwargs=kwargs))
            self._see(batch, stack)

        handle = unwrapped(self._asked[0]).register_forward_pre_hook(look, with_kwargs=True)
        stack.callback(handle.remove)

    def _look(self, batch: Batch) -> Survey:
        model, layers, classifier, pool = self._asked
        with undisturbed(unwrapped(model), device_of(None, model)):
            return survey(model, batch, layers, classifier, pool)

    def _see(self, batch: Batch, stack: ExitStack) -> None:
        if self._first is None:
            self._first = FirstPass(*self._asked, self._classes, segments=self._paired, again=False)
            self._first.begin(batch, None, self._looked)
        stack.enter_context(self._first.seeing(batch))

    def profile(self) -> Profile:
        """The metrics of one pass over what was seen since the last profile; gathers anew from here.

        Returns:
            As `measure` with `passes=1`, NC3 by the classifier of now; `about` has `watched` besides.

        Raises:
            ValueError: If no batch was seen, features were not finite, or less than two classes came.
        """
        first, self._first, self._number = self._first, None, 0
        if first is None:
            raise ValueError(
                "no batch was seen since the last profile: run the network in `with monitor.batch(y):`"
            )
        first.finish()
        profile = assemble(first, None, self._weighting, None)
        return replace(profile, about={**profile.about, "watched": True})
