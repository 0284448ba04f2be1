"""The base augmentation of the paper: flips, crops and cutout, as layers."""

from typing import Any

import keras
from keras import ops

from experiments.operations import pixels_at


class Augmentation(keras.layers.Layer):
    """Augments each image of a batch in training; the identity in inference.

    A subclass defines `augment`, from float32 to float32.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple) -> None:
        """Checks the shape of the images.

        Raises:
            ValueError: if it is not (batch, height, width, 1 or 3).
        """
        shape = tuple(input_shape)
        if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
            raise ValueError(
                f"Received images of shape {shape}. Pass (batch, height, width, "
                "channels) with 1 or 3 channels; only batch may be None."
            )
        super().build(input_shape)

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Augments the images in training; casts them to the compute dtype."""
        if training:
            images = self.augment(ops.cast(images, "float32"))
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict:
        """Every constructor argument."""
        return {**super().get_config(), "seed": self.seed}

    def _draw(self, shape: tuple, end: int) -> Any:
        """Draws integers uniformly from 0 to `end - 1`, int32."""
        return keras.random.randint(shape, 0, end, seed=self.seed_generator)


def base_augmentation(
    flip: bool, padding: int, cutout: int, seed: int | None = None
) -> list[keras.layers.Layer]:
    """The layers of the base augmentation, in their order.

    Args:
        flip: whether to flip each image from left to right with probability 1/2.
        padding: zero-padding before a random crop to the old size, in pixels; 0 for
            none.
        cutout: side of the square of zeros, in pixels; 0 for none.
        seed: seed of the draws, from which each layer derives its own.

    Raises:
        ValueError: if `padding` or `cutout` is negative.
    """
    if padding < 0 or cutout < 0:
        raise ValueError(
            f"Received padding={padding} and cutout={cutout}. Pass numbers of pixels "
            ">= 0; 0 leaves the layer out."
        )
    seeds = [None] * 3 if seed is None else [3 * seed + k for k in range(3)]
    layers = []
    if flip:
        layers.append(keras.layers.RandomFlip("horizontal", seed=seeds[0]))
    if padding:
        layers.append(PadAndCrop(padding, seed=seeds[1]))
    if cutout:
        layers.append(Cutout(cutout, seed=seeds[2]))
    return layers


@keras.saving.register_keras_serializable(package="experiments")
class PadAndCrop(Augmentation):
    """Pads with zeros and crops to the old size, at a random place for each image.

    `keras.layers.RandomCrop` draws one place for a whole batch.

    Args:
        padding: zeros on each side, in pixels, and so the largest movement.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, padding: int, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.padding = padding

    def augment(self, images: Any) -> Any:
        """Moves each image by whole pixels."""
        offset = self._draw((ops.shape(images)[0], 2), 2 * self.padding + 1)
        offset = offset - self.padding
        y = ops.arange(images.shape[1])[:, None] + offset[:, :1, None]
        x = ops.arange(images.shape[2])[None] + offset[:, 1:, None]
        return pixels_at(images, y, x, fill=0.0)

    def get_config(self) -> dict:
        """Every constructor argument."""
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable(package="experiments")
class Cutout(Augmentation):
    """Sets a square with a random centre to zero.

    Near the border, part of the square lies outside the image.

    Args:
        size: side of the square, in pixels.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Reference: DeVries and Taylor (2017), arXiv:1708.04552.
    """

    def __init__(self, size: int, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.size = size

    def augment(self, images: Any) -> Any:
        """Erases a square of each image."""
        within = []
        for length in images.shape[1:3]:
            first = self._draw((ops.shape(images)[0], 1), length) - self.size // 2
            place = ops.arange(length)
            within.append((place >= first) & (place < first + self.size))
        square = within[0][:, :, None] & within[1][:, None, :]
        return ops.where(square[..., None], 0.0, images)

    def get_config(self) -> dict:
        """Every constructor argument."""
        return {**super().get_config(), "size": self.size}
