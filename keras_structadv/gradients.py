"""Gradients of a model's loss with respect to its input images.

The only module that depends on the backend. What a backend has to provide is one
entry of `_BACKENDS`, a function `(objective, images) -> gradients, extra` for an
objective that returns `scalar, extra`, with `None` for gradients where the scalar does
not depend on the images; and, to reuse the gradients of training, what
`step_with_gradients`, `read_rows` and `write_rows` do.
"""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import backend, ops

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
        labels = ops.convert_to_tensor(_only(labels))
        check_length("labels", labels, images)
    if not (target is None or callable(target) or isinstance(target, str)):
        target = ops.convert_to_tensor(target)
        check_length("target", target, images)
    if isinstance(target, str) and target not in _TARGETS:
        raise ValueError(
            f"Received target={target!r}. Pass None, one of {list(_TARGETS)}, "
            "or labels."
        )
    loss = per_image_loss(model, loss)
    if not model.built:
        model.build(images.shape)
    forward = _Inference(model)

    def objective(images: Any) -> tuple[Any, Any]:
        predictions = _only(forward(images))
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
            true = as_labels(_most_likely(settled, loss), settled, loss)
        if target is None:
            return loss(true, predictions)
        aim = target if not isinstance(target, str) else _TARGETS[target]
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
        warnings.warn(
            f"The loss of model {model.name!r} does not depend on the images, so that "
            "their gradient is zero. An integer input (`dtype='uint8'`) is the usual "
            "cause: make it a float input.",
            stacklevel=2,
        )
        return ops.zeros_like(ops.cast(images, "float32"))
    size = ops.reshape(size / _LOSS_SIZE, (-1,) + (1,) * (len(images.shape) - 1))
    return ops.stop_gradient(gradients * size)


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
    loss = _only(loss)
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


def _only(x: Any) -> Any:
    """Returns the one entry of a list, tuple or dict that has one, else `x` itself."""
    while isinstance(x, (list, tuple, dict)) and len(x) == 1:
        (x,) = x.values() if isinstance(x, dict) else x
    return x


def _most_likely(predictions: Any, loss: Any) -> Any:
    if predictions.shape[-1] == 1 and not loss.is_binary:
        raise ValueError(
            "Received no labels, and a loss from which no most likely label follows: "
            "its model has one output, and it is no binary cross-entropy. Pass labels."
        )
    if loss.is_binary:
        return ops.cast(predictions > (0.0 if loss.from_logits else 0.5), "int32")
    return ops.argmax(predictions, axis=-1)


def _class_ids(labels: Any, predictions: Any) -> Any:
    if predictions.shape[-1] > 1:
        if tuple(labels.shape[1:]) == tuple(predictions.shape[1:]):
            return ops.cast(ops.argmax(labels, axis=-1), "int32")
        shape = (-1,) + tuple(predictions.shape[1:-1])
    else:
        labels = ops.cast(labels, "float32") > 0.5
        shape = (-1,) + tuple(predictions.shape[1:])
    return ops.reshape(ops.cast(labels, "int32"), shape)


def check_length(name: str, labels: Any, images: Any) -> None:
    """Raises a `ValueError` unless there is one entry for each image."""
    if len(labels.shape) == 0:
        raise ValueError(
            f"Received {name} without a batch axis. Pass one for each image."
        )
    if None not in (labels.shape[0], images.shape[0]) and (
        labels.shape[0] != images.shape[0]
    ):
        raise ValueError(
            f"Received {name} of shape {tuple(labels.shape)} for images of shape "
            f"{tuple(images.shape)}. Pass one for each image."
        )


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
        the gradient of the loss of the batch, a mean, times the number of images.

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
    gradients = tape.gradient(loss, images, unconnected_gradients="zero")
    scale = model.optimizer.scale_loss(1.0) / ops.cast(ops.shape(images)[0], "float32")
    return logs, ops.cast(gradients, "float32") / scale


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


def fused(function: Callable, eagerly: bool = False) -> Callable:
    """Returns a function of arrays as one kernel of XLA, also in a step without it.

    The many small operations on a batch of images around a solve take two to three
    times as long one by one.

    Args:
        function: from arrays to arrays, without a loop of dynamic length.
        eagerly: whether to leave the function as it is, for debugging.

    Returns:
        The compiled function, or `function` itself where that is not wanted.
    """
    import tensorflow as tf

    if eagerly or sys.platform == "darwin":  # Metal devices do not have XLA
        return function
    return tf.function(function, jit_compile=True, autograph=False)


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
_TARGETS = {"most_confident_wrong": most_confident_wrong, "random": random_wrong}
