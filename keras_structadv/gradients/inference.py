"""Calls of a model in inference mode that leave no trace."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import check_keras, current_values

_FEW = 8  # values of a channel


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
            Moving statistics stay where a layer is frozen, gets a mask or
            `training=False` from the model, or fewer than 8 values for a channel.
    """

    def __init__(
        self, model: keras.Model, values: Any = (), batch_statistics: bool = False
    ):
        check_keras()
        super().__init__(
            name="gradient_pass", dtype=model.dtype_policy, autocast=model.autocast
        )
        parameters = inspect.signature(model.call).parameters.values()
        takes_mode = any(
            p.name == "training" or p.kind == p.VAR_KEYWORD for p in parameters
        )
        # Layers that inherit the mode get a 0, and `False` where the model says so.
        self._mode: Any = 0 if batch_statistics else False
        mode = {"training": self._mode} if takes_mode else {}
        # Not `model(inputs)`: inside a call of the model itself, Keras would take the
        # end of this call for the end of that one.
        self._call_model = lambda inputs: model.call(inputs, **mode)
        # In a stateless scope the weights are in the scope.
        self._values = lambda: values or current_values(model.variables)
        self._norms = _norms(model) if batch_statistics else []
        self._set_mode = _InMode()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the predictions of the model."""
        self._set_mode(inputs, training=self._mode)
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


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the layers that normalize by their batch where the model is trained."""
    kind = keras.layers.BatchNormalization
    return [
        layer
        for layer in parts_of(model, kind)
        if layer.trainable and type(layer).call is kind.call
    ]


@contextlib.contextmanager
def _of_their_batch(norms: list) -> Iterator[None]:
    """Makes layers normalize by their inputs where they inherit the mode."""
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


def _normalized(
    layer: Any, call: Any, inputs: Any, training: Any = None, mask: Any = None
) -> Any:
    """Calls a normalization layer with the statistics of its inputs, as constants.

    Nothing is assigned: a rematerialized layer is called again outside of the pass.
    """
    if mask is not None or isinstance(training, bool):  # the model sets the mode itself
        return call(inputs, training=training, mask=mask)
    x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    axis = layer.axis % len(x.shape)
    others = tuple(i for i in range(len(x.shape)) if i != axis)
    mean, variance = ops.moments(ops.stop_gradient(x), others)
    # Normalized by themselves, a few values are always the same.
    few = ops.prod(ops.convert_to_tensor([ops.shape(x)[i] for i in others])) < _FEW
    mean = ops.where(few, ops.cast(layer.moving_mean, x.dtype), mean)
    variance = ops.where(few, ops.cast(layer.moving_variance, x.dtype), variance)
    outputs = ops.batch_normalization(
        x,
        mean,
        variance,
        axis,
        offset=ops.cast(layer.beta, x.dtype) if layer.center else None,
        scale=ops.cast(layer.gamma, x.dtype) if layer.scale else None,
        epsilon=layer.epsilon,
    )
    return ops.cast(outputs, layer.compute_dtype)


class _InMode(keras.layers.Layer):
    """Sets the mode that the layers called after it inherit; returns its input."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the input."""
        return inputs
