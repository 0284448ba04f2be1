"""Checks of arguments; their errors name the argument."""

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np
from keras import backend, ops

LARGEST = 1e30
"""Larger numbers, or their squares, may overflow in float32."""


def as_tensor(name: str, x: Any, dtype: str | None = None) -> Any:
    """Returns real numbers as a tensor.

    Args:
        name: of the argument.
        x: an array, a tensor, or nested lists of numbers.
        dtype: of the tensor; `None` for that of `x`.

    Raises:
        ValueError: if they are no real numbers.
    """
    reason: Any
    try:
        given = x if hasattr(x, "dtype") else np.asarray(x)
        reason = backend.standardize_dtype(given.dtype)
        if reason != "string" and not reason.startswith("complex"):
            return ops.convert_to_tensor(x, dtype)
    except (TypeError, ValueError) as error:
        reason = error
    raise ValueError(
        f"Received {name} that are no real numbers ({reason}). Pass a dense array "
        "of floats or integers."
    )


def is_one_of(value: Any, names: Collection) -> bool:
    """Returns whether a value is one of some names, of which `None` may be one.

    Where it is an array or a list, `in` alone fails, or compares its entries.
    """
    return isinstance(value, str | None) and value in names


def check_images(images: Any, gradients: Any) -> None:
    """Raises unless both are (batch, height, width, channels), of one shape.

    Raises:
        ValueError: if a rank is not 4, a size other than the batch is unknown, or the
            shapes differ.
    """
    if len(images.shape) != 4:
        raise ValueError(
            f"Received images of shape {tuple(images.shape)}. Pass a batch of shape "
            "(batch, height, width, channels)."
        )
    if None in images.shape[1:]:
        raise ValueError(
            f"Received images of shape {tuple(images.shape)}. Height, width and "
            "channels must be known when the graph is built. Resize or crop the "
            "images, and set their static shape."
        )
    if len(gradients.shape) != 4 or any(
        None not in (a, b) and a != b for a, b in zip(images.shape, gradients.shape)
    ):
        raise ValueError(
            f"Received gradients of shape {tuple(gradients.shape)} for images of shape "
            f"{tuple(images.shape)}. Pass two arrays of the same shape."
        )


def check_length(name: str, labels: Any, images: Any) -> None:
    """Raises unless there is one entry for each image.

    Raises:
        ValueError: if there is no batch axis, or its length differs.
    """
    if len(labels.shape) == 0:
        raise ValueError(
            f"Received {name} without a batch axis. Pass one for each image."
        )
    if None not in (labels.shape[0], images.shape[0]) and (
        labels.shape[0] != images.shape[0]
    ):
        raise ValueError(
            f"Received {name} of shape {tuple(labels.shape)} for images of shape "
            f"{tuple(images.shape)}. Pass one for each image."
        )


def check_number(
    name: str, value: Any, *, positive: bool = False, advice: str = ""
) -> None:
    """Raises unless a value is a number in range.

    Args:
        name: of the argument.
        value: of the argument.
        positive: whether the range is [1e-30, 1e30] instead of [0, 1e30].
        advice: ends the error: the unit, or what else to pass.

    Raises:
        ValueError: if the value is not a number, or out of range.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    least = 1e-30 if positive else 0
    if not number or not least <= value <= 1e30:
        raise ValueError(
            f"Received {name}={value!r}. Pass a number in [{least:g}, 1e30]{advice}."
        )


def check_fraction(name: str, value: Any) -> float:
    """Returns a number in [0, 1] as a `float`.

    Raises:
        ValueError: if it is none.
    """
    number = isinstance(value, numbers.Real)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"Received {name}={value!r}. Pass a fraction in [0, 1].")
    return float(value)


def check_count(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    """Returns an integer argument as Python's `int`.

    Raises:
        ValueError: if it is not an integer, or out of [least, most]; booleans are
            rejected.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"Received {name}={value!r}. Pass an integer >= {least}.")
    if value > most:
        raise ValueError(f"Received {name}={value}. Pass an integer <= {most}.")
    return int(value)


def range_pair(name: str, value: Any) -> tuple[float, float]:
    """Returns a pair (low, high) as a tuple of Python numbers.

    Raises:
        ValueError: if it is not a pair of numbers with -1e30 <= low < high <= 1e30.
    """
    several = isinstance(value, (tuple, list, np.ndarray))
    pair: tuple[Any, ...] = tuple(value) if several else ()
    numeric = len(pair) == 2 and all(isinstance(x, numbers.Real) for x in pair)
    if not numeric or not -LARGEST <= pair[0] < pair[1] <= LARGEST:
        raise ValueError(
            f"Received {name}={value!r}. Pass a pair (low, high), low < high, from "
            "-1e30 to 1e30."
        )
    return tuple(x.item() if isinstance(x, np.generic) else x for x in pair)


def likely_range(
    value_range: tuple[float, float], lowest: float, highest: float
) -> tuple[float, float] | None:
    """Returns the likely range of images that do not fit `value_range`.

    Args:
        value_range: the lowest and the highest value that are expected.
        lowest: the smallest value of some images.
        highest: their largest value.

    Returns:
        A pair (low, high). `None` if the images fit, or tell nothing because they are
        constant or not finite.
    """
    if not -math.inf < lowest < highest < math.inf:
        return None
    low, high = value_range
    span = high - low
    outside = lowest < low - 0.01 * span or highest > high + 0.01 * span
    if not outside and highest >= low + 0.03 * span:
        return None
    usual = [(0, 1), (-1, 1), (0, 255), (math.floor(lowest), math.ceil(highest))]
    return next(x for x in usual if x[0] <= lowest and highest <= x[1])


def strength_range(name: str, value: Any) -> tuple[float, float]:
    """Returns the range from which a layer draws its strengths.

    Args:
        name: of the argument.
        value: a number `high`, for (0, high), or a pair (low, high).

    Returns:
        `(low, high)`.

    Raises:
        ValueError: if the value is neither, or not 0 <= low <= high <= 1e30.
    """
    pair: tuple[Any, ...] = (
        tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
    )
    numeric = len(pair) == 2 and all(isinstance(x, numbers.Real) for x in pair)
    if not numeric or not 0 <= pair[0] <= pair[1] <= LARGEST:
        raise ValueError(
            f"Received {name}={value!r}. Pass a number >= 0, to draw from "
            f"U(0, {name}), or a pair (low, high) with 0 <= low <= high <= 1e30."
        )
    return float(pair[0]), float(pair[1])


def missing_packages(packages: str, error: Exception) -> ImportError:
    """Returns the error that names the packages of a data set."""
    return ImportError(
        f"This data set needs {packages} ({error}). "
        "Run: pip install 'keras-structadv[experiments]'"
    )
