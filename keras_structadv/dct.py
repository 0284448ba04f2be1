"""The orthonormal DCT-II as matrix products."""

import functools
import math
from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import full_precision


@functools.lru_cache(maxsize=32)
def dct_matrix(size: int) -> np.ndarray:
    """Returns the orthonormal DCT-II matrix; `dct_matrix(n) @ x` transforms `x`.

    Args:
        size: number of samples, >= 1.

    Returns:
        float32, (size, size), read-only; row k is the k-th cosine.

    Example:
    >>> import numpy as np
    >>> bool(np.allclose(dct_matrix(5) @ dct_matrix(5).T, np.eye(5), atol=1e-6))
    True
    """
    k = np.arange(size)[:, None]
    i = np.arange(size)[None, :]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * i + 1) / (2 * size))
    matrix[0] /= np.sqrt(2)
    return _constant(matrix)


@functools.lru_cache(maxsize=32)
def laplacian_eigenvalues(height: int, width: int) -> np.ndarray:
    """Returns the eigenvalues of `P = DxᵀDx + DyᵀDy` in the DCT basis.

    Args:
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        float32, (height, width), read-only, in inverse squared pixels, between 0 and 8.
    """

    def along(size: int) -> np.ndarray:
        return 2 - 2 * np.cos(np.pi * np.arange(size) / size)

    return _constant(along(height)[:, None] + along(width)[None, :])


def enough_frequencies(shape: tuple[int, int], length: float) -> int:
    """Returns the k for which `dct2(planes, k)` holds what a smoothing filter leaves.

    The filter `1 / (1 + (length pi k / side)**2)` damps the first frequency that is
    missing to a fortieth. Two thirds of k damp it to an eighteenth.

    Args:
        shape: height and width of the planes.
        length: of the filter, >= 0, in pixels.
    """
    longer = max(shape)
    return longer if 2 >= length else min(longer, math.ceil(2 * longer / length))


def filter_length_for(shape: tuple[int, int], size: int) -> float:
    """Returns the length, in pixels, for which `size` frequencies are enough.

    Args:
        shape: height and width of the planes.
        size: the k of `enough_frequencies`.
    """
    return 2 * max(shape) / size


def dct2(planes: Any, size: int | None = None) -> Any:
    """Returns the two-dimensional DCT-II of the last two axes.

    Args:
        planes: float32, (..., height, width), height and width static.
        size: k, the number of lowest frequencies to compute along each axis; `None`
            for all.

    Returns:
        The coefficients, float32, (..., min(k, height), min(k, width)).
    """
    height, width = planes.shape[-2:]
    return _product(dct_matrix(height)[:size], planes, dct_matrix(width)[:size].T)


def idct2(coefficients: Any, shape: tuple[int, int] | None = None) -> Any:
    """Returns the inverse of `dct2`.

    Args:
        coefficients: float32, (..., k, l), k and l static.
        shape: height and width of the planes, at least (k, l); missing frequencies
            count as zero. `None` for (k, l).

    Returns:
        The planes, float32, (..., height, width).
    """
    rows, columns = coefficients.shape[-2:]
    height, width = (rows, columns) if shape is None else shape
    left, right = dct_matrix(height)[:rows].T, dct_matrix(width)[:columns]
    return _product(left, coefficients, right)


@full_precision
def _product(left: Any, planes: Any, right: Any) -> Any:
    # Not `matmul` from the right: oneDNN's of a batch and one matrix writes past its
    # output in a TensorFlow graph. Keras 3.15 is the first to keep away from it.
    return ops.matmul(left, ops.tensordot(planes, right, 1))


def _constant(array: np.ndarray) -> np.ndarray:
    array = array.astype("float32")
    array.setflags(write=False)  # the cache shares it among all callers
    return array
