"""The loss of each single image."""

import copy
import numbers
from typing import Any

import keras
from keras import ops

# Parts of the names of Keras' losses of regressions.
_REGRESSIONS = ("mean", "huber", "cosh", "cosine", "poisson")


def per_image_loss(model: keras.Model, loss: Any = None) -> "PerImageLoss":
    """Returns a loss as `(labels, predictions) -> losses`, float32, (batch,).

    An image's loss is what `loss` returns for this image alone. A function that returns
    a scalar counts as a mean over the batch.

    Args:
        model: the model, for its compiled loss.
        loss: a loss as `model.compile` takes it: name, function or `keras.losses.Loss`;
            `None` for the compiled one.

    Returns:
        The function.

    Raises:
        ValueError: if there is no loss, or more than one.
    """
    if loss is None:
        loss = getattr(model, "loss", None)
    loss = only_entry(loss)
    if all(one is None for one in keras.tree.flatten(loss)):
        raise ValueError(
            f"Model {model.name!r} has no compiled loss. Compile it with a loss, or "
            "pass `loss` to the layer, to `bind` or to `per_image_gradients`."
        )
    if isinstance(loss, (list, tuple, dict)):
        raise ValueError(
            f"Received loss={loss!r} for one output. Pass one loss: a name, a function "
            "or a keras.losses.Loss."
        )
    return PerImageLoss(loss)


class PerImageLoss:
    """A loss of each image, and what its kind says about labels.

    Args:
        loss: a loss as `model.compile` takes it.

    Attributes:
        from_logits: whether predictions are logits.
        takes_class_ids: whether labels are class ids, not vectors.
        is_binary: whether it is a binary cross-entropy.
        takes_classes: whether the largest of several predictions is an answer: not for
            a binary cross-entropy, nor for Keras' losses of regressions.
        ignore_class: the class id of what has no label, or `None`.
    """

    def __init__(self, loss: Any):
        self._sum = getattr(loss, "reduction", None) == "sum"
        self.from_logits = bool(getattr(loss, "from_logits", False))
        if isinstance(loss, keras.losses.Loss):
            loss = copy.copy(loss)  # the user's own keeps its reduction
            loss.reduction = None
            name = type(loss).__name__ + loss.name
        elif str(loss).lower() in ("crossentropy", "ce"):
            name = loss  # decided by the form of the labels
        else:
            loss = keras.losses.get(loss)
            name = getattr(loss, "__name__", "")
        self._loss = loss
        self.takes_class_ids = "sparse" in name.lower()
        self.is_binary = "binary" in name.lower()
        self.takes_classes = not self.is_binary and not any(
            word in name.lower() for word in _REGRESSIONS
        )
        self.ignore_class = getattr(loss, "ignore_class", None)

    def __call__(self, labels: Any, predictions: Any) -> Any:
        """Returns the loss of each image, float32, (batch,)."""
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


def only_entry(x: Any) -> Any:
    """Unpacks lists, tuples and dicts with one entry; returns anything else as is."""
    while isinstance(x, (list, tuple, dict)) and len(x) == 1:
        (entry,) = x.values() if isinstance(x, dict) else x
        if isinstance(entry, numbers.Number):  # a list of labels for one image
            break
        x = entry
    return x
