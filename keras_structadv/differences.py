"""Finite differences along one axis of an array, in units per pixel."""

from typing import Any

from keras import ops


def _slice(x: Any, axis: int, start: int, stop: int | None) -> Any:
    index = [slice(None)] * len(x.shape)
    index[axis] = slice(start, stop)
    return x[tuple(index)]


def forward_difference(x: Any, axis: int) -> Any:
    """Returns `x[i + 1] - x[i]` along `axis`, zero at the last entry (Neumann).

    Args:
        x: float, any shape, static along `axis`.
        axis: the axis to differentiate.

    Returns:
        An array of the shape and dtype of `x`, in units of `x` per pixel.

    Example:
    >>> import numpy as np
    >>> np.asarray(forward_difference(np.array([1.0, 4.0, 9.0]), axis=0))
    array([3., 5., 0.])
    """
    x = ops.convert_to_tensor(x)
    inside = _slice(x, axis, 1, None) - _slice(x, axis, 0, -1)
    return ops.concatenate([inside, ops.zeros_like(_slice(x, axis, 0, 1))], axis=axis)


def forward_difference_adjoint(x: Any, axis: int) -> Any:
    """Returns the adjoint `Dᵀ x` of `forward_difference` along `axis`.

    Args:
        x: float, any shape, static along `axis`.
        axis: the axis that was differentiated.

    Returns:
        An array of the shape and dtype of `x`.
    """
    x = ops.convert_to_tensor(x)
    zero = ops.zeros_like(_slice(x, axis, 0, 1))
    inside = _slice(x, axis, 0, -1)  # D never reads its last row
    return ops.concatenate([zero, inside], axis=axis) - ops.concatenate(
        [inside, zero], axis=axis
    )


def central_difference(x: Any, axis: int) -> Any:
    """Returns the derivative along `axis`, as `numpy.gradient` does.

    Differences are central inside and one-sided at the two borders. Along an axis of
    length one, where `numpy.gradient` raises, the derivative is zero.

    Args:
        x: float, any shape, static along `axis`.
        axis: the axis to differentiate.

    Returns:
        An array of the shape and dtype of `x`, in units of `x` per pixel.

    Example:
    >>> import numpy as np
    >>> np.asarray(central_difference(np.array([1.0, 4.0, 9.0]), axis=0))
    array([3., 4., 5.])
    """
    x = ops.convert_to_tensor(x)
    size = x.shape[axis]
    if size == 1:
        return ops.zeros_like(x)
    first = _slice(x, axis, 1, 2) - _slice(x, axis, 0, 1)
    last = _slice(x, axis, size - 1, None) - _slice(x, axis, size - 2, -1)
    inside = (_slice(x, axis, 2, None) - _slice(x, axis, 0, -2)) * 0.5
    return ops.concatenate([first, inside, last], axis=axis)
