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
    can monitor `pfc/pfc1`, of the last layer, or `pfc/pfc1/blocks.3`, at epochs that are measured: with
    `every` above 1 a monitor that looks in between is refused. Before the first step two
    batches are tried.

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

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Try two batches.

        Args:
            trainer: Lightning's.
            pl_module: The module.

        Raises:
            ValueError: If what is to be measured will not do.
        """
        self._refuse_old_numbers(trainer)
        self.recorder.measure.setdefault("precision", PRECISIONS.get(str(trainer.precision)))
        self.recorder.check(self._net(pl_module), self._data(trainer))

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measure and log, if the epoch is due.

        Args:
            trainer: Lightning's.
            pl_module: The module.
        """
        done = trainer.current_epoch + 1
        if not self._is_due(done, trainer):
            return
        profile = self.recorder.record(self._net(pl_module), done, self._data(trainer))
        if profile is not None:  # the same in every process
            pl_module.log_dict(self.recorder.told(profile, "metric"), sync_dist=False)

    def _refuse_old_numbers(self, trainer: "Trainer") -> None:
        """Refuse what would choose by the numbers of an epoch before: they stay when none are new."""
        every = self.recorder.every
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = str(getattr(callback, "monitor", None))
            own = getattr(callback, "_every_n_epochs", 1) or 1
            if monitor.startswith(self.recorder.prefix) and own % every:
                raise ValueError(
                    f"{type(callback).__name__} monitors {monitor!r} at epochs that are not measured, "
                    f"with every={every}: measure with every=1, or let it act every {every} epochs "
                    "(every_n_epochs of ModelCheckpoint)"
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
