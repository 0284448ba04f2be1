"""The images among a model's inputs, and what is beside them.

A `pack` is a function `(images, chosen=None) -> inputs` of the model, for the images
at the places `chosen` of the batch, int32, (count,), or for all.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def images_among(inputs: Any) -> tuple[Any, Callable]:
    """Finds the images among the inputs of a model.

    Args:
        inputs: an array, or a structure of arrays: the images are the only one, the
            only one of rank 4, or the entry `"images"` of a dict.

    Returns:
        The images, and a function `(images, chosen=None) -> inputs` that puts others in
        their place, with the places of those among the batch.

    Raises:
        ValueError: if it is not clear which are the images.
    """
    leaves = [ops.convert_to_tensor(x) for x in keras.tree.flatten(inputs)]
    places = [i for i, x in enumerate(leaves) if len(x.shape) == 4]
    if len(leaves) == 1:
        places = [0]
    elif len(places) != 1 and isinstance(inputs, dict) and "images" in inputs:
        marks = {key: key == "images" for key in inputs}
        places = [i for i, x in enumerate(keras.tree.flatten(marks)) if x]
    if len(places) != 1:
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
        raise ValueError(
            f"Received inputs of shapes {shapes}. One of them must be images of rank "
            '4; where several are, name the images: {"images": ..., ...}.'
        )
    place = places[0]

    def pack(images: Any, chosen: Any = None) -> Any:
        others = leaves
        if chosen is not None and len(leaves) > 1:
            others = [ops.take(x, chosen, axis=0) for x in leaves]
        packed = [*others[:place], images, *others[place + 1 :]]
        return keras.tree.pack_sequence_as(inputs, packed)

    return leaves[place], pack


def only_input(model: keras.Model, images: Any) -> Any:
    """Returns the inputs of a model that takes images alone.

    Args:
        model: the model.
        images: (batch, ...).

    Returns:
        `images`, in a list or a dict where the model's input is one.

    Raises:
        ValueError: if the model takes more than one input.
    """
    structure = getattr(model, "input", None)
    names = keras.tree.flatten(structure)
    if len(names) > 1:
        raise ValueError(
            f"Received images alone for model {model.name!r}, which takes "
            f"{len(names)} inputs. Pass a dict with the images under the key "
            '"images" and the other inputs under theirs, or, if the layer is inside '
            "the model, train with callbacks=[AdversarialTraining()]."
        )
    nested = keras.tree.is_nested(structure) and len(names) == 1
    return keras.tree.pack_sequence_as(structure, [images]) if nested else images


def stand_in_input(model: keras.Model, images: Any) -> Any:
    """Stand-in inputs for a model with a layer inside; only their shape matters.

    The layer emits its images itself, whatever the layers before it make of these.

    Args:
        model: the model.
        images: (batch, ...), the images at the layer. They serve where their size is
            that of the model's input; otherwise zeros of that size do.

    Returns:
        Inputs of the model.

    Raises:
        ValueError: if the model takes more than one input.
    """
    images = ops.stop_gradient(images)
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and shape and not isinstance(shape[0], tuple):
        sizes = zip(shape[1:], (*images.shape[1:], *(None for _ in shape)))
        shape = tuple(own if own is not None else given for own, given in sizes)
        if None not in shape and shape != tuple(images.shape[1:]):
            images = ops.zeros((ops.shape(images)[0], *shape))
    return only_input(model, images)


def keys_beside_images(model: keras.Model | None) -> list[str]:
    """Returns the keys of a model's inputs beside `"images"`.

    Args:
        model: the model; `None` has no inputs.

    Returns:
        The keys, in the model's order; none if its inputs are no dict with `"images"`.
    """
    inputs = getattr(model, "input", None)
    if isinstance(inputs, dict) and "images" in inputs:
        return [key for key in inputs if key != "images"]
    return []


def pack_beside_images(
    model: keras.Model | None, images: Any, data: dict
) -> Callable | None:
    """Returns a `pack` with those entries of a dict that a model takes as inputs.

    Args:
        model: the model, or `None`.
        images: (batch, ...), the images in `data`.
        data: arrays, under their keys.

    Returns:
        The `pack`; `None` if the model takes nothing of `data` but the images.
    """
    beside = {key: data[key] for key in keys_beside_images(model) if key in data}
    return images_among({"images": images, **beside})[1] if beside else None


def pack_of_real_inputs(inputs: Any) -> Callable:
    """Returns a `pack` that keeps the real inputs, whatever the images.

    It is for a layer inside a model, which emits its images itself.

    Args:
        inputs: a structure of arrays, (batch, ...).
    """

    def pack(_: Any, chosen: Any = None) -> Any:
        if chosen is None:
            return inputs
        return keras.tree.map_structure(lambda x: ops.take(x, chosen, axis=0), inputs)

    return pack


def split_inputs(model: keras.Model, x: Any, extra_keys: set[str]) -> tuple[Any, dict]:
    """Separates a model's inputs from what only the layers take.

    Args:
        model: the model that is trained.
        x: the first entry of a batch of `fit`; only a dict with the key `"images"` can
            hold more than the model takes.
        extra_keys: keys that the layers take. A key that the model takes as well stays
            an input.

    Returns:
        `(inputs, extra)`: the model's inputs, without the dict where the images are all
        that is left and the model's input is no dict; the entries of `extra_keys`.
    """
    if not (isinstance(x, dict) and "images" in x):
        return x, {}
    own = getattr(model, "input", None)
    taken = set(own) if isinstance(own, dict) else {"images"}
    extra = {key: value for key, value in x.items() if key in extra_keys - taken}
    if not extra:
        return x, {}
    x = {key: value for key, value in x.items() if key not in extra}
    return x["images"] if len(x) == 1 and taken == {"images"} else x, extra
