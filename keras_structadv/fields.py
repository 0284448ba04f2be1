"""What flows and perturbations share: checks, the scale of a gradient, the strength."""

import numbers
from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import largest


def check_images(images: Any, gradients: Any) -> None:
    """Raises a `ValueError` unless both are (batch, height, width, channels)."""
    if len(images.shape) != 4:
        raise ValueError(
            f"Received images of shape {tuple(images.shape)}. Pass a batch of shape "
            "(batch, height, width, channels)."
        )
    if None in images.shape[1:]:
        raise ValueError(
            f"Received images of shape {tuple(images.shape)}. Height, width and "
            "channels must be known when the graph is built: resize or crop, and set "
            "the static shape."
        )
    if len(gradients.shape) != 4 or any(
        None not in (a, b) and a != b for a, b in zip(images.shape, gradients.shape)
    ):
        raise ValueError(
            f"Received gradients of shape {tuple(gradients.shape)} for images of shape "
            f"{tuple(images.shape)}. The two shapes must be equal."
        )


def check_number(
    name: str, value: Any, *, positive: bool = False, advice: str = ""
) -> None:
    """Raises a `ValueError` unless a value is in [0, 1e30], or in [1e-30, 1e30]."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    least = 1e-30 if positive else 0
    if not number or not least <= value <= 1e30:
        raise ValueError(
            f"Received {name}={value!r}. Pass a number in [{least:g}, 1e30]{advice}."
        )


def range_pair(name: str, value: Any) -> tuple[float, float]:
    """Returns a pair (low, high) as a tuple of Python's numbers.

    Raises:
        ValueError: if it is no pair of finite numbers, or low is not below high.
    """
    pair = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else ()
    numeric = all(isinstance(x, numbers.Real) and np.isfinite(x) for x in pair)
    if len(pair) != 2 or not numeric or not pair[0] < pair[1]:
        raise ValueError(
            f"Received {name}={value!r}. Pass a pair (low, high), low < high."
        )
    return tuple(x.item() if isinstance(x, np.generic) else x for x in pair)


def normalized(gradients: Any) -> tuple[Any, Any]:
    """Returns the gradient of each image over its peak, and the peaks.

    Gradients may be as small as 1e-30, whose squares float32 does not hold.

    Args:
        gradients: float32, (batch, ...), of rank 4.

    Returns:
        float32, the shape of `gradients`, in [-1, 1], zero for an image whose gradient
        is zero or not finite; and the peaks, (batch, 1, 1, 1).
    """
    finite = ops.all(ops.isfinite(gradients), axis=(1, 2, 3), keepdims=True)
    gradients = ops.where(finite, gradients, 0.0)
    peak = largest(ops.abs(gradients), axis=(1, 2, 3), keepdims=True)
    return ops.divide_no_nan(gradients, peak), peak


def limit_of(name: str, strength: Any, fields: Any, unit: str) -> Any:
    """Returns a strength as it can be multiplied with fields of rank 4.

    Args:
        name: what the argument is called.
        strength: finite, >= 0; a number, or one for each image, (batch,).
        fields: (batch, ...), of rank 4.
        unit: of the strength.

    Returns:
        float32, (1, 1, 1, 1) or (batch, 1, 1, 1).

    Raises:
        ValueError: if a value is out of range, or their number is another.
    """
    if isinstance(strength, (int, float, list, tuple, np.ndarray, np.generic)):
        values = np.asarray(strength, "float64")
        if not np.all((values >= 0) & (values < np.inf)):
            raise ValueError(
                f"Received {name}={strength!r}. Pass finite numbers >= 0, {unit}."
            )
    strength = ops.convert_to_tensor(strength, "float32")
    if len(strength.shape) > 1 or (
        len(strength.shape) == 1
        and None not in (strength.shape[0], fields.shape[0])
        and strength.shape[0] != fields.shape[0]
    ):
        raise ValueError(
            f"Received {name} of shape {tuple(strength.shape)} for {fields.shape[0]} "
            "images. Pass a number, or one for each image."
        )
    return ops.reshape(strength, (-1, 1, 1, 1))
