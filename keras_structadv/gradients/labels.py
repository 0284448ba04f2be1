"""Labels: their forms, the most likely ones, and wrong ones to approach."""

from collections.abc import Callable
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
    lowest = ops.min(predictions, axis=-1, keepdims=True)
    wrong = ops.where(present, lowest - 1, predictions)
    classes = ops.cast(ops.argmax(wrong, axis=-1), "int32")
    return ops.where(ops.all(present, axis=-1), -1, classes)


def random_wrong(labels: Any, predictions: Any, seed: Any = None) -> Any:
    """Returns a wrong class, each with the same probability.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes). A wrong
            class is one that is not present; see `classes_present`.
        predictions: logits or probabilities, (batch, ..., classes).
        seed: integer, `keras.random.SeedGenerator` or `None`.

    Returns:
        int32, (batch, ...), -1 where every class is present; for one sigmoid output,
        the other class, (batch, 1).
    """
    true = _class_ids(labels, predictions)
    classes = max(predictions.shape[-1], 2)
    steps = keras.random.randint(ops.shape(true), 1, classes, seed=seed)
    if not are_vectors(labels, predictions):
        return (true + steps) % classes
    # One draw for each label, whatever is present in it. It has one value for each
    # wrong class of a label with one class, and is scaled for fewer wrong classes.
    # Where their numbers do not divide, the offset shares the rest out over the batch.
    order = (true[..., None] + 1 + ops.arange(classes, dtype="int32")) % classes
    absent = ops.logical_not(classes_present(labels, predictions))
    absent = ops.take_along_axis(ops.cast(absent, "int32"), order, axis=-1)
    count = ops.sum(absent, axis=-1)
    offset = keras.random.randint(ops.shape(true), 0, 256, seed=0)
    scaled = ops.cast(steps - 1, "float32") + ops.cast(offset, "float32") / 256
    scaled = scaled * ops.cast(count, "float32") / (classes - 1)
    scaled = ops.minimum(ops.cast(ops.floor(scaled), "int32"), count - 1)
    number = ops.where(count == classes - 1, steps - 1, scaled)
    numbers = ops.where(absent > 0, ops.cumsum(absent, axis=-1) - 1, -1)
    place = ops.argmax(numbers == number[..., None], axis=-1)
    wrong = (true + 1 + ops.cast(place, "int32")) % classes
    return ops.where(count > 0, wrong, -1)


def classes_present(labels: Any, predictions: Any) -> Any:
    """Returns which classes are present in labels.

    - In a class id or a one-hot vector, the class.
    - In a vector with some zeros (multi-hot, MixUp), each class above zero.
    - In a vector without zeros (label smoothing, a teacher's probabilities), each class
      with the largest entry; so all of them, if all entries are equal.

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
    largest = labels == ops.max(labels, axis=-1, keepdims=True)
    return ops.where(ops.all(positive, axis=-1, keepdims=True), largest, positive)


def are_vectors(labels: Any, predictions: Any) -> bool:
    """Returns whether labels have an entry for each of several classes.

    Args:
        labels: class ids, (batch, ...), or vectors, (batch, ..., classes).
        predictions: (batch, ..., classes).
    """
    several = predictions.shape[-1] > 1
    return several and tuple(labels.shape[1:]) == tuple(predictions.shape[1:])


def _class_ids(labels: Any, predictions: Any) -> Any:
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
