"""Files that appear as a whole or not at all, and arrays of files from elsewhere."""

import contextlib
import glob
import math
import os
import pathlib
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

# Images and weights are compressed less than that; a few bytes that fill the memory are
# compressed a thousandfold.
_MOST_COMPRESSED, _SMALL = 250, 2**28
_KINDS = "biufU"  # of dtypes: numbers, booleans and text
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file to write; it takes the place of `path` when the block ends well.

    Args:
        path: the file; an interruption leaves what is there.
    """
    fresh = _fresh(path)
    try:
        with open(fresh, "wb") as file:
            yield file
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(
    folder: pathlib.Path, main: str, others: Sequence[str]
) -> Iterator[pathlib.Path]:
    """Yields an empty folder; its files go to `folder` when the block ends well.

    An interruption never leaves some of the old files beside some of the new ones. It
    can leave the main file without the others.

    Args:
        folder: where the files belong; it is made if it is not there.
        main: the file that holds everything.
        others: the files that are derived from it. Old ones are removed, whether there
            are new ones or not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = _fresh(folder / main)
    fresh.mkdir()
    try:
        yield fresh
        for name in others:
            (folder / name).unlink(missing_ok=True)
        for name in (main, *others):
            if (fresh / name).exists():
                os.replace(fresh / name, folder / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_leftovers(path: pathlib.Path) -> None:
    """Removes what processes of this machine left that were killed while writing."""
    start = f"{path.name}.{socket.gethostname()}-"
    for old in path.parent.glob(f"{glob.escape(start)}*.new"):
        number = old.name[len(start) : -len(".new")]
        if not number.isdecimal() or _is_alive(int(number)):
            continue
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _fresh(path: pathlib.Path) -> pathlib.Path:
    """Returns the name under which this process writes what will be `path`."""
    remove_leftovers(path)
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.new")


def _is_alive(number: int) -> bool:
    """Returns whether a process of this machine may be running."""
    if os.name != "posix":  # elsewhere the signal 0 is no mere question
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def most_bytes(path: str | os.PathLike) -> int:
    """Returns the bytes that the content of an archive may take in memory."""
    return max(_SMALL, _MOST_COMPRESSED * os.path.getsize(path))


def check_archive(path: str | os.PathLike) -> None:
    """Compares all that a zip file holds with its checksums.

    Raises:
        ValueError: if something is damaged, or would fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        total = sum(info.file_size for info in archive.infolist())
        if total > most_bytes(path):
            raise ValueError(f"it unpacks to {total} bytes")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")


def read_arrays(
    path: str | os.PathLike,
    names: Iterable[str],
    most: int,
    check: Callable[[dict[str, np.ndarray]], Any] = lambda arrays: None,
) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file that may be damaged or hostile.

    Nothing is unpickled. No array is read before the sizes of all are known to be in
    bounds; each is compared with its checksum.

    Args:
        path: the file.
        names: of the arrays.
        most: the bytes that the arrays may take in memory, all together.
        check: called before the arrays are read, with stand-ins of their shapes and
            dtypes that take no memory; raises if these do not fit.

    Returns:
        The arrays by name.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if anything is wrong with its content. The message is a reason for
            that of the caller, who knows what to do.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = {name: archive.getinfo(f"{name}.npy") for name in names}
                arrays = {name: _declared(archive, x) for name, x in infos.items()}
                total = sum(x.nbytes for x in arrays.values())
                if total > most:
                    raise ValueError(f"its arrays take {total} of at most {most} bytes")
                check(arrays)
                return {name: _array(archive, x) for name, x in infos.items()}
        except Exception as error:
            raise ValueError(str(error)) from error


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Returns a stand-in of an array, by its header."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has an unknown format {version}")
        shape, _, dtype = _HEADERS[version](file)
        header = file.tell()
    if dtype.kind not in _KINDS:
        raise ValueError(f"{info.filename} holds {dtype}, neither numbers nor text")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + size != info.file_size:
        raise ValueError(
            f"{info.filename} has {info.file_size - header} bytes for {dtype} of shape "
            f"{shape}"
        )
    return np.broadcast_to(np.zeros((), dtype), shape)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at its end the checksum is compared
    return array
