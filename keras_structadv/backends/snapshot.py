"""A copy of a model's weights for `tf.data` pipelines."""

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.current import framework

_ALIGNED = 64  # bytes


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
        framework().check_snapshots()
        if not model.built:
            raise ValueError(
                f"Model {model.name!r} has no weights yet, so that there is nothing to "
                "take a snapshot of. Build it first: model.build(input_shape)."
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
        """Copies the weights as they are now."""
        self._bytes.assign(_joined(self._parts()))

    def values(self) -> list[tuple[keras.Variable, Any]]:
        """Returns each variable of the model with its value in the snapshot."""
        arrays = framework().unpacked(self._bytes, self._layout)
        return list(zip(self._variables, arrays))

    def _parts(self) -> list[np.ndarray]:
        """Returns the bytes of each variable as they are now, uint8, (size,)."""
        now = list(map(id, self._model.variables))
        if now != list(map(id, self._variables)):
            raise ValueError(
                f"The variables of model {self._model.name!r} are not those of which "
                "the snapshot was taken. Bind again: layer.bind(model, snapshot=True)."
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
