"""Gradients of a model's loss with respect to its input images."""

import inspect
import math
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from keras_structadv.backends import current_values, framework
from keras_structadv.checks import check_length
from keras_structadv.losses import (
    TARGETS,
    as_labels,
    by_output,
    most_likely,
)

# Each image's loss is brought to this size before the backward pass. It keeps float16
# gradients away from zero as well as from infinity, whatever the size of the loss.
_LOSS_SIZE = 64.0
_ALIGNED = 64  # bytes


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
            `(labels, predictions) -> class ids`.

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


def images_among(inputs: Any) -> tuple[Any, Callable]:
    """Finds the images among the inputs of a model.

    Args:
        inputs: an array, or a structure of arrays: the images are the only one, the
            only one of rank 4, or the entry `"images"` of a dict.

    Returns:
        The images, and a function `(images, chosen=None) -> inputs` that puts others in
        their place, with the places of those among the batch.

    Raises:
        ValueError: if it is not clear which are the images.
    """
    leaves = [ops.convert_to_tensor(x) for x in keras.tree.flatten(inputs)]
    places = [i for i, x in enumerate(leaves) if len(x.shape) == 4]
    if len(leaves) == 1:
        places = [0]
    elif len(places) != 1 and isinstance(inputs, dict) and "images" in inputs:
        marks = {key: key == "images" for key in inputs}
        places = [i for i, x in enumerate(keras.tree.flatten(marks)) if x]
    if len(places) != 1:
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
        raise ValueError(
            f"Received inputs of shapes {shapes}. One of them must be images of rank "
            '4; where several are, name the images: {"images": ..., ...}.'
        )
    place = places[0]

    def pack(images: Any, chosen: Any = None) -> Any:
        others = leaves
        if chosen is not None and len(leaves) > 1:
            others = [ops.take(x, chosen, axis=0) for x in leaves]
        packed = [*others[:place], images, *others[place + 1 :]]
        return keras.tree.pack_sequence_as(inputs, packed)

    return leaves[place], pack


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
        for row in by_output(model, loss, forward(images), labels, aims):
            if aims is None or row[-1] is not None:  # else an output that is left alone
                losses = losses + adversarial_losses(*row)
        size = ops.maximum(ops.abs(ops.stop_gradient(losses)), 0.01)
        return ops.sum(losses * (_LOSS_SIZE / size)), size

    def adversarial_losses(
        weight: Any, loss: Any, predictions: Any, true: Any, aim: Any
    ) -> Any:
        if len(predictions.shape) == 1:
            predictions = predictions[:, None]
        settled = ops.stop_gradient(predictions)
        if true is None:
            true = as_labels(most_likely(settled, loss), settled, loss)
        true = ops.convert_to_tensor(true)
        check_length("labels", true, images)
        if target is None:
            return weight * loss(true, predictions)
        if rule is not None:
            aim = rule(true, settled)
        aim = ops.convert_to_tensor(aim)
        check_length("target", aim, images)
        aim = as_labels(aim, settled, loss, like=true)
        if loss.ignore_class is not None:  # what has no label gets no aim either
            ignored = ops.cast(loss.ignore_class, true.dtype)
            aim = ops.where(true == ignored, true, aim)
        return -weight * loss(aim, predictions)

    gradients, size = framework().gradients(
        objective, ops.stop_gradient(ops.cast(images, "float32"))
    )
    if gradients is None:
        return without_gradient(model, images)
    size = ops.reshape(size / _LOSS_SIZE, (-1,) + (1,) * (len(images.shape) - 1))
    return ops.stop_gradient(gradients * size)


def without_gradient(model: keras.Model, images: Any) -> Any:
    """Returns a gradient of zero, and warns that the loss is blind to the images."""
    warnings.warn(
        f"The loss of model {model.name!r} does not depend on the images, so that "
        "their gradient is zero. An integer input (`dtype='uint8'`) is the usual "
        "cause: make it a float input.",
        stacklevel=3,
    )
    return ops.zeros_like(ops.cast(images, "float32"))


class Inference(keras.layers.Layer):
    """Calls a model in inference mode, and leaves no trace in it.

    Keras clears the losses of the layer at which a call enters. Here that is this
    layer, which does not track the model.

    Args:
        model: the model.
        values: for variables of the model, the values to use in their place.
    """

    def __init__(self, model: keras.Model, values: Any = ()):
        super().__init__(
            name="gradient_pass", dtype=model.dtype_policy, autocast=model.autocast
        )
        parameters = inspect.signature(model.call).parameters.values()
        takes_mode = any(
            p.name == "training" or p.kind == p.VAR_KEYWORD for p in parameters
        )
        mode = {"training": False} if takes_mode else {}
        # Not `model(inputs)`: where this happens inside a call of the model itself, its
        # end would be taken for the end of that call.
        self._call_model = lambda inputs: model.call(inputs, **mode)
        # Where the model is called as a function of its weights, those are the weights.
        self._values = lambda: values or current_values(model.variables)
        self._set_mode = _InMode()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the predictions of the model."""
        self._set_mode(inputs, training=False)
        with keras.StatelessScope(self._values()):
            predictions = self._call_model(inputs)
        # What comes next in the call around this one inherits the mode, also that none
        # is known.
        self._set_mode(inputs, training=training)
        return predictions


class _InMode(keras.layers.Layer):
    def __init__(self):
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return inputs


class WeightSnapshot:
    """A copy of the weights of a model, on the CPU, that is renewed all at once.

    The weights are the bytes of one array: whoever reads it sees all of them as they
    were at one time, also while it is renewed by another thread.

    Args:
        model: a built model.

    Raises:
        ValueError: if the model has no weights yet.
        NotImplementedError: on a backend that has no `tf.data`.
    """

    def __init__(self, model: keras.Model):
        if backend.backend() != "tensorflow":
            raise NotImplementedError(
                f"Received snapshot=True on the {backend.backend()} backend. A "
                "snapshot serves tf.data, which computes with TensorFlow: set "
                'KERAS_BACKEND="tensorflow", or train with AdversarialTraining.'
            )
        if not model.built:
            raise ValueError(
                f"Model {model.name!r} has no weights yet, so that there is nothing to "
                "take a snapshot of. Build it first: model.build(input_shape)."
            )
        import tensorflow as tf

        self._model = model
        self._variables = list(model.variables)
        weights = self._current()

        def on_the_cpu() -> Any:
            with tf.device("CPU:0"):
                return tf.Variable(weights, trainable=False)

        # In a thread of its own, where no strategy is in effect that would make a copy
        # for each of its devices.
        with futures.ThreadPoolExecutor(1) as pool:
            self._bytes = pool.submit(on_the_cpu).result()

    def refresh(self) -> None:
        """Copies the weights as they are now."""
        self._bytes.assign(self._current())

    def values(self) -> list[tuple[keras.Variable, Any]]:
        """Returns each variable of the model with its value in the snapshot."""
        import tensorflow as tf

        flat = self._bytes.read_value()
        values, start = [], 0
        for variable in self._variables:
            dtype, shape = tf.as_dtype(variable.dtype), tuple(variable.shape)
            end = start + dtype.size * math.prod(shape)
            value = flat[start:end]  # aligned, so that nothing is copied
            if dtype == tf.bool:
                value = tf.reshape(value != 0, shape)
            else:
                size = (dtype.size,) if dtype.size > 1 else ()
                value = tf.bitcast(tf.reshape(value, shape + size), dtype)
            values.append((variable, value))
            start = -(-end // _ALIGNED) * _ALIGNED
        return values

    def _current(self) -> np.ndarray:
        now = list(map(id, self._model.variables))
        if now != list(map(id, self._variables)):
            raise ValueError(
                f"The variables of model {self._model.name!r} are not those of which "
                "the snapshot was taken. Bind again: layer.bind(model, snapshot=True)."
            )
        parts = []
        for variable in self._variables:
            value = np.ascontiguousarray(ops.convert_to_numpy(variable))
            part = value.reshape(-1).view(np.uint8)
            parts += [part, np.zeros(-len(part) % _ALIGNED, np.uint8)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
