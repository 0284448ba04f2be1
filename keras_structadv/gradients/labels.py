"""Labels: their forms, the most likely ones, and wrong ones to approach."""

from typing import Any

import keras
from keras import backend, ops


def as_labels(classes: Any, predictions: Any, loss: Any, like: Any = None) -> Any:
    """Returns class ids in the form of label that the loss takes.

    Args:
        classes: class ids, (batch, ...), or labels that already have the form.
        predictions: (batch, ..., classes).
        loss: what `per_image_loss` returned.
        like: labels whose form and dtype are taken; `None` where there are none, and
            the kind of the loss decides.

    Returns:
        Class ids, or one-hot vectors of the dtype of `like`.
    """
    depth = predictions.shape[-1]
    vectors = len(classes.shape) == len(predictions.shape)
    if like is not None:
        dtype = backend.standardize_dtype(like.dtype)
        one_hot = depth > 1 and tuple(like.shape[1:]) == tuple(predictions.shape[1:])
        shape = ops.shape(like)
    else:
        one_hot = depth > 1 and not loss.takes_class_ids
        dtype = "float32" if one_hot or depth == 1 else "int32"
        shape = (-1,) + tuple(predictions.shape[1:-1]) + ((1,) if depth == 1 else ())
    if not one_hot and vectors and classes.shape[-1] == depth > 1:
        classes = ops.argmax(classes, axis=-1)
    if one_hot:
        if vectors:
            return ops.cast(classes, dtype)
        return ops.one_hot(ops.cast(classes, "int32"), depth, dtype=dtype)
    return ops.reshape(ops.cast(classes, dtype), shape)


def most_likely(predictions: Any, loss: Any) -> Any:
    """Returns the label in which a model has most confidence.

    Args:
        predictions: (batch, ..., classes).
        loss: what `per_image_loss` returned.

    Returns:
        Class ids, (batch, ...); for a binary cross-entropy, 0 or 1 in the shape of the
        predictions.

    Raises:
        ValueError: if the loss does not tell what a label is.
    """
    if predictions.shape[-1] == 1 and not loss.is_binary:
        raise ValueError(
            "Received no labels, and a loss from which no most likely label follows: "
            "its model has one output, and it is no binary cross-entropy. Pass labels."
        )
    if loss.is_binary:
        return ops.cast(predictions > (0.0 if loss.from_logits else 0.5), "int32")
    return ops.argmax(predictions, axis=-1)


def most_confident_wrong(labels: Any, predictions: Any) -> Any:
    """Returns the class that is not the label and has the highest prediction.

    Args:
        labels: class ids, (batch, ...), or one-hot, (batch, ..., classes).
        predictions: logits or probabilities, (batch, ..., classes).

    Returns:
        int32, (batch, ...); for one sigmoid output, the other class, (batch, 1).
    """
    if predictions.shape[-1] == 1:
        return 1 - _class_ids(labels, predictions)
    true = ops.one_hot(_class_ids(labels, predictions), predictions.shape[-1])
    lowest = ops.min(predictions, axis=-1, keepdims=True)
    wrong = ops.where(true > 0, lowest - 1, predictions)
    return ops.cast(ops.argmax(wrong, axis=-1), "int32")


def random_wrong(labels: Any, predictions: Any, seed: Any = None) -> Any:
    """Returns a class that is not the label, each with the same probability.

    Args:
        labels: class ids, (batch, ...), or one-hot, (batch, ..., classes).
        predictions: logits or probabilities, (batch, ..., classes).
        seed: integer, `keras.random.SeedGenerator` or `None`.

    Returns:
        int32, (batch, ...); for one sigmoid output, the other class, (batch, 1).
    """
    true = _class_ids(labels, predictions)
    classes = max(predictions.shape[-1], 2)
    return (
        true + keras.random.randint(ops.shape(true), 1, classes, seed=seed)
    ) % classes


def _class_ids(labels: Any, predictions: Any) -> Any:
    if predictions.shape[-1] > 1:
        if tuple(labels.shape[1:]) == tuple(predictions.shape[1:]):
            return ops.cast(ops.argmax(labels, axis=-1), "int32")
        shape = (-1,) + tuple(predictions.shape[1:-1])
    else:
        labels = ops.cast(labels, "float32") > 0.5
        shape = (-1,) + tuple(predictions.shape[1:])
    return ops.reshape(ops.cast(labels, "int32"), shape)


TARGETS = {"most_confident_wrong": most_confident_wrong, "random": random_wrong}
