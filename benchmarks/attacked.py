"""Images under attack, and what an attack by motions found."""

import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_structadv as ksa


class Found(NamedTuple):
    """What an attack found.

    Attributes:
        losses: float32, (n,), the highest loss of each image.
        right: bool, (n,), whether the model is right there all the same.
        roughness: float32, (n,), of the motion; see `roughness_of`.
        passes: mean number of passes of the model for an image.
        seconds: for an image.
    """

    losses: np.ndarray
    right: np.ndarray
    roughness: np.ndarray
    passes: float
    seconds: float


class Attacked:
    """Images under attack.

    Args:
        model: from images to logits.
        x: float32, (n, height, width, channels), 0 to 255.
        y: integers, (n,).

    Attributes:
        logits: of images, compiled.
    """

    def __init__(self, model: keras.Model, x: np.ndarray, y: np.ndarray):
        self.model, self.x, self.y = model, x, y

        def logits(images: tf.Tensor) -> tf.Tensor:
            return model(images, training=False)

        self.logits = tf.function(logits, jit_compile=True)
        self._warped = tf.function(ksa.dense_image_warp, jit_compile=True)

    def cross_entropy(self, logits: tf.Tensor) -> tf.Tensor:
        """The loss of each image, (n,)."""
        return tf.nn.sparse_softmax_cross_entropy_with_logits(self.y, logits)

    def warped(self, fields: np.ndarray) -> np.ndarray:
        """The images warped along flows, (n, height, width, 2)."""
        return self._warped(self.x, tf.cast(fields, "float32")).numpy()

    def found(
        self, images: np.ndarray, roughness: np.ndarray, passes: float, seconds: float
    ) -> Found:
        """Judges changed images.

        Args:
            images: those of the highest loss, the shape of `x`.
            roughness: as in `Found`.
            passes: as in `Found`.
            seconds: for all images.
        """
        logits = self.logits(images)
        return Found(
            self.cross_entropy(logits).numpy(),
            logits.numpy().argmax(axis=-1) == self.y,
            np.asarray(roughness),
            passes,
            seconds / len(self.y),
        )


def roughness_of(fields: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of neighbouring displacements, squared pixels, (n,).

    Args:
        fields: (n, height, width, 2).
    """
    changes = changes_of(fields)
    pairs = sum(math.prod(change.shape[1:3]) for change in changes)
    return sum(tf.reduce_sum(tf.square(x), axis=(1, 2, 3)) for x in changes) / pairs


def changes_of(fields: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The differences of neighbouring displacements, down and to the right."""
    return fields[:, 1:] - fields[:, :-1], fields[:, :, 1:] - fields[:, :, :-1]
