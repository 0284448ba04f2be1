"""The methods for TensorFlow; see `Framework` for what each has to do."""

import inspect
import math
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.base import Framework
from keras_structadv.backends.train_step import check_calls, of_each_image, replaced


class TensorFlow(Framework):
    """The methods for TensorFlow."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value, extra = objective(images)
        return tape.gradient(value, images), extra

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        import tensorflow as tf

        # The tape here lies around that of the step. Its backward pass is the one that
        # the step makes for the weights, but for the first layer; graph compilers merge
        # the two.
        losses = []
        compute_loss = model.compute_loss

        def recording(*args: Any, **kwargs: Any) -> Any:
            losses.append(compute_loss(*args, **kwargs))
            return losses[-1]

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            with replaced(model, "compute_loss", recording):
                logs = train_step(pack(images))
            check_calls(model, "compute_loss", len(losses))
            # As the step does it, so that float16 does not lose small gradients, and
            # that the two backward passes are the same.
            loss = model.optimizer.scale_loss(losses[0])
        gradients = tape.gradient(loss, images)
        return logs, of_each_image(gradients, model.optimizer.scale_loss(1.0), images)

    def bits(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.bitcast(x, tf.int32)

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        return table.value.sparse_read(rows)

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        import tensorflow as tf

        table.value.scatter_update(tf.IndexedSlices(values, rows))

    def largest(
        self, x: Any, axis: int | tuple[int, ...], keepdims: bool, least: float
    ) -> Any:
        # `amax` raises for no images.
        return ops.max(x, axis=axis, keepdims=keepdims, initial=least)

    def sparse_matrix(
        self, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> Any:
        import tensorflow as tf

        return tf.SparseTensor(indices, values, shape)

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        if sys.platform == "darwin":  # Metal devices do not have XLA
            return function
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=True, autograph=False)

        def call(*arguments: Any) -> Any:
            plain = tf.executing_eagerly() and not in_eager
            return (function if plain else compiled)(*arguments)

        return call

    def visible(self, x: Any) -> np.ndarray | None:
        import tensorflow as tf

        return ops.convert_to_numpy(x) if tf.executing_eagerly() else None

    def is_single_batch(self, batches: Any) -> bool:
        return inspect.isgenerator(batches)  # `fit` gives an iterator of `tf.data`

    def check_native(self, data: Any) -> None:
        pass

    def check_snapshots(self) -> None:
        pass

    def shared_bytes(self, content: np.ndarray) -> Any:
        import tensorflow as tf

        def on_the_cpu() -> Any:
            with tf.device("CPU:0"):
                return tf.Variable(content, trainable=False)

        # A new thread: a strategy in effect here would make a copy for each device.
        with futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(on_the_cpu).result()

    def unpacked(self, shared: Any, layout: list[tuple[int, str, tuple]]) -> list:
        import tensorflow as tf

        flat = shared.read_value()

        def array(start: int, dtype: str, shape: tuple) -> Any:
            kind = tf.as_dtype(dtype)
            end = start + kind.size * math.prod(shape)
            value = flat[start:end]  # aligned, so that nothing is copied
            if kind == tf.bool:
                return tf.reshape(value != 0, shape)
            size = (kind.size,) if kind.size > 1 else ()
            return tf.bitcast(tf.reshape(value, shape + size), kind)

        return [array(*entry) for entry in layout]
