"""A callback that measures while Lightning trains; it works with `lightning` and `pytorch_lightning`."""

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pfc.integrations.recorder import OnError, Recorder

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:

    def _bases() -> tuple[type, ...]:
        """The base classes of callbacks in the packages that are installed; usually both are."""
        found = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                found.append(import_module(name).Callback)
            except ModuleNotFoundError as error:
                if str(error.name).partition(".")[0] not in {"lightning", "pytorch_lightning"}:
                    raise
        if not found:
            raise ImportError("Lightning is not installed: pip install 'pfc[lightning]'")
        return tuple(found)

    Callback, LightningModule, Trainer = type("Callback", _bases(), {}), Any, Any

PRECISIONS = {  # of a Trainer: in which type its forward passes run
    **dict.fromkeys(("bf16-mixed", "bf16-true"), "bfloat16"),
    **dict.fromkeys(("16-mixed", "16-true"), "float16"),
}


class Collapse(Callback):
    """Measures at the end of training epochs, and logs what it found.

    The network is measured after the first epoch, after each `every`-th and after the last, by
    `pfc.Recorder`, and the training ends with the same bits as without. The numbers are logged by the
    module's own `log_dict`, so that every logger has them, and `ModelCheckpoint` and `EarlyStopping`
    can monitor `pfc/pfc1`, of the last layer, or `pfc/pfc1/blocks.3`. Before the first step two
    batches are tried.

    Lightning keeps the numbers of an epoch until there are new ones, so a callback that monitors them
    at epochs that are not measured would act on old ones. It is refused before the first step: it
    needs `every=1`, or, of a `ModelCheckpoint`, an `every_n_epochs` that is a multiple of `every`.
    Where a training ends early its last epoch is measured when it has ended, too late for callbacks.

    Args:
        data: What is measured: batches, as for `pfc.measure`. If `None`, the trainer's own training
            loader, with `passes=1` as it may be augmented.
        network: What is measured of the module: the name of an attribute such as `"net"`, or a function
            of the module. The module itself, by its `forward`, if `None`.
        every: Epochs between two measurements.
        log: As for `pfc.Recorder`, besides the trainer's loggers.
        folder: As for `pfc.Recorder`; epochs are numbered by the passes done, from 1 on.
        on_error: As for `pfc.Recorder`.
        prefix: What the keys begin with.
        scalars: Of which layers is logged beside the last: `"all"`, names or globs, or `"last"` for
            none.
        **measure: As for `pfc.Recorder`; `precision` is the trainer's if not given.

    Raises:
        ValueError: If an argument has no meaning.
        ImportError: On import of this module, if Lightning is not installed.

    Attributes:
        recorder: The `pfc.Recorder`, whose `profiles` are what was measured.
    """

    def __init__(
        self,
        data: Iterable[Any] | None = None,
        *,
        network: str | Callable[[Any], nn.Module] | None = None,
        every: int = 1,
        log: Any = None,
        folder: str | Path | None = None,
        on_error: OnError = "warn",
        prefix: str = "pfc/",
        scalars: str | Sequence[str] = "all",
        **measure: Any,
    ) -> None:
        super().__init__()
        how = {"every": every, "log": log, "folder": folder, "on_error": on_error}
        usual = {"passes": 1} if data is None else {}
        self.recorder = Recorder(data, prefix=prefix, scalars=scalars, **how, **(usual | measure))
        self._network = attrgetter(network) if isinstance(network, str) else network
        self._done = self._tried = 0  # passes done, and after how many the last measurement was tried

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Try two batches.

        Args:
            trainer: Lightning's.
            pl_module: The module.

        Raises:
            ValueError: If what is to be measured will not do, or a callback monitors an epoch that
                is not.
        """
        self._check_monitors(trainer)
        self._done = self._tried = 0
        self.recorder.measure.setdefault("precision", PRECISIONS.get(str(trainer.precision)))
        self.recorder.check(self._net(pl_module), self._data(trainer))

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measure and log, if the epoch is due.

        Args:
            trainer: Lightning's.
            pl_module: The module.
        """
        self._done = trainer.current_epoch + 1
        if self._is_due(self._done, trainer):
            pl_module.log_dict(self._measured(trainer, pl_module), sync_dist=False)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measure the last epoch of a training that was stopped early; loggers are told directly.

        Args:
            trainer: Lightning's.
            pl_module: The module.
        """
        if self._done == self._tried:
            return
        if numbers := self._measured(trainer, pl_module):
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    def _measured(self, trainer: "Trainer", module: "LightningModule") -> dict[str, float]:
        """The numbers of the last epoch, the same in every process; none if measuring failed."""
        self._tried = self._done
        profile = self.recorder.record(self._net(module), self._done, self._data(trainer))
        return {} if profile is None else self.recorder.told(profile, "metric")

    def _check_monitors(self, trainer: "Trainer") -> None:
        """Refuse what would act on the numbers of an older epoch."""
        every, prefix = self.recorder.every, self.recorder.prefix
        for callback in getattr(trainer, "callbacks", []):
            key = getattr(callback, "monitor", None)
            if not isinstance(key, str) or not key.startswith(prefix):
                continue
            if getattr(callback, "_every_n_epochs", 1) % every:
                raise ValueError(
                    f"{type(callback).__name__} monitors {key!r} at epochs that every={every} does not "
                    "measure, and would act on old numbers: use every=1, or of a ModelCheckpoint an "
                    f"every_n_epochs that is a multiple of {every}"
                )

    def _is_due(self, done: int, trainer: "Trainer") -> bool:
        last = done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return done % self.recorder.every == 0 or done == 1 or last

    def _net(self, module: "LightningModule") -> nn.Module:
        if self._network is None:
            return module
        try:
            return self._network(module)
        except AttributeError as error:
            raise ValueError(f"network= names nothing in {type(module).__name__}: {error}") from None

    def _data(self, trainer: "Trainer") -> Any:
        data = trainer.train_dataloader if self.recorder.data is None else self.recorder.data
        if self.recorder.data is None and isinstance(data, list | tuple | dict):
            raise ValueError("the trainer has several training loaders: give Collapse the data")
        return data
