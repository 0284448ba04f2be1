"""A copy of a model's weights for `tf.data` pipelines."""

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.current import framework

_ALIGNED = 64  # bytes


class WeightSnapshot:
    """A copy of a model's weights on the CPU, which `refresh` updates atomically.

    All weights are bytes of one array, so that a reader never sees a mixture of old and
    new weights, even while another thread refreshes them.

    Args:
        model: a built model.

    Raises:
        ValueError: if the model has no weights yet.
        NotImplementedError: on another backend than TensorFlow.
    """

    def __init__(self, model: keras.Model):
        framework().check_snapshots()
        if not model.built:
            raise ValueError(
                f"Received snapshot=True, but model {model.name!r} has no weights yet. "
                "Build it first: model.build(input_shape)."
            )
        self._model = model
        self._variables = list(model.variables)
        parts = self._parts()
        ends = itertools.accumulate(_padded(len(part)) for part in parts)
        self._layout = [
            (start, variable.dtype, tuple(variable.shape))
            for start, variable in zip((0, *ends), self._variables)
        ]
        self._bytes = framework().shared_bytes(_joined(parts))

    def refresh(self) -> None:
        """Copies the current weights of the model."""
        self._bytes.assign(_joined(self._parts()))

    def values(self) -> list[tuple[keras.Variable, Any]]:
        """Returns `(variable, value)`, each variable with its value in the copy."""
        arrays = framework().unpacked(self._bytes, self._layout)
        return list(zip(self._variables, arrays))

    def _parts(self) -> list[np.ndarray]:
        """Returns the bytes of each variable's current value, uint8, (size,)."""
        now = list(map(id, self._model.variables))
        if now != list(map(id, self._variables)):
            raise ValueError(
                f"The variables of model {self._model.name!r} are not those of the "
                "snapshot any more. Bind again: layer.bind(model, snapshot=True)."
            )
        arrays = (
            np.ascontiguousarray(ops.convert_to_numpy(x)) for x in self._variables
        )
        return [array.reshape(-1).view(np.uint8) for array in arrays]


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    padded = [np.pad(part, (0, _padded(len(part)) - len(part))) for part in parts]
    return np.concatenate(padded) if padded else np.zeros(0, np.uint8)
