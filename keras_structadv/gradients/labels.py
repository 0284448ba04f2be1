"""Labels: their forms, the most likely ones, and wrong ones as targets."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.backends import largest
from keras_structadv.gradients.loss import PerImageLoss


def as_labels(
    classes: Any, predictions: Any, loss: PerImageLoss, like: Any = None
) -> Any:
    """Converts class ids or vectors to the labels that a loss takes.

    Args:
        classes: class ids, (batch, ...), or vectors, (batch, ..., classes).
        predictions: (batch, ..., classes).
        loss: what `per_image_loss` returned.
        like: labels whose form and dtype to use; `None` for the form that the kind of
            the loss suggests.

    Returns:
        Class ids or vectors, in the dtype of `like`.
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


def most_likely(predictions: Any, loss: PerImageLoss) -> Any:
    """Returns the label that a model predicts.

    Args:
        predictions: (batch, ..., classes).
        loss: what `per_image_loss` returned.

    Returns:
        Class ids, (batch, ...); for a binary cross-entropy, 0 or 1 in the shape of the
        predictions.

    Raises:
        ValueError: for one output with another loss than a binary cross-entropy, and
            for the loss of a regression.
    """
    classes = loss.takes_classes and predictions.shape[-1] > 1
    if not (classes or loss.is_binary):
        raise ValueError(
            "Received no labels for a model with one output whose loss is not a binary "
            "cross-entropy, or for a regression, so that no label is the most likely. "
            "Pass labels."
        )
    if loss.is_binary:
        return ops.cast(predictions > (0.0 if loss.from_logits else 0.5), "int32")
    return ops.argmax(predictions, axis=-1)


def most_confident_wrong(labels: Any, predictions: Any) -> Any:
    """Returns the wrong class with the highest prediction.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes). A wrong
            class is one that is not present; see `classes_present`.
        predictions: logits or probabilities, (batch, ..., classes).

    Returns:
        int32, (batch, ...), -1 where every class is present; for one sigmoid output,
        the other class, (batch, 1).
    """
    if predictions.shape[-1] == 1:
        return 1 - _class_ids(labels, predictions)
    present = classes_present(labels, predictions)
    lowest = -largest(-predictions, axis=-1, keepdims=True, least=-math.inf)
    wrong = ops.where(present, lowest - 1, predictions)
    classes = ops.cast(ops.argmax(wrong, axis=-1), "int32")
    return ops.where(ops.all(present, axis=-1), -1, classes)


def random_wrong(
    labels: Any, predictions: Any, seed: Any = None, draws: Any = None
) -> Any:
    """Returns a wrong class, each with the same probability.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes). A wrong
            class is one that is not present; see `classes_present`.
        predictions: logits or probabilities, (batch, ..., classes).
        seed: integer, `keras.random.SeedGenerator` or `None`.
        draws: int32 >= 0, (batch, classes or more), in the place of a seed: random
            numbers of each image, the same for all of its pixels.

    Returns:
        int32, (batch, ...), -1 where every class is present; for one sigmoid output,
        the other class, (batch, 1).
    """
    if draws is not None:
        depth = predictions.shape[-1]
        ones = (1,) * (len(predictions.shape) - 2)
        draws = ops.reshape(draws[:, :depth], (-1, *ones, depth))
    if not are_vectors(labels, predictions):
        true = _class_ids(labels, predictions)
        classes = max(predictions.shape[-1], 2)
        if draws is None:
            steps = keras.random.randint(ops.shape(true), 1, classes, seed=seed)
        else:
            first = draws[..., 0]
            first = first if len(first.shape) == len(true.shape) else draws
            steps = 1 + first % (classes - 1)
        return (true + steps) % classes
    present = classes_present(labels, predictions)
    if draws is None:
        draws = keras.random.randint(ops.shape(present), 0, 2**24, seed=seed)
    wrong = ops.cast(ops.argmax(ops.where(present, -1, draws), axis=-1), "int32")
    return ops.where(ops.all(present, axis=-1), -1, wrong)


def classes_present(labels: Any, predictions: Any) -> Any:
    """Returns which classes are present in each label.

    - A class id or a one-hot vector: its class.
    - A vector with an entry of zero or less (multi-hot, MixUp): all classes above zero.
    - A vector of positive entries (label smoothing, a teacher's probabilities): the
      class with the largest entry, or all classes that share it.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes).
        predictions: (batch, ..., classes), for their shape.

    Returns:
        bool, (batch, ..., classes).
    """
    if not are_vectors(labels, predictions):
        return ops.one_hot(_class_ids(labels, predictions), predictions.shape[-1]) > 0
    labels = ops.cast(labels, "float32")
    positive = labels > 0
    peak = largest(labels, axis=-1, keepdims=True, least=-math.inf)
    every = ops.all(positive, axis=-1, keepdims=True)
    return ops.where(every, labels == peak, positive)


def are_vectors(labels: Any, predictions: Any) -> bool:
    """Returns whether labels have an entry for each of several classes.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes).
        predictions: (batch, ..., classes).
    """
    several = predictions.shape[-1] > 1
    return several and tuple(labels.shape[1:]) == tuple(predictions.shape[1:])


def _class_ids(labels: Any, predictions: Any) -> Any:
    """Returns labels as class ids, int32; of a vector, the largest entry's."""
    if predictions.shape[-1] > 1:
        if are_vectors(labels, predictions):
            return ops.cast(ops.argmax(labels, axis=-1), "int32")
        shape = (-1,) + tuple(predictions.shape[1:-1])
    else:
        labels = ops.cast(labels, "float32") > 0.5
        shape = (-1,) + tuple(predictions.shape[1:])
    return ops.reshape(ops.cast(labels, "int32"), shape)


TARGETS: dict[str, Callable] = {
    "most_confident_wrong": most_confident_wrong,
    "random": random_wrong,
}
