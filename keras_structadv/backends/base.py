"""What a backend has to do: the contract that TensorFlow, JAX and PyTorch fulfil."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np
from keras import backend, ops

from keras_structadv.backends.keras_state import forced_train_function
from keras_structadv.backends.train_step import replaced


class AugmentedStep(Protocol):
    """A train step that augments its data, then runs the model's own step."""

    @property
    def variables(self) -> list[keras.Variable]:
        """What the step reads and writes beside the model's own variables.

        The list is complete, and stays as it is, once `prepare` was called.
        """

    def prepare(self, data: Any) -> None:
        """Makes the variables that depend on the data.

        It is called with the first batch, before the step is traced, where the step
        cannot make variables itself (JAX).

        Args:
            data: a batch as `fit` hands it to a train step.
        """

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs one step.

        Args:
            train_step: the model's own step, a function of the data.
            data: a batch as `fit` hands it to a train step.

        Returns:
            The logs: what `train_step` returned, and what the step adds.
        """


class Framework:
    """What a backend of Keras has to do. `framework()` is the one in use."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """Returns the gradient of an objective with respect to the images.

        Args:
            objective: from images to `(scalar, extra)`.
            images: float32, (batch, ...).

        Returns:
            `(gradients, extra)`; the gradients are `None`, or zero, where the scalar
            does not depend on the images.

        Raises:
            NotImplementedError: on a backend without gradients.
        """
        raise NotImplementedError(
            f"Gradients are not available on the {backend.backend()} backend. Set "
            'KERAS_BACKEND to "tensorflow", "jax" or "torch".'
        )

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        """Returns a train function of a model that runs an augmented step.

        The model's own `train_step` and `train_function` stay as they are. The function
        serves any number of `fit` calls until the model is compiled anew; the step is
        compiled in the first one only.

        Args:
            model: a compiled model.
            step: the augmented step.

        Returns:
            A function that `fit` can call as `model.train_function`.
        """
        plain = model.train_step

        def train_step(data: Any) -> Any:
            return step(plain, data)

        with replaced(model, "train_step", train_step):
            return forced_train_function(model)

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        """Runs a train step, and returns its gradient by the images as well.

        It is that of the loss of the batch, with its sample weights, times the number
        of images: that of each image, if the loss is a mean over the batch.

        Args:
            model: the model whose step it is.
            train_step: the step, a function of the data, as an `AugmentedStep` gets it.
            pack: from images to data.
            images: float, (batch, ...).

        Returns:
            `(logs, gradients)`: what the step returned; float32, the shape of the
            images, or `None` where the loss does not depend on them.

        Raises:
            ValueError: if the step does not compute its loss as Keras' own step does.
        """
        raise NotImplementedError

    def bits(self, x: Any) -> Any:
        """Returns the bits of a float32 array as int32, in its shape."""
        raise NotImplementedError

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """Returns rows of a table, without copying the table.

        Args:
            table: (size, ...).
            rows: int32, (count,).

        Returns:
            (count, ...), of the dtype of the table.
        """
        raise NotImplementedError

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """Writes rows of a table in place, without copying the table.

        Args:
            table: (size, ...).
            rows: int32, (count,); where two are equal, either value is written.
            values: (count, ...), of the dtype of the table.
        """
        raise NotImplementedError

    def largest(
        self, x: Any, axis: int | tuple[int, ...], keepdims: bool, least: float
    ) -> Any:
        """Returns the maximum along axes that are not empty, also of no images at all.

        Args:
            x: an array, whose other axes may be empty.
            axis: along which axes.
            keepdims: whether they stay, with length one.
            least: no value is below it.
        """
        # With `initial`, PyTorch's would mix the CPU with the device of the array.
        return ops.amax(x, axis=axis, keepdims=keepdims)

    def sparse_matrix(
        self, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> Any:
        """Returns the backend's sparse tensor.

        Args:
            indices: integers, (entries, 2), sorted by row, then column.
            values: (entries,).
            shape: rows and columns of the matrix.

        Raises:
            NotImplementedError: if the backend has no sparse tensors that Keras uses.
        """
        raise NotImplementedError(
            f"The {backend.backend()} backend has no sparse operator. "
            'Use solver="dct", which is exact and faster.'
        )

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """Compiles a function of arrays into one kernel, even in an uncompiled step.

        The many small operations on a batch of images around a solve take two to three
        times as long one by one. In eager execution they stay so, for debugging.

        Args:
            function: from arrays to arrays.
            in_eager: whether to compile it in eager execution as well.

        Returns:
            The compiled function, or `function` itself where that is not wanted.
        """
        raise NotImplementedError

    def apart(self, function: Callable) -> Callable:
        """Hides a function from a compiler that cannot take it."""
        return function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        """Compiles a function once, where each call would compile its loops anew.

        Args:
            function: from arrays and constants to arrays.
            constants: the names of the arguments that are no arrays.
        """
        return function

    def visible(self, x: Any) -> np.ndarray | None:
        """Returns an array as one of NumPy, `None` while a program is traced."""
        raise NotImplementedError

    def full_precision(self) -> contextlib.AbstractContextManager:
        """Returns the scope in which float32 matrix products keep their precision."""
        return contextlib.nullcontext()

    def is_single_batch(self, batches: Any) -> bool:
        """Returns whether a train function was called by `train_on_batch`, if known."""
        return False

    def check_native(self, data: Any) -> None:
        """Raises a `ValueError` for symbolic tensors of `tf.data` on another backend.

        Args:
            data: a structure of anything.
        """
        for x in keras.tree.flatten(data):
            if type(x).__module__.startswith("tensorflow.") and not hasattr(x, "numpy"):
                raise ValueError(
                    f"Received a TensorFlow tensor ({type(x).__name__}) on the "
                    f"{backend.backend()} backend. A `tf.data` map computes with "
                    "TensorFlow, and cannot take the gradient of a model of another "
                    "backend: train with callbacks=[AdversarialTraining(layer)] "
                    "instead, to which the data may come from `tf.data`, or set "
                    'KERAS_BACKEND="tensorflow".'
                )

    def check_snapshots(self) -> None:
        """Raises a `NotImplementedError` on a backend that has no `tf.data`."""
        raise NotImplementedError(
            f"Received snapshot=True on the {backend.backend()} backend. A "
            "snapshot serves tf.data, which computes with TensorFlow: set "
            'KERAS_BACKEND="tensorflow", or train with AdversarialTraining.'
        )

    def shared_bytes(self, content: np.ndarray) -> Any:
        """Returns a variable on the CPU, which threads of `tf.data` can read.

        Args:
            content: uint8, (size,).

        Returns:
            A variable with `assign`, which replaces all bytes at once.
        """
        raise NotImplementedError

    def unpacked(self, shared: Any, layout: list[tuple[int, str, tuple]]) -> list:
        """Returns the arrays that the bytes of `shared_bytes` hold at one time.

        Args:
            shared: what `shared_bytes` returned.
            layout: `(start, dtype, shape)` of each array; starts are aligned.
        """
        raise NotImplementedError
