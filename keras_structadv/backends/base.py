"""The contract between the package and a backend: `Framework`, `AugmentedStep`."""

import contextlib
import functools
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

        After `prepare` the list is complete and does not change.
        """

    def prepare(self, data: Any) -> None:
        """Makes the variables whose shapes depend on the data.

        Called before the step is traced where tracing cannot make variables: on JAX,
        and under a strategy of TensorFlow.

        Args:
            data: a batch as `fit` hands it to a train step, or one like it.
        """

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs one step.

        Args:
            train_step: the model's own step, a function of the data.
            data: a batch as `fit` hands it to a train step.

        Returns:
            The logs of `train_step`, and those that the step adds.
        """


class Framework:
    """The methods in which the backends differ; `framework()` is the one in use."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """Returns the gradient of an objective with respect to the images.

        Args:
            objective: from images to `(scalar, extra)`.
            images: float32, (batch, ...).

        Returns:
            `(gradients, extra)`; the gradients are `None` or zero if the scalar does
            not depend on the images.

        Raises:
            NotImplementedError: on a backend without gradients.
        """
        raise NotImplementedError(
            f"Gradients are not available on the {backend.backend()} backend. Set "
            'KERAS_BACKEND to "tensorflow", "jax" or "torch".'
        )

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        """Returns a train function that runs an augmented step.

        The model keeps its own `train_step` and `train_function`. Until the model is
        compiled anew, the function serves any number of `fit` calls; only the first
        one compiles the step.

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
        """Runs a train step and returns the gradients of its loss at the images.

        The batch's loss, with its sample weights, is multiplied by the number of
        images. If the loss is a mean, these are the gradients of each image's loss.

        Args:
            model: the model whose step it is.
            train_step: the step, as an `AugmentedStep` gets it.
            pack: from images to data.
            images: float, (batch, ...).

        Returns:
            `(logs, gradients)`: what the step returned; float32, the shape of the
            images, or `None` if the loss does not depend on them.

        Raises:
            ValueError: if the step does not compute its loss once, as Keras' own does.
        """
        raise NotImplementedError

    def bits(self, x: Any) -> Any:
        """Returns the bits of a float32 array as int32, in its shape."""
        raise NotImplementedError

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """Returns rows of a table without copying the table.

        Args:
            table: (size, ...).
            rows: int32, (count,).

        Returns:
            (count, ...), of the dtype of the table.
        """
        raise NotImplementedError

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """Writes rows of a table in place; see `read_rows`.

        Args:
            table: (size, ...).
            rows: int32, (count,); of equal ones, any one is written.
            values: (count, ...).
        """
        raise NotImplementedError

    def gathered(self, arrays: list) -> list:
        """Returns the rows of the whole batch, where each device sees a part of it.

        Args:
            arrays: (batch, ...) each; the number of rows may differ between devices.
        """
        return arrays

    def check_gathers(self, model: keras.Model) -> None:
        """Raises a `NotImplementedError` where `gathered` would miss a device."""

    def largest(
        self, x: Any, axis: int | tuple[int, ...], keepdims: bool, least: float
    ) -> Any:
        """Returns the maximum along axes; works on an empty batch too.

        Args:
            x: an array; only the axes that remain may be empty.
            axis: the axes to reduce.
            keepdims: whether to keep them with length one.
            least: a lower bound of all values.
        """
        # PyTorch's `max` puts `initial` on the CPU, whatever the device of the array.
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
            NotImplementedError: if Keras has no sparse tensors on this backend.
        """
        raise NotImplementedError(
            f"The {backend.backend()} backend has no sparse operator. "
            'Use solver="dct", which is exact and faster.'
        )

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """Compiles a function into one kernel, even where the step is not compiled.

        One by one, the many small operations around a solve take two to three times as
        long. Eager execution runs them one by one all the same, for debugging.

        Args:
            function: from arrays to arrays.
            in_eager: whether to compile it in eager execution too.

        Returns:
            The compiled function, or `function` itself.
        """
        raise NotImplementedError

    def shared(self, function: Callable, constants: dict[str, Any]) -> Callable:
        """Compiles a function as `fused` does, once for all models of the process.

        A program that was compiled stays in memory as long as the process runs, also
        when the model is gone.

        Args:
            function: from arrays and constants to arrays; not a closure, because it is
                kept.
            constants: the arguments that are no arrays, hashable, by name.

        Returns:
            The function of the arrays.
        """
        return self.fused(functools.partial(function, **constants))

    def in_own_graph(self, function: Callable) -> Callable:
        """Traces a function of arrays, which captures none, into a graph of its own."""
        return function

    def apart(self, function: Callable) -> Callable:
        """Excludes a function from compilation where the compiler fails on it."""
        return function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        """Compiles a function once, where each eager call would compile its loops.

        Args:
            function: from arrays and constants to arrays.
            constants: the names of the arguments that are not arrays.
        """
        return function

    def program(self, function: Callable, model: keras.Model) -> Callable:
        """Compiles a function that calls a model, where the backend compiles.

        Args:
            function: from the `values` of `Inference` and arrays to arrays.
            model: the model, whose weights each call reads anew.
        """
        raise NotImplementedError

    def visible(self, x: Any) -> np.ndarray | None:
        """Returns an array as a NumPy array, `None` while a program is traced."""
        raise NotImplementedError

    def full_precision(self) -> contextlib.AbstractContextManager:
        """Returns a scope in which float32 matrix products keep full precision."""
        return contextlib.nullcontext()

    def is_single_batch(self, batches: Any) -> bool:
        """Returns whether `train_on_batch` made the batches; `False` if unknown."""
        return False

    def check_native(self, data: Any) -> None:
        """Raises a `ValueError` for tensors of a `tf.data` map on another backend."""
        for x in keras.tree.flatten(data):
            if type(x).__module__.startswith("tensorflow.") and not hasattr(x, "numpy"):
                raise ValueError(
                    f"Received a TensorFlow tensor ({type(x).__name__}) on the "
                    f"{backend.backend()} backend. A `tf.data` map runs in TensorFlow "
                    "and cannot differentiate a model of another backend. Train with "
                    "callbacks=[AdversarialTraining(layer)], which accepts data from "
                    '`tf.data`, or set KERAS_BACKEND="tensorflow".'
                )

    def check_snapshots(self) -> None:
        """Raises a `NotImplementedError` unless `tf.data` runs on this backend."""
        raise NotImplementedError(
            f"Received snapshot=True on the {backend.backend()} backend. Snapshots are "
            "for `tf.data` maps, which run in TensorFlow. Set "
            'KERAS_BACKEND="tensorflow", or train with AdversarialTraining.'
        )

    def shared_bytes(self, content: np.ndarray) -> Any:
        """Returns a variable on the CPU that the threads of `tf.data` can read.

        Args:
            content: uint8, (size,).

        Returns:
            A variable, whose `assign` replaces all bytes atomically.
        """
        raise NotImplementedError

    def unpacked(self, shared: Any, layout: list[tuple[int, str, tuple]]) -> list:
        """Reads all arrays from shared bytes, as they are at one time.

        Args:
            shared: what `shared_bytes` returned.
            layout: `(start, dtype, shape)` of each array; starts are aligned.

        Returns:
            The arrays.
        """
        raise NotImplementedError
