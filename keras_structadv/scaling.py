"""The size of a gradient or a field: peak, limit, zero."""

from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import largest
from keras_structadv.checks import LARGEST


def normalized(gradients: Any) -> tuple[Any, Any]:
    """Divides the gradient of each image by its peak, the largest absolute value.

    This keeps the squares of tiny gradients (1e-30) from vanishing in float32.

    Args:
        gradients: float32, (batch, ...), of rank 4.

    Returns:
        `(gradients, peaks)`: float32, the shape of `gradients`, in [-1, 1], zero for an
        image whose gradient is zero or not finite; and float32, (batch, 1, 1, 1).
    """
    finite = ops.all(ops.isfinite(gradients), axis=(1, 2, 3), keepdims=True)
    gradients = ops.where(finite, gradients, 0.0)
    peak = largest(ops.abs(gradients), axis=(1, 2, 3), keepdims=True)
    return ops.divide_no_nan(gradients, peak), peak


def limit_of(name: str, strength: Any, fields: Any, unit: str) -> Any:
    """Returns a strength in a shape that broadcasts with fields of rank 4.

    Args:
        name: of the argument, for errors.
        strength: in [0, 1e30]; a number, or one for each image, (batch,).
        fields: (batch, ...), of rank 4.
        unit: of the strength, for errors.

    Returns:
        float32, (1, 1, 1, 1) or (batch, 1, 1, 1).

    Raises:
        ValueError: if a value is out of range, or their number is not that of images.
    """
    if isinstance(strength, (np.ndarray, np.generic)) or not hasattr(strength, "dtype"):
        values = _numbers(strength)
        if not np.all((values >= 0) & (values <= LARGEST)):
            raise ValueError(
                f"Received {name}={strength!r}. Pass numbers in [0, 1e30], {unit}."
            )
        strength = values
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


def _numbers(x: Any) -> np.ndarray:
    """Returns float64, NaN for what is not a number."""
    try:
        given = np.asarray(x)
        real = given.dtype.kind not in "USc"  # no strings, no complex numbers
        return given.astype("float64") if real else np.array(np.nan)
    except (TypeError, ValueError, OverflowError):
        return np.array(np.nan)


def is_zero(field: Any) -> Any:
    """Tells which fields are zero everywhere: bool, (batch,)."""
    return ops.all(field == 0, axis=(1, 2, 3))
