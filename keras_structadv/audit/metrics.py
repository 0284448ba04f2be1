"""The score of each image: 1 where the model is right, 0 where it is fooled."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_structadv.gradients.labels import are_vectors, most_likely
from keras_structadv.gradients.loss import per_image_loss


def metric_for(
    metric: Callable | None, model: keras.Model, loss: Any
) -> Callable[[Any, Any], Any]:
    """Returns `(labels, predictions) -> scores`, float32, (batch,).

    Args:
        metric: a function of labels and predictions with a score in [0, 1] for each
            image, or for each of its pixels; `None` for the accuracy.
        model: the model, for its compiled loss.
        loss: overrides the model's own.

    Raises:
        ValueError: if the metric is no function of this kind.
    """
    if isinstance(metric, keras.metrics.Metric) or not (
        metric is None or callable(metric)
    ):
        raise ValueError(
            f"Received metric={metric!r}. Pass a function (labels, predictions) -> one "
            "score in [0, 1] for each image, such as keras.metrics.binary_accuracy."
        )

    def score(labels: Any, predictions: Any) -> Any:
        if metric is None:
            return _is_right(labels, predictions, model, loss)
        scores = ops.cast(ops.convert_to_tensor(metric(labels, predictions)), "float32")
        batch = keras.tree.flatten(predictions)[0].shape[0]
        if len(scores.shape) == 0 or scores.shape[0] != batch:
            raise ValueError(
                f"The metric returned an array of shape {tuple(scores.shape)} for "
                f"{batch} images. Return one score for each image."
            )
        return ops.mean(scores, axis=tuple(range(1, len(scores.shape))))

    return score


def answers_of(predictions: Any, model: keras.Model, loss: Any) -> Any:
    """Returns the class that each image got, int32, (batch,); -1 where there is none.

    Args:
        predictions: what the model returned.
        model: the model, for its compiled loss.
        loss: overrides the model's own.
    """
    first = keras.tree.flatten(predictions)[0]
    if first is predictions and len(first.shape) == 2:
        if first.shape[-1] > 1:
            return ops.cast(ops.argmax(first, axis=-1), "int32")
        one = per_image_loss(model, loss)
        if one.is_binary:
            return ops.cast(most_likely(first, one)[:, 0], "int32")
    return ops.full(ops.shape(first)[:1], -1, "int32")


def _is_right(labels: Any, predictions: Any, model: keras.Model, loss: Any) -> Any:
    """Returns 1.0 where the class with the highest prediction is the true one."""
    single = not isinstance(predictions, (list, tuple, dict))
    if single and len(predictions.shape) == 1:
        predictions = predictions[:, None]
    shape = tuple(predictions.shape) if single else ()
    one = per_image_loss(model, loss) if single else None
    multilabel = one and one.is_binary and len(shape) == 2 and shape[-1] > 1
    if one is None or len(shape) != 2 or multilabel:
        what = f"predictions of shape {shape}" if single else "several predictions"
        raise ValueError(
            f"Received {what}{' and a binary loss' if multilabel else ''}, for which "
            "there is no single answer for an image. Pass metric=function, (labels, "
            "predictions) -> one score in [0, 1] for each image."
        )
    right = most_likely(predictions, one)
    if are_vectors(labels, predictions):
        labels = ops.argmax(labels, axis=-1)
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    right = labels == ops.reshape(ops.cast(right, "int32"), (-1,))
    finite = ops.all(ops.isfinite(predictions), axis=-1)
    return ops.cast(ops.logical_and(right, finite), "float32")
