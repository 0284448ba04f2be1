"""Compiled calls on the device of Keras, waiting for it, its name and its rates."""

import time
from collections.abc import Callable

import numpy as np
from keras import backend, ops

from benchmarks.timing import interleave
from keras_structadv.backends import framework


def compiled(function: Callable, *inputs: object) -> Callable[[], object]:
    """A call of the compiled function that does not wait for the device."""
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    name = backend.backend()
    if name == "jax":
        import jax

        function = jax.jit(function)
    elif name == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, jit_compile=True)
    else:
        import torch

        function = torch.no_grad()(function)
    return lambda: function(*inputs)


def per_call(calls: dict, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of one call in each round, by name.

    Many calls share one wait, so that the latency of a launch does not count.
    """
    times, repeated = {}, {}
    for name, call in calls.items():
        wait(call())
        start = time.perf_counter()
        wait(call())
        once = time.perf_counter() - start
        times[name] = int(np.clip(0.02 / once, 1, 200))

        def many(call: Callable = call, count: int = times[name]) -> None:
            for _ in range(count):
                result = call()
            wait(result)

        repeated[name] = many
    seconds = interleave(repeated, rounds)
    return {name: values / times[name] for name, values in seconds.items()}


def wait(result: object) -> None:
    """Waits until the device has computed a result."""
    if backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)
    elif backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    elif backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.test.experimental.sync_devices()


def device() -> str:
    """The name of the accelerator, or "cpu"."""
    name = backend.backend()
    if name == "jax":
        import jax

        return jax.devices()[0].device_kind
    if name == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return "cpu"
    return tf.config.experimental.get_device_details(found[0])["device_name"]


def rates(rounds: int, small: bool) -> tuple[float, float]:
    """Bytes a second of a copy, and operations a second of a matrix product."""
    numbers = 2**22 if small else 2**28
    size = 1024 if small else 8192
    rng = np.random.default_rng(0)
    array = np.zeros(numbers, "float32")
    matrix = rng.normal(size=(size, size)).astype("float32")
    calls = {
        "copy": compiled(lambda x: x + 1.0, array),
        "product": compiled(ops.matmul, matrix, matrix),
    }
    with framework().full_precision():
        seconds = {k: np.median(v) for k, v in per_call(calls, rounds).items()}
    return 8 * numbers / seconds["copy"], 2 * size**3 / seconds["product"]
