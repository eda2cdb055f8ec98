"""Find an image set: a folder of parquet or of images, or a set on the hub."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pfc.data.encoded import EncodedSet, Part, Rows, picked
from pfc.data.folders import image_folder
from pfc.data.listing import Listing, left_out
from pfc.data.parquet import ROWS, parquet_folder
from pfc.files import expanded, refuse_pickle
from pfc.foreign import in_words
from pfc.schema import one_line, quoted

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def find(spec: str, progress: bool) -> EncodedSet:
    """Find a set by its name: a folder of parquet or of images, or a set on the hub."""
    folder = expanded(spec)
    if "\0" in spec:
        raise ValueError(f"no data set or folder {spec!r}: a name has no zero byte")
    refuse_pickle(folder)
    if folder.is_dir():
        if quoted(folder.absolute()).startswith("b"):
            raise ValueError(f"the name {quoted(folder.absolute())} is no UTF-8: rename the folder")
        listing = Listing.of(folder)
        files = {file.path for file in listing.files if file.suffix == ".parquet"}
        if files:
            return parquet_folder(spec, listing, list(left_out(listing, files)))
        return image_folder(spec, listing)
    if HUB_NAME.fullmatch(spec):
        return _hub(spec, progress)
    raise ValueError(
        f"no data set or folder {quoted(spec)}; give 'digits', a hub name such as 'ylecun/mnist', or a "
        "folder of parquet files or of images"
    )


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
    except Exception as error:  # whatever the library and its own libraries raise
        why = one_line(in_words(error))
        raise ValueError(f"the hub's data set {spec!r} cannot be loaded: {why}") from error

    def read(split: str, column: str, rows: Rows | None = None) -> Iterator[Any]:
        table = sets[split].select_columns([column]).with_format("arrow")[:]
        blocks = table.to_batches(max_chunksize=ROWS)
        if rows is None:
            yield from (block.column(column).to_pylist() for block in blocks)
        else:
            yield from (
                block.column(column).take(own).to_pylist() for block, own in picked(blocks, rows)
            )

    splits = {split: [Part("", sets[split].features.arrow_schema, len(sets[split]))] for split in sets}
    return EncodedSet(spec, spec, splits, read, {split: sets[split]._fingerprint for split in sets})


@contextmanager
def _hub_bars(visible: bool) -> Iterator[None]:
    """Disable the progress bars of `datasets`, a switch of the whole process, and restore it."""
    import datasets

    with ExitStack() as end:
        if not visible and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            end.callback(datasets.enable_progress_bars)
        yield
