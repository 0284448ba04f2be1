"""Interleaved timing: every benchmark reports ratios within a round."""

import concurrent.futures
import multiprocessing
import platform
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def machine() -> str:
    """One line with the processor and the versions."""
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


def in_own_process(function: Callable, *arguments: object) -> Any:
    """Calls a module's function in a new process, which ends with it.

    There no earlier call has raised the peak of the memory or begun TensorFlow.
    """
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return pool.submit(function, *arguments).result()


def interleave(
    calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """Times all calls in turn, round after round.

    Args:
        calls: functions that return when their work is done.
        rounds: rounds that count.
        warmup: rounds before, for tracing and compiling.

    Returns:
        Seconds of each call, float64, (rounds,), by name.
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
    """Median and quartile range of the ratio of each call to `base`, by name.

    Ratios within a round cancel slow phases of the machine.
    """
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values / seconds[base], [25, 50, 75])
        result[name] = (float(median), float(high - low))
    return result


def compiled(
    function: Callable, *inputs: object, jit_compile: bool = True
) -> Callable[[], object]:
    """A call that runs the compiled TensorFlow function and waits for its results."""
    import tensorflow as tf

    graph = tf.function(function, jit_compile=jit_compile)
    return lambda: tf.nest.map_structure(np.asarray, graph(*inputs))
