"""Gradients of a model's loss with respect to its input images.

The only module that depends on the backend. What a backend has to provide is one
entry of `_BACKENDS`, a function `(objective, images) -> gradients, extra` for an
objective that returns `scalar, extra`, with `None` for gradients where the scalar does
not depend on the images; and, to reuse the gradients of training, what
`step_with_gradients`, `read_rows`, `write_rows` and `bits` do.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from keras_structadv.losses import (
    TARGETS,
    as_labels,
    check_length,
    most_likely,
    only_entry,
    per_image_loss,
)

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
        model: a built model with one input and one output.
        images: float or integer, (batch, ...), as the model takes them.
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
    if backend.backend() not in _BACKENDS:
        raise NotImplementedError(
            f"Gradients are not available on the {backend.backend()} backend yet. Set "
            'KERAS_BACKEND to one of: "' + '", "'.join(_BACKENDS) + '".'
        )
    images = ops.convert_to_tensor(images)
    if labels is not None:
        labels = ops.convert_to_tensor(only_entry(labels))
        check_length("labels", labels, images)
    if not (target is None or callable(target) or isinstance(target, str)):
        target = ops.convert_to_tensor(target)
        check_length("target", target, images)
    if isinstance(target, str) and target not in TARGETS:
        raise ValueError(
            f"Received target={target!r}. Pass None, one of {list(TARGETS)}, or labels."
        )
    loss = per_image_loss(model, loss)
    if not model.built:
        model.build(images.shape)
    forward = _Inference(model)

    def objective(images: Any) -> tuple[Any, Any]:
        predictions = only_entry(forward(images))
        if isinstance(predictions, (list, tuple, dict)):
            raise ValueError(
                f"Received a model with {len(predictions)} outputs. Gradients are "
                "taken of models with one output: pass a model of the output that the "
                "images shall be adversarial to."
            )
        if len(predictions.shape) == 1:
            predictions = predictions[:, None]
        losses = adversarial_losses(predictions)
        size = ops.maximum(ops.abs(ops.stop_gradient(losses)), 0.01)
        return ops.sum(losses * (_LOSS_SIZE / size)), size

    def adversarial_losses(predictions: Any) -> Any:
        settled = ops.stop_gradient(predictions)
        true = labels
        if true is None:
            true = as_labels(most_likely(settled, loss), settled, loss)
        if target is None:
            return loss(true, predictions)
        aim = target if not isinstance(target, str) else TARGETS[target]
        if callable(aim):
            aim = aim(true, settled)
        aim = as_labels(aim, settled, loss, like=true)
        if loss.ignore_class is not None:  # what has no label gets no aim either
            ignored = ops.cast(loss.ignore_class, true.dtype)
            aim = ops.where(true == ignored, true, aim)
        return -loss(aim, predictions)

    gradients, size = _BACKENDS[backend.backend()](
        objective, ops.stop_gradient(ops.cast(images, "float32"))
    )
    if gradients is None:
        return _without_gradient(model, images)
    size = ops.reshape(size / _LOSS_SIZE, (-1,) + (1,) * (len(images.shape) - 1))
    return ops.stop_gradient(gradients * size)


def step_with_gradients(
    model: keras.Model, train_step: Callable[[Any], Any], images: Any
) -> tuple[Any, Any]:
    """Runs a train step, and returns its gradient by the images as well.

    The tape here lies around that of the step. Its backward pass is the one that the
    step makes for the weights, but for the first layer; graph compilers merge the two.

    Args:
        model: the model whose step it is.
        train_step: runs the step on the images.
        images: float, (batch, ...), what the model is trained on.

    Returns:
        `(logs, gradients)`: what the step returned; float32, the shape of `images`,
        the gradient of the loss of the batch, with its sample weights, times the number
        of images: that of each image, if the loss is a mean over the batch.

    Raises:
        ValueError: if the step does not call `model.compute_loss` once.
    """
    import tensorflow as tf

    losses = []
    compute_loss = model.compute_loss

    def recording(*args: Any, **kwargs: Any) -> Any:
        losses.append(compute_loss(*args, **kwargs))
        return losses[-1]

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        with replaced(model, "compute_loss", recording):
            logs = train_step(images)
        if len(losses) != 1:
            raise ValueError(
                f"The train step of model {model.name!r} called `compute_loss` "
                f"{len(losses)} times. Its gradients can be reused only where it calls "
                'it once: call it in your `train_step`, or pass gradient="fresh".'
            )
        # As the step does it, so that float16 does not lose small gradients, and that
        # the two backward passes are the same.
        loss = model.optimizer.scale_loss(losses[0])
    gradients = tape.gradient(loss, images)
    if gradients is None:
        return logs, _without_gradient(model, images)
    scale = model.optimizer.scale_loss(1.0) / ops.cast(ops.shape(images)[0], "float32")
    return logs, ops.cast(gradients, "float32") / scale


def is_distributed(model: keras.Model) -> bool:
    """Returns whether a model is trained under a distribution strategy."""
    strategy = getattr(model, "distribute_strategy", None)
    return type(strategy).__name__ != "_DefaultDistributionStrategy"


def bits(x: Any) -> Any:
    """Returns the bits of a float32 array as int32, in its shape."""
    import tensorflow as tf

    return tf.bitcast(x, tf.int32)


def read_rows(table: keras.Variable, rows: Any) -> Any:
    """Returns rows of a table, without copying the table.

    Args:
        table: (size, ...).
        rows: int32, (count,).

    Returns:
        (count, ...), of the dtype of the table.
    """
    return table.value.sparse_read(rows)


def write_rows(table: keras.Variable, rows: Any, values: Any) -> None:
    """Writes rows of a table in place, without copying the table.

    Args:
        table: (size, ...).
        rows: int32, (count,); where two are equal, either value is written.
        values: (count, ...), of the dtype of the table.
    """
    import tensorflow as tf

    table.value.scatter_update(tf.IndexedSlices(values, rows))


def fused(function: Callable, in_eager: bool = False) -> Callable:
    """Returns a function of arrays as one kernel of XLA, also in a step without it.

    The many small operations on a batch of images around a solve take two to three
    times as long one by one. In eager execution they stay so, for debugging.

    Args:
        function: from arrays to arrays.
        in_eager: whether to compile it also where every operation runs by itself.

    Returns:
        The compiled function, or `function` itself where that is not wanted.
    """
    # Metal devices do not have XLA.
    if backend.backend() != "tensorflow" or sys.platform == "darwin":
        return function
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True, autograph=False)

    def call(*arguments: Any) -> Any:
        plain = tf.executing_eagerly() and not in_eager
        return (function if plain else compiled)(*arguments)

    return call


def visible(x: Any) -> np.ndarray | None:
    """Returns an array of the backend as one of NumPy, `None` while tracing a graph."""
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            return None
    if backend.backend() == "jax":
        import jax

        if isinstance(x, jax.core.Tracer):
            return None
    return ops.convert_to_numpy(x)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance, and afterwards gives it its own back."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)


def _without_gradient(model: keras.Model, images: Any) -> Any:
    warnings.warn(
        f"The loss of model {model.name!r} does not depend on the images, so that "
        "their gradient is zero. An integer input (`dtype='uint8'`) is the usual "
        "cause: make it a float input.",
        stacklevel=3,
    )
    return ops.zeros_like(ops.cast(images, "float32"))


class _Inference(keras.layers.Layer):
    """Calls a model in inference mode, and leaves the losses that it holds alone.

    Keras clears the losses of the layer at which a call enters. Here that is this
    layer, which does not track the model.
    """

    def __init__(self, model: keras.Model):
        super().__init__(name="gradient_pass", autocast=False)
        self._call_model = lambda images: model(images, training=False)

    def call(self, images: Any) -> Any:
        with keras.StatelessScope():
            return self._call_model(images)


def _tensorflow_gradients(
    objective: Callable[[Any], tuple[Any, Any]], images: Any
) -> tuple[Any, Any]:
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        value, extra = objective(images)
    return tape.gradient(value, images), extra


_BACKENDS = {"tensorflow": _tensorflow_gradients}
