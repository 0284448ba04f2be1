"""A call of a model in inference mode that leaves no trace."""

import inspect
from typing import Any

import keras

from keras_structadv.backends import current_values


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
