"""Write the first rows of each data set, so that a small copy travels to another machine.

    python records/heads.py FOLDER OUT

FOLDER holds a folder of parquet for each set, with its rows in a random order, as the copies of the
records have them. OUT gets the same folders with fewer rows, byte for byte the same images.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq

ROWS = {  # of the training and of the test split
    "mnist": (12_000, 2_000),
    "fashion_mnist": (4_000, 2_000),
    "cifar10": (4_000, 2_000),
    "stl10": (1_500, 500),
    "cifar100": (5_000, 2_000),
}


def main(folder: Path, out: Path) -> None:
    """Write the heads."""
    for name, rows in ROWS.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, most in zip(("train", "test"), rows, strict=True):
            (path,) = (folder / name).glob(f"{split}-*.parquet")
            pq.write_table(pq.read_table(path).slice(0, most), out / name / path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.folder, given.out)
