"""Adversarial layers with one thing altered, for the search of `variants`."""

import keras
from keras import layers, ops

import keras_structadv as ksa
from experiments.controls import ColourJitter
from keras_structadv.flow import longest_displacement, random_flow
from keras_structadv.gradients import gradients_of


class Altered(ksa.AdversarialFlow):
    """A flow to which something random is done, fresh or reused."""

    def alter(self, flow, other, strength):
        """Returns another flow, for one and a random one of the same length."""
        raise NotImplementedError

    def make_field(self, images, gradients, strength):
        """Returns the altered flow of a fresh gradient."""
        flow = super().make_field(images, gradients, strength)
        return self.altered(images, flow, strength)

    def decode(self, images, codes, size, strength):
        """Returns the altered flow of a reused gradient, where there is one."""
        flow = super().decode(images, codes, size, strength)
        found = ops.any(codes != 0, axis=1)
        return self.altered(images, flow, ops.where(found, strength, 0.0))

    def altered(self, images, flow, strength):
        """Returns the altered flow, at its old length."""
        other = random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.seed_generator,
        )
        return self.alter(flow, other, strength)


class Mixed(Altered):
    """Half of the direction is random."""

    part = 0.5

    def alter(self, flow, other, strength):
        """Returns the weighted mean at its old length."""
        mixed = (1 - self.part) * flow + self.part * other
        scale = ops.divide_no_nan(strength, longest_displacement(mixed))
        return mixed * scale[:, None, None, None]


class SomeRandom(Altered):
    """For half of the images the whole direction is random."""

    def alter(self, flow, other, strength):
        """Returns one or the other."""
        random = self.draw_uniform(ops.shape(flow)[0]) < 0.5
        return ops.where(random[:, None, None, None], other, flow)


class SomeReversed(Altered):
    """For three images in ten the direction is reversed."""

    def alter(self, flow, other, strength):
        """Returns the flow or its negative."""
        reversed_ = self.draw_uniform(ops.shape(flow)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -flow, flow)


class RecoloringSomeReversed(ksa.AdversarialRecoloring):
    """For three images in ten the direction is reversed."""

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the perturbation or its negative."""
        field = super().make_field(images, gradients, strength, basis)
        reversed_ = self.draw_uniform(ops.shape(field)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -field, field)


class RecoloringMixed(ksa.AdversarialRecoloring):
    """Half of the right-hand side is noise."""

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the perturbation of the mean of the gradient and noise."""
        size = ops.sqrt(ops.mean(gradients**2, axis=(1, 2, 3), keepdims=True))
        noise = keras.random.normal(ops.shape(gradients), seed=self.seed_generator)
        return super().make_field(images, gradients + size * noise, strength, basis)


class RecoloringJittered(ColourJitter, ksa.AdversarialRecoloring):
    """Half of the change is a global jitter of the channels, half adversarial."""

    def gradient(self, forward, images, labels, targets):
        """Returns the adversarial gradient, not noise."""
        return ksa.AdversarialRecoloring.gradient(
            self, forward, images, labels, targets
        )

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the mean of the two, at the old size."""
        jitter = ColourJitter.make_field(self, images, gradients, strength)
        field = ksa.AdversarialRecoloring.make_field(
            self, images, gradients, strength, basis
        )
        mixed = (jitter + field) / 2
        scale = ops.divide_no_nan(strength, self.size_of(mixed))
        return mixed * scale[:, None, None, None]


class InTrainingMode:
    """Takes the gradient of the model in training mode: statistics of the batch."""

    def gradient(self, forward, images, labels, targets):
        """Returns the gradient of each image, in its batch."""
        model = self.binding.model

        def in_training(images):
            with keras.StatelessScope():
                return model(images, training=True)

        return gradients_of(
            model, in_training, images, labels, loss=None, target=self.target
        )


class FlowInTrainingMode(InTrainingMode, ksa.AdversarialFlow):
    """The flow of the gradient in training mode."""


class RecoloringInTrainingMode(InTrainingMode, ksa.AdversarialRecoloring):
    """The recolouring of the gradient in training mode."""


class SplitBatchNormalization(layers.Layer):
    """Keeps statistics of its own for the first half of each batch.

    These are the images that are augmented; at inference the statistics are those of
    the others.

    Reference: Xie et al. (2020), Adversarial Examples Improve Image Recognition.
    """

    def __init__(self, **kwargs):
        super().__init__()
        self.plain = layers.BatchNormalization(**kwargs)
        self.augmented = layers.BatchNormalization(**kwargs)

    def build(self, input_shape):
        """Makes both sets of statistics."""
        self.plain.build(input_shape)
        self.augmented.build(input_shape)

    def call(self, x, training=False):
        """Returns normalized maps."""
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
    """Returns a layer that changes the first half of each batch, not a random one."""

    class FirstHalf(kind):
        def _choose(self, images):
            half = (ops.shape(images)[0] + 1) // 2
            return ops.arange(half, dtype="int32"), ops.ones((half,))

    return FirstHalf
