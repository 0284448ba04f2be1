"""Calls of a model in inference mode that leave no trace."""

import inspect
from typing import Any

import keras

from keras_structadv.backends import current_values


class Inference(keras.layers.Layer):
    """Calls a model in inference mode and leaves no trace in it.

    Keras clears the losses of the layer at which a call begins: here this layer, which
    does not track the model.

    Args:
        model: the model.
        values: `(variable, value)` pairs that replace weights of the model; empty for
            its current weights.
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
        # Not `model(inputs)`: inside a call of the model itself, Keras would take the
        # end of this call for the end of that one.
        self._call_model = lambda inputs: model.call(inputs, **mode)
        # In a stateless scope the weights are in the scope.
        self._values = lambda: values or current_values(model.variables)
        self._set_mode = _InMode()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the predictions of the model."""
        self._set_mode(inputs, training=False)
        with keras.StatelessScope(self._values()):
            predictions = self._call_model(inputs)
        # The layers that follow in the outer call inherit this mode, also `None`.
        self._set_mode(inputs, training=training)
        return predictions


class _InMode(keras.layers.Layer):
    """Sets the mode that the layers called after it inherit; returns its input."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the input."""
        return inputs
