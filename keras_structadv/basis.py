"""Precomputes the recolouring bases of a data set into a file."""

import hashlib
import json
import math
import os
import pathlib
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends import fused
from keras_structadv.checks import check_count, check_images, range_pair
from keras_structadv.defaults import damping_of
from keras_structadv.files import whole_file
from keras_structadv.operators import EdgePreserving
from keras_structadv.recoloring import check_recoloring_arguments, scaled_to_unit
from keras_structadv.solvers import recoloring_basis

_CHUNK = 64  # images whose checksum is taken at once
_MOST_BYTES = 2**16  # of a record


def precompute_basis(
    images: Any,
    path: str | os.PathLike,
    rank: int = 8,
    *,
    coherence: float = 1.0,
    damping: float | None = None,
    edge_scale: float = 0.05,
    value_range: tuple[float, float] = (0, 255),
    dtype: str = "float16",
    batch_size: int = 32,
    verbose: int = 1,
) -> np.memmap:
    """Computes the recolouring basis of each image into a `.npy` file.

    The basis depends on the images alone and serves every model. Pass it with the
    images under the key `"basis"`, to `AdversarialRecoloring` or in the training data
    of `AdversarialTraining`. In float16 it takes `2 * rank` bytes per image value.

    Called again, it resumes an interrupted run and opens a complete file. Until the run
    is complete, the array is in `path` + `.part`. `path` + `.json` records the images,
    the arguments and a checksum of the array.

    Args:
        images: (n, height, width, channels), in `value_range`: an array, a memory map,
            or any object with a `shape` whose slices are arrays.
        path: of the `.npy` file to write.
        rank: k, the number of eigenvectors for each image.
        coherence: as in `adversarial_recoloring`.
        damping: as in `adversarial_recoloring`.
        edge_scale: as in `adversarial_recoloring`.
        value_range: the lowest and the highest value of the images.
        dtype: of the file, `"float16"` or `"float32"`.
        batch_size: images per compiled call, which needs about `80 * (rank + 4)` bytes
            of memory for each of their values.
        verbose: 0 for no progress bar.

    Returns:
        basis: (n, height, width, channels, k), of `dtype`, a read-only memory map; see
        `recoloring_basis`.

    Raises:
        OSError: if the disk is full. Free some space and call again.
        ValueError: if an argument is out of range, an image is not finite, or the file
            in `path` is damaged or belongs to other images or arguments.

    Example:
    >>> import os, tempfile
    >>> images = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3))
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "basis.npy")
    >>> basis = precompute_basis(images, path, rank=2, verbose=0)
    >>> basis.shape, basis.dtype
    ((3, 8, 8, 3, 2), dtype('float16'))

    Reference: Luo, Mobahi, Bengio (2020), section 5, after eq. 33.
    """
    if not hasattr(images, "shape"):
        images = np.asarray(images)
    check_images(images, images)
    check_recoloring_arguments(
        coherence, damping, edge_scale, lam=None, rank=rank, rtol=0, max_iterations=1
    )
    damping = damping_of(damping, *images.shape[1:3])
    unknowns = math.prod(images.shape[1:])
    if len(images) == 0 or rank is None or rank > unknowns:
        raise ValueError(
            f"Received rank={rank} for {len(images)} images of {unknowns} values. Pass "
            f"at least one image, and an integer rank from 1 to {unknowns}."
        )
    batch_size = min(check_count("batch_size", batch_size), len(images))
    if dtype not in ("float16", "float32"):
        raise ValueError(f'Received dtype={dtype!r}. Pass "float16" or "float32".')
    value_range = range_pair("value_range", value_range)
    path = pathlib.Path(path)
    shape = (*images.shape, int(rank))
    made_of = {
        "shape": list(shape),
        "dtype": dtype,
        "coherence": float(coherence),
        "damping": float(damping),
        "edge_scale": float(edge_scale),
        "value_range": [float(value) for value in value_range],
        "images": _digest(images, batch_size),
    }
    part, record = _with(path, ".part"), _with(path, ".json")
    done, checksum = _done(path, part, record, made_of)
    if done == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(record, {**made_of, "done": 0, "checksum": 0})
        np.lib.format.open_memmap(part, "w+", dtype, shape)
    if done < len(images):
        begun = _open(part, shape, dtype, done, checksum)
        size, offset = begun[0].nbytes, begun.offset
        del begun
        bar = keras.utils.Progbar(len(images), verbose=verbose, unit_name="image")

        def compute(batch: Any) -> Any:
            operator = EdgePreserving(
                scaled_to_unit(batch, value_range), coherence, damping, edge_scale
            )
            return recoloring_basis(operator, int(rank))

        compiled = fused(compute, in_eager=True)
        for start in range(done, len(images), batch_size):
            batch = np.asarray(images[start : start + batch_size], "float32")
            # Padding the last batch to full size saves a second compilation.
            full = np.resize(batch, (batch_size, *batch.shape[1:]))
            result = ops.convert_to_numpy(compiled(ops.convert_to_tensor(full)))
            stop = start + len(batch)
            values = np.ascontiguousarray(result[: len(batch)], dtype)
            # Not through the memory map: on a full disk that ends the process.
            with open(part, "r+b") as file:
                file.seek(offset + start * size)
                file.write(values.data)
            checksum = zlib.crc32(values.data, checksum)
            _write(record, {**made_of, "done": stop, "checksum": checksum})
            bar.update(stop)
        done = len(images)
    if not path.exists():
        _open(part, shape, dtype, done, checksum)
        os.replace(part, path)
        return _open(path, shape, dtype, 0, 0)  # checked just now
    return _open(path, shape, dtype, done, checksum)


def _done(
    path: pathlib.Path, part: pathlib.Path, record: pathlib.Path, made_of: dict
) -> tuple[int, int]:
    """Returns the number of images done in an earlier run, and their checksum.

    Raises:
        ValueError: if that run was of other images or arguments, or is inconsistent.
    """
    there = path if path.exists() else part
    if not there.exists():
        return 0, 0
    advice = "Pass another path, or delete the file."
    try:
        if os.path.getsize(record) > _MOST_BYTES:
            raise ValueError(f"it takes more than {_MOST_BYTES} bytes")
        found = json.loads(record.read_text())
        done, checksum = found["done"], found["checksum"]
        if not isinstance(done, int) or not 0 <= done <= made_of["shape"][0]:
            raise ValueError(f"it counts {done} images")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{there} exists, but its record {record} cannot be read ({error}). "
            f"{advice}"
        ) from error
    if there == path and done < made_of["shape"][0]:
        raise ValueError(
            f"{path} exists, but its record {record} is of an unfinished run. {advice}"
        )
    if done == 0:  # starting over loses nothing
        return 0, 0
    for name, value in made_of.items():
        if found.get(name) != value:
            what = "other images" if name == "images" else f"{name}={found.get(name)}"
            asked = "these" if name == "images" else f"{name}={value}"
            raise ValueError(f"{there} was computed for {what}, not {asked}. {advice}")
    return done, checksum


def _open(
    path: pathlib.Path,
    shape: tuple,
    dtype: str,
    done: int,
    checksum: int,
) -> np.memmap:
    """Opens the array, and compares its first images with their checksum.

    Raises:
        ValueError: if it is damaged or of another shape.
    """
    try:
        basis = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # what a damaged header makes of NumPy's parser
        raise ValueError(
            f"{path} is truncated or not an array ({error}). Delete it and run again."
        ) from error
    if basis.shape != shape or basis.dtype != dtype:
        raise ValueError(
            f"{path} holds {basis.dtype} of shape {basis.shape}, not {dtype} of shape "
            f"{shape}. Pass another path, or delete the file."
        )
    if checksum != _checksum(basis, done):
        raise ValueError(
            f"{path} is damaged: its checksum is not that of its record. Delete it and "
            "run again."
        )
    return basis


def _checksum(basis: np.ndarray, done: int) -> int:
    found = 0
    for start in range(0, done, _CHUNK):
        values = np.ascontiguousarray(basis[start : min(start + _CHUNK, done)])
        found = zlib.crc32(values.data, found)
    return found


def _digest(images: Any, batch_size: int) -> str:
    """Returns a checksum of the images as float32.

    Raises:
        ValueError: if an image is not finite: now, before anything was computed.
    """
    digest = hashlib.sha256()
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size], "float32")
        finite = np.isfinite(batch).all(axis=(1, 2, 3))
        if not finite.all():
            raise ValueError(
                f"Image {start + int(finite.argmin())} has values that are not "
                "finite. Replace or remove them."
            )
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


def _write(record: pathlib.Path, content: dict) -> None:
    """Writes the record atomically."""
    with whole_file(record) as file:
        file.write(json.dumps(content, indent=1).encode())


def _with(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)
