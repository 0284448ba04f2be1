"""Images of 16 to 224 pixels, models for them, and fields from their gradients."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from experiments.models import fitted_small_cnn
from keras_structadv.datasets import CHARACTERS, PHOTOGRAPHS
from keras_structadv.flow import folded_fraction


class Case:
    """Images, a model that they are to mislead, and fields from its gradients.

    Args:
        model: from images of 0 to 255 to logits.
        images: (n, side, side, channels).
        labels: integers, (n,).
    """

    def __init__(self, model: keras.Model, images: Any, labels: Any):
        self.model, self.labels = model, labels
        self.images, self.side = images.astype("float32"), images.shape[1]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        gradients = ksa.per_image_gradients(model, self.images, labels, loss=loss)
        self.gradients = np.asarray(gradients)

    def flows(self, part: float, length: float, random: bool = False) -> np.ndarray:
        """Flows up to `side / part` long, of smoothness `(side / length)**2`."""
        form = {
            "max_displacement": self.side / part,
            "smoothness": (self.side / length) ** 2,
        }
        if random:
            return np.asarray(ksa.random_flow(self.images, seed=0, **form))
        return np.asarray(ksa.adversarial_flow(self.images, self.gradients, **form))

    def warped(self, flows: Any) -> np.ndarray:
        """The images moved by flows."""
        return np.asarray(ksa.dense_image_warp(self.images, flows))

    def changes(self, magnitude: float, factor: float = 10, **form: float) -> Any:
        """Recolourings, with a damping of `factor / side**2`."""
        form |= {"magnitude": magnitude, "damping": factor / self.side**2}
        made = ksa.adversarial_recoloring(self.images, self.gradients, **form)
        return np.asarray(made)

    def recoloured(self, changes: np.ndarray) -> np.ndarray:
        """The images with changes added, clipped."""
        return np.clip(self.images + changes, 0, 255)

    def results(self, images: Any) -> tuple[float, float]:
        """The mean loss at changed images, and the share that is still right."""
        logits = self.model.predict(images, 20, verbose=0)
        loss = keras.losses.sparse_categorical_crossentropy
        right = np.mean(logits.argmax(axis=1) == self.labels)
        return float(np.mean(loss(self.labels, logits, from_logits=True))), right

    def gain(self, images: np.ndarray) -> float:
        """The mean first-order rise of the loss to changed images."""
        return np.sum(self.gradients * (images - self.images)) / len(images)


def folded(flows: np.ndarray) -> float:
    """The share of pixels at which flows fold."""
    return float(np.mean(folded_fraction(flows)))


def constant(changes: np.ndarray) -> float:
    """The share of recolourings that is the same all over the image."""
    tint = np.square(changes.mean(axis=(1, 2))).mean(axis=-1)
    return float(np.mean(tint / np.square(changes).mean(axis=(1, 2, 3))))


def trained(data: tuple, images: Any, labels: Any, classes: int, small: bool) -> Case:
    """A small CNN fitted to data, and images for it."""
    x, y = data
    head = layers.GlobalAveragePooling2D if x.shape[1] > 28 else layers.Flatten
    epochs = 1 if small else 12
    model = fitted_small_cnn(x, y, classes, batch_size=32, epochs=epochs, head=head)
    return Case(model, images, labels)


def photographs(size: int, name: str, small: bool) -> Case:
    """Crops to train on, and crops of one photograph to change."""
    crops = 1 if small else 40 if size < 200 else 12
    train, (x, y) = ksa.datasets.load_photographs(size=size, crops=crops)
    chosen = y == PHOTOGRAPHS.index(name)
    return trained(train, x[chosen][:10], y[chosen][:10], len(PHOTOGRAPHS), small)


def digits(small: bool) -> Case:
    """Digits of 16 pixels."""
    train, (x, y) = ksa.datasets.load_digits(20 if small else 400)
    return trained(train, x[:40], y[:40], 10, small)


def glyphs(load: Callable, chosen: slice, small: bool) -> Case:
    """Glyphs of 28 pixels."""
    train, (x, y) = load(1 if small else 8)
    return trained(train, x[chosen], y[chosen], len(CHARACTERS), small)


GREY, COLOUR = ksa.datasets.load_glyphs, ksa.datasets.load_colour_glyphs
FLOWS: dict[int, Callable[[bool], Case]] = {
    16: digits,
    28: lambda small: glyphs(GREY, slice(5, 45), small),
    64: lambda small: photographs(64, "chelsea", small),
    96: lambda small: photographs(96, "rocket", small),
    224: lambda small: photographs(224, "coffee", small),
}
RECOLORINGS = {**FLOWS, 28: lambda small: glyphs(COLOUR, slice(5, 45), small)}
del RECOLORINGS[16]
