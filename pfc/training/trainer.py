"""A network, its optimizer and its data, one epoch at a time."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from pfc.data import Images
from pfc.device import device_of
from pfc.evaluation import operations_of
from pfc.losses import TransportCost
from pfc.measuring import measure
from pfc.measuring.sums import NotFinite
from pfc.nets import one_of
from pfc.processes import ALONE, Processes
from pfc.profile import Profile
from pfc.schema import quoted, some
from pfc.theory.coefficients import at_least
from pfc.training.recipes import Recipe
from pfc.training.same_data import about_data
from pfc.training.speed import ForwardPrecision, RecordedSteps, arranged, compiled, made_of
from pfc.training.tracing import TracedSteps

SMALL_STEP = 3e8  # floating-point operations of a step below which one thread is the fastest; ours


@dataclass(frozen=True, eq=False)
class Epoch:
    """What one pass over the data gave; epoch 0 is the network before training.

    Args:
        epoch: Passes done.
        loss: Mean loss of the pass, each batch before its own step; `None` at epoch 0.
        accuracy: Fraction of the samples classified rightly during the pass; `None` at epoch 0.
        learning_rate: Rate of the pass; `None` at epoch 0.
        seconds: Wall-clock seconds of the pass, without measuring.
        measuring_seconds: Of the measuring after it; `None` where nothing is measured.
        profile: Of every layer after the pass, at the epochs that are measured, else `None`.
    """

    epoch: int
    loss: float | None
    accuracy: float | None
    learning_rate: float | None
    seconds: float
    profile: Profile | None = None
    measuring_seconds: float | None = None

    def __repr__(self) -> str:
        told = [] if self.loss is None else [f"loss {self.loss:.4g}", f"accuracy {self.accuracy:.4f}"]
        told += [f"{self.seconds:.1f} s", *([] if self.profile is None else [repr(self.profile)])]
        return f"Epoch({self.epoch}: {', '.join(told)})"


class Diverged(ValueError):
    """A loss that is no longer finite."""


class Trainer:
    """A network, its optimizer and its data, one epoch at a time."""

    def __init__(
        self,
        net: nn.Module,
        data: Images,
        recipe: Recipe,
        seed: int,
        device: str | torch.device | None,
        precision: ForwardPrecision,
        threads: int | None,
        ranks: Processes = ALONE,
        *,
        compile: bool = False,
    ) -> None:
        one_of(ForwardPrecision, precision=precision)
        at_least(1, threads=1 if threads is None else threads)
        if data.unused:
            raise ValueError(
                f"the labels of {quoted(data.spec)} are whole numbers without names, and no split has "
                f"{some(map(str, data.unused))}: number the classes from 0 without gaps to train on them"
            )
        if not 0 <= seed < 2**40:
            raise ValueError(f"seed must lie in 0..2^40 - 1, got {seed}")
        self.device = device_of(device, net)
        self.net = arranged(net.to(self.device))
        self.data = data.to(self.device)
        self.recipe, self.seed, self.precision = recipe, seed, precision
        self.ranks = ranks
        small = self._flops() < SMALL_STEP
        self.threads = threads or (1 if small else torch.get_num_threads())
        self.parallel = self.net if ranks.size == 1 else self._parallel()
        if compile and recipe.transport:
            raise ValueError("transport needs the layers' outputs, which torch.compile may leave out")
        self.run = compiled(self.parallel) if compile else self.parallel
        self.transport = TransportCost(self.net) if recipe.transport else None
        traces = small and self.device.type == "cpu"
        self.recorded = self._traced() if traces else RecordedSteps(self._step)
        self.network: object = None  # as recorded steps hold it
        rate = recipe.learning_rate
        self.parameters = list(net.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=torch.tensor(rate, dtype=torch.float64, device="cpu") if traces else rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in {"cpu", "cuda"},
        )

    def _traced(self) -> TracedSteps:
        sizes = Counter(map(len, self._order(1)[:-1]))
        every = {size: number * self.recipe.epochs for size, number in sizes.items()}
        return TracedSteps(self._step, every)

    def _parallel(self) -> nn.Module:
        """The network whose gradients are the mean over the processes, from the first one's weights."""
        place = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            self.net, device_ids=place, process_group=self.ranks.group
        )

    def _flops(self) -> int:
        """Floating-point operations of a step, about."""
        training = self.net.training
        with torch.no_grad():
            forward = operations_of(lambda: self.net.eval()(self.data.normalised(slice(1))))
        self.net.train(training)
        return 3 * self.recipe.batch_size * forward

    def about(self, measure_every: int | None) -> dict[str, Any]:
        """What this run is: enough to run it again."""
        return {
            "recipe": asdict(self.recipe),
            "sources": self.recipe.sources,
            "data": about_data(self.data),
            "seed": self.seed,
            "precision": self.precision,
            "measure_every": measure_every,
        }

    def epoch(self, number: int, *, profiled: bool) -> Epoch:
        """Run pass `number` (0 trains nothing) and measure after it if asked to."""
        started = time.perf_counter()
        loss = accuracy = rate = None
        if number:
            rate = self.recipe.rate(number)
            with _processor(self.threads):
                loss, accuracy = self._pass(number, rate)
            if not loss < float("inf"):
                raise Diverged(
                    f"training diverged: the loss of epoch {number} is {loss}; "
                    f"a learning rate below {self.recipe.learning_rate} would do"
                )
        seconds = time.perf_counter() - started
        if not profiled:
            return Epoch(number, loss, accuracy, rate, seconds)
        started = time.perf_counter()
        own = self.data.part(self.ranks.rank, self.ranks.size).batches()
        try:
            profile = measure(self.net, own, group=self.ranks.group, progress=False)
        except NotFinite as error:
            raise Diverged(
                f"training diverged: after epoch {number} {error}; "
                f"a learning rate below {self.recipe.learning_rate} would do"
            ) from None
        return Epoch(number, loss, accuracy, rate, seconds, profile, time.perf_counter() - started)

    def _pass(self, number: int, rate: float) -> tuple[float, float]:
        self.parallel.train()
        step = self._stepper(rate)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        order = self._order(number)
        for index in order:
            if step is self.recorded and index is order[-1] and isinstance(step, TracedSteps):
                step = self._step  # whose gradients stay
            self.ranks.check_peers()
            with self.ranks.exchanging():
                total += step(index)
        for buffer in self.net.buffers() if self.ranks.size > 1 else ():
            self.ranks.broadcast(buffer)  # each process has gathered batch statistics of its own
        loss, hits = (self.ranks.all_reduce(total) / len(self.data)).tolist()
        return loss, hits

    def _stepper(self, rate: float) -> Callable[[Tensor], Tensor]:
        """What makes the steps of a pass at this rate."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            elif group["lr"] != rate:
                group["lr"] = rate
                if isinstance(self.recorded, RecordedSteps):
                    self.recorded.forget()
        before, self.network = self.network, made_of(self.net)
        if before is not None and before != self.network:
            self.recorded.renew()
        plain = self.run is self.net and self.transport is None
        known = plain and self.recorded.may(self.net, self.device)
        return self.recorded if known else self._step

    def _order(self, number: int) -> list[Int64[Tensor, " B"]]:
        """Batches of sample numbers; a last batch of one joins the one before it."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.data), generator=generator, device="cpu").to(self.device)
        batches = list(order.split(self.recipe.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _step(self, batch: Int64[Tensor, " B"]) -> Float[Tensor, "2"]:
        index, counts = _share(batch, self.ranks)
        x, y = self.data.normalised(index), self.data.labels[index]
        with self._autocast(), self.transport or nullcontext():
            logits = self.run(x)
        loss = objective(logits.float(), y, self.recipe.loss)
        if self.transport is not None:
            loss = loss + self.recipe.transport * self.transport()
        for parameter in self.parameters:
            parameter.grad = None  # what optimizer.zero_grad() does, in a fifth of the time
        (loss * (counts * self.ranks.size / len(batch))).backward()  # whose mean is that of the batch
        self.optimizer.step()
        hits = (logits.argmax(1) == y).sum() * (counts > 0)
        return torch.stack([loss.detach() * counts, hits])

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _share(batch: Int64[Tensor, " B"], ranks: Processes) -> tuple[Int64[Tensor, " b"], int]:
    """This process's part of a batch, and how many of its samples count.

    Every process needs two samples, for batch normalisation; where a batch is too small to give them to
    all, the last processes look at two that do not count.

    Args:
        batch: Sample numbers, the same in all processes.
        ranks: The processes.

    Returns:
        Sample numbers of this process, and how many of them count: all or none.
    """
    size = max(1, min(ranks.size, len(batch) // 2))
    if ranks.rank >= size:
        return batch[:2], 0
    own = batch[ranks.rank :: size]
    return own, len(own)


def objective(logits: Float[Tensor, "B K"], y: Int64[Tensor, " B"], loss: str) -> Float[Tensor, ""]:
    """Mean cross-entropy, or mean of half the squared distance to the one-hot label."""
    if loss == "cross-entropy":
        return F.cross_entropy(logits, y)
    one_hot = torch.zeros_like(logits).scatter_(1, y.unsqueeze(1), 1)  # F.one_hot looks at y in Python
    return (logits - one_hot).square().sum(1).mean() / 2


@contextmanager
def _processor(threads: int) -> Iterator[None]:
    """So many threads, and numbers below 1e-38 as zero: they make small weights slow."""
    before, flushed = torch.get_num_threads(), float(torch.tensor(1e-40, device="cpu") * 1) == 0
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)
