"""Damaged and hostile versions of files."""

import contextlib
import io
import os
import pathlib
import resource
import tracemalloc
import zipfile

import numpy as np


def damaged(whole, cuts=20, flips=60, seed=0):
    """Yields truncated and bit-flipped versions of the bytes of a file."""
    random = np.random.default_rng(seed)
    for place in np.linspace(0, len(whole) - 1, cuts).astype(int):
        yield whole[:place]
    # Half of them at the two ends, where the names, sizes and checksums are.
    ends = random.integers(0, min(600, len(whole)), flips // 2)
    ends = np.where(random.random(len(ends)) < 0.5, ends, len(whole) - 1 - ends)
    places = [*ends, *random.integers(0, len(whole), flips - len(ends))]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        yield bytes(flipped)


def npz_by_hand(path, **members):
    """Writes an `.npz` file whose headers and bytes need not agree.

    Args:
        path: the file.
        **members: `(shape, dtype, content)` by name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, (shape, dtype, content) in members.items():
            header = io.BytesIO()
            about = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, about)
            archive.writestr(f"{name}.npy", header.getvalue() + content)


def bomb(path, names, size):
    """Writes an `.npz` file of arrays that fill the memory, by a thousandth of it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                about = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
                np.lib.format.write_array_header_1_0(file, about)
                for _ in range(size // 2**20):
                    file.write(bytes(2**20))


@contextlib.contextmanager
def small_files(size):
    """Lets no file of this process grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Evil:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: pathlib.Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class peak_memory:
    """Measures the bytes that Python and NumPy hold at most in a block."""

    def __enter__(self):
        tracemalloc.start()
        return self

    def __exit__(self, *error):
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
