"""Labels, and the loss of each single image."""

import copy
import numbers
from collections.abc import Callable
from typing import Any

import keras
from keras import backend, ops


def per_image_loss(model: keras.Model, loss: Any = None) -> Callable[[Any, Any], Any]:
    """Returns `(labels, predictions) -> losses`, one loss for each image, (batch,).

    The loss of an image is what `loss` reports for this image alone. A function that
    reduces to a scalar by itself is taken as a mean over the batch.

    Args:
        model: the model whose compiled loss is taken when `loss` is `None`.
        loss: a loss as `model.compile` takes it: name, function or `keras.losses.Loss`.

    Returns:
        The function.

    Raises:
        ValueError: if there is no loss, or more than one.
    """
    if loss is None:
        loss = getattr(model, "loss", None)
    loss = only_entry(loss)
    if loss is None:
        raise ValueError(
            f"Model {model.name!r} has no compiled loss. Compile it with a loss, or "
            "pass `loss` to the layer, to `bind` or to `per_image_gradients`."
        )
    if isinstance(loss, (list, tuple, dict)):
        raise ValueError(
            f"Received loss={loss!r}. Adversarial gradients are taken of one loss of "
            "one output: pass it as `loss`."
        )
    return _PerImageLoss(loss)


class _PerImageLoss:
    def __init__(self, loss: Any):
        self._sum = getattr(loss, "reduction", None) == "sum"
        self.from_logits = bool(getattr(loss, "from_logits", False))
        if isinstance(loss, keras.losses.Loss):
            loss = copy.copy(loss)  # the user's own keeps its reduction
            loss.reduction = None
            name = type(loss).__name__ + loss.name
        elif str(loss).lower() in ("crossentropy", "ce"):
            name = loss  # the labels decide which
        else:
            loss = keras.losses.get(loss)
            name = getattr(loss, "__name__", "")
        self._loss = loss
        self.takes_class_ids = "sparse" in name.lower()
        self.is_binary = "binary" in name.lower()
        self.ignore_class = getattr(loss, "ignore_class", None)

    def __call__(self, labels: Any, predictions: Any) -> Any:
        labels = ops.convert_to_tensor(labels)
        if isinstance(self._loss, keras.losses.Loss):
            losses = self._loss(labels, predictions)
        else:
            losses = self._call_function(labels, ops.cast(predictions, "float32"))
        losses = ops.cast(losses, "float32")
        if len(losses.shape) == 0:
            return ops.broadcast_to(losses, ops.shape(predictions)[:1])
        axes = tuple(range(1, len(losses.shape)))
        return ops.sum(losses, axes) if self._sum else ops.mean(losses, axes)

    def _call_function(self, labels: Any, predictions: Any) -> Any:
        loss = self._loss
        if isinstance(loss, str):
            if predictions.shape[-1] == 1:
                loss = keras.losses.binary_crossentropy
            elif tuple(labels.shape) == tuple(predictions.shape):
                loss = keras.losses.categorical_crossentropy
            else:
                loss = keras.losses.sparse_categorical_crossentropy
        if len(labels.shape) == len(predictions.shape) - 1 and (
            predictions.shape[-1] == 1
        ):
            labels = labels[..., None]  # (batch,) against (batch, 1) would broadcast
        return loss(ops.cast(labels, "float32"), predictions)


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


def only_entry(x: Any) -> Any:
    """Returns the one entry of a list, tuple or dict that has one, else `x` itself."""
    while isinstance(x, (list, tuple, dict)) and len(x) == 1:
        (entry,) = x.values() if isinstance(x, dict) else x
        if isinstance(entry, numbers.Number):  # the label of one image
            break
        x = entry
    return x


def by_output(
    model: keras.Model,
    loss: Any,
    predictions: Any,
    *labels: Any,
) -> list[tuple]:
    """Returns, for each output that has a loss, what belongs together.

    Args:
        model: the model whose compiled loss and `loss_weights` are taken when `loss` is
            `None`.
        loss: a loss as `model.compile` takes it: one for all outputs, or a list or a
            dict with one for each.
        predictions: what the model returned: an array, a list or a dict of arrays.
        *labels: each is `None`, or in the structure of the predictions, or a dict with
            the names of the outputs.

    Returns:
        A list of `(weight, per_image_loss, predictions, *labels)`.

    Raises:
        ValueError: if there is no loss, or the structures do not fit.
    """
    predictions = only_entry(predictions)
    if not isinstance(predictions, (list, tuple, dict)):
        entries = (only_entry(x) for x in labels)
        return [(1.0, per_image_loss(model, loss), predictions, *entries)]
    weights = None
    if loss is None and getattr(model, "loss", None) is not None:
        # Not `get_compile_config`, which fails where a loss or metric has no config.
        config = getattr(getattr(model, "_compile_config", None), "config", None)
        loss, weights = model.loss, (config or {}).get("loss_weights")
    names = list(getattr(model, "output_names", ()))
    if isinstance(predictions, dict):
        names, predictions = list(predictions), list(predictions.values())
    elif len(names) != len(predictions):
        names = list(range(len(predictions)))

    def entries(name: str, value: Any, one_for_all: bool = False) -> list:
        if value is None or (
            one_for_all and not isinstance(value, (list, tuple, dict))
        ):
            return [value] * len(names)
        if isinstance(value, dict) and set(value) <= set(names):
            return [value.get(key) for key in names]
        if isinstance(value, (list, tuple)) and len(value) == len(names):
            return list(value)
        what = (
            f"keys {list(value)}" if isinstance(value, dict) else type(value).__name__
        )
        raise ValueError(
            f"Received {name} ({what}) for a model with the outputs {names}. Pass a "
            "list or a dict with one entry for each output."
        )

    rows = zip(
        entries("loss_weights", weights, one_for_all=True),
        entries("loss", loss, one_for_all=True),
        predictions,
        *(entries("labels", x) for x in labels),
    )
    rows = [
        (1.0 if weight is None else weight, per_image_loss(model, one), *rest)
        for weight, one, *rest in rows
        if one is not None
    ]
    if not rows:
        per_image_loss(model, None)  # which tells what to do
    return rows


TARGETS = {"most_confident_wrong": most_confident_wrong, "random": random_wrong}
