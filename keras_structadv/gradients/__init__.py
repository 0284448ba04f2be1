"""Gradients of a model's loss with respect to its input images."""

from keras_structadv.backends import WeightSnapshot
from keras_structadv.gradients.inference import Inference
from keras_structadv.gradients.inputs import images_among
from keras_structadv.gradients.per_image import (
    gradients_of,
    per_image_gradients,
    without_gradient,
)

__all__ = [
    "Inference",
    "WeightSnapshot",
    "gradients_of",
    "images_among",
    "per_image_gradients",
    "without_gradient",
]
