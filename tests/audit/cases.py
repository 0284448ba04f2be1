"""A linear model, smooth images, and its answers."""

import keras
import numpy as np
from keras import layers

from tests.models import numpy

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def smooth_images(count=60, size=16, channels=1, seed=0):
    """Sums of slow waves, 0 to 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [
        np.sin(2 * np.pi * (a * y + b * x + rng.uniform(size=(count, channels, 1, 1))))
        for a, b in ((0.5, 1), (1, 0.3), (0.2, 0.7), (1, -1))
    ]
    weights = rng.normal(size=(4, count, channels, 1, 1))
    images = np.einsum("kbcij,kbcij->bijc", waves, weights * np.ones_like(waves))
    return np.clip(127 + 40 * images, 0, 255).astype("float32")


def linear(size=16, channels=1, scale=1.0, activation=None, seed=0):
    """A linear model of two classes whose answer changes with the images."""
    model = keras.Sequential(
        [
            keras.Input((size, size, channels)),
            layers.Flatten(),
            layers.Dense(2, activation=activation),
        ]
    )
    row = smooth_images(1, size, channels, seed=100 + seed).reshape(-1, 1)
    row = (row - row.mean()) / np.linalg.norm(row) / 255
    model.layers[-1].set_weights([scale * np.hstack([row, -row]), np.zeros(2)])
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=not activation)
    )
    return model


def answers(model, x):
    return np.argmax(numpy(model(x, training=False)), axis=-1)
