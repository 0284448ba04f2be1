"""Gradients of a model's loss with respect to its input images."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework
from keras_structadv.checks import as_tensor, check_length
from keras_structadv.gradients.inference import Inference
from keras_structadv.gradients.inputs import images_among
from keras_structadv.gradients.labels import (
    TARGETS,
    are_vectors,
    as_labels,
    most_likely,
)
from keras_structadv.gradients.loss import PerImageLoss
from keras_structadv.gradients.outputs import by_output

# Each image's loss is scaled to this size before the backward pass, so that float16
# gradients neither vanish nor overflow.
_LOSS_SIZE = 64.0


def per_image_gradients(
    model: keras.Model,
    images: Any,
    labels: Any = None,
    *,
    loss: Any = None,
    target: Any = None,
) -> Any:
    """Returns the gradient of each image's loss with respect to the image.

    It is the gradient of `sum_k L(model(z_k), l_k)`. Because of the sum, an image's
    gradient does not depend on the other images of its batch. The pass runs in
    inference mode and leaves no trace: weights, statistics, seeds, metrics and losses
    do not change.

    Args:
        model: a model. With several outputs, their losses are added with the model's
            `loss_weights`.
        images: float or integer, (batch, ...), as the model takes them. For a model
            with several inputs, all inputs; the images are the one of rank 4, or the
            entry `"images"` of a dict.
        labels: the true labels, in the form that the loss takes; `None` for the labels
            that the model predicts, if the loss is a cross-entropy.
        loss: a loss as `model.compile` takes it; `None` for the compiled one.
        target: `None` to ascend the loss of `labels`. Otherwise the target, whose loss
            is descended:

            - `"most_confident_wrong"`: the wrong class with the highest prediction;
            - `"random"`: a wrong class, drawn for each image;
            - labels, in the form of `labels`;
            - a function `(labels, predictions) -> class ids`.

            With vectors as labels (multi-hot, MixUp), a wrong class is one that is not
            present. If every class is present, the image's gradient is zero.

    Returns:
        gradients: float32, the shape of `images`. With a target, the negative gradient
        of its loss: ascending approaches the target.

    Raises:
        ValueError: if there is no loss, labels and images differ in number, or an
            argument is not one of the above.

    Example:
    >>> import numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ... )
    >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    >>> images, labels = np.zeros((3, 4, 4, 1)), np.array([0, 1, 1])
    >>> tuple(per_image_gradients(model, images, labels).shape)
    (3, 4, 4, 1)

    Reference: Luo, Mobahi, Bengio (2020), Algorithm 1, line 4, and section 6.3.
    """
    images, pack = images_among(images)
    if not model.built and pack(images) is images:
        model.build(images.shape)
    inference = Inference(model)
    return gradients_of(
        model, lambda z: inference(pack(z)), images, labels, loss=loss, target=target
    )[0]


def gradients_of(
    model: keras.Model,
    forward: Callable[[Any], Any],
    images: Any,
    labels: Any,
    *,
    loss: Any,
    target: Any,
) -> tuple[Any, Any]:
    """Returns the gradients and the predictions of one forward and backward pass.

    Args:
        model: the model, for its compiled loss.
        forward: from images to the predictions of the model, in inference mode.
        images: float or integer, (batch, ...).
        labels: as in `per_image_gradients`.
        loss: as in `per_image_gradients`.
        target: as in `per_image_gradients`.

    Returns:
        `(gradients, predictions)`: float32, the shape of `images`, and what `forward`
        returned.
    """
    if isinstance(target, str) and target not in TARGETS:
        raise ValueError(
            f"Received target={target!r}. Pass None, one of {list(TARGETS)}, or labels."
        )
    rule = TARGETS[target] if isinstance(target, str) else target
    rule, aims = (rule, None) if callable(rule) else (None, target)

    def objective(images: Any) -> tuple[Any, Any]:
        losses, answers = 0.0, forward(images)
        for weight, one, predictions, true, aim in by_output(
            model, loss, answers, labels, aims
        ):
            if aims is None or aim is not None:  # else no target for this output
                losses = losses + weight * _adversarial_losses(
                    one, predictions, true, rule if aims is None else aim, images
                )
        size = ops.maximum(ops.abs(ops.stop_gradient(losses)), 0.01)
        return ops.sum(losses * (_LOSS_SIZE / size)), (size, answers)

    gradients, (size, answers) = framework().gradients(
        objective, ops.stop_gradient(ops.cast(images, "float32"))
    )
    if gradients is None:
        return without_gradient(model, images), answers
    size = ops.reshape(size / _LOSS_SIZE, (-1,) + (1,) * (len(images.shape) - 1))
    return ops.stop_gradient(gradients * size), answers


def _adversarial_losses(
    loss: PerImageLoss, predictions: Any, labels: Any, target: Any, images: Any
) -> Any:
    """Returns what each image ascends for one output, float32, (batch,).

    Args:
        loss: what `per_image_loss` returned.
        predictions: (batch, ..., classes).
        labels: the true labels; `None` for the most likely ones.
        target: `None` to ascend the loss of the true labels; otherwise labels to
            descend to, or a function `(labels, predictions) -> class ids`.
        images: (batch, ...), for their number.
    """
    settled = ops.stop_gradient(predictions)
    if labels is None:
        labels = as_labels(most_likely(settled, loss), settled, loss)
    labels = as_tensor("labels", labels)
    check_length("labels", labels, images)
    if target is None:
        return _losses(loss, labels, predictions)
    _losses(loss, labels, settled)  # refuses what does not fit; no compiler keeps it
    given = target(labels, settled) if callable(target) else target
    given = as_tensor("target", given)
    check_length("target", given, images)
    aim = as_labels(given, settled, loss, like=labels)
    if loss.ignore_class is not None:  # without a label, without a target
        ignored = ops.cast(loss.ignore_class, labels.dtype)
        aim = ops.where(labels == ignored, labels, aim)
    ids = len(given.shape) == len(settled.shape) - 1
    if not (callable(target) and ids and are_vectors(labels, settled)):
        return -_losses(loss, aim, predictions)
    # -1: every class is present, none is wrong. Such an image gets no gradient.
    aim = ops.where((given < 0)[..., None], labels, aim)
    some = ops.any(given >= 0, axis=tuple(range(1, len(given.shape))))
    return -_losses(loss, aim, predictions) * ops.cast(some, "float32")


def _losses(loss: PerImageLoss, labels: Any, predictions: Any) -> Any:
    """Returns the loss of each image; its errors name the labels."""
    try:
        return loss(labels, predictions)
    except Exception as error:  # each backend has its own
        raise ValueError(
            f"Received labels of shape {tuple(labels.shape)} for predictions of shape "
            f"{tuple(predictions.shape)}, for which the loss fails ({error}). Pass "
            "labels in the form that the loss takes."
        ) from error


def without_gradient(model: keras.Model, images: Any) -> Any:
    """Returns gradients of zero; warns that the loss does not depend on the images."""
    warnings.warn(
        f"The loss of model {model.name!r} does not depend on the images: their "
        "gradients are zero. The usual cause is an integer input (`dtype='uint8'`); "
        "make it a float input.",
        stacklevel=3,
    )
    return ops.zeros_like(ops.cast(images, "float32"))
