"""The score of each image: 1 where the model is right, 0 where it is fooled."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_structadv.gradients.labels import are_vectors, most_likely
from keras_structadv.gradients.loss import PerImageLoss, only_entry, per_image_loss
from keras_structadv.gradients.outputs import as_rows


def check_metric(metric: Any) -> Callable | None:
    """Returns a metric as it is.

    Raises:
        ValueError: unless it is a function or `None`.
    """
    if isinstance(metric, keras.metrics.Metric) or not (
        metric is None or callable(metric)
    ):
        raise ValueError(
            f"Received metric={metric!r}. Pass a function (labels, predictions) -> one "
            "score in [0, 1] for each image, such as keras.metrics.binary_accuracy."
        )
    return metric


def metric_for(
    metric: Callable | None, model: keras.Model, loss: Any
) -> Callable[[Any, Any], Any]:
    """Returns `(labels, predictions) -> scores`, float32, (batch,).

    Args:
        metric: a function of labels and predictions with a score in [0, 1] for each
            image, or for each of its pixels; `None` for the accuracy.
        model: the model, for its compiled loss.
        loss: overrides the model's own.
    """

    def score(labels: Any, predictions: Any) -> Any:
        if metric is None:
            return _is_right(labels, predictions, model, loss)
        try:
            scores = metric(labels, predictions)
        except Exception as error:
            error.add_note(
                "The metric is compiled: write it with keras.ops, not NumPy."
            )
            raise
        scores = ops.cast(ops.convert_to_tensor(scores), "float32")
        several = isinstance(predictions, (list, tuple, dict))
        first = tuple(keras.tree.flatten(predictions)[0].shape)
        shape = tuple(scores.shape)
        # (batch, 1) is (batch,). Of several outputs only the batch is known.
        bare = shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape
        if (
            not shape
            or first[:1] != shape[:1]
            or not (several or first[: len(bare)] == bare)
        ):
            raise ValueError(
                f"The metric returned an array of shape {shape} for predictions of "
                f"shape {first}. Return one score for each image, or for each of "
                "its pixels."
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
    predictions, single = _rows(predictions)
    if single:
        one = per_image_loss(model, loss)
        if _has_one_answer(predictions, one):
            return _answer(predictions, one)
    first = keras.tree.flatten(predictions)[0]
    return ops.full(ops.shape(first)[:1], -1, "int32")


def check_class_ids(
    labels: Any, predictions: Any, model: keras.Model, loss: Any
) -> int | None:
    """Returns the number of classes, `None` unless there is one output of them.

    Args:
        labels: of a batch; `None` for no labels.
        predictions: what the model returned.
        model: the model, for its compiled loss.
        loss: overrides the model's own.

    Raises:
        ValueError: if class ids are out of range, or are vectors or no numbers.
    """
    (predictions, single), labels = _rows(predictions), only_entry(labels)
    if not single or len(predictions.shape) != 2:
        return None
    one = per_image_loss(model, loss)
    classes = max(2, predictions.shape[-1])
    if labels is None or not one.takes_class_ids:
        return classes
    ids = ops.convert_to_numpy(labels)
    if ids.size != len(ids):
        raise ValueError(
            f"Received labels of shape {ids.shape} for a sparse loss. Pass class ids, "
            "(batch,): numpy.argmax(labels, -1)."
        )
    ids = ids[ids != one.ignore_class]
    if ids.size and not 0 <= ids.min() <= ids.max() < classes:
        raise ValueError(
            f"Received labels from {ids.min()} to {ids.max()} for a model with "
            f"{classes} classes. Pass 0 to {classes - 1}."
        )
    return classes


def _is_right(labels: Any, predictions: Any, model: keras.Model, loss: Any) -> Any:
    """Returns 1.0 where the class with the highest prediction is the true one."""
    labels, (predictions, single) = only_entry(labels), _rows(predictions)
    one = per_image_loss(model, loss) if single else None
    if one is None or not _has_one_answer(predictions, one):
        what = f"of shape {tuple(predictions.shape)}" if single else "several"
        raise ValueError(
            f"Received predictions ({what}) and a loss for which there is no single "
            "answer for an image. Pass metric=function, (labels, predictions) -> one "
            "score in [0, 1] for each image."
        )
    if are_vectors(labels, predictions):
        labels = ops.argmax(labels, axis=-1)
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    right = labels == _answer(predictions, one)
    finite = ops.all(ops.isfinite(predictions), axis=-1)
    return ops.cast(ops.logical_and(right, finite), "float32")


def _rows(predictions: Any) -> tuple[Any, bool]:
    """Returns predictions, of rank 2 if they were of rank 1; whether of one output."""
    predictions = only_entry(predictions)
    single = not isinstance(predictions, (list, tuple, dict))
    return as_rows(predictions) if single else predictions, single


def _has_one_answer(predictions: Any, one: PerImageLoss) -> bool:
    if len(predictions.shape) != 2:
        return False
    return one.takes_classes if predictions.shape[-1] > 1 else one.is_binary


def _answer(predictions: Any, one: PerImageLoss) -> Any:
    return ops.reshape(ops.cast(most_likely(predictions, one), "int32"), (-1,))
