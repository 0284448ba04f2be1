"""Tools to replace parts of a train step and to check what it did."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

_MISSING = object()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance for a while, and restores it afterwards."""
    own = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        _restore(owner, name, own)


def _restore(owner: Any, name: str, own: Any) -> None:
    delattr(owner, name)
    if own is not _MISSING:
        setattr(owner, name, own)


class _Recorder:
    """A method that keeps what it returns, apart for each thread that asks for it."""

    def __init__(self, method: Callable[..., Any], own: Any):
        self.method, self.own = method, own
        self.results: dict[int, list] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.method(*args, **kwargs)
        asking = self.results.get(threading.get_ident())
        if asking is not None:
            asking.append(result)
        return result


@contextlib.contextmanager
def recorded(owner: Any, name: str) -> Iterator[list]:
    """Yields a list of what a method of an instance returns to this thread.

    The replicas of a strategy are threads that trace one step of one model in turns:
    each enters before the others have left. The last one restores the method.
    """
    thread = threading.get_ident()
    method = getattr(owner, name)
    if not isinstance(method, _Recorder):
        method = _Recorder(method, vars(owner).get(name, _MISSING))
        setattr(owner, name, method)
    method.results[thread] = []
    try:
        yield method.results[thread]
    finally:
        del method.results[thread]
        if not method.results:
            _restore(owner, name, method.own)


def inputs_of(data: Any) -> list:
    """Returns the model's inputs in the data of a train step, as a flat list."""
    return keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(data)[0])


def check_calls(model: keras.Model, name: str, times: int) -> None:
    """Raises a `ValueError` unless a train step called `name` exactly once."""
    if times != 1:
        raise ValueError(
            f"The train step of model {model.name!r} called `{name}` {times} times; "
            "reused gradients need exactly one call. Call it once in your "
            '`train_step`, or pass gradient="fresh".'
        )


def of_each_image(gradients: Any, scale: Any, count: Any) -> Any:
    """Converts gradients of the batch's scaled mean loss into per-image gradients.

    Args:
        gradients: (batch, ...); `None` passes through.
        scale: the optimizer's loss scale, a scalar.
        count: the number of images, a scalar.

    Returns:
        float32, the shape of `gradients`: times the number of images, divided by the
        scale.
    """
    if gradients is None:
        return None
    scale = scale / ops.cast(count, "float32")
    return ops.cast(gradients, "float32") / scale
