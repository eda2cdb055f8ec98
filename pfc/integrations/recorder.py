"""Measure while something trains, without a framework: `Recorder`."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from pfc.evaluation import is_sharded
from pfc.files import expanded
from pfc.foreign import in_words
from pfc.integrations.apart import Beginning, apart, changes
from pfc.measuring import measure as measure_network
from pfc.measuring.calling import check_model
from pfc.measuring.loader import MeasuredBatches
from pfc.measuring.sums import TooFewClassesError
from pfc.nets import one_of
from pfc.processes import together
from pfc.profile import Profile
from pfc.schema import one_line
from pfc.theory.coefficients import at_least
from pfc.training.recorded import RecordedFolder
from pfc.warning import warn

T = TypeVar("T")
OnError = Literal["warn", "raise"]
Log = Callable[[dict[str, float], int], object]
UNTOLD = {"progress", "device", "group", "statistics"}  # what changes no number


class Recorder:
    """Measures a network in training: call it with the network and the epoch.

    Each measurement is one of `pfc.measure`, and changes nothing of the training: weights, modes, hooks,
    gradients, buffers, random states and the generators of a loader are as they were, so that the
    training ends with the same bits with it and without. (A dataset that draws from a random generator
    of its own, in this process, does notice that it is read.)

    The first call tries two batches, before anything is measured, so that what can't work is refused at
    once; `check` does it before the training. What fails later costs a warning, not the training.

    In many processes every process makes the same call, as for `pfc.measure`; the first writes and logs.

    Args:
        data: What is measured: batches, as for `pfc.measure`. The training's own shuffled or augmented
            loader will do with `passes=1`; two passes need the same samples twice.
        every: Measure the epochs that are multiples of it; the others cost nothing.
        log: Called with a dict of numbers and the epoch, such as `run.log` of Weights & Biases or
            `mlflow.log_metrics`; or a `SummaryWriter` of TensorBoard.
        folder: Keep the profiles there, as a run that `pfc.load`, `pfc figures` and `pfc report` read.
            The class means, K x D numbers a layer, are kept of the newest profile alone. A folder that
            was kept so before goes on: an epoch that is measured again replaces its profile.
        on_error: What becomes of an error in measuring: `"warn"`, and the training goes on, or
            `"raise"`. With weights that many processes share (FSDP2) it is raised either way, as the
            others may wait for this one in their forward passes.
        prefix: What the keys of the numbers begin with.
        scalars: Of which layers `log` is told beside the last, whose keys are `pfc/pfc1` and so on:
            `"all"`, or names or globs such as `"blocks.*"`, for keys such as `pfc/blocks.3/pfc1`.
        **measure: Further arguments of `pfc.measure`, such as `layers`, `passes`, `segments`, `limit`,
            `pool`, `classifier`, `means` and `precision`; `progress` is `False` if not given.

    Raises:
        ValueError: If an argument has no meaning.

    Attributes:
        profiles: What was measured, by epoch; the class means of the newest alone.

    Examples:
        >>> import pfc, torch
        >>> digits = pfc.data.load("digits", limit=100)
        >>> net, logged = pfc.FCResNet(features=64, classes=10, width=16, blocks=2), {}
        >>> recorder = Recorder(digits.batches(), every=2, log=lambda d, epoch: logged.update(d))
        >>> for epoch in range(3):
        ...     profile = recorder(net, epoch)  # after the epoch's steps
        >>> list(recorder.profiles), "pfc/pfc1" in logged
        ([0, 2], True)
    """

    def __init__(
        self,
        data: Iterable[Any] | None = None,
        *,
        every: int = 1,
        log: Any = None,
        folder: str | Path | None = None,
        on_error: OnError = "warn",
        prefix: str = "pfc/",
        scalars: str | Sequence[str] = "last",
        **measure: Any,
    ) -> None:
        at_least(1, every=every)
        if scalars is None:
            raise ValueError("scalars must be 'last', 'all', or names or globs of layers, got None")
        one_of(OnError, on_error=on_error)
        _check_arguments(measure)
        self.data, self.every, self.on_error = data, every, on_error
        self.prefix, self.scalars = prefix, scalars
        self.measure: dict[str, Any] = {"progress": False, **measure}
        self.profiles: dict[int, Profile] = {}
        self._log = _logger(log)
        self._path = None if folder is None else expanded(folder)
        self._folder: RecordedFolder | None = None
        self._tried = False

    def __call__(self, net: nn.Module, epoch: int, data: Iterable[Any] | None = None) -> Profile | None:
        """Measure, if the epoch is due.

        Args:
            net: The network; wrappers (parallel, compiled) are looked through.
            epoch: Passes done so far, or steps; 0 is before training.
            data: What is measured, where `Recorder` was given none.

        Returns:
            The profile; `None` of an epoch that is not due, or whose measurement failed.

        Raises:
            ValueError: If the call itself is wrong; with `on_error="raise"` also what failed.
        """
        at_least(0, epoch=epoch)
        if not self._tried:
            self.check(net, data)
        return None if epoch % self.every else self.record(net, epoch, data)

    def check(self, net: nn.Module, data: Iterable[Any] | None = None) -> None:
        """Try the call on the first two batches; the folder is opened.

        Args:
            net: As for a call.
            data: As for a call.

        Raises:
            ValueError: If the network, the data, the folder or an argument will not do.
        """
        check_model(net)
        data = self._given(data)
        MeasuredBatches(data, None, torch.device("cpu"))  # refuses what can be read but once
        if self.measure.get("passes", 2) == 2 and (why := changes(data)):
            raise ValueError(
                f"the loader gives other samples each time ({why}), and two passes need the same: give "
                "one that does not, or measure with passes=1"
            )
        self._open()
        with apart(data) as own, warnings.catch_warnings(action="ignore"):  # so few samples say nothing
            try:
                profile = self._measured(net, Beginning(own))
            except TooFewClassesError:  # of two batches, in the order of the classes
                profile = None
        if profile is not None:
            self.told(profile)
            if self._folder is not None:
                self._in_first_process(partial(self._folder.check, profile))
        self._tried = True

    def record(self, net: nn.Module, epoch: int, data: Iterable[Any] | None = None) -> Profile | None:
        """Measure now, whether the epoch is due or not.

        Args:
            net: As for a call.
            epoch: As for a call.
            data: As for a call.

        Returns:
            The profile; `None` if measuring failed.

        Raises:
            ValueError: As for a call.
        """
        at_least(0, epoch=epoch)
        if not self._tried:
            self.check(net, data)
        given = self._given(data)
        profile = self._or_warn(
            f"epoch {epoch} was not measured",
            lambda: self._measured_apart(net, given),
            stop=is_sharded(net) and _are_many(),
        )
        if profile is None:
            return None
        older = {n: replace(p, moments={}) for n, p in self.profiles.items() if n != epoch}
        self.profiles = {**older, epoch: profile}
        for words, deliver in (("kept", self._keep), ("logged", self._tell)):
            work = partial(self._in_first_process, partial(deliver, epoch, profile))
            self._or_warn(f"the profile of epoch {epoch} was not {words}", work)
        return profile

    def told(self, profile: Profile, by: Literal["layer", "metric"] = "layer") -> dict[str, float]:
        """The numbers of a profile that loggers are told.

        Args:
            profile: What was measured.
            by: As for `Profile.scalars`.

        Returns:
            Those of the last layer, and of the layers that `scalars` names.

        Raises:
            ValueError: If `scalars` names no measured layer.
        """
        last = profile.scalars(self.prefix)
        return last if self.scalars == "last" else last | profile.scalars(self.prefix, self.scalars, by)

    def _given(self, data: Iterable[Any] | None) -> Iterable[Any]:
        data = self.data if data is None else data
        if data is None:
            raise ValueError("nothing to measure on: give batches to Recorder, or to its call")
        return data

    def _measured(self, net: nn.Module, data: Any) -> Profile:
        return measure_network(net, data, **self.measure)

    def _measured_apart(self, net: nn.Module, data: Any) -> Profile:
        with apart(data) as own:
            return self._measured(net, own)

    def _open(self) -> None:
        if self._path is not None and self._folder is None:
            folder = RecordedFolder(self._path, _told_of(self.measure))
            self._in_first_process(folder.open)
            self._folder = folder

    def _keep(self, epoch: int, profile: Profile) -> None:
        if self._folder is not None:
            self._folder.keep(epoch, profile)

    def _tell(self, epoch: int, profile: Profile) -> None:
        if self._log is not None:
            self._log(self.told(profile), epoch)

    def _in_first_process(self, work: Callable[[], None]) -> None:
        """Do what one process does for all; where it fails, it fails in all."""
        group = self.measure.get("group")
        with together(group) as ranks:
            if ranks.is_main and (group is not False or _first_of_all()):
                work()
            ranks.exchange("recorded")

    def _or_warn(self, what: str, work: Callable[[], T], *, stop: bool = False) -> T | None:
        try:
            return work()
        except Exception as error:
            if stop or self.on_error == "raise":
                raise
            warn(f"{what}, and the training goes on: {one_line(in_words(error))}", RuntimeWarning)
            return None


def _check_arguments(measure: Mapping[str, Any]) -> None:
    known = [*inspect.signature(measure_network).parameters][2:]
    for name in measure:
        if name not in known:
            raise ValueError(f"pfc.measure has no argument {name!r}; it has {', '.join(known)}")


def _logger(log: Any) -> Log | None:
    """What is called with numbers and epoch; of a TensorBoard writer number by number."""
    if callable(add := getattr(log, "add_scalar", None)):

        def write(numbers: dict[str, float], step: int) -> None:
            for key, value in numbers.items():
                add(key, value, step)

        return write
    if log is None:
        return None
    if not callable(log):
        raise ValueError(
            f"log must be called with a dict and a step, or be a SummaryWriter, got {type(log).__name__}"
        )
    try:
        inspect.signature(log).bind({}, 0)
    except TypeError as error:
        raise ValueError(f"log must take a dict and a step: {error}") from None
    except ValueError:  # some have no signature
        pass
    taken: Log = log
    return taken


def _told_of(measure: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `measure` as config.json keeps them, but for those that change no number."""
    return {name: _plain(value) for name, value in measure.items() if name not in UNTOLD}


def _plain(value: Any) -> Any:
    """What is no JSON by its kind: its own text may hold an address."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _first_of_all() -> bool:
    return not _are_many() or dist.get_rank() == 0


def _are_many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
