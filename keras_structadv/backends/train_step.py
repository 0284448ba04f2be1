"""Tools to replace parts of a train step and to check what it did."""

import contextlib
from collections.abc import Iterator
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
        delattr(owner, name)
        if own is not _MISSING:
            setattr(owner, name, own)


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


def of_each_image(gradients: Any, scale: Any, images: Any) -> Any:
    """Converts gradients of the batch's scaled mean loss into per-image gradients.

    Args:
        gradients: (batch, ...); `None` passes through.
        scale: the optimizer's loss scale, a scalar.
        images: (batch, ...), for the number of images.

    Returns:
        float32, the shape of `gradients`: times the number of images, divided by the
        scale.
    """
    if gradients is None:
        return None
    scale = scale / ops.cast(ops.shape(images)[0], "float32")
    return ops.cast(gradients, "float32") / scale
