"""Gradients of a model's loss with respect to its input images."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework
from keras_structadv.checks import check_length
from keras_structadv.gradients.inference import Inference
from keras_structadv.gradients.inputs import images_among
from keras_structadv.gradients.labels import (
    TARGETS,
    are_vectors,
    as_labels,
    most_likely,
)
from keras_structadv.gradients.outputs import by_output

# Each image's loss is brought to this size before the backward pass. It keeps float16
# gradients away from zero as well as from infinity, whatever the size of the loss.
_LOSS_SIZE = 64.0


def per_image_gradients(
    model: keras.Model,
    images: Any,
    labels: Any = None,
    *,
    loss: Any = None,
    target: Any = None,
) -> Any:
    """Returns, for each image, the direction in which the adversarial loss rises.

    That is the gradient of `sum_k L(model(z_k), l_k)`: a sum, so that the gradient of
    an image does not depend on the other images of its batch. The model is called with
    `training=False`, and the pass leaves no trace: weights, statistics, seeds, metrics
    and losses stay as they are.

    Args:
        model: a model. Of several outputs the sum of their losses counts, with their
            `loss_weights`.
        images: float or integer, (batch, ...), as the model takes them. For a model
            with several inputs, all of them, as it takes them: the images are the one
            of rank 4, or the entry `"images"` of a dict.
        labels: the true labels, in the form that the loss takes; `None` for the
            model's own most likely labels, where the loss is a cross-entropy.
        loss: the loss, as `model.compile` takes it; `None` for the one that the model
            was compiled with.
        target: `None` to ascend the loss of `labels`; otherwise the loss of another
            label is descended: `"most_confident_wrong"` or `"random"` (a wrong label,
            drawn for each image), labels in the form of `labels`, or a function
            `(labels, predictions) -> class ids`. In vectors of labels a wrong class is
            one that is not present; see `classes_present`. An image in which every
            class is present (class id -1) has a gradient of zero.

    Returns:
        gradients: float32, the shape of `images`. For a target, the negative of the
        gradient of its loss, so that ascending it approaches the target.

    Raises:
        ValueError: if no loss is known, labels and images differ in number, or an
            argument has no meaning here.

    Reference: Luo, Mobahi, Bengio (2020), Algorithm 1, line 4, and section 6.3.
    """
    images, pack = images_among(images)
    if not model.built and pack(images) is images:
        model.build(images.shape)
    inference = Inference(model)
    return gradients_of(
        model, lambda z: inference(pack(z)), images, labels, loss=loss, target=target
    )


def gradients_of(
    model: keras.Model,
    forward: Callable[[Any], Any],
    images: Any,
    labels: Any,
    *,
    loss: Any,
    target: Any,
) -> Any:
    """Returns what `per_image_gradients` does, for a way from images to predictions.

    Args:
        model: the model, whose compiled loss it is.
        forward: from images to the predictions of the model, in inference mode.
        images: float or integer, (batch, ...).
        labels: as in `per_image_gradients`, as are `loss` and `target`.
        loss: see `labels`.
        target: see `labels`.

    Returns:
        gradients: float32, the shape of `images`.
    """
    if isinstance(target, str) and target not in TARGETS:
        raise ValueError(
            f"Received target={target!r}. Pass None, one of {list(TARGETS)}, or labels."
        )
    rule = TARGETS[target] if isinstance(target, str) else target
    rule, aims = (rule, None) if callable(rule) else (None, target)

    def objective(images: Any) -> tuple[Any, Any]:
        losses = 0.0
        for weight, *row, aim in by_output(model, loss, forward(images), labels, aims):
            if aims is None or aim is not None:  # else an output that is left alone
                one = _adversarial_losses(*row, rule if aims is None else aim, images)
                losses = losses + weight * one
        size = ops.maximum(ops.abs(ops.stop_gradient(losses)), 0.01)
        return ops.sum(losses * (_LOSS_SIZE / size)), size

    gradients, size = framework().gradients(
        objective, ops.stop_gradient(ops.cast(images, "float32"))
    )
    if gradients is None:
        return without_gradient(model, images)
    size = ops.reshape(size / _LOSS_SIZE, (-1,) + (1,) * (len(images.shape) - 1))
    return ops.stop_gradient(gradients * size)


def _adversarial_losses(
    loss: Callable, predictions: Any, labels: Any, target: Any, images: Any
) -> Any:
    """Returns what each image's gradient ascends for one output, (batch,).

    Args:
        loss: what `per_image_loss` returned.
        predictions: (batch, ..., classes), or (batch,).
        labels: the true labels; `None` for the most likely ones.
        target: `None` to ascend the loss of the true labels; otherwise labels, or a
            function `(labels, predictions) -> class ids`, whose loss is descended.
        images: (batch, ...), for their number.
    """
    if len(predictions.shape) == 1:
        predictions = predictions[:, None]
    settled = ops.stop_gradient(predictions)
    if labels is None:
        labels = as_labels(most_likely(settled, loss), settled, loss)
    labels = ops.convert_to_tensor(labels)
    check_length("labels", labels, images)
    if target is None:
        return loss(labels, predictions)
    given = target(labels, settled) if callable(target) else target
    given = ops.convert_to_tensor(given)
    check_length("target", given, images)
    aim = as_labels(given, settled, loss, like=labels)
    if loss.ignore_class is not None:  # what has no label gets no aim either
        ignored = ops.cast(loss.ignore_class, labels.dtype)
        aim = ops.where(labels == ignored, labels, aim)
    ids = len(given.shape) == len(settled.shape) - 1
    if not (callable(target) and ids and are_vectors(labels, settled)):
        return -loss(aim, predictions)
    # Where every class is present, no class is wrong, and the image gets no gradient.
    aim = ops.where((given < 0)[..., None], labels, aim)
    some = ops.any(given >= 0, axis=tuple(range(1, len(given.shape))))
    return -loss(aim, predictions) * ops.cast(some, "float32")


def without_gradient(model: keras.Model, images: Any) -> Any:
    """Returns a gradient of zero, and warns that the loss is blind to the images."""
    warnings.warn(
        f"The loss of model {model.name!r} does not depend on the images, so that "
        "their gradient is zero. An integer input (`dtype='uint8'`) is the usual "
        "cause: make it a float input.",
        stacklevel=3,
    )
    return ops.zeros_like(ops.cast(images, "float32"))
