"""Kill runs at random moments and see that nothing is lost.

`python benchmarks/kill.py --tries 50` starts `pfc run`, `pfc train` and `pfc measure` on the digits, and
kills the whole process group with SIGKILL at a random moment, or as soon as a file is being written.
Then it looks at what is left: every file must be that of an undisturbed run, byte for byte, or load
whole where it changes from epoch to epoch; no lock may hold. The same command goes on in the same folder
and is killed again, and so on. A folder that is done is compared with the undisturbed one, and the next
one begins. `kill.json` keeps what was killed and what was found.

`pfc measure` starts again from nothing: two passes over the data; its files are old or new.
"""

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from PIL import Image
from record import keep

from pfc.files import read_tensors
from pfc.profile import load
from pfc.training import Run
from pfc.training.folder import FORMAT, history

SMALL = "digits --limit 200 --width 8 --blocks 2 --measure-every 5"
COMMANDS = {  # by name; OUT is the folder that is disturbed, RUN an undisturbed run
    "run": f"run {SMALL} --epochs 40 --transport 50 --out OUT",
    "train": f"train {SMALL} --epochs 80 --out OUT --resume",
    "measure": "measure RUN --theory --transport 200 --out OUT/p.json",
}
LEFT_OUT = "seconds of an epoch in history.jsonl, with the line's checksum: no run repeats its clock"
CHANGES = {"state.safetensors", "history.jsonl"}  # from epoch to epoch
MOST_FILES = {"run": 60, "train": 100, "measure": 3}  # waited for before a kill; so many are written


def start(name: str, out: Path, run: Path) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    words = [word.replace("OUT", str(out)).replace("RUN", str(run)) for word in COMMANDS[name].split()]
    out.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "pfc", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def whole(name: str, out: Path, run: Path) -> float:
    """Let a command come to its end; the seconds that it took."""
    started = time.perf_counter()
    with start(name, out, run) as process:
        said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"pfc {name} ended with {process.returncode}: {said}")
    return time.perf_counter() - started


def being_written(out: Path) -> set[str]:
    """Hidden names where the commands write: what is not yet in its place."""
    places = (out, *(out / part for part in ("profiles", "weights", "figures")))
    found = set()
    for place in places:
        try:
            found |= {entry.path for entry in os.scandir(place) if entry.name[0] == "."}
        except FileNotFoundError:
            continue
    return found


def disturb(name: str, out: Path, run: Path, seconds: float, rng: random.Random) -> str | None:
    """Start a command and kill it: how the moment came, or `None` if the command was done before."""
    how, number = rng.choice(("time", "file")), rng.randint(1, MOST_FILES[name])
    process, started, seen = start(name, out, run), time.perf_counter(), being_written(out)
    until = started + (rng.uniform(0, 1.05 * seconds) if how == "time" else 10 * seconds)
    while process.poll() is None and time.perf_counter() < until:
        if how == "file":
            new = being_written(out) - seen
            number, seen = number - len(new), seen | new
            if new and number <= 0:
                break
        time.sleep(0.0001)
    done = process.poll()
    if done is None:
        os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    if done:
        raise SystemExit(f"pfc {name} ended with {done}: {said}")
    return how if done is None else None


def files(out: Path) -> Iterator[Path]:
    """All files in their places."""
    for path in sorted(out.rglob("*")):
        hidden = any(part[0] == "." for part in path.relative_to(out).parts)
        if path.is_file() and not hidden and path.name != "lock" and path.suffix != ".next":
            yield path


def lines(out: Path) -> list[dict[str, Any]]:
    """The history without what is left out."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in history(out)]


def check(out: Path, known: Path, run: Path) -> None:
    """Every file is old or new and loads, and no lock holds; else an error."""
    for path in files(out):
        twin = known / path.relative_to(out)
        if path.name not in CHANGES and path.read_bytes() != twin.read_bytes():
            awaited = path.suffix == ".safetensors" and path.with_name(f"{path.name}.next").exists()
            assert awaited, f"{path} is neither old nor new"
        read(path, run)
    if (out / "history.jsonl").exists():
        found = lines(out)
        assert found == lines(known)[: len(found)], f"{out}/history.jsonl tells another run"
    if (out / "lock").exists():
        with (out / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read(path: Path, run: Path) -> None:
    """Read a file through what reads it."""
    if path.name == "config.json":
        assert Run(path.parent).recipe.width == 8
    elif path.name.endswith("theory.json"):
        assert json.loads(path.read_text())["sentences"]
    elif path.suffix == ".json":
        assert load(path).table().notna().any().any()
    elif path.parent.name == "weights":
        assert Run(path.parents[1]).network(int(path.stem[6:]))
    elif path.name == "state.safetensors":
        assert 0 <= int(read_tensors(path, FORMAT)[1]["epoch"]) <= 80
    elif path.suffix == ".png":
        Image.open(path).verify()
    elif path.suffix == ".svg":
        ElementTree.parse(path)


def compare(out: Path, known: Path) -> None:
    """A folder that is done is the undisturbed one: names, and bytes but for what is left out."""
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (out, known)]
    assert names[0] == names[1], f"{out} has other files: {set(names[0]) ^ set(names[1])}"
    for path in files(out):
        if path.name == "history.jsonl":
            assert lines(out) == lines(known), "the history is another"
        else:
            assert path.read_bytes() == (known / path.relative_to(out)).read_bytes(), (
                f"{path} is another"
            )


def on_disk(out: Path) -> str:
    """What a kill left, in a few words."""
    if not out.exists() or not any(out.iterdir()):
        return "nothing"
    if being_written(out):
        return "a file half written"
    if list(out.rglob("*.next")):
        return "a profile's arrays before its JSON"
    text = (out / "history.jsonl").read_bytes() if (out / "history.jsonl").exists() else b""
    if text and not text.endswith(b"\n"):
        return "a line half written"
    return "whole files, the lock" if (out / "lock").exists() else "whole files"


def main() -> None:
    """Kill as often as asked, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        record = tried(Path(place), asked.tries, random.Random(asked.seed))
    command = f"python benchmarks/kill.py --tries {asked.tries} --seed {asked.seed}"
    keep(str(asked.json), {"command": command, "commands": COMMANDS, **record, "left_out": LEFT_OUT})


def tried(place: Path, tries: int, rng: random.Random) -> dict[str, Any]:
    """Kill the commands in turn, so many times in all."""
    known = {name: place / "known" / name for name in COMMANDS}
    seconds = {name: whole(name, known[name], known["train"]) for name in ("train", "run", "measure")}
    kills: dict[str, Counter[str]] = {name: Counter() for name in COMMANDS}
    left: dict[str, Counter[str]] = {name: Counter() for name in COMMANDS}
    done: Counter[str] = Counter()
    out = {name: place / "killed" / name for name in COMMANDS}
    count = 0
    while count < tries:
        name = list(COMMANDS)[count % len(COMMANDS)]
        how = disturb(name, out[name], known["train"], seconds[name], rng)
        if how is None:
            done[name] += 1
            compare(out[name], known[name])
            shutil.rmtree(out[name])
            continue
        count += 1
        kills[name][how] += 1
        left[name][on_disk(out[name])] += 1
        check(out[name], known[name], known["train"])
        print(f"{count} of {tries}: {name}, {how}, {on_disk(out[name])}", file=sys.stderr, flush=True)
    for name in COMMANDS:
        whole(name, out[name], known["train"])
        compare(out[name], known[name])
        done[name] += 1
    return {
        "tries": tries,
        "kills": {name: dict(sorted(kills[name].items())) for name in COMMANDS},
        "left_on_disk": {name: dict(sorted(left[name].items())) for name in COMMANDS},
        "folders_done_and_compared": dict(done),
        "verdict": "after every kill each file was old or new and loaded, and no lock held; every "
        "folder that was done is that of an undisturbed run, byte for byte",
    }


if __name__ == "__main__":
    main()
