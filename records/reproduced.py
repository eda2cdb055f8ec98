"""Keep what `pfc reproduce` found as records, and write the page of all records.

    python records/reproduced.py reproduce=runs/reproduce paper-scale=runs/paper

The page, figures and numbers of each folder are copied to the record of that name; the trainings are
not. On records/README.md stand NOTES.md, then what came of every claim: of the records of trainings, of
the networks that others published (records/published), and of the transformers; then all records by
title. Without a folder the page is written anew from the records as they are.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from pfc import load
from pfc.experiments.claims import CLAIMS, Answer, Network, ask, read
from pfc.experiments.page import tables
from pfc.files import write_text

HERE = Path(__file__).parent
KEPT = (".md", ".json", ".png")
ANEW = ("stl10-collapsed",)  # trainings of the first record that were done anew, by a better recipe
RECORDS = ("reproduce", "paper-scale", *ANEW)
BEYOND = {  # networks that nobody trained for it: kind, name, training profile, test, before training
    ("published", "ResNet-20"): ("published/resnet20-train", "published/resnet20-test", None),
    ("published", "ResNet-56"): ("published/resnet56-train", "published/resnet56-test", None),
    ("transformers", "sentiment"): ("sst2-sentiment/train-mean", "sst2-sentiment/test-mean", None),
    ("transformers", "next word"): (
        *("sst2-next-word/train", "sst2-next-word/test", "sst2-next-word/untrained"),
    ),
}


def beyond() -> Iterator[Answer]:
    """The claims on networks that were not trained for them."""
    for (kind, name), paths in BEYOND.items():
        last, test, before = (path and load(HERE / f"{path}.json") for path in paths)
        yield from ask(kind, name, [Network(last, test, before)])


def titles() -> Iterator[str]:
    """A line a record."""
    for page in sorted(HERE.glob("*/README.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        yield f"- [{page.parent.name}]({page.parent.name}/README.md): {title}"


def keep(folder: Path, name: str) -> None:
    """Copy what was found in a folder to the record of this name."""
    (HERE / name).mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in KEPT:
            shutil.copy(path, HERE / name / path.name)


def small() -> Iterator[Answer]:
    """The answers of the trainings at small scale; of trainings that were done anew, the later ones."""
    anew = {
        place: list(own)
        for part in ANEW
        for place, own in by_place(HERE / part / "claims.json")
        if place[1]
    }
    for place, own in by_place(HERE / "reproduce" / "claims.json"):
        yield from anew.get(place, own)


def by_place(path: Path) -> Iterator[tuple[tuple[str, str], Iterator[Answer]]]:
    """Answers one after the other of one kind and data set; those of models are no one's."""
    names = {claim.name for claim in CLAIMS}
    return groupby(read(path), lambda each: (each.kind, each.where if each.claim in names else ""))


def main(folders: Sequence[str]) -> None:
    """Write the records and the page."""
    for given in folders:
        name, _, folder = given.partition("=")
        if name not in RECORDS or not Path(folder).is_dir():
            raise SystemExit(f"{given} is not one of {', '.join(RECORDS)} with '=' and a folder")
        keep(Path(folder), name)
    names = {claim.name for claim in CLAIMS}
    at_scale = [a for a in read(HERE / "paper-scale" / "claims.json") if a.claim in names]
    networks = [replace(a, kind="Table I, all images") for a in at_scale]
    parts = [(HERE / "NOTES.md").read_text(encoding="utf-8").rstrip(), "", "## Every claim", ""]
    parts += [*tables([*networks, *beyond(), *small()]), "", "## All records", "", *titles(), ""]
    write_text(HERE / "README.md", "\n".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="RECORD=FOLDER", help=f"of {', '.join(RECORDS)}")
    main(**vars(parser.parse_args()))
