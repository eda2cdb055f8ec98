"""A callback that measures while the Trainer of Hugging Face's transformers trains."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pfc.foreign import attribute
from pfc.integrations.recorder import OnError, Recorder

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
else:
    Trainer = TrainingArguments = TrainerControl = TrainerState = Any
    try:
        from transformers.trainer_callback import TrainerCallback
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "transformers":
            raise
        raise ImportError("transformers is not installed: pip install 'pfc[hf]'") from None


class Collapse(TrainerCallback):
    """Measures at evaluations, and logs what it found.

    `Trainer(..., callbacks=[Collapse()])` measures the model on the evaluation data at the first
    evaluation and at each `every`-th, by `pfc.Recorder`, and the training ends with the same bits as
    without. The numbers are among the metrics of the evaluation, as `eval_pfc/pfc1` for the last layer
    and `eval_pfc/pfc1/bert.encoder.layer.3` for others, so that `metric_for_best_model="eval_pfc/pfc1"`
    (with `greater_is_better=False`) and `load_best_model_at_end` can choose by them, and in the
    trainer's `log_history`. What reports to TensorBoard or Weights & Biases is told them where this has
    the trainer, which only it can reach: `trainer.add_callback(Collapse(trainer=trainer))`.

    An evaluation at which nothing was measured has the numbers of the one before among its metrics, but
    does not log them; where there are none yet, that of `metric_for_best_model` is NaN, the best of
    nothing. Of several evaluation sets the first is measured.

    Args:
        data: What is measured: batches, as for `pfc.measure`. If `None`, the evaluation data, in their
            order, by the trainer's own collator.
        trainer: The trainer.
        every: Evaluations between two measurements.
        log: As for `pfc.Recorder`, besides the trainer's own.
        folder: As for `pfc.Recorder`; profiles are numbered by the trainer's step.
        on_error: As for `pfc.Recorder`.
        prefix: What the keys begin with, after that of the evaluation.
        scalars: Of which layers is logged beside the last: `"all"`, names or globs, or `"last"` for
            none, as the trainer prints what it logs.
        **measure: As for `pfc.Recorder`, such as `pool="cls"` of texts; `precision` is the trainer's if
            not given.

    Raises:
        ValueError: If an argument has no meaning.
        ImportError: On import of this module, if transformers is not installed.

    Attributes:
        recorder: The `pfc.Recorder`, whose `profiles` are what was measured, by step.
        trainer: The trainer; it may be set later.
    """

    def __init__(
        self,
        data: Iterable[Any] | None = None,
        *,
        trainer: "Trainer | None" = None,
        every: int = 1,
        log: Any = None,
        folder: str | Path | None = None,
        on_error: OnError = "warn",
        prefix: str = "pfc/",
        scalars: str | Sequence[str] = "last",
        **measure: Any,
    ) -> None:
        how = {"every": every, "log": log, "folder": folder, "on_error": on_error}
        self.recorder = Recorder(data, prefix=prefix, scalars=scalars, **how, **measure)
        self.trainer = trainer
        self._evaluations, self._set = 0, ""
        self._known: dict[str, float] = {}

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Try two batches, if the data are known already.

        Args:
            args: The trainer's.
            state: The trainer's.
            control: The trainer's.
            **kwargs: Among them the model.

        Raises:
            ValueError: If what is to be measured will not do.
        """
        self._take_precision(args)
        data = self._early_data(args)
        if data is not None:
            self.recorder.check(kwargs["model"], data)

    def on_evaluate(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure and log, if the evaluation is due.

        Args:
            args: The trainer's.
            state: The trainer's.
            control: The trainer's.
            metrics: Of the evaluation; what was measured is put beside them.
            **kwargs: Among them the model and the loader of the evaluation.
        """
        metrics = {} if metrics is None else metrics
        start = _start_of(metrics)
        self._set = self._set or start
        if start != self._set:
            return
        self._evaluations += 1
        if (self._evaluations - 1) % self.recorder.every == 0:
            self._take_precision(args)
            data = self.recorder.data
            data = _plain(kwargs["eval_dataloader"], args) if data is None else data
            profile = self.recorder.record(kwargs["model"], state.global_step, data)
            if profile is not None:
                told = self.recorder.told(profile, "metric")
                self._known = {f"{start}_{key}": value for key, value in told.items()}
                self._log(state)
        metrics.update(self._known or _unknown(args, f"{start}_{self.recorder.prefix}"))

    def _log(self, state: "TrainerState") -> None:
        """By the trainer to all it reports to; without it in the history alone."""
        if self.trainer is not None:
            self.trainer.log(dict(self._known))
            return
        state.log_history.append({**self._known, "epoch": state.epoch or 0, "step": state.global_step})

    def _take_precision(self, args: "TrainingArguments") -> None:
        """The trainer's, where no other was asked for."""
        own = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        self.recorder.measure.setdefault("precision", own)

    def _early_data(self, args: "TrainingArguments") -> Any:
        if self.recorder.data is not None or self.trainer is None:
            return self.recorder.data
        sets = self.trainer.eval_dataset
        if sets is None or isinstance(sets, dict):
            return None
        return _plain(self.trainer.get_eval_dataloader(), args)


def _unknown(args: "TrainingArguments", ours: str) -> dict[str, float]:
    """NaN for the number that chooses the best model, if it is ours: the trainer stops without one."""
    key = args.metric_for_best_model or ""
    key = key if key.startswith("eval_") else f"eval_{key}"
    return {key: math.nan} if key.startswith(ours) else {}


def _start_of(metrics: dict[str, float]) -> str:
    """What the names of an evaluation's metrics begin with: `eval`, or that and a set's name."""
    ends = [key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")]
    return ends[0] if ends else "eval"


def _plain(loader: Any, args: "TrainingArguments") -> Any:
    """The samples of a loader in their order, each process its part, apart from accelerate's state."""
    loader = inner if (inner := attribute(loader, "base_dataloader")) is not None else loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    size, rank = args.world_size, args.process_index
    sampler: Any = None
    if size > 1:
        sampler = DistributedSampler(loader.dataset, size, rank, shuffle=False)
    return DataLoader(
        loader.dataset, args.eval_batch_size, sampler=sampler, collate_fn=loader.collate_fn
    )
