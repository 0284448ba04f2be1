"""The methods of `Framework` on TensorFlow."""

import functools
import inspect
import math
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.base import AugmentedStep, Framework
from keras_structadv.backends.keras_state import has_replicas, strategy_scope
from keras_structadv.backends.tape import asked_too
from keras_structadv.backends.train_step import check_calls, of_each_image, recorded


class TensorFlow(Framework):
    """Keras on TensorFlow."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value, extra = objective(images)
        return tape.gradient(value, images), extra

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        # A step that creates variables is traced twice, and both graphs stay in memory.
        # Only where it is certain that the step trains just the model's own variables.
        optimizer = model.optimizer
        plain = type(model).train_step is keras.Model.train_step
        plain = plain and "train_step" not in vars(model)
        known = model.built and getattr(model, "inputs", None) is not None
        replicas = has_replicas(model)
        if plain and known and not (optimizer.built or replicas):
            optimizer.build(model.trainable_variables)
        function = super().train_function(model, step)
        return _prepared(function, model, step) if replicas else function

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        import tensorflow as tf

        # The graph of its own must not capture arrays: the data come as arguments, with
        # the images in the places that change with them.
        data = pack(images)
        leaves = keras.tree.flatten(data)
        others = keras.tree.flatten(pack(tf.identity(images)))
        places = {i for i, (a, b) in enumerate(zip(leaves, others)) if a is not b}

        def run(images: Any, leaves: list) -> tuple[Any, Any]:
            # The step's own tape is asked for the images too. This one lies around it,
            # for steps that ask theirs for something else: two backward passes then.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                given = [
                    tf.cast(images, x.dtype) if i in places else x
                    for i, x in enumerate(leaves)
                ]
                with (
                    recorded(model, "compute_loss") as losses,
                    recorded(model.optimizer, "scale_loss") as scaled,
                    asked_too([given[i] for i in places]) as found,
                ):
                    logs = train_step(keras.tree.pack_sequence_as(data, given))
                check_calls(model, "compute_loss", len(losses))
                # Scaled as in the step: float16 keeps small gradients.
                loss = model.optimizer.scale_loss(losses[0])
            targets, answers = zip(*found) if found else ((), ())
            if len(targets) == 1 and any(targets[0] is x for x in (*scaled, loss)):
                gradients = answers[0]
            else:
                gradients = tape.gradient(loss, images)
            scale = model.optimizer.scale_loss(1.0)
            # Keras divides the loss of each replica by their number.
            count = tf.shape(images)[0] * _replicas()
            return logs, of_each_image(gradients, scale, count)

        return self.in_own_graph(run)(images, leaves)

    def in_own_graph(self, function: Callable) -> Callable:
        import tensorflow as tf

        # Keras' optimizers sum gradients over replicas by a custom gradient, which
        # TensorFlow registers for good, and with it the graph around it. Only what is
        # outside of that graph is freed with the model.
        if tf.executing_eagerly() or tf.distribute.has_strategy():
            return function
        return tf.function(function, autograph=False)

    def bits(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.bitcast(x, tf.int32)

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        return _own_copy(table).sparse_read(rows)

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        import tensorflow as tf

        _own_copy(table).scatter_update(tf.IndexedSlices(values, rows))

    def gathered(self, arrays: list) -> list:
        import tensorflow as tf

        if _replicas() == 1:
            return arrays
        whole = tf.distribute.get_replica_context().all_gather(arrays, axis=0)
        return [tf.ensure_shape(x, [None, *y.shape[1:]]) for x, y in zip(whole, arrays)]

    def check_gathers(self, model: keras.Model) -> None:
        import tensorflow as tf

        if not has_replicas(model):
            return
        strategy = model.distribute_strategy
        gathering = (
            tf.distribute.MirroredStrategy,
            tf.distribute.MultiWorkerMirroredStrategy,
            tf.distribute.OneDeviceStrategy,
        )
        if not isinstance(strategy, gathering):
            raise NotImplementedError(
                f"Gradients cannot be reused under {type(strategy).__name__}. Use "
                'MirroredStrategy, or pass gradient="fresh".'
            )
        if model.jit_compile and strategy.num_replicas_in_sync > 1:
            raise NotImplementedError(
                "Gradients cannot be reused under a distribution strategy in a step "
                "that XLA compiles. Compile the model with jit_compile=False, or pass "
                'gradient="fresh".'
            )

    def largest(
        self, x: Any, axis: int | tuple[int, ...], keepdims: bool, least: float
    ) -> Any:
        # `amax` raises for an empty batch.
        return ops.max(x, axis=axis, keepdims=keepdims, initial=least)

    def sparse_matrix(
        self, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> Any:
        import tensorflow as tf

        return tf.SparseTensor(indices, values, shape)

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        if sys.platform == "darwin":  # Metal devices have no XLA
            return function
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=True, autograph=False)

        def call(*arguments: Any) -> Any:
            plain = tf.executing_eagerly() and not in_eager
            return (function if plain else compiled)(*arguments)

        return call

    def shared(self, function: Callable, constants: dict[str, Any]) -> Callable:
        import tensorflow as tf

        if sys.platform == "darwin" or tf.executing_eagerly():
            return functools.partial(function, **constants)
        # Some operations make arrays of Keras' default dtype.
        return _program(function, tuple(constants.items()), keras.config.floatx())

    def program(self, function: Callable, model: keras.Model) -> Callable:
        import tensorflow as tf

        return tf.function(functools.partial(function, ()), autograph=False)

    def visible(self, x: Any) -> np.ndarray | None:
        import tensorflow as tf

        return ops.convert_to_numpy(x) if tf.executing_eagerly() else None

    def is_single_batch(self, batches: Any) -> bool:
        return inspect.isgenerator(batches)  # `fit` passes an iterator of `tf.data`

    def check_native(self, data: Any) -> None:
        pass

    def check_snapshots(self) -> None:
        pass

    def shared_bytes(self, content: np.ndarray) -> Any:
        import tensorflow as tf

        def on_the_cpu() -> Any:
            with tf.device("CPU:0"):
                return tf.Variable(content, trainable=False)

        # In a new thread, because a strategy here would make a copy for each device.
        with futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(on_the_cpu).result()

    def unpacked(self, shared: Any, layout: list[tuple[int, str, tuple]]) -> list:
        import tensorflow as tf

        flat = shared.read_value()

        def array(start: int, dtype: str, shape: tuple) -> Any:
            kind = tf.as_dtype(dtype)
            end = start + kind.size * math.prod(shape)
            value = flat[start:end]  # aligned: no copy
            if kind == tf.bool:
                return tf.reshape(value != 0, shape)
            size = (kind.size,) if kind.size > 1 else ()
            return tf.bitcast(tf.reshape(value, shape + size), kind)

        return [array(*entry) for entry in layout]


def _replicas() -> int:
    """Returns how many replicas take part in the step that is traced."""
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _own_copy(table: keras.Variable) -> Any:
    """Returns the copy of a table on the device of the replica that asks."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    copies = replica.strategy.experimental_local_results(table.value)
    number = tf.get_static_value(replica.replica_id_in_sync_group) or 0
    return copies[number % len(copies)]


def _prepared(
    function: Callable[..., Any], model: keras.Model, step: AugmentedStep
) -> Callable[..., Any]:
    """Prepares a step before its first call, because replicas make no variables."""
    import tensorflow as tf

    done = False

    def example(spec: Any) -> Any:
        spec = tf.nest.flatten(spec, expand_composites=True)[0]  # of one replica
        return tf.zeros([1, *spec.shape[1:]], spec.dtype)

    def call(iterator: Any) -> Any:
        nonlocal done
        if not done:
            with strategy_scope(model):
                step.prepare(tf.nest.map_structure(example, iterator.element_spec))
            done = True
        return function(iterator)

    return call


@functools.cache
def _program(function: Callable, constants: tuple, floatx: str) -> Callable:
    import tensorflow as tf

    pure = functools.partial(function, **dict(constants))
    return tf.function(pure, jit_compile=True, autograph=False)
