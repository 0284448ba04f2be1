"""A key for the content of an image."""

import functools
import math
from typing import Any

import numpy as np
from keras import backend, ops

from keras_structadv.backends import framework


def fingerprint(images: Any) -> Any:
    """Returns a key of 64 bits for the content of each image.

    Two sums of the pixels, as integers or by their bits, with random odd weights,
    modulo 2**32. They are exact, so that they depend neither on the batch nor on how
    the sum is compiled.

    Args:
        images: float or integer, (batch, ...), the other axes static.

    Returns:
        keys: float32, (batch, 4), whole numbers in [0, 2**16).
    """
    dtype = backend.standardize_dtype(images.dtype)
    if backend.is_float_dtype(dtype):
        images = ops.cast(images, "float32")
        # -0.0 is 0.0. Not by adding 0.0, which compilers take out.
        images = framework().bits(ops.where(images == 0, 0.0, images))
    size = math.prod(images.shape[1:])
    values = ops.reshape(ops.cast(images, "int32"), (-1, size))
    if dtype in ("int64", "uint64"):  # the upper halves as well
        upper = ops.reshape(ops.right_shift(images, 32), (-1, size))
        values = ops.concatenate([values, ops.cast(upper, "int32")], axis=1)
        size *= 2
    if not dtype.endswith(("bool", "int8", "int16")):
        # The lower bits of round numbers are all zero, and a sum modulo 2**32 never
        # moves anything down.
        upper = ops.bitwise_and(ops.right_shift(values, 16), 0xFFFF)
        values = ops.bitwise_xor(values, upper)
    parts = []
    for weights in _weights(size):
        total = ops.sum(ops.multiply(values, weights), axis=1)
        parts += [
            ops.bitwise_and(ops.right_shift(total, 16), 0xFFFF),
            ops.bitwise_and(total, 0xFFFF),
        ]
    return ops.cast(ops.stack(parts, axis=1), "float32")


@functools.lru_cache(maxsize=16)
def _weights(size: int) -> np.ndarray:
    random = np.random.default_rng(20201025).integers(0, 2**32, (2, size), np.uint32)
    weights = (random | 1).view(np.int32)
    weights.setflags(write=False)
    return weights
