"""Colour jitter, a control that needs no structure."""

from typing import Any

import keras
from keras import ops

import keras_structadv as ksa


class ColourJitter(ksa.RandomRecoloring):
    """Random contrast and brightness of each channel, at the drawn magnitude."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, basis: Any = None
    ) -> Any:
        """A random change of whole channels of the given magnitude."""
        return channel_jitter(images, strength, self.value_range, self.noise_generator)


def channel_jitter(
    images: Any,
    magnitude: Any,
    value_range: tuple[float, float],
    seed: keras.random.SeedGenerator,
) -> Any:
    """Draws changes `a_c * (image - mean) + b_c` with normal a and b.

    Args:
        images: float32, (batch, height, width, channels).
        magnitude: (batch,), root mean square, as a fraction of the range.
        value_range: lowest and highest value of the images.
        seed: generator of the draws.

    Returns:
        float32, the shape of `images`.
    """
    low, high = value_range
    shape = (ops.shape(images)[0], 1, 1, images.shape[-1])
    contrast, brightness = (keras.random.normal(shape, seed=seed) for _ in range(2))
    centred = images - ops.mean(images, axis=(1, 2), keepdims=True)
    change = contrast * centred + brightness * (high - low) / 4
    size = ops.sqrt(ops.mean(change**2, axis=(1, 2, 3), keepdims=True))
    return change / size * magnitude[:, None, None, None] * (high - low)
