"""What a run leaves on disk, and how it goes on from there."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfc.files import read_json, read_tensors, write_json, write_tensors, write_text
from pfc.training.trainer import Epoch, Trainer

FORMAT = "pfc-run-1"
TORN = (".*.json.*", ".*.jsonl.*", ".*.safetensors.*", ".tmp*")  # what a killed process was writing


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
            self._compare(read_json(self.path / "config.json"))
            if kept.exists() and not resume:
                raise ValueError(f"{self.path} holds a run: resume it, or choose another folder")
            self._sweep()
        else:
            where = {"device": str(run.device), "threads": run.threads, "processes": run.ranks.size}
            about = {"format": FORMAT, **self.about, **where, **environment()}
            write_json(self.path / "config.json", about)
        done = self.restore(run) if kept.exists() else -1
        self._cut_history(done)
        return done

    def _sweep(self) -> None:
        """Remove what a killed process was writing, where runs write and nowhere else."""
        for place in (self.path, self.path / "profiles", self.path / "weights"):
            for pattern in TORN:
                for torn in place.glob(pattern):
                    torn.unlink()

    def _compare(self, old: dict[str, Any]) -> None:
        if old.get("format") != FORMAT:
            raise ValueError(f"{self.path}/config.json has format {old.get('format')!r}, not {FORMAT!r}")
        for name, was, now in _differences(old, self.about):
            raise ValueError(
                f"{self.path} holds another run: its {name} is {was}, not {now}; choose another folder"
            )

    def keep(
        self, run: Trainer, epoch: Epoch, states: Sequence[Mapping[str, Tensor]], *, keep_weights: bool
    ) -> None:
        """Write what belongs to an epoch; the state comes last, so that a torn epoch is redone."""
        name = f"epoch-{epoch.epoch:04d}"
        if epoch.profile is not None:
            last = epoch.epoch == run.recipe.epochs
            epoch.profile.save(self.path / "profiles" / f"{name}.json", means=last)
        if keep_weights:
            weights = run.net.state_dict()
            write_tensors(self.path / "weights" / f"{name}.safetensors", weights, format=FORMAT)
        if epoch.epoch:
            self._add_history(epoch)
        write_tensors(
            self.path / "state.safetensors", _state(run, states), format=FORMAT, epoch=str(epoch.epoch)
        )

    def _add_history(self, epoch: Epoch) -> None:
        line = {k: v for k, v in vars(epoch).items() if k != "profile"}
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _cut_history(self, done: int) -> None:
        write_text(
            self.path / "history.jsonl",
            "".join(json.dumps(line) + "\n" for line in history(self.path) if line["epoch"] <= done),
        )

    def restore(self, run: Trainer) -> int:
        """Bring `run` to the kept state; its epoch."""
        path = self.path / "state.safetensors"
        tensors, about = read_tensors(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} has format {about.get('format')!r}, not {FORMAT!r}")
        part = _by_prefix(tensors)
        fill(run.net, part["model"], path)
        for name, parameter in run.net.named_parameters():
            if name in part.get("momentum", {}):
                momentum = part["momentum"][name].to(parameter)
                run.optimizer.state[parameter]["momentum_buffer"] = momentum
        _set_random(run, part["random"])
        return int(about["epoch"])


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ: the innermost name, the old value and the new."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            yield from _differences(old.get(key), value, key)
    elif old != new:
        yield name, old, new


def gathered_random(run: Trainer) -> list[dict[str, Tensor]]:
    """The random states of all processes, by rank."""
    states = {"cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(run.device)
    parts = {name: run.ranks.gather(state) for name, state in states.items()}
    return [{name: part[rank] for name, part in parts.items()} for rank in range(run.ranks.size)]


def _set_random(run: Trainer, states: Mapping[str, Tensor]) -> None:
    """This process's random state; a process that was not there takes the first one's."""
    own = {
        name: states.get(f"{name}.{run.ranks.rank}", states[name])
        for name in ("cpu", "cuda")
        if name in states
    }
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and run.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], run.device)


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


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix, name = key.split("/", 1)
        parts.setdefault(prefix, {})[name] = tensor
    return parts


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
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they matter for repeating a run."""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
    }


def history(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of a run's history.jsonl, one an epoch; a torn last line is left out."""
    path = Path(folder) / "history.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
