"""The gradient tape of a train step on TensorFlow, asked for more than it is asked."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def asked_too(arrays: list) -> Iterator[list]:
    """Lets the next tape of this thread tell the gradients of some arrays too.

    A second tape would make a second backward pass. Graph compilers merge the two only
    where all shapes are known, and `fit` seldom tells that of a batch.

    Args:
        arrays: float, what the tape watches beside the variables.

    Yields:
        A list of `(target, gradient)`, one for each call of the tape's `gradient`: the
        sum over the arrays, float32, or `None`.
    """
    import tensorflow as tf

    # Replicas are threads, which may be here at once.
    beneath: Any = getattr(tf.GradientTape, "beneath", tf.GradientTape)
    thread, found = threading.get_ident(), []

    class Tape(beneath):
        asked: list = []

        def __enter__(self) -> Any:
            if threading.get_ident() == thread:
                tf.GradientTape = beneath  # the first tape alone
                self.asked = arrays
            super().__enter__()
            for array in self.asked:
                self.watch(array)
            return self

        def gradient(self, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.asked:
                return super().gradient(target, sources, *args, **kwargs)
            flat = tf.nest.flatten(sources)
            answers = super().gradient(target, [*flat, *self.asked], *args, **kwargs)
            own, more = answers[: len(flat)], answers[len(flat) :]
            known = [tf.cast(x, "float32") for x in more if x is not None]
            found.append((target, tf.add_n(known) if known else None))
            return tf.nest.pack_sequence_as(sources, own)

    Tape.beneath = beneath
    tf.GradientTape = Tape
    try:
        yield found
    finally:
        tf.GradientTape = beneath
