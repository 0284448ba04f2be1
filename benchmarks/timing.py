"""Interleaved timing: what every benchmark here reports is a ratio of medians."""

import platform
import time
from collections.abc import Callable

import keras
import numpy as np


def machine() -> str:
    """Returns one line that names the processor and the versions."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            found = [
                line.split(":")[1].strip() for line in lines if "model name" in line
            ]
        name = f"{found[0]}, {len(found)} threads"
    except (OSError, IndexError):
        pass
    backend = keras.backend.backend()
    version = __import__(backend).__version__
    return f"{name}; keras {keras.__version__}, {backend} {version}"


def interleave(
    calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """Returns the seconds of each call in each round, all calls in turn in a round.

    Args:
        calls: functions that return only once their work is done.
        rounds: rounds that count.
        warmup: rounds before, in which functions are traced and compiled.

    Returns:
        For each name, float64, (rounds,).
    """
    seconds = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratios(seconds: dict[str, np.ndarray], base: str) -> dict[str, tuple[float, float]]:
    """Returns for each name the median and quartile range of its ratio to `base`.

    The ratio is taken within each round, so that a slow phase of the machine cancels.
    """
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values / seconds[base], [25, 50, 75])
        result[name] = (float(median), float(high - low))
    return result


def compiled(
    function: Callable, *inputs: object, jit_compile: bool = True
) -> Callable[[], object]:
    """Returns a call that runs the compiled function and waits for its results."""
    import tensorflow as tf

    graph = tf.function(function, jit_compile=jit_compile)
    return lambda: tf.nest.map_structure(np.asarray, graph(*inputs))
