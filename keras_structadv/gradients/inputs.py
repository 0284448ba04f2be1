"""The images among a model's inputs, and the inputs beside them.

A `pack` is a function `(images, chosen=None) -> inputs` of the model. `chosen`, int32,
(count,), are the places of the images in their batch; `None` means all of it.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def images_among(inputs: Any) -> tuple[Any, Callable]:
    """Finds the images among the inputs of a model.

    Args:
        inputs: an array or a structure of arrays. The images are the only array, the
            only one of rank 4, or the entry `"images"` of a dict.

    Returns:
        `(images, pack)`; the `pack` puts other images in their place.

    Raises:
        ValueError: if several arrays, or none, may be the images.
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
            f"Received inputs of shapes {shapes}. Pass exactly one of rank 4, or name "
            'the images: {"images": ..., ...}.'
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
        `images`, in a list or a dict if the model takes one.

    Raises:
        ValueError: if the model takes more than one input.
    """
    structure = getattr(model, "input", None)
    names = keras.tree.flatten(structure)
    if len(names) > 1:
        raise ValueError(
            f"Received images alone for model {model.name!r}, which takes "
            f"{len(names)} inputs. Pass a dict with all of them, the images under the "
            'key "images". If the layer is inside the model, train with '
            "callbacks=[AdversarialTraining()]."
        )
    nested = keras.tree.is_nested(structure) and len(names) == 1
    return keras.tree.pack_sequence_as(structure, [images]) if nested else images


def stand_in_input(model: keras.Model, images: Any) -> Any:
    """Stand-in inputs for a model with a layer inside; only their shape matters.

    The layer replaces what reaches it by its own images.

    Args:
        model: the model.
        images: (batch, ...), the images at the layer; used if they fit the model's
            input, replaced by zeros of its size otherwise.

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
        The keys, in the model's order; empty unless its inputs are a dict with
        `"images"`.
    """
    inputs = getattr(model, "input", None)
    if isinstance(inputs, dict) and "images" in inputs:
        return [key for key in inputs if key != "images"]
    return []


def pack_beside_images(
    model: keras.Model | None, images: Any, data: dict
) -> Callable | None:
    """Returns a `pack` that adds the model's other inputs from a dict.

    Args:
        model: the model, or `None`.
        images: (batch, ...), the images in `data`.
        data: arrays, under their keys.

    Returns:
        The `pack`; `None` if `data` holds no other input of the model.
    """
    beside = {key: data[key] for key in keys_beside_images(model) if key in data}
    return images_among({"images": images, **beside})[1] if beside else None


def pack_of_real_inputs(inputs: Any) -> Callable:
    """Returns a `pack` for a layer inside a model: the real inputs, for any images.

    Args:
        inputs: a structure of arrays, (batch, ...).

    Returns:
        The `pack`, which ignores its images.
    """

    def pack(_: Any, chosen: Any = None) -> Any:
        if chosen is None:
            return inputs
        return keras.tree.map_structure(lambda x: ops.take(x, chosen, axis=0), inputs)

    return pack


def split_inputs(model: keras.Model, x: Any, extra_keys: set[str]) -> tuple[Any, dict]:
    """Splits the inputs of a batch into the model's and those of the layers.

    Args:
        model: the model that is trained.
        x: the first entry of a batch of `fit`. Only a dict with the key `"images"` is
            split.
        extra_keys: keys that the layers take. The model's own keys stay inputs.

    Returns:
        `(inputs, extra)`. If only images are left and the model takes no dict, `inputs`
        are the bare images.
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
