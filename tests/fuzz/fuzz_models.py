"""Small models of every kind of loss, made once."""

import functools

import keras
import numpy as np
from keras import layers

from tests.models import loss_from_logits

SHAPE = (6, 5, 2)
CLASSES = 3
LOSSES = {
    "logits": (
        CLASSES,
        None,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ),
    "softmax": (CLASSES, "softmax", "sparse_categorical_crossentropy"),
    "function": (CLASSES, None, loss_from_logits),
    "one-hot": (
        CLASSES,
        None,
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ),
    "binary": (1, None, keras.losses.BinaryCrossentropy(from_logits=True)),
    "sigmoid": (1, "sigmoid", "binary_crossentropy"),
    "multi-label": (CLASSES, "sigmoid", "binary_crossentropy"),
    "regression": (2, None, "mse"),
}


@functools.cache
def model_of(kind, shape=SHAPE, eager=False):
    """Returns a model with statistics and seeds that a trace would show in."""
    outputs, activation, loss = LOSSES[kind]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(2, 3, padding="same", activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(outputs, activation=activation),
        ]
    )
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=eager)
    return model


def labels_for(kind, form, batch, seed):
    """Returns labels in a form, and whether the loss takes that form, if it matters.

    Args:
        kind: of the loss.
        form: one of `FORMS`.
        batch: the number of labels.
        seed: of the labels.
    """
    rng = np.random.default_rng(seed)
    outputs = LOSSES[kind][0]
    sparse = kind in ("logits", "softmax", "function")
    classes = max(2, outputs)
    ids = rng.integers(0, classes, batch)
    vectors = np.eye(classes)[ids].astype("float32")
    if form == "right":
        if sparse:
            return ids, True
        if kind == "regression":
            return rng.normal(size=(batch, outputs)), True
        if kind == "multi-label":
            return rng.integers(0, 2, (batch, outputs)), True
        return (vectors if outputs > 1 else ids[:, None]), True
    if form == "none":
        # Of a function nobody knows the form of its labels.
        return None, {"regression": False, "function": None}.get(kind, True)
    if kind == "regression" and form not in ("too few", "scalar", "text", "object"):
        right = None  # broadcast, or refused by the backend
        form = "float ids" if form in ("mixup", "all present") else form
    else:
        right = sparse or outputs == 1
    if form == "float ids":
        return ids.astype("float32"), right
    if form == "column":
        return ids[:, None].astype("uint8"), right
    if form == "list":
        return ids.tolist(), right
    if form == "mixup":
        mixed = 0.7 * vectors + 0.3 * vectors[::-1]
        return mixed, kind in ("one-hot", "multi-label")
    if form == "all present":
        return np.ones((batch, classes), "int32"), kind in ("one-hot", "multi-label")
    if form == "too few":
        return np.zeros((batch + 1, *np.shape(vectors)[1:]))[:, 0], False
    if form == "out of range":  # no error on all backends, but no harm
        return np.where(rng.uniform(size=batch) < 0.5, ids, rng.choice([-1, 99])), None
    if form == "scalar":
        return np.int32(1), False
    return {"text": np.full(batch, "a"), "object": np.full(batch, None)}[form], False


FORMS = ["right", "right", "none", "float ids", "column", "list", "mixup"]
FORMS += ["all present", "too few", "scalar", "text", "object", "out of range"]
