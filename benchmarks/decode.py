"""How much longer than Pillow alone it takes to turn a parquet folder into one tensor.

`python benchmarks/decode.py FOLDER` reads, decodes, fills and sums up with `pfc.data`, then lets
Pillow decode the same bytes in a bare loop, both on one thread, and writes `decode.json`.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pyarrow.parquet as pq
import torch
from PIL import Image

from pfc.data import load
from pfc.data.decoding import decoded
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
    decoded(find(str(folder), progress=False), "train", progress=False)


def cached(folder: Path) -> float:
    """Wall seconds of a load that finds the tensor in the cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PFC_CACHE"] = cache
        load(folder, progress=False)
        started = time.perf_counter()
        load(folder, progress=False)
        return time.perf_counter() - started


def cpu_seconds(run: Callable[[], None]) -> float:
    """CPU time of the whole process while `run` runs."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main(folder: Path) -> None:
    """Measure side by side and write the record."""
    torch.set_num_threads(1)
    blobs = encoded(folder)
    bare(blobs[:100])  # loads Pillow's plugins
    pairs = [
        (cpu_seconds(lambda: whole(folder)), cpu_seconds(lambda: bare(blobs))) for _ in range(REPEATS)
    ]
    record = {
        "what": f"{len(blobs)} images of {folder.name} from parquet to one uint8 tensor",
        "cpu_seconds_pfc": [round(ours, 3) for ours, _ in pairs],
        "cpu_seconds_pillow": [round(pillow, 3) for _, pillow in pairs],
        "ratio": round(statistics.median(ours / pillow for ours, pillow in pairs), 3),
        "aim": AIM,
        "seconds_from_cache": round(cached(folder), 3),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "date": date.today().isoformat(),
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/decode.py FOLDER")
    main(Path(sys.argv[1]))
