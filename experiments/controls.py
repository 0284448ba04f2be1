"""What an adversarial field has to beat: random ones, made in the same way."""

import keras

import keras_structadv as ksa
from keras_structadv.flow import random_flow


class RandomFlow(ksa.AdversarialFlow):
    """The control: a random flow of the same smoothness, displacement and rate."""

    def gradient(self, forward, images, labels, targets):
        """Returns zeros; the field does not depend on the model."""
        return keras.ops.zeros_like(images)

    def make_field(self, images, gradients, strength):
        """Returns a random flow with the given longest displacements."""
        return random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.seed_generator,
        )


class RandomRecoloring(ksa.AdversarialRecoloring):
    """The control: a random perturbation of the same operator, magnitude and rate."""

    def gradient(self, forward, images, labels, targets):
        """Returns zeros; the field does not depend on the model."""
        return keras.ops.zeros_like(images)

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the perturbation that noise makes in the place of a gradient."""
        noise = keras.random.normal(keras.ops.shape(images), seed=self.seed_generator)
        return super().make_field(images, noise, strength, basis)


class ColourJitter(RandomRecoloring):
    """What one would do else: contrast and brightness of each channel at random.

    The perturbation `a_c * (image - mean) + b_c`, with normal a and b, is scaled to the
    magnitude that is drawn, as those of the other rows are.
    """

    def make_field(self, images, gradients, strength, basis=None):
        """Returns a random global change of colour of the given magnitude."""
        low, high = self.value_range
        shape = (keras.ops.shape(images)[0], 1, 1, images.shape[-1])
        contrast, brightness = (
            keras.random.normal(shape, seed=self.seed_generator) for _ in range(2)
        )
        centred = images - keras.ops.mean(images, axis=(1, 2), keepdims=True)
        change = contrast * centred + brightness * (high - low) / 4
        size = keras.ops.sqrt(keras.ops.mean(change**2, axis=(1, 2, 3), keepdims=True))
        return change / size * strength[:, None, None, None] * (high - low)
