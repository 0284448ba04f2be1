"""The data of an audit, in batches of one size."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

_OF_BATCHES = "(inputs, labels) batches: a tf.data.Dataset, a PyDataset or a generator"


class Padded(NamedTuple):
    """A batch, filled up to its size by images that do not count.

    Attributes:
        x: the inputs, a structure of NumPy arrays, (batch, ...).
        y: the labels, or `None`.
        valid: the number of images that count; they come first.
    """

    x: Any
    y: Any
    valid: int


def as_array(labels: Any) -> Any:
    """Returns lists of numbers as an array, and all else as it is."""
    leaves = keras.tree.flatten(labels)
    listed = isinstance(labels, (list, tuple))
    if listed and not any(hasattr(leaf, "shape") for leaf in leaves):
        return np.asarray(labels)
    return labels


def number_of_images(x: Any, y: Any) -> int | None:
    """Returns the number of images, `None` if only reading them all would tell.

    Raises:
        ValueError: if there are none, or endlessly many, or `y` does not fit.
    """
    if _is_arrays(x):
        for leaf in keras.tree.flatten(y):
            if leaf is not None and not len(np.shape(leaf)):
                raise ValueError(
                    f"Received y={leaf!r}. Pass batches: x[None], y[None]."
                )
        sizes = {len(leaf) for leaf in keras.tree.flatten((x, y)) if leaf is not None}
        if len(sizes) > 1:
            raise ValueError(
                f"Received arrays of the lengths {sorted(sizes)} in x and y. Pass one "
                "label for each image."
            )
        if sizes == {0}:
            raise ValueError("Received no images. Pass at least one.")
        return sizes.pop()
    if y is not None:
        raise ValueError(
            f"Received x of type {type(x).__name__} and y. Pass y with arrays only: a "
            "data set holds its labels."
        )
    if not hasattr(x, "__iter__") and not hasattr(x, "__getitem__"):
        raise ValueError(f"Received x={x!r}. Pass arrays, or {_OF_BATCHES}.")
    cardinality = getattr(x, "cardinality", None)
    endless = callable(cardinality) and int(cardinality()) == -1  # of tf.data
    if endless or (isinstance(x, keras.utils.PyDataset) and x.num_batches is None):
        raise ValueError(
            "Received an endless data set. Pass one without repeat(), or a part of it."
        )
    return None


def batches_of(inputs: Any, labels: Any, size: int) -> Iterator[Padded]:
    """Yields all images in batches of one size.

    Args:
        inputs: arrays, or batches of inputs and labels.
        labels: those of arrays, or `None`.
        size: the number of images in each batch.
    """
    rest: Any = None
    several = False
    for piece in _pieces(inputs, labels, size):
        if rest is not None:
            piece = _joined(rest, piece)
        start = 0
        while _length(piece) - start >= size:
            x, y = _slice(piece, slice(start, start + size))
            yield Padded(x, y, size)
            start, several = start + size, True
        rest = _slice(piece, slice(start, None))
        rest = rest if _length(rest) else None
    if rest is not None:
        count = _length(rest)
        x, y = _slice(rest, np.resize(np.arange(count), size if several else count))
        yield Padded(x, y, count)


def _pieces(x: Any, y: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Yields `(inputs, labels)` as they come, in NumPy arrays."""
    if _is_arrays(x):
        for start in range(0, len(keras.tree.flatten(x)[0]), size):
            # Only a batch at a time is read and copied.
            yield _as_numpy(_slice((x, y), slice(start, start + size)))
        return
    if isinstance(x, keras.utils.PyDataset):
        batches: Any = (x[i] for i in range(x.num_batches))
    else:
        batches = iter(x)
    for batch in batches:
        if not isinstance(batch, (list, tuple)):
            batch = (batch,)
        if not 1 <= len(batch) <= 3:
            raise ValueError(
                f"Received a batch with {len(batch)} entries. Pass {_OF_BATCHES}; "
                "sample weights may follow, and are ignored."
            )
        pair = _as_numpy((batch[0], batch[1] if len(batch) > 1 else None))
        if any(x is not None and x.ndim == 0 for x in keras.tree.flatten(pair)):
            raise ValueError(
                "Received an element without a batch axis. Pass a data set of batches: "
                "data.batch(64)."
            )
        yield pair


def _is_arrays(x: Any) -> bool:
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") and len(leaf.shape) > 0
        for leaf in leaves
    )


def _as_numpy(data: Any) -> Any:
    def converted(leaf: Any) -> Any:
        if leaf is None:
            return None
        values = leaf if isinstance(leaf, np.ndarray) else ops.convert_to_numpy(leaf)
        if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
            raise ValueError(
                f"Received an array of dtype {values.dtype}. Pass numbers; labels are "
                "class ids."
            )
        return values

    return keras.tree.map_structure(converted, data)


def _length(data: Any) -> int:
    return len(keras.tree.flatten(data)[0])


def _slice(data: Any, places: Any) -> Any:
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else leaf[places], data
    )


def _joined(first: Any, second: Any) -> Any:
    return keras.tree.map_structure(
        lambda a, b: None if a is None else np.concatenate([a, b]), first, second
    )
