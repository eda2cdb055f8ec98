"""Cut the blocks after a layer and classify by what is left, if held-out data allow it."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pfc.acting.costing import latencies, operations
from pfc.acting.cutting import Removal, lines, removals, without
from pfc.acting.heldout import (
    Change,
    Noted,
    check_choice,
    check_labels,
    dealt,
    described,
    refuse_shared,
    refuse_trained,
    refuse_undefined,
)
from pfc.acting.pruned import Candidate, Pruned
from pfc.evaluation import undisturbed
from pfc.foreign import workers_told
from pfc.layers import CLASSIFIER_INPUT, module_names
from pfc.measuring.calling import place_of
from pfc.measuring.decisions import answers_of
from pfc.measuring.loader import Batch, MeasuredBatches
from pfc.measuring.survey import Request, Survey, survey
from pfc.profile.profile import Profile
from pfc.progress import Step, shown
from pfc.taps import unwrapped
from pfc.theory.mufm import gather
from pfc.theory.mufm.statistics import Statistics
from pfc.theory.ridge import Ridge

Head = Literal["ridge", "means", "own"]
Linear = tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]

PENALTIES = tuple(10.0**k for k in range(-6, 2))  # tried for the ridge classifier, no unit; ours


def prune(
    net: nn.Module,
    profile: Profile,
    data: Iterable[Any],
    *,
    head: Head = "ridge",
    eps: float = 0.005,
    fit: Iterable[Any] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Pruned:
    """Cut the last segment of a network after its smallest layer that held-out data allow.

    Each layer of the last segment is tried: what comes after it there is removed, and what follows the
    segment reads the layer instead. The first cut is taken of which the 95 % interval of the change of
    accuracy stays above `-eps` on one half of the held-out data; what it costs is told of the other
    half. The interval is Tango's (1998) for the same samples before and after, which keeps its level
    where a bootstrap does not: where few samples or none change sides. What the training data say of
    the layers plays no part.

    The network that is given is left as it was.

    Args:
        net: The network, whose last blocks stand in a list of modules, or can be identities.
        profile: Of its training data: names the layers of the segment.
        data: Held-out batches, as for `pfc.measure`, in the same order at each reading.
        head: The classifier of what is left, fitted to what the network's own one would read there:
            `"ridge"`, least squares on one-hot labels with the penalty that is best on the choosing
            part; `"means"`, the nearest class mean; `"own"`, the network's own, not fitted.
        eps: The loss of accuracy that is tolerated, in [0, 1).
        fit: Training batches to fit the classifier to. `None` takes a third of the held-out data for it,
            and a third each to choose and to report by; else both have a half.
        seed: Deals the held-out data into parts, each class as evenly as can be.
        device: Where to run; the model's own device if `None`.
        progress: Show a progress bar on the standard error.

    Returns:
        The pruned network with all numbers; a copy of the whole one where nothing can go.

    Raises:
        ValueError: If an argument has no meaning, the profile has no segment or is another network's, a
            layer can't be removed, the classifier is not linear, or the held-out data are of one class,
            in another order at each reading, or those of the training, or give NaN or infinite features
            or logits.

    Examples:
        >>> import pfc
        >>> fit, heldout = (pfc.data.load("digits", part, limit=150) for part in ("fit", "held-out"))
        >>> _ = torch.manual_seed(0)
        >>> net = pfc.FCResNet(features=64, classes=10, width=16, blocks=2)  # blocks are identities
        >>> profile = pfc.measure(net, fit.batches(), progress=False)
        >>> pfc.prune(net, profile, heldout.batches(), head="own", eps=0.1, progress=False).layer
        'stem'
    """
    _check(profile, head)
    check_choice(eps, seed)
    device, layers = place_of(net, device), profile.segment().layers
    with workers_told(), undisturbed(unwrapped(net), device):
        held = MeasuredBatches(data, None, device)
        fits = None if fit is None else MeasuredBatches(fit, None, device)
        first = next(iter(held))
        looked = _looked(unwrapped(net), layers[-1], first, head)
        with shown("prune", len(layers), enabled=progress) as step:
            return _Search(looked, profile, layers, first, held, fits, head, eps, seed, device).run(step)


def _check(profile: Any, head: str) -> None:
    if not isinstance(profile, Profile):
        raise ValueError(f"profile must be a Profile, as measure gives it, got {type(profile).__name__}")
    if head not in get_args(Head):
        raise ValueError(f"head must be {', '.join(map(repr, get_args(Head)))}, got {head!r}")


def _looked(net: nn.Module, layer: str, first: Batch, head: str) -> Survey:
    """A network whose answers are known, and what another classifier would read."""
    found = survey(Request(net, layer if head == "own" else CLASSIFIER_INPUT), first)
    layout, own = found.layout, module_names(net).get(found.layout.classifier or "")
    if not layout.outputs:
        raise ValueError(f"what {type(net).__name__} answers is not known: it must return logits")
    if head != "own" and (
        layout.classifier_row != CLASSIFIER_INPUT
        or layout.input_pool != "flatten"
        or not isinstance(own, nn.Linear)
        or len(own.weight) != layout.outputs
        or layout.outputs < 2
    ):
        raise ValueError(
            f"head={head!r} takes the place of a linear layer of one logit a class, but the classifier "
            f"{layout.classifier!r} is {type(own).__name__} of {layout.outputs} logits: take head='own'"
        )
    return found


@dataclass(frozen=True, eq=False)
class _Search:
    """Tries the cuts one by one; the arguments are those of `prune`, with `whole` the network."""

    whole: Survey
    profile: Profile
    layers: tuple[str, ...]
    first: Batch
    held: MeasuredBatches
    fits: MeasuredBatches | None
    head: Head
    eps: float
    seed: int
    device: torch.device
    noted: Noted = field(default_factory=Noted)
    fitted: Noted = field(default_factory=Noted)

    def run(self, step: Step) -> Pruned:
        """Try every cut, take the first that is sure enough, and build it."""
        before = self._right(self.whole, [])[0]
        samples = self.noted.samples
        check_labels(samples.y, max(2, self.whole.layout.outputs))
        refuse_trained(samples.hashes, self.profile)
        names = ("fit", "choose", "report") if self._own_part else ("choose", "report")
        parts = dict(zip(names, dealt(samples.y, len(names), self.seed), strict=True))
        last = len(self.layers) - 1
        ends = range(last if self.head == "own" else last + 1)  # the whole, to tell what fitting gains
        tried = [self._tried(i, before, parts, step) for i in ends]
        sure = (i for i, (each, _) in enumerate(tried[:last]) if each.chosen.low >= -self.eps)
        kept = next(sure, last)
        return self._built(
            kept, [each for each, _ in tried], dict(enumerate(h for _, h in tried)), before, parts
        )

    @property
    def _own_part(self) -> bool:
        """Whether the classifier is fitted to a part of the held-out data."""
        return self.fits is None and self.head != "own"

    def _tried(
        self, i: int, before: Bool[Tensor, " N"], parts: Mapping[str, Tensor], step: Step
    ) -> tuple[Candidate, Linear | None]:
        """The cut after a layer, with its best classifier."""
        looked = self._cut(i)
        heads = self._heads(looked, parts)
        right = self._right(looked, [*heads.values()])
        choose, report = parts["choose"], parts["report"]
        # of penalties that are as good the largest
        best = max(range(len(right)), key=lambda k: (int(right[k][choose].sum()), k))
        step(i + 1, self.layers[i])
        return (
            Candidate(
                layer=self.layers[i],
                removed=len(self.layers) - 1 - i,
                penalty=[*heads][best] if heads else None,
                operations=operations(looked.model, self.first, looked.form),
                chosen=Change.of(before[choose], right[best][choose]),
                reported=Change.of(before[report], right[best][report]),
            ),
            [*heads.values()][best] if heads else None,
        )

    def _cut(self, i: int) -> Survey:
        """The network cut after a layer."""
        gone, layer = self._removals(i), self.layers[i]
        try:
            found = _looked(without(self.whole.model, gone), layer, self.first, self.head)
            if found.layout.outputs != self.whole.layout.outputs:
                raise ValueError(f"it gives {found.layout.outputs} logits")
        except (ValueError, AttributeError) as error:
            names = ", ".join(self.layers[i + 1 :])
            raise ValueError(
                f"the network can't be cut after {layer!r}: without {names} it does not run ({error}); "
                "measure layers of which each could be the identity"
            ) from error
        return found

    def _removals(self, i: int) -> list[Removal]:
        return removals(self.whole.model, self.layers, i)

    def _heads(self, looked: Survey, parts: Mapping[str, Tensor]) -> dict[float | None, Linear]:
        """Classifiers of what is left, by their penalty; none if the own one stays."""
        if self.head == "own":
            return {}
        st = gather(self._rows(looked, parts.get("fit")))
        if len(st.count) != (K := looked.layout.outputs):
            raise ValueError(
                f"the classifier is fitted to {len(st.count)} classes, but the network answers {K}: "
                "give samples of each"
            )
        if self.head == "means":
            return {None: nearest_mean(st)}
        ridge = Ridge(st)
        return {penalty: ridge.at(penalty) for penalty in PENALTIES}

    def _rows(self, looked: Survey, part: Int64[Tensor, " n"] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What the classifier reads, and the labels, of the data that it is fitted to."""
        source, noted = (self.fits, self.fitted) if self.fits is not None else (self.held, self.noted)
        for batch, place in noted.of(source):
            H, y = _read(looked, batch)[0], batch.y
            if part is not None:
                here = part[(part >= place.start) & (part < place.stop)] - place.start
                H, y = H[here], y[here]
            if len(y):
                yield H, y
        if self.fits is not None:
            fitted = self.fitted.samples.hashes
            refuse_shared(self.noted.samples.hashes, fitted, "those given as fit=")

    def _right(self, looked: Survey, heads: Sequence[Linear]) -> list[Bool[Tensor, " N"]]:
        """Which held-out samples are answered rightly, by each of the classifiers, or by the own one."""
        found = [list[Tensor]() for _ in range(len(heads) or 1)]
        for batch, _ in self.noted.of(self.held):
            H, logits = _read(looked, batch)
            if looked is self.whole:
                refuse_undefined(batch.number, type(looked.model).__name__, H, logits.amax(1))
            for right, Z in zip(found, [_logits(H, each) for each in heads] or [logits], strict=True):
                right.append(_rightly(Z, batch.y, looked.layout.threshold))
        return [torch.cat(right) for right in found]

    def _built(
        self,
        kept: int,
        tried: Sequence[Candidate],
        heads: Mapping[int, Linear | None],
        before: Bool[Tensor, " N"],
        parts: Mapping[str, Tensor],
    ) -> Pruned:
        """The network that is kept, and what it costs and saves, by running it."""
        net, gone = self.whole.model, self._removals(kept)
        made, steps = without(net, gone), lines(net, gone)
        looked = _looked(made, self.layers[kept], self.first, self.head)
        if gone and (head := heads.get(kept)) is not None:
            steps += _set_head(made, str(looked.layout.classifier), head)
        after = self._right(_looked(made, self.layers[kept], self.first, "own"), [])[0]
        report, form = parts["report"], self.whole.form
        made = copy.deepcopy(made)  # with weights of its own
        return Pruned(
            network=made,
            layer=self.layers[kept],
            removed=self.layers[kept + 1 :],
            head=self.head,
            eps=self.eps,
            change=Change.of(before[report], after[report]) if gone else Change.none(before[report]),
            candidates=tuple(tried),
            operations=(operations(net, self.first, form), operations(made, self.first, form)),
            latency=latencies((net, made), self.first, form, self.device),
            parts=described([*parts.values()], [*parts]),
            fitted=0 if self.head == "own" else self._fitted(parts),
            steps=tuple(steps),
            about={
                **{"network": type(net).__name__, "last": self.layers[-1], "seed": self.seed},
                **{"data": self.held.name, "fit": None if self.fits is None else self.fits.name},
                **{"device": str(self.device), "torch": torch.__version__},
            },
        )

    def _fitted(self, parts: Mapping[str, Tensor]) -> int:
        return len(parts["fit"]) if self._own_part else len(self.fitted.samples.y)


def nearest_mean(st: Statistics) -> Linear:
    """The linear classifier that answers the nearest class mean: half of |h - c|^2 - |h - m|^2."""
    W = st.mean - st.centre
    return W, -(W @ st.centre) - W.square().sum(1) / 2


def _read(looked: Survey, batch: Batch) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
    """What the classifier reads, or the layer gives, and the network's logits."""
    rows: list[Tensor] = []
    logits = looked.logits(batch, torch.device("cpu"), lambda _, H: rows.append(H))
    assert logits is not None
    return rows[-1], logits


def _rightly(logits: Float[Tensor, "B K"], y: Int64[Tensor, " B"], bar: float) -> Bool[Tensor, " B"]:
    """Which samples are answered rightly; NaN, as where a cut network overflows, is no answer."""
    return (answers_of(logits, bar) == y) & ~logits.isnan().any(1)


def _logits(H: Float[Tensor, "B D"], head: Linear) -> Float[Tensor, "B K"]:
    """As the network will compute them, in the type of its features."""
    W, b = (part.to(H) for part in head)
    return nn.functional.linear(H, W, b)


def _set_head(net: nn.Module, name: str, head: Linear) -> list[str]:
    """Put a classifier in the place of the network's own; the line of Python that does so."""
    old, (W, b) = net.get_submodule(name), head
    assert isinstance(old, nn.Linear)
    K, D = W.shape
    new = nn.Linear(D, K, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(W)
        new.bias.copy_(b)
    net.set_submodule(name, new.eval())
    return [f"net.set_submodule({name!r}, torch.nn.Linear({D}, {K}))"]
