"""The classifier of a model: what gives its logits, what it reads, and its weight."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import log, prod
from typing import Any

import torch
from torch import Tensor, nn

from pfc.layers import module_names
from pfc.measuring.trial import ALIKE, Made, ModuleCall, Product, Trial
from pfc.samples import ArrayLike, samples
from pfc.taps import Pool, Side, all_tensors, gathered, pooled
from pfc.warning import warn

Classifier = str | nn.Module | ArrayLike | None

MONOTONE = frozenset({"softmax", "log_softmax", "sigmoid", "log_sigmoid", "logsigmoid", "special_expit"})
AVERAGES = frozenset({"mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))})
CHOOSES = frozenset({
    "__getitem__",
    "select",
    "narrow",
    "index_select",
    "transpose",
    "permute",
    "movedim",
})
FACTORS = frozenset({"mul", "mul_", "div", "div_", "true_divide"})
SUMMANDS = frozenset({"add", "add_", "sub", "sub_"})
LENGTHS = frozenset({"norm", "linalg_norm", "linalg_vector_norm"})
THRESHOLDS = {"sigmoid": 0.5, "special_expit": 0.5, "log_sigmoid": log(0.5), "logsigmoid": log(0.5)}
NEVER = sys.maxsize  # later than every moment of a trial


@dataclass(frozen=True, eq=False)
class Head:
    """What gives the model's logits.

    Args:
        name: Of the module, or of the weight.
        outputs: Logits of a sample; 0 where they are not known.
        made: How the logits were made.
        logits: Where they are in what the model returns; `None` where they are the module's output, or
            those of a given weight and the row that it fits.
        threshold: One logit above it is the second of two classes.
        weight: Gives the weight K x D as it is when called, or `None`.
        bias: Of a given weight.
        entrance: The module whose input or output is the classifier's input, and which of them.
        shape: Of a sample of that, reduced as `input_pool` says.
        x: What the classifier reads, reduced in the same way; `None` if it is not known.
        reads: Whether the reduced input and the weight give the logits.
        input_pool: How the input is reduced; `"pool"` is as the layers are.
        sources: How it was made, as far back as a sample keeps its numbers.
    """

    name: str
    outputs: int
    made: Made
    logits: str | None
    threshold: float = 0.0
    weight: Callable[[], Tensor | None] = lambda: None
    bias: Tensor | None = None
    entrance: tuple[str, Side] | None = None
    shape: tuple[int, ...] = ()
    x: Tensor | None = None
    reads: bool = True
    input_pool: str = "flatten"
    sources: tuple[Made, ...] = ()

    @property
    def time(self) -> int:
        """When the logits were there."""
        return self.made.time

    def to_dict(self) -> dict[str, Any]:
        """What a layout tells of it."""
        own = {name: getattr(self, name) for name in ("outputs", "logits", "threshold", "entrance")}
        return {**own, "classifier": self.name, "input_pool": self.input_pool}


def find(trial: Trial, model: nn.Module, classifier: Classifier, pool: Pool) -> Head | None:
    """The classifier that is given, or whose logits, or what follows from them, the model returns."""
    if isinstance(classifier, str | nn.Module):
        return _named(trial, model, classifier, pool)
    found = _returned(trial, model, pool)
    if found is not None and pool != "tokens" and _answers(trial)[found.logits or ""].ndim == 3:
        found = replace(found, outputs=0)  # an answer for each token is none for the sample
    return found if classifier is None else _with_weight(found, *_matrix(classifier), trial)


def kept_names(model: nn.Module, classifier: Classifier) -> set[str]:
    """Layers of which a trial must keep what they read and gave."""
    return {_found_name(model, classifier)} if isinstance(classifier, str | nn.Module) else set()


def weight_of(module: nn.Module | None) -> Tensor | None:
    """The weight K x D of a linear layer or a convolution of 1 x 1 pixels."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or prod(weight.shape[2:]) != 1:
        return None
    return gathered(weight).flatten(1)


# Given by the caller


def _named(trial: Trial, model: nn.Module, classifier: str | nn.Module, pool: Pool) -> Head:
    """The classifier that is given by name or as a module."""
    name = _found_name(model, classifier)
    module, calls = module_names(model)[name], trial.of(name)
    call = calls[0] if len(calls) == 1 else None
    place, trail = _where(trial, call)
    product = trail[-1].product if trail else None
    if place is None and product is None and weight_of(module) is None:
        raise ValueError(_no_classifier(model, name))
    out = None if call is None else call.output
    answer = out if place is None else _answers(trial)[place]
    if call is None or answer is None or (place is None and answer.ndim != 2):
        raise ValueError(f"classifier {name!r} did not run once, on one vector a sample")
    head = _of_product(trial, model, pool, place, trail) if product else None
    return _plain(call, answer, place, module) if head is None else replace(head, name=name)


def _where(trial: Trial, call: ModuleCall | None) -> tuple[str | None, list[Made]]:
    """Where in what the model returned a layer's output is, and the way back from there, or from it."""
    gives = None if call is None else call.gives
    for place, answer in _answers(trial).items():
        trail = [*_trail(trial.recorder.made(answer))]
        if any(made is gives for made in trail):
            return place, trail
    return None, [*_trail(gives)]


def _plain(call: ModuleCall, answer: Tensor, place: str | None, module: nn.Module) -> Head:
    """A classifier of which no product is known: its module says what it reads and its weight."""
    assert call.gives is not None
    return Head(
        *(call.name, _logits_of(answer), replace(call.gives, time=call.start), place),
        weight=lambda: weight_of(module),
        entrance=(call.name, "input"),
        shape=() if call.input is None else (*call.input.shape[1:],),
        x=call.input,
    )


def _found_name(model: nn.Module, classifier: str | nn.Module) -> str:
    for name, module in module_names(model).items():
        if name == classifier or module is classifier:
            return name
    given = classifier if isinstance(classifier, str) else type(classifier).__name__
    raise ValueError(_no_classifier(model, given))


def _no_classifier(model: nn.Module, given: str) -> str:
    linear = [name for name, module in module_names(model).items() if isinstance(module, nn.Linear)]
    return (
        f"classifier {given!r} is no linear layer of the model, nor what gives the model's answer; it "
        f"has {linear}; a weight may be given as an array K x D or a pair (W, b)"
    )


def _matrix(classifier: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that are given as arrays: W, or a pair (W, b)."""
    pair = isinstance(classifier, tuple) and len(classifier) == 2
    W, b = classifier if pair else (classifier, None)
    W = samples(W, name="the weight of classifier")
    b = None if b is None else torch.as_tensor(b).detach()
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"the bias of classifier must be of shape ({len(W)},), got {(*b.shape,)}")
    return W, b


def _with_weight(head: Head | None, W: Tensor, b: Tensor | None, trial: Trial) -> Head:
    """The classifier whose weight is given; the model returns its logits, or features that it reads."""
    known = None if head is None else head.weight()
    if head is not None and known is not None and known.shape == W.shape:
        return replace(head, weight=lambda: W)
    for place, answer in _answers(trial).items():
        trail = [*_trail(trial.recorder.made(answer))]
        if _logits_of(answer) == len(W):
            return Head("given weight", len(W), trail[-1], place, weight=lambda: W)
    return Head("given weight", len(W), Made(NEVER, ()), None, weight=lambda: W, bias=b)


# Found by what the model returned


def _returned(trial: Trial, model: nn.Module, pool: Pool) -> Head | None:
    """The classifier whose logits, or what follows from them, the model returns."""
    answers = _answers(trial)
    trails = {place: [*_trail(trial.recorder.made(t))] for place, t in answers.items()}
    ends = {place: trail[-1] for place, trail in trails.items() if trail[-1].product}
    last = [
        end
        for end in {*ends.values()}
        if not any(o is not end and o.comes_from(end) for o in ends.values())
    ]
    if len(last) > 1:
        each = [_name(end.product, model) for end in ends.values() if end in last and end.product]
        warn(f"the model returns what {' and '.join(dict.fromkeys(each))} gave: name one as classifier=")
        return None
    if not last:
        return _of_unknown_making(trial, answers)
    place = max((p for p in ends if ends[p] is last[0]), key=lambda p: answers[p].numel())
    return _of_product(trial, model, pool, place, trails[place])


def _answers(trial: Trial) -> dict[str, Tensor]:
    """What the model returned that may be logits, by its place; what is called so is."""
    tensors = {
        place: t
        for place, t in all_tensors(trial.result).items()
        if t.is_floating_point() and 1 <= t.ndim <= 3
    }
    return {p: t for p, t in tensors.items() if p.rpartition(".")[2] == "logits"} or tensors


def _logits_of(answer: Tensor) -> int:
    return answer.shape[-1] if answer.ndim > 1 else 1


def _trail(made: Made | None) -> Iterator[Made]:
    """Back from an answer to the product that it follows from, while the largest stays the largest."""
    while made is not None:
        yield made
        made = None if made.product else _before(made)


def _before(made: Made) -> Made | None:
    """What a tensor follows from, class by class and in the same order."""
    first = made.args[0] if made.args and isinstance(made.args[0], Made) else None
    if made.op in ALIKE | MONOTONE | AVERAGES | CHOOSES:
        return first
    varying = [part for part in made.parts if not part.rests]
    if made.op not in FACTORS | SUMMANDS or len(varying) != 1:
        return None
    others = [a for a in made.args[:2] if a is not varying[0]]
    if len(others) != 1 or (made.op[0] in "ds" and first is not varying[0]):
        return None
    return varying[0] if made.op in SUMMANDS or _is_positive(others[0]) else None


def _is_positive(factor: Any) -> bool:
    """Whether a factor is one positive number."""
    value = factor.value() if isinstance(factor, Made) else factor
    return (not isinstance(value, Tensor) or value.numel() == 1) and float(value) > 0


def _of_product(
    trial: Trial, model: nn.Module, pool: Pool, place: str | None, trail: list[Made]
) -> Head | None:
    """The classifier that is a product with a weight; one whose layer ran twice is none."""
    product, ops = trail[-1].product, [made.op for made in trail]
    assert product is not None
    if product.module and len(trial.of(product.module)) != 1:
        return None
    module = module_names(model).get(product.module)
    linear, threshold = isinstance(module, nn.Linear), _threshold(ops)
    answer = product.out if place is None else _answers(trial)[place]
    plain = pool != "tokens" and product.x[0].numel() == product.D
    input_pool = "flatten" if plain else "mean" if AVERAGES & {*ops} else "pool"

    def reduce(H: Tensor) -> Tensor:
        return trial.reduce(H, pool) if input_pool == "pool" else pooled(H, input_pool)

    x = reduce(product.x)
    entrance, shape = _entrance(trial, product) or (None, ())
    return Head(
        name=_name(product, model),
        outputs=0 if threshold is None else _logits_of(answer),
        made=trail[-1],
        logits=place,
        threshold=threshold or 0.0,
        weight=(lambda: weight_of(module)) if linear else (lambda: gathered(product.W)),
        entrance=entrance,
        shape=shape if plain else (*x.shape[1:],),
        x=x,
        reads=plain
        or _is_read(product, x, answer, product.out if pool == "tokens" else reduce(product.out)),
        input_pool=input_pool,
        sources=() if linear or not plain else tuple(_sources(product.reads)),
    )


def _threshold(ops: list[str]) -> float | None:
    """Above what one logit, or what became of it, is the second class; `None` if that is not known."""
    squashed = next((i for i, op in enumerate(ops) if op in THRESHOLDS), None)
    if squashed is None:
        return 0.0
    return None if (FACTORS | SUMMANDS) & {*ops[:squashed]} else THRESHOLDS[ops[squashed]]


def _name(product: Product, model: nn.Module) -> str:
    """The layer of a product; in the network itself the parameter."""
    leaves = [made.leaf for made in product.weight.ancestors() if made.leaf is not None]
    own = [name for name, p in model.named_parameters() if any(p is leaf for leaf in leaves)]
    return product.module or next(iter(own), "functional weight")


def _entrance(trial: Trial, product: Product) -> tuple[tuple[str, Side], tuple[int, ...]] | None:
    """The module whose input or output is what the classifier reads, and the shape of that."""
    if len(product.x) != trial.size:
        return None
    own = trial.of(product.module)
    for made in _sources(product.reads):
        if own and own[0].reads is made:
            return (product.module, "input"), made.shape[1:]
        giving = [c for c in trial.calls if c.gives is made and len(trial.of(c.name)) == 1]
        if giving:
            return (max(giving, key=lambda call: call.start).name, "output"), made.shape[1:]
    return None


def _sources(made: Made | None) -> Iterator[Made]:
    """Back from what the classifier reads, while a sample keeps its numbers, or their direction."""
    while made is not None:
        yield made
        first = made.args[0] if made.args and isinstance(made.args[0], Made) else None
        second = made.args[1] if len(made.args) > 1 else None
        length = isinstance(second, Made) and second.op in LENGTHS and second.args[0] is first
        made = first if made.op in ALIKE | {"normalize"} or (made.op in FACTORS and length) else None


def _is_read(product: Product, x: Tensor, answer: Tensor, out: Tensor) -> bool:
    """Whether what the product gives of the reduced input is the answer."""
    if x[0].numel() != product.D or out.numel() != answer.numel():
        return False
    out = out.to(answer.device, torch.promote_types(answer.dtype, torch.float32))
    made = (out, out.log_softmax(-1), out.softmax(-1), out.sigmoid())
    return any(torch.allclose(answer.to(p), p.view_as(answer), rtol=1e-2, atol=1e-5) for p in made)


def _of_unknown_making(trial: Trial, answers: Mapping[str, Tensor]) -> Head | None:
    """What the model calls its logits is that, however they came about."""
    place, answer = next(iter(answers.items()), ("", None))
    if answer is None or place.rpartition(".")[2] != "logits":
        return None
    made = [*_trail(trial.recorder.made(answer))][-1]
    return Head("logits", _logits_of(answer), made, place)
