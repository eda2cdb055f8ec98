"""A folder of parquet files: which file is of which split, and what is wrong with which."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfc.data.encoded import EncodedSet, Part, Rows, picked
from pfc.data.listing import File, Listing, fingerprint, stamp
from pfc.files import refuse_pointer
from pfc.foreign import in_words
from pfc.schema import one_line, quoted, some

CHECKED = {"page_checksum_verification": True}  # where a file has checksums
ROWS = 256  # read at a time, so that the encoded bytes are never all in memory

# The hub's words for a split, looked for in the names of files and folders.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def parquet_folder(spec: str, listing: Listing, remarks: Sequence[str]) -> EncodedSet:
    """The set in a folder of parquet files."""
    import pyarrow.parquet as pq

    files = [file for file in listing.files if file.suffix == ".parquet"]
    splits: dict[str, list[File]] = {}
    for file in files:
        splits.setdefault(split_of(file.parts), []).append(file)
    for split, own in splits.items():
        _check_series(split, own)
    parts = {split: [_part(file) for file in own] for split, own in splits.items()}

    def read(split: str, column: str, rows: Rows | None = None) -> Iterator[Any]:
        own = zip(splits[split], parts[split], strict=True)
        for (file, _), places in _of_files(own, rows):
            with _naming(file, column), pq.ParquetFile(file.path, **CHECKED) as parquet:
                yield from _values(parquet, column, places)

    return EncodedSet(
        spec,
        str(listing.root.absolute()),
        parts,
        read,
        stamp(files),
        files={split: fingerprint(own, listing.root) for split, own in splits.items()},
        remarks=tuple(remarks),
        paths=False,
    )


def _of_files(
    files: Iterable[tuple[File, Part]], rows: Rows | None
) -> Iterator[tuple[tuple[File, Part], Rows | None]]:
    """The files that hold some of these rows, with their places in them; all files for all rows."""
    first = 0
    for file, part in files:
        if rows is None:
            yield (file, part), None
            continue
        own = rows[(rows >= first) & (rows < first + part.rows)] - first
        first += part.rows
        if len(own):
            yield (file, part), own


def _values(parquet: Any, column: str, rows: Rows | None) -> Iterator[list[Any]]:
    """Values of a column of a file, some at a time; row groups that hold none of these are not read."""
    how = {"columns": [column], "use_threads": False}
    if rows is None:
        for block in parquet.iter_batches(ROWS, **how):
            yield block.column(column).to_pylist()
        return
    sizes = np.array([parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)])
    groups, group = np.unique(np.searchsorted(sizes.cumsum(), rows, side="right"), return_inverse=True)
    starts = sizes.cumsum() - sizes
    new_starts = sizes[groups].cumsum() - sizes[groups]  # where only these groups are read
    places = rows - starts[groups][group] + new_starts[group]
    for block, own in picked(parquet.iter_batches(ROWS, row_groups=groups.tolist(), **how), places):
        yield block.column(column).take(own).to_pylist()


def _part(file: File) -> Part:
    """A file's schema and number of rows."""
    import pyarrow.parquet as pq

    refuse_pointer(file.path)
    with _naming(file), pq.ParquetFile(file.path) as parquet:
        part = Part(file.name, parquet.schema_arrow, parquet.metadata.num_rows)
    names = part.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"column {twice[0]!r} stands twice in {quoted(file.path)}")
    return part


@contextmanager
def _naming(file: File, column: str | None = None) -> Iterator[None]:
    """Tell what fails while a file is read by its name and the column's."""
    import pyarrow as pa

    try:
        yield
    except KeyError as error:
        raise ValueError(f"no column {column!r} in {quoted(file.path)}") from error
    except (pa.ArrowException, OSError, TypeError, UnicodeError) as error:  # what pyarrow raises
        what = "" if column is None else f"column {column!r} of "
        raise ValueError(
            f"{what}{quoted(file.path)} can't be read as parquet: {one_line(in_words(error), 200)}"
        ) from error


@dataclass(frozen=True)
class Series:
    """What the files of a split must share: shards of one series, or files of one name for the split.

    Args:
        folder: The folder whose data they are.
        word: What names the split there.
        shards: How many the series has; `None` if they are not numbered so.
    """

    folder: tuple[str, ...]
    word: str | None
    shards: int | None = None


def _shard(parts: Sequence[str]) -> re.Match[str] | None:
    """Split, number and how many there are, where a file is called NAME-00000-of-00001."""
    return re.fullmatch(r"(\w+)-(\d{5})-of-(\d{5}).*", Path(parts[-1]).stem)


def split_of(parts: Sequence[str]) -> str:
    """The hub's rules: NAME-00000-of-00001, else the words such as test, else train."""
    if shard := _shard(parts):
        return SPLITS.get(shard[1].lower(), shard[1])
    found = {SPLITS[word]: word for _, word in _words(parts)}
    if len(found) > 1:
        raise ValueError(
            f"the name {'/'.join(parts)!r} speaks of several splits, {' and '.join(sorted(found))}: "
            "rename the file or its folder"
        )
    return next(iter(found), "train")


def _words(parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The words for a split in a path, each with its place."""
    for place, part in enumerate((*parts[:-1], Path(parts[-1]).stem)):
        yield from ((place, word) for word in re.split(r"[^a-z]+", part.lower()) if word in SPLITS)


def _series(file: File) -> Series:
    if shard := _shard(file.parts):
        return Series(file.parts[:-1], shard[1], int(shard[3]))
    place, word = next(_words(file.parts), (0, None))
    return Series(file.parts[:place], word)


def _check_series(split: str, files: Sequence[File]) -> None:
    """Refuse files of two series, of which one is another version or another set, and missing shards."""
    series = {_series(file): file for file in reversed(files)}
    if len(series) > 1:
        names = sorted(file.name for file in series.values())
        raise ValueError(
            f"{len(series)} kinds of files are of split {split!r}: {some(map(repr, names))} and their "
            "like; keep those that are meant in the folder"
        )
    (own,) = series
    if own.shards is None:
        return
    numbers = [int(shard[2]) for file in files if (shard := _shard(file.parts))]
    if missing := sorted(set(range(own.shards)) - set(numbers)):
        raise ValueError(
            f"split {split!r} lacks {len(missing)} of its {own.shards} shards: number "
            f"{some(map(str, missing))} beside {files[0].name!r}; fetch the whole set"
        )
    times, named = Counter(numbers), list(zip(numbers, (file.name for file in files), strict=True))
    if twice := [name for number, name in named if times[number] > 1]:
        raise ValueError(f"split {split!r} has a shard twice: {some(map(repr, twice))}; keep one")
    if beyond := [name for number, name in named if number >= own.shards]:
        raise ValueError(
            f"split {split!r} has shards beyond its {own.shards}: {some(map(repr, beyond))}; move them "
            "away"
        )
