"""Keep what `pfc reproduce` found as a record, and write the page of all records.

    python records/reproduced.py runs/reproduce

The page and its figures and numbers are copied to records/reproduce; the trainings are not. On
records/README.md stand NOTES.md, then what came of every claim: of the trainings in the folder, of the
networks that others published (records/published), and of the transformers; then all records by title.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from pfc import load
from pfc.experiments.claims import Answer, Network, ask, read
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


def main(folder: Path) -> None:
    """Write the record and the page."""
    record = HERE / "reproduce"
    record.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in KEPT:
            shutil.copy(path, record / path.name)
    answers = read(record / "claims.json")
    parts = [(HERE / "NOTES.md").read_text(encoding="utf-8").rstrip(), "", "## Every claim", ""]
    parts += [*tables([*beyond(), *answers]), "", "## All records", "", *titles(), ""]
    write_text(HERE / "README.md", "\n".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
