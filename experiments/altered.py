"""Adversarial layers and a normalization, each altered in one way for `variants`."""

from typing import Any

import keras
from keras import layers, ops

import keras_structadv as ksa
from experiments.controls import channel_jitter
from keras_structadv.flow import longest_displacement, random_flow
from keras_structadv.gradients import Inference, gradients_of
from keras_structadv.layers.selection import Augmented


class Altered(ksa.AdversarialFlow):
    """Combines each adversarial flow, fresh or reused, with a random one.

    A subclass defines `alter`.
    """

    def alter(self, flow: Any, other: Any, strength: Any) -> Any:
        """Combines a flow and a random one, both as long as `strength`."""
        raise NotImplementedError

    def make_field(self, images: Any, gradients: Any, strength: Any) -> Any:
        """The altered flow of a fresh gradient."""
        flow = super().make_field(images, gradients, strength)
        return self.altered(images, flow, strength)

    def decode(self, images: Any, codes: Any, size: int, strength: Any) -> Any:
        """The altered flow of a reused gradient; zero without one."""
        flow = super().decode(images, codes, size, strength)
        found = ops.any(codes != 0, axis=1)
        return self.altered(images, flow, ops.where(found, strength, 0.0))

    def altered(self, images: Any, flow: Any, strength: Any) -> Any:
        """Draws a random flow of the same length and combines the two."""
        other = random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.seed_generator,
        )
        return self.alter(flow, other, strength)


class Mixed(Altered):
    """Half of the direction is random."""

    def alter(self, flow: Any, other: Any, strength: Any) -> Any:
        """The mean of the two, scaled to their length."""
        mixed = 0.5 * flow + 0.5 * other
        scale = ops.divide_no_nan(strength, longest_displacement(mixed))
        return mixed * scale[:, None, None, None]


class SomeRandom(Altered):
    """Half of the images get a random flow."""

    def alter(self, flow: Any, other: Any, strength: Any) -> Any:
        """Chooses one of the two for each image."""
        random = self.draw_uniform(ops.shape(flow)[0]) < 0.5
        return ops.where(random[:, None, None, None], other, flow)


class SomeReversed(Altered):
    """Three images in ten get the reversed flow."""

    def alter(self, flow: Any, other: Any, strength: Any) -> Any:
        """Reverses the flow of some images."""
        reversed_ = self.draw_uniform(ops.shape(flow)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -flow, flow)


class RecoloringSomeReversed(ksa.AdversarialRecoloring):
    """Three images in ten get the reversed perturbation."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, basis: Any = None
    ) -> Any:
        """Reverses the perturbation of some images."""
        field = super().make_field(images, gradients, strength, basis)
        reversed_ = self.draw_uniform(ops.shape(field)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -field, field)


class RecoloringMixed(ksa.AdversarialRecoloring):
    """Half of the right-hand side is noise."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, basis: Any = None
    ) -> Any:
        """The perturbation for a gradient plus noise of the same size."""
        size = ops.sqrt(ops.mean(gradients**2, axis=(1, 2, 3), keepdims=True))
        noise = keras.random.normal(ops.shape(gradients), seed=self.seed_generator)
        return super().make_field(images, gradients + size * noise, strength, basis)


class RecoloringJittered(ksa.AdversarialRecoloring):
    """Half of the perturbation is jitter of whole channels, half adversarial."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, basis: Any = None
    ) -> Any:
        """The mean of the two, scaled to their size."""
        jitter = channel_jitter(images, strength, self.value_range, self.seed_generator)
        field = super().make_field(images, gradients, strength, basis)
        mixed = (jitter + field) / 2
        scale = ops.divide_no_nan(strength, self.size_of(mixed))
        return mixed * scale[:, None, None, None]


class FlowFromAfar(ksa.AdversarialFlow):
    """A random start of U(0, 10) pixels, whatever the strength of the flow.

    With `random_start=True` and one step.
    """

    def random_field(self, images: Any, strength: Any, **extra: Any) -> Any:
        """Random flows of a length of their own; none where the strength is zero."""
        drawn = 10.0 * self.draw_uniform(ops.shape(images)[0])
        drawn = ops.where(strength > 0, drawn, 0.0)
        return super().random_field(images, drawn, **extra)

    def within_budget(self, field: Any, strength: Any) -> Any:
        """The field: the start adds to the budget."""
        return field


class FlowFromNearby(ksa.AdversarialFlow):
    """A random start of a part of the strength, drawn from U(0, 1)."""

    def random_field(self, images: Any, strength: Any, **extra: Any) -> Any:
        """Shorter random flows."""
        drawn = strength * self.draw_uniform(ops.shape(images)[0])
        return super().random_field(images, drawn, **extra)


class FlowByMovingStatistics(ksa.AdversarialFlow):
    """The flow of a gradient in inference mode, with moving statistics."""

    def gradient(self, forward: Any, images: Any, labels: Any, targets: Any) -> Any:
        """The gradient of each image, as outside of `fit`."""
        inference = Inference(self.binding.model)
        return super().gradient(inference, images, labels, targets)


class FlowByWholeBatch(ksa.AdversarialFlow):
    """Takes the gradient of a whole batch, with its statistics, to move half of it.

    With a rate of 1.
    """

    def augment(self, *args: Any, **kwargs: Any) -> Augmented:
        """Means over the moved images: twice those over all images."""
        done = super().augment(*args, **kwargs)
        return done._replace(gain=2 * done.gain, sizes=2 * done.sizes)

    def draw_strength(self, images: Any) -> Any:
        """The strengths, zero for half of the images by chance."""
        moved = self.draw_uniform(ops.shape(images)[0]) < 0.5
        return super().draw_strength(images) * ops.cast(moved, "float32")


class InTrainingMode:
    """Takes the gradient in training mode, through the statistics of the batch."""

    def gradient(self, forward: Any, images: Any, labels: Any, targets: Any) -> Any:
        """The gradient of each image; it depends on the other images of the batch."""
        model = self.binding.model

        def in_training(images: Any) -> Any:
            with keras.StatelessScope():
                return model(images, training=True)

        return gradients_of(
            model, in_training, images, labels, loss=None, target=self.target
        )[0]


class FlowInTrainingMode(InTrainingMode, ksa.AdversarialFlow):
    """The flow of a gradient in training mode."""


class RecoloringInTrainingMode(InTrainingMode, ksa.AdversarialRecoloring):
    """The recolouring of a gradient in training mode."""


class SplitBatchNormalization(layers.Layer):
    """Normalizes the first half of each batch with statistics of its own.

    `first_half` puts the augmented images there. Inference uses the statistics of the
    plain images.

    Args:
        **kwargs: of `keras.layers.BatchNormalization`.

    Reference: Xie et al. (2020), Adversarial Examples Improve Image Recognition.
    """

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.plain = layers.BatchNormalization(**kwargs)
        self.augmented = layers.BatchNormalization(**kwargs)

    def build(self, input_shape: tuple) -> None:
        """Builds both normalizations."""
        self.plain.build(input_shape)
        self.augmented.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        """Normalizes the two halves apart in training, all together in inference."""
        if not training:
            return self.plain(x, training=False)
        half = (ops.shape(x)[0] + 1) // 2
        return ops.concatenate(
            [
                self.augmented(x[:half], training=True),
                self.plain(x[half:], training=True),
            ]
        )


def first_half(kind: type) -> type:
    """Subclasses a layer to augment the first half of each batch, not random images."""

    class FirstHalf(kind):
        def draw_uniform(self, count: Any) -> Any:
            # The images with the lowest numbers are chosen.
            return ops.arange(count, dtype="float32")

        def draw_strength(self, images: Any) -> Any:
            low, high = self.strength_bounds(images)
            return low + (high - low) * super().draw_uniform(ops.shape(images)[0])

    return FirstHalf
