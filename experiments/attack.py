"""The worst case of a trained model: structured attacks within a budget."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_structadv as ksa
from keras_structadv.layers.base import StructuredAdversary

_BATCH = 50  # of images that are attacked at once


def worst_case(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    kind: str = "flow",
    strengths: Sequence[float] = (1.0, 2.0),
    count: int = 400,
    steps: int = 10,
    restarts: int = 3,
    fields: int = 64,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measures the accuracy under attack on the first images.

    An image is lost as soon as one attempt fools the model, and stays lost at larger
    strengths. The smoothness of flows is (s/3)² squared pixels for the shorter side s,
    however the model was trained.

    Args:
        model: from images to logits.
        images: (n, height, width, channels), 0 to 255.
        labels: integers, (n,).
        kind: `"flow"` or `"recoloring"`.
        strengths: budgets, ascending: pixels, or root mean squares as fractions of the
            value range.
        count: images to attack.
        steps: steepest steps after a random start; every iterate is an attempt.
        restarts: random starts.
        fields: random fields.
        seed: seed of the random fields.

    Returns:
        The accuracies by the name of the attack and the strength: `"gradient"`,
        `"random"`, and `"both"` together.
    """
    x, y = images[:count].astype("float32"), labels[:count]
    layer = _layer(kind, min(x.shape[1:3]), seed)
    attempts = {
        "gradient": _steepest(model, layer, steps, restarts),
        "random": _random(model, layer, fields),
    }
    lost = {name: _lost(tried, x, y, strengths) for name, tried in attempts.items()}
    lost["both"] = np.logical_or(lost["gradient"], lost["random"])
    return {
        name: {
            f"{strength:g}": round(float(1 - row.mean()), 6)
            for strength, row in zip(strengths, rows)
        }
        for name, rows in lost.items()
    }


def _layer(kind: str, side: int, seed: int) -> StructuredAdversary:
    """The layer whose fields attack."""
    if kind == "flow":
        smoothness = (side / 3) ** 2
        return ksa.AdversarialFlow(smoothness=smoothness, random_start=True, seed=seed)
    return ksa.AdversarialRecoloring(random_start=True, seed=seed)


def _lost(
    attempts: Callable, images: np.ndarray, labels: np.ndarray, strengths: Sequence
) -> np.ndarray:
    """Tells which images are lost at each strength: bool, (strengths, n)."""
    lost = np.zeros((len(strengths), len(images)), bool)
    size = min(_BATCH, len(images))
    for number, strength in enumerate(strengths):
        # Only images that hold, in full batches, which are compiled once: some repeat.
        left = np.flatnonzero(~lost[number])
        for places in np.resize(left, (-(-len(left) // size), size)):
            budget = np.full(size, strength, "float32")
            for fooled in attempts(images[places], labels[places], budget):
                lost[number:, places[fooled]] = True  # an image may stand there twice
                if lost[number, places].all():
                    break
    return lost


def _steepest(
    model: keras.Model, layer: StructuredAdversary, steps: int, restarts: int
) -> Callable:
    """Attempts by the iterates of steepest steps within the budget."""
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")

    @tf.function(autograph=False)
    def start(images: Any, strength: Any) -> Any:
        drawn = layer.draw_uniform(strength.shape[0])
        return layer.random_field(images, strength * drawn)

    @tf.function(autograph=False)
    def step(images: Any, labels: Any, field: Any, strength: Any) -> tuple[Any, Any]:
        current = layer.apply(images, field)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(current)
            logits = model(current, training=False)
            value = loss(labels, logits)
        rise = tape.gradient(value, current)
        rise = layer.make_field(current, rise, 2.5 / steps * strength)
        field = layer.within_budget(layer.compose(field, rise), strength)
        return _fooled(logits, labels), field

    def attempts(images: Any, labels: Any, strength: Any) -> Iterator[np.ndarray]:
        for _ in range(restarts):
            field = start(images, strength)
            for _ in range(steps + 1):  # the last one makes a field that is not used
                fooled, field = step(images, labels, field, strength)
                yield fooled.numpy()

    return attempts


def _random(model: keras.Model, layer: StructuredAdversary, fields: int) -> Callable:
    """Attempts by random fields of the full strength."""

    @tf.function(autograph=False)
    def attempt(images: Any, labels: Any, strength: Any) -> Any:
        field = layer.random_field(images, strength)
        return _fooled(model(layer.apply(images, field), training=False), labels)

    def attempts(images: Any, labels: Any, strength: Any) -> Iterator[np.ndarray]:
        for _ in range(fields):
            yield attempt(images, labels, strength).numpy()

    return attempts


def _fooled(logits: Any, labels: Any) -> Any:
    return ops.argmax(logits, axis=-1) != labels
