"""The classifier of a model: what gives its logits, what it reads, and its weight."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log, prod
from sys import maxsize
from typing import Any

import torch
from torch import Tensor, nn

from pfc.foreign import attribute
from pfc.layers import module_names
from pfc.measuring.trial import ALIKE, Made, ModuleCall, Product, Trial, rows_of
from pfc.samples import ArrayLike, samples
from pfc.taps import NoTokensError, Side, all_tensors, gathered, pooled
from pfc.warning import warn

Classifier = str | nn.Module | ArrayLike | None

AVERAGES = frozenset({"mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))})
CHOOSES = frozenset({
    *("__getitem__", "select", "narrow", "index_select"),
    *("transpose", "permute", "movedim"),
})
MONOTONE = {  # what keeps the order of the classes, and what it makes of a logit of 0 if that is known
    **dict.fromkeys(("softmax", "log_softmax", "log", "clamp", "clip", "nan_to_num")),
    **{"sigmoid": 0.5, "special_expit": 0.5, "log_sigmoid": log(0.5), "logsigmoid": log(0.5)},
}
FACTORS = frozenset({"mul", "mul_", "div", "div_", "true_divide"})
SUMMANDS = frozenset({"add", "add_", "sub", "sub_"})
LENGTHS = frozenset({"norm", "linalg_norm", "linalg_vector_norm"})


@dataclass(frozen=True, eq=False)
class Head:
    """What gives the model's logits.

    Args:
        name: Of the module, or of the weight.
        outputs: Logits of a sample; 0 where they are not known.
        made: How the logits were made; `None` where they are those of a given weight and its row.
        start: When the classifier began; what is measured was there before.
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
    made: Made | None = None
    start: int = maxsize
    logits: str | None = None
    threshold: float = 0.0
    weight: Callable[[], Tensor | None] = lambda: None
    bias: Tensor | None = None
    entrance: tuple[str, Side] | None = None
    shape: tuple[int, ...] = ()
    x: Tensor | None = None
    reads: bool = True
    input_pool: str = "flatten"
    sources: tuple[Made, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What a layout tells of it."""
        own = {name: getattr(self, name) for name in ("outputs", "logits", "threshold", "entrance")}
        return {**own, "classifier": self.name, "input_pool": self.input_pool}


@dataclass(frozen=True, eq=False)
class Answer:
    """What may be the logits, or what follows from them.

    Args:
        place: Where it is in what the model returned; `None` of a layer's output.
        tensor: It, a vector of each sample or token.
        trail: How it was made, back to the product of which it keeps the order of the classes.
        threshold: One logit above it is the second of two classes; `None` if that is not known.
        outputs: Logits of a sample; 0 where they are not known.
    """

    place: str | None
    tensor: Tensor
    trail: list[Made]
    threshold: float | None
    outputs: int

    @classmethod
    def of(cls, place: str | None, tensor: Tensor, trial: Trial) -> "Answer":
        """An answer of a trial."""
        trail = [*_trail(trial.recorder.made(tensor))]
        vectors = logits_of(tensor)
        K, threshold = vectors.shape[-1] if vectors.ndim > 1 else 1, _threshold([m.op for m in trail])
        of_tokens = vectors.ndim == 3 and trial.pool != "tokens"  # no answer for the sample
        unknown = of_tokens or (K == 1 and threshold is None)
        return cls(place, vectors, trail, threshold, 0 if unknown else K)

    @property
    def product(self) -> Product | None:
        """The product with a weight that it follows from, if it is known."""
        return self.trail[-1].product

    @property
    def named_logits(self) -> bool:
        """Whether the model calls it its logits."""
        return (self.place or "").rpartition(".")[2] == "logits"


def find(trial: Trial, classifier: Classifier) -> Head | None:
    """The classifier that is given, or whose logits, or what follows from them, the model returns."""
    if isinstance(classifier, str | nn.Module):
        return _named(trial, classifier)
    found = _returned(trial)
    return found if classifier is None else _with_weight(found, *_matrix(classifier), trial)


def kept_names(model: nn.Module, classifier: Classifier) -> set[str]:
    """Layers of which a trial must keep what they read and gave."""
    return {_found_name(model, classifier)} if isinstance(classifier, str | nn.Module) else set()


def weight_of(module: nn.Module | None) -> Tensor | None:
    """The weight K x D of a linear layer or a convolution of 1 x 1 pixels."""
    weight = attribute(module, "weight")
    if not isinstance(weight, Tensor) or weight.ndim < 2 or prod(weight.shape[2:]) != 1:
        return None
    return rows_of(gathered(weight))


def logits_of(output: Tensor) -> Tensor:
    """A vector of each sample, also of an image of one pixel."""
    return output.flatten(1) if output.ndim == 4 and output.shape[2:] == (1, 1) else output


# Given by the caller


def _named(trial: Trial, classifier: str | nn.Module) -> Head:
    """The classifier that is given by name or as a module."""
    name = _found_name(trial.model, classifier)
    module, call = module_names(trial.model)[name], trial.once(name)
    answer = None if call is None else _through(trial, call)
    known = answer is not None and (answer.place is not None or answer.product is not None)
    if not known and weight_of(module) is None:
        raise ValueError(_no_classifier(trial.model, name))
    if call is None or answer is None or (answer.place is None and answer.tensor.ndim != 2):
        raise ValueError(f"classifier {name!r} did not run once, on one vector a sample")
    head = _of_product(trial, answer) or Head(
        *(name, answer.outputs, call.gives, call.start, answer.place, answer.threshold or 0.0),
        weight=lambda: weight_of(module),
        entrance=(name, "input"),
        shape=() if call.input is None else (*call.input.shape[1:],),
        x=call.input,
    )
    return replace(head, name=name)


def _through(trial: Trial, call: ModuleCall) -> Answer | None:
    """What the model returned that follows from a layer's output, or that output itself."""
    for answer in _answers(trial):
        if any(made is call.gives for made in answer.trail):
            return answer
    return None if call.output is None else Answer.of(None, call.output, trial)


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
    b = None if b is None else torch.as_tensor(b, device=W.device).detach()
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"the bias of classifier must be of shape ({len(W)},), got {(*b.shape,)}")
    return W, b


def _with_weight(head: Head | None, W: Tensor, b: Tensor | None, trial: Trial) -> Head:
    """The classifier whose weight is given; the model returns its logits, or features that it reads."""
    known = None if head is None else head.weight()
    if head is not None and known is not None and known.shape == W.shape:
        return replace(head, weight=lambda: W, reads=head.reads or head.input_pool == "flatten")
    found = Head("given weight", len(W), weight=lambda: W)
    for answer in _answers(trial):
        if answer.outputs == len(W):
            end = answer.trail[-1]
            return replace(found, made=end, start=end.time, logits=answer.place)
    return replace(found, bias=b)


# Found by what the model returned


def _answers(trial: Trial) -> list[Answer]:
    """What the model returned that may be logits; what is called so is."""
    found = [
        Answer.of(place, tensor, trial)
        for place, tensor in all_tensors(trial.result).items()
        if tensor.is_floating_point() and 1 <= logits_of(tensor).ndim <= 3
    ]
    return [answer for answer in found if answer.named_logits] or found


def _returned(trial: Trial) -> Head | None:
    """The classifier whose logits, or what follows from them, the model returns."""
    answers = _answers(trial)
    ends = {id(end): end for answer in answers if (end := answer.trail[-1]).product}
    last = [e for e in ends.values() if not any(o is not e and o.comes_from(e) for o in ends.values())]
    if len(last) > 1:
        each = dict.fromkeys(_name(end.product, trial) for end in last if end.product)
        warn(f"the model returns what {' and '.join(each)} gave: name one as classifier=")
        return None
    if last:
        theirs = [answer for answer in answers if answer.trail[-1] is last[0]]
        return _of_product(trial, max(theirs, key=lambda answer: answer.tensor.numel()))
    if answers and answers[0].named_logits:  # however they came about
        end = answers[0].trail[-1]
        return Head("logits", answers[0].outputs, end, end.time, answers[0].place)
    return None


def _trail(made: Made | None) -> Iterator[Made]:
    """Back from an answer to the product that it follows from, while the largest stays the largest."""
    while made is not None:
        yield made
        made = None if made.product else _before(made)


def _before(made: Made) -> Made | None:
    """What a tensor follows from, class by class and in the same order."""
    if made.op in ALIKE | MONOTONE.keys() | AVERAGES | CHOOSES:
        return made.first
    varying = [part for part in made.parts if not part.rests]
    if made.op in SUMMANDS and len(varying) == 1 and (made.op[0] == "a" or made.first is varying[0]):
        return varying[0]
    scaled = _multiplied(made)  # of a hyperbolic tangent it is a soft cap
    return scaled.first if scaled is not None and scaled.op == "tanh" else scaled


def _multiplied(made: Made) -> Made | None:
    """What was multiplied by a positive number."""
    varying = [part for part in made.parts if not part.rests]
    others = [a for a in made.args[:2] if not any(a is part for part in varying)]
    if made.op not in FACTORS or len(varying) != 1 or len(others) != 1:
        return None
    factor = others[0].value() if isinstance(others[0], Made) else others[0]
    one = not isinstance(factor, Tensor) or factor.numel() == 1
    return varying[0] if one and factor > 0 and (made.op[0] == "m" or made.first is varying[0]) else None


def _threshold(ops: list[str]) -> float | None:
    """What became of one logit of 0; `None` if that is not known."""
    monotone = [i for i, op in enumerate(ops) if op in MONOTONE]
    if not monotone:
        return 0.0
    shifted = len(monotone) > 1 or (FACTORS | SUMMANDS) & {*ops[: monotone[0]]}
    return None if shifted else MONOTONE[ops[monotone[0]]]


# What a product says of its classifier


def _of_product(trial: Trial, answer: Answer) -> Head | None:
    """The classifier that is a product with a weight; one whose layer ran twice is none."""
    product = answer.product
    if product is None or (product.module and trial.once(product.module) is None):
        return None
    module, ops = module_names(trial.model).get(product.module), {made.op for made in answer.trail}
    linear, D = isinstance(module, nn.Linear), product.weight.shape[1]
    plain = trial.pool != "tokens" and product.x[0].numel() == D
    input_pool = "flatten" if plain else "mean" if AVERAGES & ops else "pool"

    def reduce(H: Tensor) -> Tensor:
        return trial.reduce(H) if input_pool == "pool" else pooled(H, input_pool)

    try:
        x, out = reduce(product.x), product.out if trial.pool == "tokens" else reduce(product.out)
    except NoTokensError:  # tokens laid end to end
        return _of_tokens_apart(trial, answer, product)
    entrance, shape = _entrance(trial, product) or (None, ())
    return Head(
        name=_name(product, trial),
        outputs=answer.outputs,
        made=answer.trail[-1],
        start=answer.trail[-1].time,
        logits=answer.place,
        threshold=answer.threshold or 0.0,
        weight=(lambda: weight_of(module)) if linear else _gathered(product.weight),
        entrance=entrance,
        shape=shape if plain else (*x.shape[1:],),
        x=x,
        reads=(plain and not CHOOSES & ops) or (prod(x.shape[1:]) == D and _gives(out, answer.tensor)),
        input_pool=input_pool,
        sources=() if linear or not plain else tuple(_sources(product.reads)),
    )


def _of_tokens_apart(trial: Trial, answer: Answer, product: Product) -> Head:
    """A classifier whose answers are known, not what it reads."""
    end, name = answer.trail[-1], _name(product, trial)
    return Head(name, answer.outputs, end, end.time, answer.place, answer.threshold or 0.0, reads=False)


def _gathered(weight: Made) -> Callable[[], Tensor]:
    return lambda: gathered(weight.value())


def _name(product: Product, trial: Trial) -> str:
    """The layer of a product; in the network itself the parameter."""
    leaves = [made.leaf for made in product.weight.ancestors() if made.leaf is not None]
    own = [name for name, p in trial.model.named_parameters() if any(p is leaf for leaf in leaves)]
    return product.module or next(iter(own), "functional weight")


def _entrance(trial: Trial, product: Product) -> tuple[tuple[str, Side], tuple[int, ...]] | None:
    """The module whose input or output is what the classifier reads, and the shape of that."""
    if len(product.x) != trial.size:
        return None
    own = trial.once(product.module)
    for made in _sources(product.reads):
        if own is not None and own.reads is made:
            return (product.module, "input"), made.shape[1:]
        giving = [call for call in trial.calls if call.gives is made and trial.once(call.name)]
        if giving:
            return (max(giving, key=lambda call: call.start).name, "output"), made.shape[1:]
    return None


def _sources(made: Made | None) -> Iterator[Made]:
    """Back from what the classifier reads, while a sample keeps its numbers, or their direction."""
    while made is not None:
        yield made
        second = made.args[1] if len(made.args) > 1 else None
        length = isinstance(second, Made) and second.op in LENGTHS and second.first is made.first
        same = made.op in ALIKE | {"normalize"} or (made.op in FACTORS and length)
        made = made.first if same else _multiplied(made)


def _gives(out: Tensor, answer: Tensor) -> bool:
    """Whether the answer is a product, or what follows from it class by class."""
    same = out.numel() == answer.numel()
    out = out.reshape(answer.shape) if same else out[..., : answer.shape[-1]]  # the first classes
    if out.shape != answer.shape:
        return False
    out = out.to(answer.device, torch.promote_types(answer.dtype, torch.float32))
    made = (out, out.log_softmax(-1), out.softmax(-1), out.sigmoid())
    return any(torch.allclose(answer.to(p), p, rtol=1e-2, atol=1e-5) for p in made)
