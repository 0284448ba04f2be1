"""The file of a gradient store."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from keras_structadv.files import read_arrays, whole_file


class Table(NamedTuple):
    """The content of a file.

    Attributes:
        keys: float32, (places, 4), whole numbers from -1 to 65535.
        codes: float16, (places, length), finite.
        layout: text, (), describes the codes.
        epochs: integer, (), the number of epochs after which it was saved; -1 if it is
            no backup.
    """

    keys: np.ndarray
    codes: np.ndarray
    layout: np.ndarray
    epochs: np.ndarray


def write_table(path: str | os.PathLike, table: Table) -> None:
    """Writes a table as an `.npz` file, atomically."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez(file, **table._asdict())


def read_table(path: str | os.PathLike) -> Table:
    """Reads a table that may be damaged or hostile.

    Raises:
        ValueError: if it is none.
    """
    # As no table is compressed, none takes more memory than its file.
    return Table(**_read(path, Table._fields, os.path.getsize(path)))


def epochs_of(path: str | os.PathLike) -> int:
    """Reads only after how many epochs a table was saved.

    Raises:
        ValueError: if the file is damaged.
    """
    return int(_read(path, ("epochs",), 64)["epochs"])


def _read(path: str | os.PathLike, names: tuple, most: int) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path, names, most, _check)
        keys, codes = arrays.get("keys"), arrays.get("codes", np.zeros(1))
        if keys is not None and not -1 <= keys.min() <= keys.max() < 2**16:
            raise ValueError("its keys are out of range")
        if not np.isfinite(codes).all():
            raise ValueError("its codes are not finite")
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated or no gradient store ({error}). Delete it: "
            "training collects the gradients again within an epoch."
        ) from error
    return arrays


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raises a `ValueError` unless arrays have the shapes and dtypes of a table."""
    places = arrays["keys"].shape[:1] if "keys" in arrays else ()
    expected = {
        "keys": ("float32", (*places, 4)),
        "codes": (
            "float16",
            (*places, arrays.get("codes", np.zeros((1, 1))).shape[-1]),
        ),
        "layout": (arrays.get("layout", np.array("")).dtype, ()),
        "epochs": ("int64", ()),
    }
    for name, found in arrays.items():
        dtype, shape = expected[name]
        if found.dtype != dtype or found.shape != shape or found.size == 0:
            raise ValueError(f"its {name} are {found.dtype} of shape {found.shape}")
