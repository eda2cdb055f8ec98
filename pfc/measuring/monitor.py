"""Measure while training: the features of the training steps' own forward passes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.device import device_of
from pfc.evaluation import eager, undisturbed
from pfc.labels import BatchLabels
from pfc.layers import Layers
from pfc.measuring.assembly import assemble
from pfc.measuring.calling import check_model
from pfc.measuring.head import Classifier
from pfc.measuring.loader import Batch, float64_device
from pfc.measuring.passes import Measured
from pfc.measuring.sums import Sums
from pfc.measuring.survey import Request, Survey, survey
from pfc.metrics import Weighting, class_weights
from pfc.profile.profile import Profile
from pfc.samples import class_indices
from pfc.taps import Pool, unwrapped

GROUP = 2**20  # features that are gathered before they are summed: small steps cost calls, not work


@dataclass(frozen=True, eq=False)
class _Step:
    """The features of one small step."""

    number: int
    y: Int64[Tensor, " B"]
    rows: dict[str, Float[Tensor, "B D"]]

    def keep(self, name: str, H: Float[Tensor, "B D"]) -> None:
        """A copy: the network may write over its own."""
        self.rows[name] = H.clone()


class Monitor:
    """Gathers what one pass of `measure` would, from forward passes that are made anyway.

    It costs no forward pass of its own, but for a first look at two samples. Its numbers are of the
    features that training saw, which are not those of the network that training leaves: weights move
    while it gathers, batch normalisation normalises by the batch, dropout drops, data are augmented. On
    the digits (`benchmarks/watching.py`) PFC1 of the last layer came out 2.7 times what `measure` finds
    after the first epoch and 1.2 to 1.6 times after the others, PFC2 0.8 to 1.2 times: good for a curve,
    not for a result. It added 20 % to the steps of a convolutional network where a pass of `measure`
    adds 41 %, but 65 % to those of a perceptron that take 3 ms, where that pass adds 56 %. Of a network
    in evaluation mode whose weights rest the numbers are those of `measure(..., passes=1)`.

    Only the forward passes inside `batch` are seen, not what runs again in a backward pass. Outside no
    hook is left; gradients, outputs and modes are the training's own. Compiled networks run eagerly
    inside. Give the labels as the loader gives them: of labels on a device each batch must wait for the
    host to know them.

    Args:
        model: The network in training; wrappers (parallel, compiled) are looked through.
        layers: Names, globs such as `"blocks.*"`, or modules; chosen as `measure` does if `None`.
        classes: Number of classes; by default the classifier's outputs, else one more than the largest
            label.
        weighting: Class weights in covariances: `"class"`, equal, or `"sample"`, proportional to
            counts.
        segments: Also accumulate cross-layer statistics of layers of one shape.
        pool: How to reduce tokens or pixels to one vector per sample, as for `measure`.
        classifier: What gives the logits, as for `measure`; found by itself if `None`.

    Raises:
        ValueError: If an argument has no meaning.

    Examples:
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
        classifier: Classifier = None,
    ) -> None:
        check_model(model)
        if classes is not None and classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if pool == "tokens":
            raise ValueError("pool='tokens' must know all labels before it begins: take measure()")
        class_weights(torch.ones(2, dtype=torch.float64, device="cpu"), weighting)
        self._request = Request(model, layers, classifier, pool, segments)
        self._classes, self._weighting = classes, weighting
        self._survey: Survey | None = None
        self._sums: Sums | None = None
        self._number = 0
        self._device = torch.device("cpu")
        self._waiting: list[_Step] = []

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
        y = class_indices(y, batch=self._number)
        try:
            with eager(), ExitStack() as stack:
                ran = self._watch(y, stack)
                yield
            if not ran or self._sums is None:
                raise ValueError(f"the network did not run in the block of batch {self._number}")
        except BaseException:
            self._forget()
            raise
        self._number += 1
        if sum(len(step.y) for step in self._waiting) * self._features >= GROUP:
            self._add_waiting(self._sums)

    @property
    def _features(self) -> int:
        """Features of a sample at all layers together."""
        return 0 if self._survey is None else sum(self._survey.layout.features.values())

    def _forget(self) -> None:
        self._sums, self._number = None, 0
        self._waiting.clear()

    def _watch(self, y: Int64[Tensor, " B"], stack: ExitStack) -> list[int]:
        """See this batch, whose inputs the network's call brings: a mask of tokens may be among them."""
        ran: list[int] = []

        def look(_net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handle.remove()
            ran.append(self._number)
            batch = Batch(self._number, args, kwargs, y)
            self._survey = self._survey or self._looked(batch)
            self._see(self._survey, batch, stack)

        net = unwrapped(self._request.model)
        handle = net.register_forward_pre_hook(look, with_kwargs=True)
        stack.callback(handle.remove)
        return ran

    def _looked(self, batch: Batch) -> Survey:
        model = self._request.model
        device = device_of(None, model)
        self._device = float64_device(device)
        with undisturbed(unwrapped(model), device):
            return survey(self._request, batch, form="given")

    def _see(self, looked: Survey, batch: Batch, stack: ExitStack) -> None:
        """A large step is summed in its hooks, a small one waits for others."""
        y = batch.y
        if self._sums is None:
            classes = self._classes or looked.layout.classes
            self._sums = Sums.empty(looked.layout, classes, self._device)
        if len(y) * self._features >= GROUP:
            see = stack.enter_context(self._sums.batch(BatchLabels.of(y, self._device), self._number))
        else:
            self._sums.make_room(int(y.max()), self._number)
            step = _Step(self._number, y, {})
            self._waiting.append(step)
            see = step.keep
        stack.enter_context(looked.watching(batch, self._device, see))

    def _add_waiting(self, sums: Sums) -> None:
        """Sum up the small steps."""
        steps, self._waiting = self._waiting, []
        if not steps:
            return
        rows = {name: torch.cat([step.rows[name] for step in steps]) for name in steps[0].rows}
        labels = BatchLabels.of(torch.cat([step.y for step in steps]), self._device)
        numbers = torch.tensor([step.number for step in steps for _ in step.y], device=self._device)
        sums.update(rows, labels, numbers)

    def profile(self) -> Profile:
        """The metrics of one pass over what was seen since the last profile; gathers anew from here.

        Returns:
            As `measure` with `passes=1`, NC3 by the classifier of now; `about` has `watched` besides.

        Raises:
            ValueError: If no batch was seen, features were not finite, or less than two classes came.
        """
        sums, looked = self._sums, self._survey
        if sums is None or looked is None:
            raise ValueError(
                "no batch was seen since the last profile: run the network in `with monitor.batch(y):`"
            )
        self._add_waiting(sums)
        self._forget()
        sums.check_finite()
        sums.check()
        about = {"data": None, "precision": None, "processes": 1, "exchanged": 0, "watched": True}
        return assemble(Measured(sums), self._weighting, W=looked.weight, about=about)
