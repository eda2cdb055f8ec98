"""What a run leaves on disk, and how it goes on from there."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfc import files
from pfc.data import Images
from pfc.schema import (
    FRACTION,
    NUMBER,
    POSITIVE,
    Array,
    object_of,
    one_line,
    optional,
    quoted,
)
from pfc.strict_json import parse_json, sealed, unsealed
from pfc.training.config import DEFAULTS, FORMAT, environment, trained_config
from pfc.training.profiles import keep_profile, sweep
from pfc.training.same_data import differences, resolved
from pfc.training.trainer import Epoch, Trainer

HISTORY_SCHEMA = object_of(  # a line of history.jsonl, whose format config.json tells
    {
        **{"epoch": POSITIVE, "loss": NUMBER, "accuracy": FRACTION},
        **{"learning_rate": NUMBER, "seconds": NUMBER},
    },
    optional={"measuring_seconds": optional(NUMBER)},
)


class RunFolder:
    """A folder with a run's configuration, history, profiles, weights and state.

    Args:
        path: The folder; made when the run is opened.
        about: The run's configuration, as it is kept in config.json.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = json.loads(json.dumps(about))

    def open(self, run: Trainer, *, resume: bool) -> int:
        """Bring `run` to the kept state.

        Returns:
            The epoch of that state; -1 if there is none and everything starts here.

        Raises:
            ValueError: If the folder holds a run that is not to be resumed, or another one.
        """
        kept = self.path / "state.safetensors"
        if (self.path / "config.json").exists():
            self._compare(trained_config(self.path), run.data)
            if kept.exists() and not resume:
                raise ValueError(f"{self.path} holds a run: resume it, or choose another folder")
            sweep(self.path)
        else:
            where = {"device": str(run.device), "threads": run.threads, "processes": run.ranks.size}
            where |= {"compiled": run.run is not run.parallel}
            about = {"format": FORMAT, **self.about, **where, **environment()}
            files.write_json(self.path / "config.json", about)
        done = self.restore(run) if kept.exists() else -1
        self._cut_history(done)
        return done

    def _compare(self, old: dict[str, Any], images: Images) -> None:
        by_place = "fingerprint" not in old["data"]  # as older versions kept them
        self._same(*(_settings(about, by_place) for about in (old, self.about)))
        if how := list(differences(old["data"], images)):
            here, there = (quoted(about["data"]["spec"]) for about in (self.about, old))
            raise ValueError(
                f"{self.path} was trained on what was in {there}; the data in {here} are other ones: "
                f"{'; '.join(how)}; resume it with the former data, or choose another folder"
            )
        names = ("mean", "std")
        constants = (about["data"]["normalisation"] for about in (old, self.about))
        self._same(*({name: own[name] for name in names} for own in constants))

    def _same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for name, was, now in _differences(old, new):
            raise ValueError(
                f"{self.path} holds another run: its {name} is {was}, not {now}; choose another folder"
            )

    def keep(
        self,
        run: Trainer,
        epoch: Epoch,
        states: Sequence[Mapping[str, Tensor]],
        *,
        keep_weights: bool,
        in_full: bool,
    ) -> None:
        """Write what belongs to an epoch; the state comes last, so that a torn epoch is redone."""
        name = f"epoch-{epoch.epoch:04d}"
        if epoch.profile is not None:
            last = epoch.epoch == run.recipe.epochs
            keep_profile(self.path, epoch.epoch, epoch.profile, means=last, in_full=in_full)
        if keep_weights:
            weights = run.net.state_dict()
            files.write_tensors(self.path / "weights" / f"{name}.safetensors", weights, format=FORMAT)
        if epoch.epoch:
            self._add_history(epoch)
        files.write_tensors(
            self.path / "state.safetensors", _state(run, states), format=FORMAT, epoch=str(epoch.epoch)
        )

    def _add_history(self, epoch: Epoch) -> None:
        line = {k: v for k, v in vars(epoch).items() if k != "profile"}
        path = self.path / "history.jsonl"
        with files.writing(path), path.open("a", encoding="utf-8") as file:
            file.write(_line(line))

    def _cut_history(self, done: int) -> None:
        lines = [line for line in history(self.path) if line["epoch"] <= done]
        if lost := sorted({*range(1, done + 1)} - {line["epoch"] for line in lines}):
            warnings.warn(
                f"{self.path / 'history.jsonl'} was damaged: what it told of epoch(s) "
                f"{', '.join(map(str, lost))} is lost; the state is not",
                stacklevel=2,
            )
        files.write_text(self.path / "history.jsonl", "".join(map(_line, lines)))

    def restore(self, run: Trainer) -> int:
        """Bring `run` to the kept state; its epoch."""
        path = self.path / "state.safetensors"
        tensors, about = files.read_tensors(path, FORMAT)
        part: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}, "random": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            part.setdefault(kind, {})[name] = tensor
        epoch, last = about.get("epoch", ""), run.recipe.epochs
        if not re.fullmatch(r"\d{1,9}", epoch) or int(epoch) > last:
            raise ValueError(f"{path}: epoch must be a number from 0 to {last}, got {epoch!r}")
        momentum, parameters = part["momentum"], dict(run.net.named_parameters())
        for name, tensor in momentum.items():
            if name not in parameters or _kind(tensor) != _kind(parameters[name]):
                raise ValueError(f"{path}: momentum/{name} fits no parameter of the network")
        _check_model(run.net, part["model"], path)
        fill(run.net, part["model"], path)
        for name, tensor in momentum.items():
            parameter = parameters[name]
            run.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(tensor)
        self._set_random(part["random"], run, path)
        return int(epoch)

    def _set_random(self, states: Mapping[str, Tensor], run: Trainer, path: Path) -> None:
        """This process's random state; a process that was not there takes the first one's."""
        known = Array(str(len(torch.get_rng_state())), torch.uint8)
        own = {name: states.get(f"{name}.{run.ranks.rank}", state) for name, state in states.items()}
        known.check(own.get("cpu"), {}, f"{path}: random/cpu")
        try:
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and run.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], run.device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: random is no random state: {one_line(error)}") from None


def _settings(about: Mapping[str, Any], by_place: bool) -> dict[str, Any]:
    """What a run that goes on must share; of its data where they lie only if nothing else is known."""
    data = about["data"]
    known = {name: data[name] for name in ("split", "limit", "seed", "label_column") if name in data}
    known |= {"spec": resolved(data["spec"])} if by_place else {}
    rest = {name: about[name] for name in DEFAULTS}
    return {"recipe": {**about["recipe"], "data": None, "limit": None}, "data": known, **rest}


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ: the innermost name, the old value and the new."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (key for key in new if key in old):
            yield from _differences(old[key], new[key], key)
    elif old != new:
        yield name, old, new


def gathered_random(run: Trainer) -> list[dict[str, Tensor]]:
    """The random states of all processes, by rank."""
    states = {"cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(run.device)
    parts = {name: run.ranks.gather(state) for name, state in states.items()}
    return [{name: part[rank] for name, part in parts.items()} for rank in range(run.ranks.size)]


def _state(run: Trainer, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in run.net.state_dict().items()}
    for name, parameter in run.net.named_parameters():
        momentum = run.optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum
    for rank, state in enumerate(states):
        suffix = f".{rank}" if rank else ""
        tensors |= {f"random/{name}{suffix}": value for name, value in state.items()}
    return tensors


def _check_model(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a state of other tensors than the network's own, also where torch would take them."""
    own = {name: _kind(t) for name, t in net.state_dict().items() if isinstance(t, Tensor)}
    kept = {name: _kind(tensor) for name, tensor in tensors.items()}
    for name in own.keys() | kept.keys():
        if own.get(name) != kept.get(name):
            has, known = (
                f"{k[0]} of {list(k[1])}" if k else "nothing" for k in (kept.get(name), own.get(name))
            )
            raise ValueError(f"{path} does not fit this network: model/{name} is {has}, not {known}")


def fill(net: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str = "this network") -> None:
    """Put weights from a file into a network.

    Args:
        net: The network.
        weights: Its state dict.
        path: Where the weights come from, for the message.
        name: What the network is called there.

    Raises:
        ValueError: If they do not fit.
    """
    own = {key: tensor for key, tensor in net.state_dict().items() if isinstance(tensor, Tensor)}
    _refuse_prefix(own, weights, path, name)
    for key, tensor in own.items():
        if key in weights and weights[key].is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"{path} does not fit {name}: {key} must be {tensor.dtype}, got {weights[key].dtype}"
            )
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {name}: {one_line(error)}") from None


def _refuse_prefix(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Refuse names of a wrapper, such as `module.` of DataParallel, before those of the network."""
    for wrapped in list(weights)[:1]:
        key = next((key for key in own if wrapped.endswith(f".{key}")), "")
        prefix = wrapped.removesuffix(key)
        if key and {*weights} == {f"{prefix}{key}" for key in own}:
            raise ValueError(
                f"{path} does not fit {name}: its names begin with {prefix!r}, a wrapper's "
                "(DataParallel, torch.compile, Lightning); save the state_dict() of the inner network, "
                f"or take it away: {{k.removeprefix({prefix!r}): v for k, v in weights.items()}}"
            )


def history(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of a run's history.jsonl, one an epoch; a torn last line is left out.

    Args:
        folder: Of the run.

    Returns:
        What each line holds; nothing if there is no such file.

    Raises:
        ValueError: If a line that is not torn is damaged.
    """
    path = files.expanded(folder) / "history.jsonl"
    if not path.exists():
        return []
    with files.reading(path):
        *whole, torn = path.read_bytes().split(b"\n")
    lines = [_read_line(text, f"{path}, line {i}") for i, text in enumerate(whole, start=1)]
    if torn:
        with suppress(ValueError):
            lines.append(_read_line(torn, ""))
    epochs = [line["epoch"] for line in lines]
    if epochs != sorted(set(epochs)):
        raise ValueError(f"{path}: epochs must ascend, got {one_line(epochs, 60)}")
    return lines


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(sealed(line)) + "\n"


def _read_line(text: bytes, where: str) -> dict[str, Any]:
    line = unsealed(parse_json(text, where), where)
    HISTORY_SCHEMA(line, f"{where}: ")
    return line
