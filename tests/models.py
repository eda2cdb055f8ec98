"""Small models that are awkward to watch, and their features collected in full."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def samples(n=47, shape=(6,), K=3, seed=0, dtype=torch.float32):
    """Inputs around a mean of their class, and labels in which no class has the number of another."""
    make = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    y[: n // 8] = 0
    y = y[torch.randperm(n, generator=make)]
    x = torch.randn(n, *shape, generator=make, dtype=dtype)
    return x + torch.randn(K, *shape, generator=make, dtype=dtype)[y] + 1, y


def batched(x, y, size=10):
    """A list of batches, the last of which may be smaller."""
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Net(nn.Module):
    """Children that run in turn, the last of which is a linear classifier of three classes.

    Args:
        parts: The children by name, without the classifier.
        width: Numbers that the classifier reads.
    """

    def __init__(self, parts, width=8):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.names = list(parts)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return self.fc(x)


def seeded(make):
    """The module that `make` gives, with weights that do not depend on other tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def randomised(model):
    """The model with random batch statistics and no zero weights, so that no two layers agree."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point() and value.ndim:
                    value.copy_(torch.rand_like(value) - (0.5 if value.ndim > 1 else 0))
    return model


class SharedRelu(nn.Module):
    """A perceptron whose one relu runs twice; a child of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 8)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.relu(self.second(self.relu(self.first(x)))))


class AddInPlace(nn.Module):
    """A residual block that writes its sum over its input."""

    def __init__(self, width=8):
        super().__init__()
        self.f = nn.Linear(width, width)

    def forward(self, x):
        x += torch.tanh(self.f(x))
        return x


class Residual(nn.Module):
    """A block x + f(x).

    Args:
        width: Numbers that enter and leave.
    """

    def __init__(self, width=8):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x):
        return x + self.f(x)


class Plain(nn.Module):
    """A residual net without shape checks, which graph extraction and compilers would trip over."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.blocks = nn.Sequential(Residual(), Residual())
        self.classifier = nn.Linear(8, 3)
        self.taps = ("stem", "blocks.0", "blocks.1")

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)))


class Wrapped(nn.Module):
    """A linear layer whose output is hidden in a container.

    Args:
        wrap: Puts a tensor into the container.
        unwrap: Takes it out again.
    """

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.inner = Inner(wrap)
        self.fc = nn.Linear(8, 3)
        self.unwrap = unwrap

    def forward(self, x):
        return {"loss": None, "logits": self.fc(torch.relu(self.unwrap(self.inner(x))))}


class Inner(nn.Module):
    """A linear layer that answers with a container."""

    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(6, 8), wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


def collected(model, batches: Iterable, names, pool=None, head=None, device=None):
    """Every layer's output by plain hooks that clone, pooled and flattened; `head` gives its input.

    Args:
        model: A network without wrappers, whose modules answer to `names`.
        batches: Pairs of inputs (a tensor or a dict of named arguments) and labels.
        names: Modules whose output is kept.
        pool: A function of an output; all of its numbers if `None`.
        head: A linear layer whose input is kept as `"classifier.input"`.
        device: Where the samples are brought.
    """
    rows: dict[str, list[Tensor]] = {}

    def keep(name, out):
        while not isinstance(out, Tensor):
            out = next(v for v in (out.values() if hasattr(out, "values") else out) if v is not None)
        out = out.detach().clone()
        rows.setdefault(name, []).append((pool(out) if pool else out).flatten(1).cpu())

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _x, out, name=name: keep(name, out))
        for name in names
        if name != "classifier.input"
    ]
    if head is not None:
        handles.append(
            modules[head].register_forward_pre_hook(
                lambda _m, x: rows.setdefault("classifier.input", []).append(x[0].detach().clone().cpu())
            )
        )
    training = {name: module.training for name, module in modules.items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would skip hooks
    model.eval()
    with torch.no_grad():
        for x, _ in batches:
            x = x.to(device) if device else x
            model(**x) if isinstance(x, dict) else model(x)
    torch.backends.mha.set_fastpath_enabled(fast)
    for name, module in modules.items():
        module.training = training[name]
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double().numpy() for name, parts in rows.items()}
