"""Find an image set and read its encoded columns: Arrow arrays with the hub's feature types.

Folders are read by rules of our own. Those of `datasets` look for words such as `test` in the name of
every file and folder and leave out what lies beside a match: a class `crash-test` or a file
`ILSVRC2012_val_00000293.JPEG` would make all other images vanish without a word.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfc.files import refuse_pickle

ROWS = 256  # read at a time, so that the encoded bytes are never all in memory

# The hub's words for a split, looked for in the names of files and folders.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .webp .tif .tiff .pbm .pgm .ppm".split())


@dataclass(frozen=True)
class EncodedSet:
    """An image set that has been found but not read.

    Args:
        spec: What the user called it.
        schemas: Arrow schema of each split, with the hub's feature types in its metadata if known.
        read: Yields the arrays of a column of a split, in order.
        stamp: Plain JSON that changes whenever the data do.
        columns: Names of the image and the label column, if the user gave them.
    """

    spec: str
    schemas: Mapping[str, Any]
    read: Callable[[str, str], Iterable[Any]]
    stamp: Any
    columns: tuple[str | None, str | None] = (None, None)

    def where(self, split: str) -> str:
        """Name a split in a message."""
        return f"split {split!r} of {self.spec!r}"


def find(spec: str, progress: bool) -> EncodedSet:
    """Find a set by its name: a folder of parquet or of images, or a set on the hub."""
    folder = Path(spec).expanduser()
    refuse_pickle(folder)
    if folder.is_dir():
        files = _files(folder, {".parquet"})
        return _parquet(spec, folder, files) if files else _image_folder(spec, folder)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", spec):
        return _hub(spec, progress)
    raise ValueError(
        f"no data set or folder {spec!r}; give 'digits', a hub name such as 'ylecun/mnist', or a "
        "folder of parquet files or of images"
    )


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p for p in found if not any(n[0] == "." for n in p.relative_to(folder).parts))


def _stamp(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    stats = ((str(file.resolve()), file.stat()) for file in files)
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _parquet(spec: str, folder: Path, files: Sequence[Path]) -> EncodedSet:
    import pyarrow.parquet as pq

    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)

    def read(split: str, column: str) -> Iterator[Any]:
        for file in splits[split]:
            with pq.ParquetFile(file) as parquet:
                for rows in parquet.iter_batches(ROWS, columns=[column], use_threads=False):
                    yield rows.column(column)

    schemas = {split: pq.read_schema(first) for split, (first, *_) in splits.items()}
    return EncodedSet(spec, schemas, read, _stamp(files))


def _split_of(file: Path) -> str:
    """The hub's rules: NAME-00000-of-00001, else the first word such as test, else train."""
    if shard := re.fullmatch(r"(\w+)-\d{5}-of-\d{5}.*", file.stem):
        return SPLITS.get(shard[1], shard[1])
    words = re.split(r"[^a-z]+", str(file.with_suffix("")).lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _image_folder(spec: str, folder: Path) -> EncodedSet:
    import pyarrow as pa

    parts = {SPLITS[d.name.lower()]: d for d in folder.iterdir() if d.name.lower() in SPLITS}
    rows = {split: _by_class(root) for split, root in (parts or {"train": folder}).items()}
    classes = sorted({name for split in rows.values() for _, name in split})
    if not classes:
        raise ValueError(f"folder {spec!r} has no parquet files and no images in class subfolders")
    kinds = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"image": image, "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": kinds}})},
    )

    def read(split: str, column: str) -> Iterator[Any]:
        if column == "label":
            yield pa.array([classes.index(name) for _, name in rows[split]], pa.int64())
        else:
            yield pa.array([{"path": str(file)} for file, _ in rows[split]], image)

    stamp = _stamp(file for split in rows.values() for file, _ in split)
    return EncodedSet(spec, dict.fromkeys(rows, schema), read, stamp)


def _by_class(root: Path) -> list[tuple[Path, str]]:
    """Images of a split, each with the name of its class: its folder just below the root."""
    files = _files(root, SUFFIXES)
    return [(file, file.relative_to(root).parts[0]) for file in files if file.parent != root]


def _hub(spec: str, progress: bool) -> EncodedSet:
    import datasets

    try:
        with _hub_bars(progress):
            sets = datasets.load_dataset(spec)
    except FileNotFoundError as error:
        raise ValueError(f"no folder and no hub data set {spec!r}: {error}") from error
    except ConnectionError as error:
        raise ValueError(
            f"offline: there is no folder {spec!r}, and the hub cannot be reached for a set of "
            "that name; 'digits' and local folders need no network"
        ) from error
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"the hub's data set {spec!r} cannot be loaded: {error}") from error

    def read(split: str, column: str) -> Iterator[Any]:
        table = sets[split].select_columns([column]).with_format("arrow")[:]
        yield from (rows.column(column) for rows in table.to_batches(max_chunksize=ROWS))

    schemas = {split: sets[split].features.arrow_schema for split in sets}
    return EncodedSet(spec, schemas, read, {split: sets[split]._fingerprint for split in sets})


@contextmanager
def _hub_bars(visible: bool) -> Iterator[None]:
    """Disable the progress bars of `datasets`, a switch of the whole process, and restore it."""
    import datasets

    with ExitStack() as end:
        if not visible and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            end.callback(datasets.enable_progress_bars)
        yield
