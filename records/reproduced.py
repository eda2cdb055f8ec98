"""Keep what `pfc reproduce` found as a record, and write the page of all records.

    python records/reproduced.py runs/reproduce runs/paper

The page and its figures and numbers are copied to records/reproduce, those of a second folder, at the
paper's own scale, to records/paper-scale; the trainings are not. On
records/README.md stand NOTES.md, then what came of every claim: of the trainings in the folder, of the
networks that others published (records/published), and of the transformers; then all records by title.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pfc import load
from pfc.experiments.claims import CLAIMS, Answer, Network, ask, read
from pfc.experiments.page import tables
from pfc.files import write_text

HERE = Path(__file__).parent
KEPT = (".md", ".json", ".png")
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


def kept(folder: Path, name: str) -> list[Answer]:
    """What was found in a folder, copied to the record of this name."""
    record = HERE / name
    record.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in KEPT:
            shutil.copy(path, record / path.name)
    return read(record / "claims.json")


def main(folder: Path, whole: Path | None) -> None:
    """Write the records and the page."""
    answers = kept(folder, "reproduce")
    at_scale = [] if whole is None else kept(whole, "paper-scale")
    names = {claim.name for claim in CLAIMS}
    networks = [replace(a, kind="Table I, all images") for a in at_scale if a.claim in names]
    parts = [(HERE / "NOTES.md").read_text(encoding="utf-8").rstrip(), "", "## Every claim", ""]
    parts += [*tables([*networks, *beyond(), *answers]), "", "## All records", "", *titles(), ""]
    write_text(HERE / "README.md", "\n".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("whole", type=Path, nargs="?", help="trained at the paper's scale")
    main(**vars(parser.parse_args()))
