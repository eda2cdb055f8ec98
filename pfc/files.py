"""Files that are old or new, never torn: written beside their place, then moved into it.

A file reaches the disk before it takes its place, and its place before anything else is written, so that
a loss of power leaves the old file or the new one. It costs about a millisecond a file on a solid disk.
Every file says its format and carries a checksum. One function compares formats, one reads JSON, one
reads tensors; what else a file must hold is a form of `pfc.schema`, in the module that writes it.
"""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfc.schema import Form, one_line, short
from pfc.strict_json import parse_json, sealed, unsealed

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
OF_NUMPY = {  # types that numpy has, too
    *(torch.float64, torch.float32, torch.float16, torch.bool, torch.uint8),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
}
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
POINTER = b"version https://git-lfs.github.com/spec/"  # what stands in place of a file not fetched
CONVERT = (
    "a pickle is never loaded: convert weights with "
    "safetensors.torch.save_file(torch.load(..., weights_only=True), ...)"
)


def expanded(path: str | Path) -> Path:
    """A path whose `~` at the start is the user's home folder, if there is one; never an empty text."""
    if path == "":
        raise ValueError("an empty text is no path; the current folder is '.'")
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what fails while the block writes a file by the file's name, and a full disk as what it is.

    Args:
        path: The file that is written.

    Yields:
        Nothing.

    Raises:
        OSError: Of the same kind and number, if one is raised inside.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        told = type(error)(
            f"no room on the disk for {path}: make room, then run the same again ({why})"
            if error.errno in NO_ROOM
            else f"{path} can't be written: {why}"
        )
        told.errno = error.errno
        raise told from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a new file in a folder of its own beside `path`, then move it there in one step.

    Args:
        path: Where the finished file stands; its folder is made.
        write: Is given the path of the new file and makes it; what else it leaves beside is removed.

    Raises:
        KeyboardInterrupt: If one comes; nothing half-made is left.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
                new = Path(place) / path.name
                write(new)
                with suppress(OSError):  # some mounted disks have no modes
                    os.chmod(new, 0o644)
                to_disk(new)
                os.replace(new, path)
            with suppress(OSError):  # some systems open no folder
                to_disk(path.parent)
        except KeyboardInterrupt:  # may have come while the folder was made or removed
            remove_torn(path.parent, f".{glob.escape(path.name)}.*")
            raise


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_torn(folder: Path, pattern: str) -> None:
    """Remove what a killed process was writing.

    Args:
        folder: Where it wrote.
        pattern: Of the hidden names beside the files.
    """
    for torn in folder.glob(pattern):
        if torn.is_dir():
            shutil.rmtree(torn, ignore_errors=True)
        else:
            torn.unlink(missing_ok=True)


def check_place(path: Path, *beside: str) -> None:
    """Refuse a place that can't be written to, before hours are spent on what shall stand there.

    What a killed process was writing there is removed.

    Args:
        path: The file to be written; its folder is made.
        *beside: Names of files that are written with it.

    Raises:
        ValueError: If a folder is there.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file: choose another name")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        for name in (path.name, *beside):
            remove_torn(path.parent, f".{glob.escape(name)}.????????")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON in one step, sealed."""
    write_text(path, json.dumps(sealed(content), indent=1) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write named tensors with string metadata as safetensors in one step: the same bytes every time."""
    ready = {
        name: tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        for name, tensor in tensors.items()
    }
    about = {**metadata, "checksum": _checksum(ready, metadata)}
    replace_file(path, lambda new: _save(ready, new, about))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    try:
        if all(tensor.dtype in OF_NUMPY for tensor in tensors.values()):  # in less than half of the time
            save_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, path, metadata)
        else:  # copies: tied weights share memory, which is refused here
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        if told := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from None
        raise
    with path.open("r+b") as file:  # the library leaves the metadata in an order of chance
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    names = sorted(tensors)
    told = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    total = zlib.crc32(json.dumps([told, metadata], sort_keys=True).encode())
    for name in names:
        total = zlib.crc32(_bytes(tensors[name]), total)
    return f"{total:08x}"


def _bytes(tensor: Tensor) -> Any:
    """What Python reads as the bytes of a contiguous tensor."""
    known = tensor.dtype in OF_NUMPY
    return (tensor if known else tensor.reshape(-1).view(torch.uint8)).numpy()


def check_format(found: Any, ours: str, path: Path) -> None:
    """Refuse a file of a format that this version does not read.

    Args:
        found: What the file says it is.
        ours: What is read, such as `"pfc-profile-1"`: a name and a version.
        path: The file.

    Raises:
        ValueError: If they differ; a newer version is called so.
    """
    if found == ours:
        return
    kind, _, version = ours.rpartition("-")
    if isinstance(found, str) and (newer := re.fullmatch(rf"{kind}-([1-9]\d{{0,8}})", found)):
        if int(newer[1]) > int(version):
            raise ValueError(
                f"{path} was written by a newer pfc ({found}); this one reads {ours}: update pfc"
            )
    raise ValueError(f"{path} has format {short(found)}; this version reads {ours!r}")


def refuse_pickle(path: Path) -> None:
    """Refuse a pickle, by its ending or its first bytes, with the way to convert it, and a pointer.

    Args:
        path: Anything; what is no file is no pickle.

    Raises:
        ValueError: If it is one.
    """
    refuse_pointer(path)
    start = _first_bytes(path)[:9]
    named = path.suffix.lower() in PICKLES
    if start and start[8:9] != b"{" and (named or re.match(rb"\x80[\x02-\x05]|PK\x03\x04", start)):
        raise ValueError(f"{path} is a pickle, and {CONVERT}")


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in place of a file that was not fetched."""
    if _first_bytes(path) == POINTER:
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")


def _first_bytes(path: Path) -> bytes:
    with suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(POINTER))
    return b""


def read_json(path: Path, ours: str, schema: Form) -> dict[str, Any]:
    """Read a JSON object of a format: strict JSON, its checksum if it has one, and what it must hold.

    Args:
        path: The file.
        ours: The format that is read.
        schema: What stands in it.

    Returns:
        The object without its checksum.

    Raises:
        ValueError: If there is no such file, or it is something else or damaged.
    """
    refuse_pickle(path)
    with reading(path):
        text = path.read_bytes()
    content = parse_json(text, str(path))
    check_format(content.get("format"), ours, path)
    content = unsealed(content, str(path))
    schema(content, f"{path}: ")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell what the system says of a file that can't be read.

    Args:
        path: The file that is read.

    Yields:
        Nothing.

    Raises:
        ValueError: If there is none, or the system refuses it.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file")
        yield
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from None


def format_of(path: Path) -> str | None:
    """What a safetensors file calls its format, empty if nothing; `None` of a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with reading(path), safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (SafetensorError, RuntimeError):
        return None


def read_tensors(path: Path, ours: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, and compare its checksum if it has one.

    Args:
        path: The file.
        ours: The format that is read; `None` for files of others, which need to say none.

    Returns:
        Its tensors by name, and its metadata without the checksum.

    Raises:
        ValueError: If there is no such file, or it is something else or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with reading(path), safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            if ours is not None:
                check_format(about.get("format"), ours, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        refuse_pickle(path)
        raise ValueError(f"{path} is not a safetensors file ({one_line(error)}); {CONVERT}") from None
    if (checksum := about.pop("checksum", None)) not in {None, _checksum(tensors, about)}:
        raise ValueError(f"{path} is damaged: its content and its checksum {short(checksum)} differ")
    return tensors, about
