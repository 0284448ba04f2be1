"""One training step of `fit` with a callback, as a function to be timed or compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import backend, ops

Batch = tuple[np.ndarray, np.ndarray]


def prepare(
    model: keras.Model, batch: Batch, jit_compile: bool | str = "auto"
) -> keras.Model:
    """Compiles a classifier and creates all its variables.

    Args:
        model: from images to logits.
        batch: images and labels.
        jit_compile: as in `keras.Model.compile`.
    """
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    model.optimizer.build(model.trainable_variables)
    model.evaluate(*(x[:2] for x in batch), verbose=0)  # creates the loss tracker
    return model


def repeated(batch: Batch, known_size: bool = True) -> Iterator:
    """Repeats a batch forever, as an iterator for the train function of the backend.

    Args:
        batch: images and labels.
        known_size: whether TensorFlow knows the size of the batch when it builds the
            graph. In `fit` with arrays it does where all batches have one size.
    """
    images, labels = (ops.convert_to_tensor(x) for x in batch)
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((images, labels))
        data = data.batch(len(images), drop_remainder=known_size).repeat()
        return iter(data.prefetch(tf.data.AUTOTUNE))
    if backend.backend() == "torch":
        return [(images, labels)]
    return iter(lambda: (images, labels), None)


def fit_step(
    model: keras.Model, callback: keras.callbacks.Callback
) -> Callable[[Iterator], dict[str, float]]:
    """Begins a `fit` with a callback and returns its training step.

    The step does what `fit` does for each batch: it calls the callback's hooks and the
    model's train function.

    Args:
        model: as `prepare` returns it.
        callback: the only callback.

    Returns:
        A function that trains on the next batch of an iterator, waits for the device
        and returns the logs.
    """
    model.make_train_function(force=True)
    callback.set_params({})
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    train = _train_on_jax(model) if backend.backend() == "jax" else None

    def step(iterator: Iterator) -> dict[str, float]:
        callback.on_train_batch_begin(0)
        logs = train(iterator) if train else model.train_function(iterator)
        logs = {name: float(value) for name, value in logs.items()}
        callback.on_train_batch_end(0, logs)
        return logs

    return step


class Caught(Exception):
    """Ends a `fit` in the place of its first step, and carries what it was given."""


class Catching(keras.Model):
    """A functional model whose `fit` compiles and runs no step; see `step_of_fit`."""

    def make_train_function(self, force: bool = False) -> None:
        """Makes a train function that catches the step and its arguments."""
        if self.train_function is not None and not force:
            return
        step = self.train_step

        def train_function(*arguments: Any) -> None:
            *state, batches = arguments
            raise Caught(step, (*state, next(batches)))

        self.train_function = train_function


def step_of_fit(
    model: Catching, callback: keras.callbacks.Callback, batch: Batch
) -> tuple[Callable, tuple]:
    """Returns the step that `fit` with a callback compiles, and its arguments.

    The arguments are those of the first call: the data, on JAX the state before them.
    """
    try:
        model.fit(*batch, len(batch[0]), callbacks=[callback], verbose=0)
    except Caught as caught:
        return caught.args
    raise AssertionError("The train function was not called.")


def _train_on_jax(model: keras.Model) -> Callable[[Iterator], dict]:
    """The train function on JAX, with the state that `fit` would pass on."""
    parts = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([x.value for x in part] for part in parts)

    def train(iterator: Iterator) -> dict:
        nonlocal state
        logs, state = model.train_function(state, iterator)
        return logs

    return train
