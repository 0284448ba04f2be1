"""Models with several outputs: the loss, predictions and labels of each."""

from typing import Any

import keras

from keras_structadv.backends import compiled_loss_weights
from keras_structadv.gradients.loss import only_entry, per_image_loss


def by_output(
    model: keras.Model,
    loss: Any,
    predictions: Any,
    *labels: Any,
) -> list[tuple]:
    """Groups losses, predictions and labels by output; skips outputs without a loss.

    Args:
        model: the model, for the names of its outputs.
        loss: a loss as `model.compile` takes it: one for all outputs, or a list or a
            dict with one for each; `None` for the compiled one, with its
            `loss_weights`.
        predictions: what the model returned: an array, a list or a dict of arrays.
        *labels: each is `None`, in the structure of the predictions, or a dict with
            the names of the outputs.

    Returns:
        A list of `(weight, per_image_loss, predictions, *labels)`, one for each output;
        predictions of rank 2 or more.

    Raises:
        ValueError: if there is no loss, or the structures differ.
    """
    predictions = only_entry(predictions)
    if not isinstance(predictions, (list, tuple, dict)):
        only = map(only_entry, labels)
        return [(1.0, per_image_loss(model, loss), as_rows(predictions), *only)]
    weights = None
    if loss is None and getattr(model, "loss", None) is not None:
        loss, weights = model.loss, compiled_loss_weights(model)
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

    outputs = zip(
        entries("loss_weights", weights, one_for_all=True),
        entries("loss", loss, one_for_all=True),
        map(as_rows, predictions),
        *(entries("labels", x) for x in labels),
    )
    rows = [
        (1.0 if weight is None else weight, per_image_loss(model, one), *rest)
        for weight, one, *rest in outputs
        if one is not None
    ]
    if not rows:
        per_image_loss(model, None)  # raises
    return rows


def as_rows(predictions: Any) -> Any:
    """Returns predictions of shape (batch,) as (batch, 1), others as they are."""
    return predictions[:, None] if len(predictions.shape) == 1 else predictions
