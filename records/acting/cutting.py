"""Can blocks go after training, and can samples stop early? Against rules and nets that need no means.

    python records/acting/cutting.py --data mnist=FOLDER fashion_mnist=FOLDER [--runs FOLDER ...]

First of the networks of low_data.py that were trained plainly with the decay that was best, on 1,000
images with five seeds, of CIFAR-10 on 2,000 with three; then of runs of `pfc train` that are named.
Held-out data are the test images: one half chooses (where to cut, the threshold), the other reports;
classifiers are fitted to the training images. Beside `pfc.prune` and `pfc.EarlyExit`: the cut at the
effective depth of the training data; the blocks of least residual made identities, as many; networks
trained anew with fewer blocks; and exits by ridge classifiers of each layer. Each network is a line of
cutting.jsonl; a second call goes on.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import low_data
import torch
from low_data import SHALLOW, Job, Parts
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pfc
from pfc import figures
from pfc.acting.heldout import Change, dealt
from pfc.acting.pruning import PENALTIES
from pfc.files import write_text
from pfc.intervals import student
from pfc.theory.mufm import gather
from pfc.theory.ridge import Ridge

HERE = Path(__file__).parent
LINES = HERE / "cutting.jsonl"
EPS, SHARES = 0.005, tuple(i / 20 for i in range(1, 21))
HEADS = ("ridge", "means", "own")
Batches = list[tuple[Tensor, Tensor]]


def batches(x: Tensor, y: Tensor, size: int = 500) -> Batches:
    """Some samples at a time."""
    return list(zip(x.split(size), y.split(size), strict=True))


def right(net: nn.Module, data: Batches) -> Tensor:
    """Which samples are answered rightly."""
    with torch.no_grad():
        return torch.cat([net(x).argmax(1) == y for x, y in data])


def evidence(net: nn.Module, fit: Batches, held: Batches) -> dict[str, Any]:
    """All that is asked of one network."""
    profile = pfc.measure(net, fit, progress=False)
    cuts = {
        head: pfc.prune(net, profile, held, head=head, eps=EPS, fit=fit, progress=False)
        for head in HEADS
    }
    layers = profile.segment().layers
    early, depth = pfc.EarlyExit(net, profile), profile.effective_depth(0.01)
    line: dict[str, Any] = {
        "layers": list(layers),
        "effective_depth": None if depth is None else profile.layers[depth],
        "cuts": {head: _of_cut(found) for head, found in cuts.items()},
        "exits": early.calibrate(held, EPS, progress=False).to_dict(),
        "residuals": _by_residual(net, profile, held),
        "ridge alone": _ridge_alone(net, fit, held, profile.layers[-1]),
    }
    table = early.curve(held, progress=False)
    near = [table.iloc[(table["share"] - share).abs().argmin()] for share in SHARES]
    line["curve"] = [[float(row["share"]), float(row["accuracy"])] for row in near]
    line["ridge exits"] = _ridge_exits(net, fit, held, list(profile.layers))
    return line


def _of_cut(found: pfc.Pruned) -> dict[str, Any]:
    tried = [
        {"layer": c.layer, "operations": c.operations, "change": asdict(c.reported)}
        for c in found.candidates
        if c.removed
    ]
    told = {"layer": found.layer, "removed": len(found.removed), "change": asdict(found.change)}
    seconds = {str(size): list(each) for size, each in found.latency.items()}
    return {**told, "operations": list(found.operations), "latency": seconds, "tried": tried}


def _by_residual(net: nn.Module, profile: pfc.Profile, held: Batches) -> list[float]:
    """Accuracy without the 1, 2, ... blocks of the last segment that move the features least."""
    segment = profile.segment()
    order = torch.tensor(segment.path().steps).argsort().tolist()
    tried, found = copy.deepcopy(net), []
    for block in order:
        tried.set_submodule(segment.layers[block + 1], nn.Identity())
        found.append(float(right(tried, held).double().mean()))
    return found


def _ridge_alone(net: nn.Module, fit: Batches, held: Batches, layer: str) -> dict[str, Any]:
    """The ridge classifier on the whole network, its penalty chosen as `pfc.prune` does."""
    own, y = pfc.features(net, fit, [layer], progress=False)
    other, truth = pfc.features(net, held, [layer], progress=False)
    ridge, before = Ridge(gather([(own[layer].double(), y)])), right(net, held)
    choose, report = dealt(truth, 2, 0)
    hits = []
    for penalty in PENALTIES:
        W, b = ridge.at(penalty)
        hits.append((other[layer].double() @ W.mT + b).argmax(1) == truth)
    best = max(range(len(hits)), key=lambda k: (int(hits[k][choose].sum()), k))
    return asdict(Change.of(before[report], hits[best][report]))


def _ridge_exits(net: nn.Module, fit: Batches, held: Batches, layers: list[str]) -> dict[str, Any]:
    """Exits by ridge classifiers, calibrated by the same rule on the same halves."""
    own, y = pfc.features(net, fit, layers, pool="mean", progress=False)
    other, truth = pfc.features(net, held, layers, pool="mean", progress=False)
    answers, margins, heads = [], [], []
    for name in layers[:-1]:
        W, b = Ridge(gather([(own[name].double(), y)])).at(1e-2)
        top = (other[name].double() @ W.mT + b).topk(2)
        answers.append(top.indices[:, 0])
        margins.append(top.values[:, 0] - top.values[:, 1])
        heads.append(2 * W.numel())
    final = torch.cat([net(x).argmax(1) for x, _ in held])
    answers, margin = torch.stack([*answers, final], 1), torch.stack(margins, 1)
    upto, total = _operations(net, held[0][0][:1], layers[:-1])
    spent = torch.tensor([*(u + h for u, h in zip(upto, heads, strict=True)), total]).double()
    choose, report = dealt(truth, 2, 0)

    def change(threshold: float, rows: Tensor) -> tuple[Change, float]:
        out = margin[rows] > threshold
        place = torch.where(out.any(1), out.byte().argmax(1), len(layers) - 1)
        now = answers[rows].gather(1, place[:, None])[:, 0] == truth[rows]
        return Change.of(final[rows] == truth[rows], now), float(spent[place].mean() / spent[-1])

    chosen = float("inf")
    largest = margin[choose].amax(1).double()
    for threshold in torch.quantile(largest, torch.linspace(1, 0, 101).double()).tolist():
        if change(threshold, choose)[0].low < -EPS:
            break
        chosen = threshold
    told, share = change(chosen, report)
    return {"threshold": chosen, "share": share, "change": asdict(told)}


def _operations(net: nn.Module, x: Tensor, layers: list[str]) -> tuple[list[int], int]:
    """Of one sample up to each layer, and of the whole network."""
    upto: list[int] = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for name in layers:
            handle = net.get_submodule(name).register_forward_hook(
                lambda *_: upto.append(counter.get_total_flops())
            )
            stack.callback(handle.remove)
        net(x)
        return upto, counter.get_total_flops()


def networks(folders: dict[str, str], keep: Path) -> Iterator[tuple[str, Any]]:
    """Networks of low_data.py: a name, and what makes the network and its batches."""
    lines = low_data.known()
    for set_, (size, _) in ((s, of) for s, of in SHALLOW.items() if s in folders):
        best = low_data.chosen(set_, size, "decay", lines)
        for seed in range(low_data.SEEDS[set_]) if best is not None else ():
            job = low_data.job(set_, size, seed, best)
            yield job.name, lambda job=job, set_=set_: _of_job(job, folders[set_], keep)


def _of_job(job: Job, folder: str, keep: Path) -> tuple[nn.Module, Batches, Batches]:
    images = (pfc.data.load(folder, "train"), pfc.data.load(folder, "test"))
    got: Parts = low_data.parts(*images, job)
    net = low_data.network(job, got.train[0], len(images[0].classes))
    net.load_state_dict(load_file(keep / f"{job.name}.safetensors"))
    fit = batches(*got.train)
    if float(right(net.eval(), fit).double().mean()) != low_data.known()[job.name]["train"]:
        raise ValueError(f"{folder} does not hold the images that {job.name} was trained on")
    return net, fit, batches(*got.test)


def _of_run(path: Path, folder: str) -> tuple[nn.Module, Batches, Batches]:
    run = pfc.Run(path)
    test = run.normalised(pfc.data.load(folder, "test"))
    return run.network().eval(), list(run.data().batches(500)), list(test.batches(500))


def known() -> dict[str, dict[str, Any]]:
    """The lines so far by name."""
    text = LINES.read_text(encoding="utf-8") if LINES.exists() else ""
    return {line["name"]: line for line in map(json.loads, text.splitlines())}


def kind(name: str) -> str:
    """What networks of several seeds have in common."""
    parts = name.split("-")
    return f"{parts[0]}, {int(parts[1]):,} images" if parts[1].isdigit() else "-".join(parts[:-1])


def rows(lines: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """The table, a row a kind of network and a rule."""
    again = low_data.known()
    for each in dict.fromkeys(map(kind, lines)):
        own = [line for name, line in lines.items() if kind(name) == each]
        for head in HEADS:
            yield _row(each, f"prune, {head}", [_cut(line, line["cuts"][head]) for line in own])
        yield _row(each, "ridge, nothing cut", [_alone(line["ridge alone"]) for line in own])
        at = [_at_depth(line) for line in own]
        yield _row(each, "cut at the training data's effective depth, ridge", [a for a in at if a])
        yield _row(each, "as many blocks of least residual", [_residual(line) for line in own])
        if again and each.endswith("images"):
            yield from _anew(each, own, lines, again)
        yield _row(each, "exits by class means", [_exit(line, "exits") for line in own])
        if all("ridge exits" in line for line in own):
            yield _row(each, "exits by ridge", [_exit(line, "ridge exits") for line in own])


Found = tuple[float, float, float]  # accuracy before, after, share of the operations


def _cut(line: dict[str, Any], cut: dict[str, Any]) -> Found:
    before, after = cut["operations"]
    return cut["change"]["before"], cut["change"]["after"], after / before


def _alone(change: dict[str, Any]) -> Found:
    return change["before"], change["after"], 1.0


def _at_depth(line: dict[str, Any]) -> Found | None:
    cut = line["cuts"]["ridge"]
    depth = line["effective_depth"]
    tried = [c for c in cut["tried"] if c["layer"] == depth]
    if not tried:
        return None
    change = tried[0]["change"]
    return change["before"], change["after"], tried[0]["operations"] / cut["operations"][0]


def _residual(line: dict[str, Any]) -> Found:
    cut, before = line["cuts"]["ridge"], line["cuts"]["ridge"]["change"]["before"]
    gone = cut["removed"]
    return before, line["residuals"][gone - 1] if gone else before, _cut(line, cut)[2]


def _exit(line: dict[str, Any], name: str) -> Found:
    change = line[name]["change"]
    return change["before"], change["after"], line[name]["share"]


def _anew(
    each: str, own: list[dict[str, Any]], lines: dict[str, dict[str, Any]], again: dict[str, Any]
) -> Iterator[list[str]]:
    """Cuts to so many blocks beside networks trained anew with so many, on the test images."""
    set_ = each.partition(",")[0]
    size, depths = SHALLOW[set_]
    decay = low_data.chosen(set_, size, "decay", again) or {}
    for blocks in depths:
        changes = {"blocks": blocks, **decay}
        names = [low_data.job(set_, size, s, changes).name for s in range(len(own))]
        if all(name in again for name in names):
            before = [line["cuts"]["ridge"]["change"]["before"] for line in own]
            anew = [again[name]["test"] for name in names]
            yield _row(each, f"trained anew with {blocks} blocks", _with(before, anew))
            cut = [line["cuts"]["ridge"]["tried"][blocks]["change"]["after"] for line in own]
            yield _row(each, f"cut to {blocks} blocks, ridge", _with(before, cut))


def _with(before: list[float], after: list[float]) -> list[Found]:
    return [(a, b, float("nan")) for a, b in zip(before, after, strict=True)]


def _row(each: str, rule: str, found: list[Found]) -> list[str]:
    if not found:
        return [each, rule, "none", "", "", ""]
    change = [100 * (after - before) for before, after, _ in found]
    low, high = student(change)
    within = "" if low != low else f" ({low:+.2f} to {high:+.2f})"
    share = mean(s for *_, s in found)
    told = "" if share != share else f"{100 * share:.0f} %"
    return [
        *(each, rule, f"{len(found)}", f"{100 * mean(a for _, a, _ in found):.2f} %"),
        *(f"{mean(change):+.2f}{within}", told),
    ]


def page(lines: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    head = ("networks", "rule", "seeds", "accuracy", "change in points", "operations")
    text = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    text += [f"| {' | '.join(row)} |" for row in rows(lines)]
    text += [
        "",
        "Accuracy is of the reporting half of the test images (of blocks of least residual and of",
    ]
    text += ["networks trained anew, of all of them); the change is paired by seed, with Student's 95 %"]
    return "\n".join([*text, "interval over the seeds."]) + "\n"


def drawn(lines: dict[str, dict[str, Any]]) -> None:
    """Accuracy against the blocks kept, and against operations."""
    kinds = list(dict.fromkeys(map(kind, lines)))
    with figures.axes.canvas(8, 2.6 * len(kinds) + 0.4, "What a cut and early exits cost") as figure:
        axes = figure.subplots(len(kinds), 2, squeeze=False)
        for (left, right_), each in zip(axes, kinds, strict=True):
            own = [line for name, line in lines.items() if kind(name) == each]
            for head, colour in zip(HEADS, ("#2b2f77", "#d1495b", "#3a7d44"), strict=True):
                cuts = [line["cuts"][head] for line in own]
                kept = [
                    _mean(c["tried"][i]["change"]["after"] for c in cuts)
                    for i in range(len(cuts[0]["tried"]))
                ]
                kept.append(_mean(c["change"]["before"] for c in cuts))
                left.plot(range(len(kept)), kept, "o-", color=colour, label=head, markersize=3)
            left.set(title=each, xlabel="blocks of the last segment kept", ylabel="accuracy")
            left.locator_params(axis="x", integer=True)
            left.legend()
            for line in own:
                right_.plot(
                    *zip(*sorted(map(tuple, line["curve"])), strict=True), color="#2b2f77", alpha=0.5
                )
                if "ridge exits" in line:
                    point = line["ridge exits"]
                    right_.plot(point["share"], point["change"]["after"], "x", color="#d1495b")
                right_.plot(
                    line["exits"]["share"], line["exits"]["change"]["after"], "o", color="#2b2f77"
                )
            right_.set(title="exits by class means (o), by ridge (x)", xlabel="share of the operations")
    figures.save(figure, HERE / "cutting.png")


def _mean(values: Iterator[float]) -> float:
    return mean(list(values))


def main() -> None:
    """Ask what is not yet known, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], metavar="FOLDER")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs") / "acting", help="folder of the weights"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    folders = dict(each.split("=", 1) for each in given.data)
    todo = dict(networks(folders, given.keep))
    todo |= {p.name: lambda p=p: _of_run(p, folders[p.name.split("-")[0]]) for p in given.runs}
    for name, make in todo.items():
        if name not in known():
            line = {"name": name, **evidence(*make())}
            with LINES.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(name, line["cuts"]["ridge"]["layer"], line["exits"]["share"], flush=True)
    lines = known()
    write_text(HERE / "cutting.md", page(lines))
    drawn(lines)


if __name__ == "__main__":
    main()
