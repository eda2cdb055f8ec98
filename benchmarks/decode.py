"""How much longer than Pillow alone it takes to turn a parquet folder into one tensor.

`python benchmarks/decode.py FOLDER` reads, decodes, fills and sums up with `pfc.data`, then lets
Pillow decode the same bytes in a bare loop, both on one thread, and writes `decode.json`.
"""

import os
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pyarrow.parquet as pq
from PIL import Image
from record import keep, one_thread, ratios, side_by_side

from pfc.data import load
from pfc.data.decoding import columns_of, decoded
from pfc.data.sources import find

REPEATS = 3
AIM = 1.3


def encoded(folder: Path) -> list[bytes]:
    """The encoded images of the training split."""
    tables = [pq.read_table(file) for file in sorted(folder.glob("train*.parquet"))]
    column = next(name for name in ("image", "img") if name in tables[0].column_names)
    return [cell["bytes"] for table in tables for cell in table[column].to_pylist()]


def bare(blobs: list[bytes]) -> None:
    """Pillow's decoding and nothing else."""
    for blob in blobs:
        np.asarray(Image.open(BytesIO(blob)))


def whole(folder: Path) -> None:
    """Find the folder, read it, decode it, fill the tensor, sum up its pixels."""
    source = find(str(folder), progress=False)
    decoded(source, "train", columns_of(source, "train"), progress=False)


def cached(folder: Path) -> float:
    """Wall seconds of a load that finds the tensor in the cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PFC_CACHE"] = cache
        load(folder, progress=False)
        started = time.perf_counter()
        load(folder, progress=False)
        return time.perf_counter() - started


def main(folder: Path) -> None:
    """Measure side by side and write the record."""
    one_thread()
    blobs = encoded(folder)
    bare(blobs[:100])  # loads Pillow's plugins
    seconds = side_by_side({"pillow": lambda: bare(blobs), "pfc": lambda: whole(folder)}, REPEATS)
    record = {
        "what": f"{len(blobs)} images of {folder.name} from parquet to one uint8 tensor",
        "cpu_seconds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "ratio": ratios(seconds, "pillow"),
        "aim": {"pfc": AIM},
        "seconds_from_cache": round(cached(folder), 3),
        "pillow": PIL.__version__,
    }
    keep(__file__, record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/decode.py FOLDER")
    main(Path(sys.argv[1]))
