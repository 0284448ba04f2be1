"""Calls of a model in inference mode that leave no trace."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import current_values


class Inference(keras.layers.Layer):
    """Calls a model in inference mode and leaves no trace in it.

    Keras clears the losses of the layer at which a call begins: here this layer, which
    does not track the model.

    Args:
        model: the model.
        values: `(variable, value)` pairs that replace weights of the model; empty for
            its current weights.
        batch_statistics: whether `BatchNormalization` takes the statistics of its own
            inputs in place of the moving ones, which mean nothing early in training.
            They count as constants: an image's gradient goes through itself only.
    """

    def __init__(
        self, model: keras.Model, values: Any = (), batch_statistics: bool = False
    ):
        super().__init__(
            name="gradient_pass", dtype=model.dtype_policy, autocast=model.autocast
        )
        parameters = inspect.signature(model.call).parameters.values()
        takes_mode = any(
            p.name == "training" or p.kind == p.VAR_KEYWORD for p in parameters
        )
        mode = {"training": False} if takes_mode else {}
        # Not `model(inputs)`: inside a call of the model itself, Keras would take the
        # end of this call for the end of that one.
        self._call_model = lambda inputs: model.call(inputs, **mode)
        # In a stateless scope the weights are in the scope.
        self._values = lambda: values or current_values(model.variables)
        self._norms = list(_trainable_norms(model)) if batch_statistics else []
        self._set_mode = _InMode()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the predictions of the model."""
        self._set_mode(inputs, training=False)
        with keras.StatelessScope(self._values()), _of_their_batch(self._norms):
            predictions = self._call_model(inputs)
        # The layers that follow in the outer call inherit this mode, also `None`.
        self._set_mode(inputs, training=training)
        return predictions


def parts_of(model: keras.layers.Layer, kind: type) -> list[Any]:
    """Returns the layers of a kind inside a model, however deep, and not inside them.

    Args:
        model: the model.
        kind: the class of the layers.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, kind):
            found.append(one)
            continue
        # Composite layers keep their parts in attributes, or in lists and dicts.
        for value in (*getattr(one, "layers", ()), *vars(one).values()):
            many = isinstance(value, (list, tuple))
            entries = [*value.values()] if isinstance(value, dict) else [value]
            entries = [*value] if many else entries
            waiting += [x for x in entries if isinstance(x, keras.layers.Layer)]
    return found


def _trainable_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the layers that normalize by their batch when the model is trained."""
    norms = parts_of(model, keras.layers.BatchNormalization)
    return [layer for layer in norms if layer.trainable]


@contextlib.contextmanager
def _of_their_batch(norms: list) -> Iterator[None]:
    """Makes normalization layers set their statistics to those of their inputs.

    Inside a stateless scope only, which forgets them.
    """
    plain = [(layer, vars(layer).get("call"), layer.call) for layer in norms]
    for layer, _, call in plain:
        # Past Keras, which would look into the attribute.
        vars(layer)["call"] = functools.partial(_normalized, layer, call)
    try:
        yield
    finally:
        for layer, own, _ in plain:
            if own is None:
                del vars(layer)["call"]
            else:
                vars(layer)["call"] = own


def _normalized(layer: Any, call: Any, inputs: Any, **arguments: Any) -> Any:
    """Calls a normalization layer in inference, with the statistics of its inputs."""
    fixed = ops.stop_gradient(ops.cast(inputs, layer.moving_mean.dtype))
    axis = layer.axis % len(fixed.shape)
    others = tuple(i for i in range(len(fixed.shape)) if i != axis)
    mean, variance = ops.moments(fixed, others)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    return call(inputs, **{**arguments, "training": False})


class _InMode(keras.layers.Layer):
    """Sets the mode that the layers called after it inherit; returns its input."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the input."""
        return inputs
