"""Does a transport cost, or a nearest-mean cost of the layers, help where data are few?

    python records/acting/low_data.py --data mnist=FOLDER fashion_mnist=FOLDER cifar10=FOLDER

Each network is trained anew on few images by each method, with paired seeds: of one seed all methods
have the same images, first weights and order. What a method leaves open (its weight, the dropout
rate, the weight decay) is chosen by accuracy on 1,000 other images of the training split; the test
images judge what was chosen. Every training is a line of low_data.jsonl, whatever came of it; a second
call goes on there. `--list` tells what is to do and what it costs on this machine, `--sizes` takes a
part. At the end low_data.md and low_data.png are made of all lines.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import pfc
from pfc import figures
from pfc.data import Images
from pfc.data.drawing import balanced
from pfc.files import write_text
from pfc.intervals import student
from pfc.losses import LayerCollapse, TransportCost
from pfc.nets import Block

HERE = Path(__file__).parent
LINES = HERE / "low_data.jsonl"
SIZES = {"mnist": (500, 1_000, 5_000), "fashion_mnist": (1_000, 5_000), "cifar10": (2_000, 4_000)}
SEEDS = {"mnist": 5, "fashion_mnist": 5, "cifar10": 3}
CHOOSING = {"mnist": 2, "fashion_mnist": 2, "cifar10": 1}  # seeds that choose
VALIDATION = 1_000
METHODS: dict[str, tuple[dict[str, float], ...]] = {  # what each may choose from
    "plain": ({},),
    "decay": tuple({"decay": d} for d in (5e-4, 2e-3, 5e-3, 1e-2)),
    "dropout": tuple({"dropout": p} for p in (0.1, 0.3)),
    "transport": tuple({"transport": w} for w in (3e-3, 3e-2, 3e-1, 3.0, 10.0, 30.0)),
    "nearest means": tuple({"collapse": w} for w in (0.03, 0.3)),
}
RATE, DECAY = 0.05, 5e-4
RATES = {5_000: (RATE, 0.01)}  # each method's choice too where the one rate is too large for some
SHALLOW: dict[str, tuple[int, tuple[int, ...]]] = {  # trained anew with the best decay: images, blocks
    "mnist": (1_000, (2, 4, 6)),
    "fashion_mnist": (1_000, (2, 4, 6)),
    "cifar10": (2_000, (2,)),  # of the last stage
}


@dataclass(frozen=True)
class Job:
    """One training."""

    set: str
    size: int
    seed: int
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Of its line, and of the file with its weights."""
        return "-".join([
            self.set,
            f"{self.size}",
            f"{self.seed}",
            *(f"{k}{v:g}" for k, v in self.changes),
        ])


@dataclass(frozen=True)
class Parts:
    """Training, validation and test images of a job, normalised by the training images' constants."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def parts(train: Images, test: Images, job: Job) -> Parts:
    """Draw them by the job's seed; validation images are drawn from what is left."""
    chosen = balanced(train.labels, job.size, job.seed)
    rest = torch.ones(len(train.labels), dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    other = rest[balanced(train.labels[rest], VALIDATION, job.seed)]
    few = train.images[chosen].float()
    axes = (0, 2, 3)
    centre, spread = few.mean(axes)[:, None, None], few.std(axes)[:, None, None]
    sets = [(train.images[chosen], train.labels[chosen]), (train.images[other], train.labels[other])]
    sets.append((test.images, test.labels))
    return Parts(*(((x.float() - centre) / spread, y) for x, y in sets))


def recipe(job: Job) -> pfc.Recipe:
    """The network and the schedule: 256 features and 10 blocks, or Table I's net for CIFAR-10."""
    own = dict(job.changes)
    common: dict[str, Any] = {"name": job.set, "data": job.set, "learning_rate": own.get("rate", RATE)}
    common["weight_decay"] = own.get("decay", DECAY)
    if job.set == "cifar10":
        epochs = 120_000 // job.size  # as many steps of either size
        blocks = (2, 3, int(own.get("blocks", 4)))
        return pfc.Recipe(net="conv", blocks=blocks, width=16, epochs=epochs, **common)
    blocks = (int(own.get("blocks", 10)),)
    return pfc.Recipe(blocks=blocks, width=256, epochs=40 if job.size > 1_000 else 100, **common)


def network(job: Job, x: Tensor, classes: int) -> nn.Module:
    """With its first weights; dropout, if asked for, before the last layer of each block."""
    _, C, H, W = x.shape
    net = recipe(job).network((C, H, W), classes, job.seed)
    if rate := dict(job.changes).get("dropout"):
        for block in (m for m in net.modules() if isinstance(m, Block)):
            *inner, last = block.f
            block.f = nn.Sequential(*inner, nn.Dropout(rate), last)
    return net.to(memory_format=torch.channels_last) if job.set == "cifar10" else net  # a sixth faster


def fit(net: nn.Module, x: Tensor, y: Tensor, job: Job) -> None:
    """Train in place: momentum 0.9, batches of 128, the rate divided by ten after each third."""
    how, own = recipe(job), dict(job.changes)
    transport, near = TransportCost(net), LayerCollapse(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=how.weight_decay)
    torch.manual_seed(job.seed)
    net.train()
    for epoch in range(1, how.epochs + 1):
        optimizer.param_groups[0]["lr"] = how.rate(epoch)
        order = torch.randperm(
            len(y), generator=torch.Generator().manual_seed(job.seed * 10_000 + epoch)
        )
        for batch in order.split(how.batch_size):
            seen = transport if "transport" in own else near if "collapse" in own else nullcontext()
            with seen:
                logits = net(x[batch])
            loss = F.cross_entropy(logits, y[batch])
            if "transport" in own:
                loss = loss + own["transport"] * transport()
            if "collapse" in own:
                loss = loss + own["collapse"] * near(y[batch])
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()} in epoch {epoch}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """In evaluation mode."""
    with torch.no_grad():
        hits = sum(
            int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True)
        )
    return hits / len(y)


def done(job: Job, images: tuple[Images, Images], keep: Path) -> dict[str, Any]:
    """Train, and tell what came of it; the weights are kept in a folder outside the record."""
    started, got = time.process_time(), parts(*images, job)
    net = network(job, got.train[0], len(images[0].classes))
    fit(net, *got.train, job)
    net.eval()
    line: dict[str, Any] = {
        "set": job.set,
        "size": job.size,
        "seed": job.seed,
        "changes": dict(job.changes),
    }
    line |= {name: accuracy(net, *getattr(got, name)) for name in ("train", "validation", "test")}
    x, y = got.train
    profile = pfc.measure(net, list(zip(x.split(500), y.split(500), strict=True)), progress=False)
    last = profile.table().loc[profile.segment().layers[-1]]
    line |= {"pfc1": float(last["pfc1"]), "pfc2": float(last["pfc2"]), "pfc3": float(last["pfc3"])}
    line |= {"effective_depth": profile.effective_depth(0.01), "layers": len(profile.table())}
    line |= {"straightness": profile.segment().path().straightness}
    keep.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, keep / f"{job.name}.safetensors")
    return {**line, "seconds": round(time.process_time() - started, 1)}


def known() -> dict[str, dict[str, Any]]:
    """The lines so far by name; a line that was torn is done again."""
    found = {}
    for text in LINES.read_text(encoding="utf-8").splitlines() if LINES.exists() else ():
        line = json.loads(text)
        job = Job(line["set"], line["size"], line["seed"], tuple(sorted(line["changes"].items())))
        found[job.name] = line
    return found


def options(size: int, method: str) -> list[dict[str, float]]:
    """What a method may choose from."""
    return [{**own, "rate": rate} for rate in RATES.get(size, (RATE,)) for own in METHODS[method]]


def chosen(
    set_: str, size: int, method: str, lines: dict[str, dict[str, Any]]
) -> dict[str, float] | None:
    """What a method takes: the best on the validation images over the choosing seeds."""
    scores = {}
    for changes in options(size, method):
        names = [job(set_, size, seed, changes).name for seed in range(CHOOSING[set_])]
        if any(name not in lines for name in names):
            return None
        scores[tuple(changes.items())] = mean(lines[name].get("validation", 0.0) for name in names)
    return dict(max(scores, key=lambda changes: scores[changes]))


def job(set_: str, size: int, seed: int, changes: dict[str, float]) -> Job:
    """A job; the recipe's own decay and rate are no changes."""
    own = {k: v for k, v in changes.items() if (k, v) not in (("decay", DECAY), ("rate", RATE))}
    return Job(set_, size, seed, tuple(sorted(own.items())))


def due(set_: str, size: int, lines: dict[str, dict[str, Any]]) -> Iterator[Job]:
    """What is to be trained, in order; what depends on a choice once it is made."""
    for seed in range(CHOOSING[set_]):
        yield from (job(set_, size, seed, c) for method in METHODS for c in options(size, method))
    for seed in range(SEEDS[set_]):
        for method in METHODS:
            if (best := chosen(set_, size, method, lines)) is not None:
                yield job(set_, size, seed, best)
    best = chosen(set_, size, "decay", lines)
    of, depths = SHALLOW[set_]
    if size == of and best is not None:
        shallow = ({"blocks": b, **best} for b in depths)
        yield from (job(set_, size, s, c) for c in shallow for s in range(SEEDS[set_]))


def train(folders: dict[str, str], sizes: Sequence[int], keep: Path) -> None:
    """Train what is not yet trained, a line each."""
    for set_, folder in folders.items():
        images = (pfc.data.load(folder, "train"), pfc.data.load(folder, "test"))
        for size in (s for s in SIZES[set_] if not sizes or s in sizes):
            while todo := [j for j in due(set_, size, known()) if j.name not in known()]:
                for each in dict.fromkeys(todo):
                    if each.name in known():  # a second process beside this one
                        continue
                    try:
                        line = done(each, images, keep)
                    except ValueError as error:  # it diverged, and could not be measured
                        own = {
                            "set": set_,
                            "size": size,
                            "seed": each.seed,
                            "changes": dict(each.changes),
                        }
                        line = {**own, "error": str(error)}
                    with LINES.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(
                        each.name, line.get("test", line.get("error")), line.get("seconds"), flush=True
                    )


def rows(lines: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each set, size and method: what was chosen, its test accuracy, what it adds to others."""
    for set_, sizes in SIZES.items():
        for size in sizes:
            per: dict[str, list[dict[str, Any]]] = {}
            picks = {}
            for method in METHODS:
                best = chosen(set_, size, method, lines)
                names = [job(set_, size, s, best or {}).name for s in range(SEEDS[set_])]
                if best is None or any("test" not in lines.get(name, {}) for name in names):
                    continue
                per[method], picks[method] = [lines[name] for name in names], best
            for method, own in per.items():
                row = {"set": set_, "size": size, "method": method, "chosen": picks[method]}
                row |= {
                    k: mean(line[k] for line in own) for k in ("test", "pfc1", "pfc2", "straightness")
                }
                for other in (o for o in ("plain", "decay") if o in per):
                    apart = [a["test"] - b["test"] for a, b in zip(own, per[other], strict=True)]
                    row[f"over {other}"] = (mean(apart), *student(apart))
                yield row


def page(found: list[dict[str, Any]], lines: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    columns = ("data", "images", "method", "chosen", "test accuracy", "over plain", "over tuned decay")
    columns += ("PFC1", "PFC2", "straightness")
    text = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in found:
        over = [_points(row.get(f"over {other}")) for other in ("plain", "decay")]
        pick = (
            ", ".join(f"{k} {v:g}" for k, v in row["chosen"].items() if (k, v) != ("rate", RATE))
            or "none"
        )
        cells = [
            row["set"],
            f"{row['size']:,}",
            row["method"],
            pick,
            f"{100 * row['test']:.2f} %",
            *over,
        ]
        cells += [f"{row['pfc1']:.3g}", f"{row['pfc2']:.3g}", f"{row['straightness']:.3f}"]
        text.append("| " + " | ".join(cells) + " |")
    hours = sum(line.get("seconds", 0) for line in lines.values()) / 3600
    text += [
        "",
        f"{len(lines)} trainings, {hours:.1f} hours of processor time; differences are in points,",
    ]
    text += [
        "paired by seed, with Student's 95 % interval of their mean. PFC1 and PFC2 are of the training"
    ]
    text += ["images at the last block."]
    return "\n".join(text) + "\n"


def _points(over: tuple[float, float, float] | None) -> str:
    return "" if over is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * x for x in over))


def drawn(found: list[dict[str, Any]]) -> None:
    """What each method adds to the plain training, with its interval."""
    counts = Counter((row["set"], row["size"]) for row in found)
    cases = [case for case, count in counts.items() if count == len(METHODS)]
    if not cases:
        return
    with figures.axes.canvas(2.2 * len(cases) + 1.5, 2.8, "Test accuracy over plain training") as figure:
        axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
        for axis, case in zip(axes, cases, strict=True):
            own = [r for r in found if (r["set"], r["size"]) == case and r["method"] != "plain"]
            for place, row in enumerate(own):
                middle, low, high = (100 * x for x in row["over plain"])
                axis.plot([low, high], [place, place], color="#2b2f77")
                axis.plot(middle, place, "o", color="#2b2f77")
            axis.axvline(0, color="#999999", linewidth=0.8)
            axis.set_yticks(range(len(own)), [row["method"] for row in own])
            axis.set_title(f"{case[0]}\n{case[1]:,} images")
            axis.set_xlabel("points")
    figures.save(figure, HERE / "low_data.png")


def main() -> None:
    """Train, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--sizes", nargs="*", type=int, default=[], metavar="N", help="all if not given")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs") / "acting", help="folder of the weights"
    )
    parser.add_argument("--list", action="store_true", help="tell what is to do")
    given = parser.parse_args()
    folders = dict(each.split("=", 1) for each in given.data)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if given.list:
        listed(folders or dict.fromkeys(SIZES, ""))
        return
    train(folders, given.sizes, given.keep)
    lines = known()
    found = list(rows(lines))
    write_text(HERE / "low_data.md", page(found, lines))
    drawn(found)


def listed(sets: dict[str, str]) -> None:
    """Trainings to do, with their seconds as those of the same set and size took."""
    lines = known()
    for set_ in sets:
        for size in SIZES[set_]:
            took = [
                v["seconds"]
                for v in lines.values()
                if (v["set"], v["size"]) == (set_, size) and "seconds" in v
            ]
            todo = {j.name for j in due(set_, size, lines)} - lines.keys()
            cost = f"{len(todo) * mean(took) / 3600:.1f} hours" if took else "unknown before the first"
            print(f"{set_} {size}: {len(todo)} trainings to do, {cost}")


if __name__ == "__main__":
    main()
