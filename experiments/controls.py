"""Controls: colour jitter, composed random flows, random signs, pixel norms."""

from typing import Any

import keras
from keras import ops

import keras_structadv as ksa
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.recoloring import root_mean_square
from keras_structadv.scaling import is_zero, normalized


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


class ComposedRandomFlow(ksa.RandomFlow):
    """Composes two random flows, each of the drawn strength, within that strength."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """The composed flow, scaled down where it is longer than the strength."""
        first = super().make_field(images, gradients, strength, **extra)
        second = super().make_field(images, gradients, strength, **extra)
        return self.within_budget(self.compose(first, second), strength)

    def measure(self, images: Any, changed: Any, field: Any, strength: Any) -> Any:
        """The longest displacements, some of which are below the drawn ones."""
        return self.size_of(field)


class RandomSignFlow(ksa.AdversarialFlow):
    """Moves each image up or down the loss along its flow, by chance.

    Args:
        *args: arguments of `AdversarialFlow`.
        **kwargs: arguments of `AdversarialFlow`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Of its own, so that the other draws stay paired with those of the flow.
        self.noise_generator = keras.random.SeedGenerator(self.stream("noise"))

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """The adversarial flow, with a random sign for each image."""
        flow = super().make_field(images, gradients, strength, **extra)
        shape = (ops.shape(flow)[0], 1, 1, 1)
        positive = keras.random.uniform(shape, seed=self.noise_generator) < 0.5
        return ops.where(positive, flow, -flow)


class PixelAdversary(StructuredAdversary):
    """Base of the perturbations that are bounded by a norm of the pixels.

    One step is the fast gradient method, several are projected gradient descent.
    Values are clipped in the image, after all steps. (Clipped between them as well, ten
    seeds of MNIST with 200 images came out the same.)

    Args:
        magnitude: norm of the perturbation, as a fraction of the value range. A number
            `m` draws it for each image from U(0, m), a pair from U(low, high).
        rate: the fraction of the images that is perturbed, in [0, 1].
        **kwargs: further arguments of `StructuredAdversary`.
    """

    strength_name = "magnitude"
    measure_name = "mean_magnitude"
    moves_pixels = False
    uses_value_range = True

    def __init__(
        self,
        magnitude: float | tuple[float, float] = (0.1, 0.1),
        *,
        rate: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(rate=rate, **kwargs)
        self._set_strength(magnitude)

    def ascent(self, gradients: Any) -> Any:
        """The direction that raises the loss fastest, of any size."""
        raise NotImplementedError

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """The steepest perturbation of the given norm, the shape of the images."""
        return self._scaled(self.ascent(gradients), strength)

    def random_field(self, images: Any, strength: Any, **extra: Any) -> Any:
        """A random perturbation of the given norm, the shape of the images."""
        noise = keras.random.uniform(
            ops.shape(images), -1, 1, seed=self.noise_generator
        )
        return self._scaled(noise, strength)

    def _scaled(self, direction: Any, strength: Any) -> Any:
        size = ops.reshape(self.size_of(direction), (-1, 1, 1, 1))
        strength = ops.reshape(strength, (-1, 1, 1, 1))
        return ops.divide_no_nan(direction, size) * strength

    def compose(self, first: Any, second: Any) -> Any:
        """The sum of two perturbations."""
        return first + second

    def apply(self, images: Any, field: Any) -> Any:
        """The images with the perturbation added, clipped to `value_range`."""
        return ops.clip(images + field, *self.value_range)

    def measure(self, images: Any, changed: Any, field: Any, strength: Any) -> Any:
        """The norm of each change after clipping."""
        return ops.where(is_zero(field), 0.0, self.size_of(changed - images))


class MaxNormAdversary(PixelAdversary):
    """Changes every pixel by the strength, as FGSM does (L-infinity)."""

    def ascent(self, gradients: Any) -> Any:
        """The sign of the gradient."""
        return ops.sign(gradients)

    def size_of(self, field: Any) -> Any:
        """The largest change of a pixel over the value range, float32, (batch,)."""
        low, high = self.value_range
        return ops.max(ops.abs(field), axis=(1, 2, 3)) / (high - low)

    def within_budget(self, field: Any, strength: Any) -> Any:
        """The field with each pixel clipped to the strength, as PGD projects."""
        low, high = self.value_range
        most = ops.reshape(strength, (-1, 1, 1, 1)) * (high - low)
        return ops.clip(field, -most, most)


class MeanSquareAdversary(PixelAdversary):
    """Follows the gradient itself; the strength is a root mean square (L2)."""

    def ascent(self, gradients: Any) -> Any:
        """The gradient, divided by its peak."""
        return normalized(gradients)[0]

    def size_of(self, field: Any) -> Any:
        """The root mean square over the value range, float32, (batch,)."""
        return root_mean_square(field, self.value_range)
