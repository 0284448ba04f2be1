"""The backend in use, and its methods as functions."""

import functools
from collections.abc import Callable
from typing import Any

from keras import backend

from keras_structadv.backends.base import Framework
from keras_structadv.backends.jax import JAX
from keras_structadv.backends.tensorflow import TensorFlow
from keras_structadv.backends.torch import PyTorch


@functools.cache
def framework() -> Framework:
    """Returns the `Framework` of the backend that Keras uses."""
    known = {"tensorflow": TensorFlow, "jax": JAX, "torch": PyTorch}
    return known.get(backend.backend(), Framework)()


def fused(function: Callable, in_eager: bool = False) -> Callable:
    """Compiles a function into one kernel; see `Framework.fused`."""
    return framework().fused(function, in_eager)


def shared(function: Callable, **constants: Any) -> Callable:
    """Compiles a function once for all models; see `Framework.shared`."""
    return framework().shared(function, constants)


def kept_program(*constants: str) -> Callable[[Callable], Callable]:
    """Returns a decorator for functions of arrays; see `Framework.kept`."""
    return lambda function: framework().kept(function, constants)


def full_precision(function: Callable) -> Callable:
    """Makes a function compute its float32 matrix products at full precision.

    Accelerators may round to TF32 or bfloat16, three digits. Here JAX does not.
    TensorFlow has no switch for single products; PyTorch rounds only on request. What
    that does to fields is in benchmarks/results/precision.txt.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with framework().full_precision():
            return function(*args, **kwargs)

    return call


def largest(
    x: Any, axis: int | tuple[int, ...], keepdims: bool = False, least: float = 0.0
) -> Any:
    """Returns the maximum along axes that are not empty; see `Framework.largest`."""
    return framework().largest(x, axis, keepdims, least)


def check_native(data: Any) -> None:
    """Raises a `ValueError` for foreign tensors; see `Framework.check_native`."""
    framework().check_native(data)
