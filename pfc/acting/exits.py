"""Exit a network at the first layer where a sample is clearly nearest to one class mean."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.acting.costing import first_of, operations
from pfc.acting.halves import nobody, try_halves
from pfc.acting.heldout import Noted, check_choice, check_labels, refuse_trained, refuse_undefined
from pfc.acting.leaving import Ended, Leaves, Pass, Seen
from pfc.acting.margins import ClassMeans, pool_of
from pfc.acting.outcomes import Calibration, Outcomes, ascending, is_threshold
from pfc.evaluation import eager, operations_of, undisturbed
from pfc.foreign import workers_told
from pfc.layers import CLASSIFIER_INPUT, module_names
from pfc.measuring.calling import Form, arguments, failures_told, forms, place_of
from pfc.measuring.head import logits_of
from pfc.measuring.loader import Batch, MeasuredBatches, attention_mask
from pfc.profile.profile import Profile
from pfc.progress import shown
from pfc.schema import short
from pfc.taps import all_tensors, first_tensor, unwrapped

if TYPE_CHECKING:
    import pandas as pd

TRIED = 4  # samples of the trial in which some go out at each layer; ours


class EarlyExit(nn.Module):
    """A network that stops computing a sample where its class is plain.

    A sample exits at the first measured layer but the last at which
    (d2^2 - d1^2) / (d2^2 + d1^2) exceeds the threshold, where d1 and d2 are the distances of its
    features to the nearest and to the second nearest class mean; its answer is the nearest class. Only
    the rows of samples that have not exited go on to the next layer, and when none is left the pass
    ends. The idea is that of E2CM (arXiv 2103.01148).

    `forward` takes what the network takes and gives logits, B x K, in the order of the samples. Of a
    sample that exits they are the squared distances to the class means, negated, and -inf for a class
    without a mean: their order means something, their size is not that of the network's logits. Under
    an infinite threshold nothing is looked at and they are the network's own, to the last bit. Under
    another one it computes in the precision in which the profile was measured, if that names one. It
    exits in evaluation mode alone; `torch.compile` is not supported.

    The threshold is part of the state dict.

    The samples of a batch must be known to the modules by their inputs alone, as they are to
    convolutions, linear layers and the blocks of image transformers. That is tried on the first batch of
    more than one sample, and a network of which it is not so is refused, such as one that hands an
    attention mask to each block; one sample at a time any network may be given.

    Args:
        net: The network, which is kept as `network` and shares its weights.
        profile: Of its training data, with class means, as `pfc.measure` gives it: its layers but the
            last are the exits, and features are pooled as it pooled them.
        threshold: At least 0; a margin is in [0, 1].

    Raises:
        ValueError: If the profile keeps no class means, is about those of other data, its features were
            reduced in a way that has no name, a layer is none of the network's, or the threshold is
            negative or NaN. At the first batch, if a layer is of another width than the class means.

    Examples:
        >>> import pfc
        >>> digits, _ = pfc.data.load("digits", limit=100), torch.manual_seed(0)
        >>> net = pfc.FCResNet(features=64, classes=10, width=16, blocks=2).eval()
        >>> profile = pfc.measure(net, digits.batches(), progress=False)
        >>> early, x = EarlyExit(net, profile), digits.normalised()
        >>> bool((early(x) == net(x)).all())
        True
        >>> early.threshold = 0.0
        >>> early(x).shape
        torch.Size([100, 10])
    """

    def __init__(self, net: nn.Module, profile: Profile, threshold: float = math.inf) -> None:
        super().__init__()
        self.network = unwrapped(net)
        self.pool, self.profile = pool_of(profile), profile
        self.layers = _exits(self.network, profile)
        self.classes = int(profile.about["classes"])
        self.threshold = threshold
        example = next(
            (p for p in net.parameters() if p.is_floating_point()), torch.zeros(0, device="cpu")
        )
        self.means = nn.ModuleList(ClassMeans.of(profile, name, example) for name in self.layers)
        self._tried = False
        self.register_load_state_dict_pre_hook(_keep_threshold)
        self.train(self.network.training)

    @property
    def threshold(self) -> float:
        """The margin above which a sample exits."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not is_threshold(value):
            raise ValueError(
                f"threshold must be at least 0, or infinite for no exits, got {short(value)}"
            )
        self._threshold = float(value)

    def get_extra_state(self) -> Tensor:
        """The threshold, as a state dict keeps it: in float64 whatever the type of the network."""
        return torch.tensor(self._threshold, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the threshold of a state dict."""
        self.threshold = float(state)

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "B K"]:
        """Logits of a batch; see the class for those of samples that exit."""
        if math.isinf(self.threshold):
            return self._logits(self.network(*args, **kwargs))
        if self.network.training:
            raise ValueError("samples exit in evaluation mode alone: call eval() first")
        x = first_tensor((args, kwargs))
        if x is None or not x.ndim:
            raise ValueError("the network must be given a tensor whose first axis are the samples")
        if len(x) > 1 and not self._tried:
            with torch.no_grad():
                self._try(Batch(0, args, kwargs, torch.zeros(len(x), dtype=torch.int64, device="cpu")))
        return self._run(args, kwargs, len(x), self._passes)[0]

    def _passes(self, _: int, seen: Seen) -> Tensor:
        """Which samples exit at a layer."""
        return seen.margin > self.threshold

    def _run(
        self, args: Any, kwargs: Any, size: int, leaves: Leaves
    ) -> tuple[Float[Tensor, "B K"], Int64[Tensor, " B"]]:
        """Logits, and the number of the layer of each sample's exit; that of the layers if none."""
        run = Pass(
            self.layers, self.pool, self.means, self.classes, size, leaves, attention_mask(kwargs)
        )
        with ExitStack() as stack:
            stack.enter_context(eager())
            stack.enter_context(self._precise())
            names = module_names(self.network)
            for i, name in enumerate(self.layers):
                handle = names[name].register_forward_hook(partial(run.at, i))
                stack.callback(handle.remove)
            try:
                run.finish(self._logits(self.network(*args, **kwargs)))
            except Ended:
                pass
        return run.result()

    def _precise(self) -> AbstractContextManager[object]:
        """The autocast in which the profile was measured, if it was in one."""
        if (precision := self.profile.about.get("precision")) is None:
            return nullcontext()
        means = self.means[0]
        assert isinstance(means, ClassMeans)
        return torch.autocast(means.centre.device.type, getattr(torch, precision))

    def _logits(self, out: Any) -> Float[Tensor, "B K"]:
        """The logits in what the network returns."""
        known = all_tensors(out)
        found = out if isinstance(out, Tensor) else known.get("logits", first_tensor(out))
        logits = None if found is None else logits_of(found)
        if logits is None or logits.ndim != 2 or logits.shape[1] != self.classes:
            got = type(out).__name__ if found is None else f"shape {(*found.shape,)}"
            raise ValueError(
                f"{type(self.network).__name__} must give logits of the profile's {self.classes} "
                f"classes, a row a sample, got {got}"
            )
        return logits

    def _try(self, batch: Batch) -> None:
        """Refuse a network that can't compute some of a few samples without the others."""
        few = first_of(batch, TRIED)

        def run(leaves: Leaves) -> Float[Tensor, "B K"]:
            return self._run(few.args, few.kwargs, len(few), leaves)[0]

        self._tried = try_halves(run, self.layers, type(self.network).__name__)

    def calibrate(
        self,
        heldout: Iterable[Any],
        eps: float = 0.005,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> Calibration:
        """Choose the smallest threshold that held-out data allow, and keep it.

        From an infinite one downwards, the threshold falls as long as the 95 % interval of the change of
        accuracy stays above `-eps` on one half of the data, by steps that are quantiles of the margins.
        What it costs is told of the other half. The interval is as for `pfc.prune`.

        Args:
            heldout: Batches that the network was not trained on, as for `pfc.measure`.
            eps: The loss of accuracy that is tolerated, in [0, 1).
            seed: Deals the data into halves, each class as evenly as can be.
            progress: Show a progress bar on the standard error.

        Returns:
            The threshold and what came of it.

        Raises:
            ValueError: If `eps` is not in [0, 1), the data are those that the profile was measured on,
                of one class, of a label beyond the classes, or give NaN or infinite features or logits,
                or the network can't compute some samples of a batch without the others.
        """
        check_choice(eps, seed)
        found = self._watched(heldout, progress=progress).calibration(eps, seed)
        self.threshold = found.threshold
        return found

    def curve(
        self,
        data: Iterable[Any],
        thresholds: Sequence[float] | None = None,
        *,
        progress: bool = True,
    ) -> "pd.DataFrame":
        """Accuracy against operations, as the threshold falls.

        Args:
            data: Batches, as for `pfc.measure`; not those that the threshold was calibrated on, if the
                accuracy at that threshold is to be believed.
            thresholds: Which; by default an infinite one and those of quantiles of the margins.
            progress: Show a progress bar on the standard error.

        Returns:
            One row a threshold, ascending: `accuracy`, its `change` from the network's own with the 95 %
            interval from `low` to `high`, `share`, the mean operations of a sample over those of the
            network without exits, as torch counts them, and `early`, the part of the samples that exit.

        Raises:
            ValueError: If there is no threshold or one is negative or NaN, or the data or the network
                are unfit, as for `calibrate`.
        """
        wanted = None if thresholds is None else ascending(thresholds)
        seen = self._watched(data, progress=progress)
        everything = torch.arange(len(seen.y), device="cpu")
        known = seen.thresholds(everything) if wanted is None else wanted
        return seen.curve(known, everything, network=type(self.network).__name__)

    def _watched(self, data: Iterable[Any], *, progress: bool) -> Outcomes:
        """Margins and answers at every exit, and the network's own, of all samples."""
        device, noted = place_of(self.network, None), Noted()
        margins, nearest, final = list[Tensor](), list[Tensor](), list[Tensor]()
        spent: tuple[list[int], int] | None = None
        batches = MeasuredBatches(data, None, device)
        with (
            workers_told(),
            undisturbed(self.network, device),
            shown("exits", batches.total, enabled=progress) as step,
        ):
            for batch, _ in noted.of(batches):
                with failures_told(self.network, batch):
                    if spent is None:
                        form = forms(self.network, batch)[0]
                        if len(batch) > 1 and not self._tried:
                            self._try(Batch(0, *arguments(batch, form), batch.y))
                        spent = self._operations(batch, form)
                    at: list[Seen] = []
                    logits = self._run(*arguments(batch, form), len(batch), partial(_note, at))[0]
                self._check_defined(batch, at, logits)
                margins.append(torch.stack([seen.margin for seen in at], 1).cpu())
                nearest.append(torch.stack([seen.nearest for seen in at], 1).cpu())
                final.append(logits.argmax(1).cpu())
                step(batch.number + 1)
        assert spent is not None
        refuse_trained(noted.samples.hashes, self.profile)
        check_labels(noted.samples.y, self.classes)
        return Outcomes(
            self.layers, noted, torch.cat(margins), torch.cat(nearest), torch.cat(final), *spent
        )

    def _check_defined(self, batch: Batch, at: Sequence[Seen], logits: Float[Tensor, "B K"]) -> None:
        for name, seen in zip(self.layers, at, strict=True):
            refuse_undefined(batch.number, f"layer {name!r}", seen.distances)
        refuse_undefined(batch.number, type(self.network).__name__, logits.amax(1))

    def _operations(self, batch: Batch, form: Form) -> tuple[list[int], int]:
        """Of one sample up to each exit and all the way, and those of the network without exits."""
        one = first_of(batch, 1)
        spent = [
            operations_of(partial(self._run, *arguments(one, form), 1, partial(_all_at, i)))
            for i in range(len(self.layers) + 1)
        ]
        return spent, operations(self.network, batch, form)


def _keep_threshold(early: EarlyExit, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """An old state dict has no threshold: that of the module stays."""
    state.setdefault(f"{prefix}_extra_state", early.get_extra_state())


def _note(at: list[Seen], i: int, seen: Seen) -> Tensor:
    """Note how the samples lie; nobody exits."""
    at.append(seen)
    return nobody(i, seen)


def _all_at(layer: int, i: int, seen: Seen) -> Tensor:
    """All exit at one layer."""
    return nobody(i, seen) | (i == layer)


def _exits(net: nn.Module, profile: Profile) -> tuple[str, ...]:
    """The measured layers but the last, which is where a whole pass ends."""
    names, layers = module_names(net), [name for name in profile.layers if name != CLASSIFIER_INPUT]
    for name in layers:
        if name not in names:
            raise ValueError(f"layer {name!r} of the profile is none of {type(net).__name__}'s")
    if len(layers) < 2:
        raise ValueError(f"exits are at layers before the last, but the profile has {len(layers)} layer")
    return (*layers[:-1],)
