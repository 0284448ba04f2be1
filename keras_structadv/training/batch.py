"""The data of one training step: unpacked, checked, packed again."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.gradients.inputs import images_among, split_inputs
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.layers.selection import Augmented


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of `fit`, with the images apart from the other inputs of the model.

    Attributes:
        images: (batch, height, width, channels), or channels first.
        labels: as the loss takes them.
        sample_weight: as `fit` got them.
        extra: the data that only the layers take, by key.
        pack: `(images, chosen=None) -> inputs` of the model; see `images_among`.
    """

    images: Any
    labels: Any
    sample_weight: Any
    extra: dict
    pack: Callable[..., Any]

    @classmethod
    def unpacked(
        cls, data: Any, model: keras.Model, layers: Sequence[StructuredAdversary]
    ) -> "Batch":
        """Returns the batch in the data of a step.

        Raises:
            ValueError: if the model or a layer cannot take the data.
        """
        x, labels, sample_weight, extra = unpack(data, model, layers)
        images, pack = images_among(x)
        _check_images(images)
        _check_extra(extra, layers)
        return cls(images, labels, sample_weight, extra, pack)

    def extra_for(self, layer: StructuredAdversary) -> dict:
        """Returns the data that a layer takes beside the images."""
        return _extra_for(layer, self.extra)

    def moved(self, layer: StructuredAdversary, augmented: Augmented) -> "Batch":
        """Returns the batch that a layer made, masks moved with the images."""
        beside = {"labels": self.labels, "sample_weight": self.sample_weight}
        if layer.moves_pixels:
            beside |= layer.move(beside, augmented.all_fields, self.images)
        return dataclasses.replace(self, images=augmented.images, **beside)

    def packed(self, images: Any, dtype: str) -> Any:
        """Returns the data for the model's own step, with these images, cast."""
        inputs = self.pack(ops.cast(images, dtype))
        return keras.utils.pack_x_y_sample_weight(
            inputs, self.labels, self.sample_weight
        )


def unpack(
    data: Any, model: keras.Model, layers: Sequence[StructuredAdversary]
) -> tuple[Any, Any, Any, dict]:
    """Returns inputs, labels, sample weights, and the data that only layers take.

    Raises:
        ValueError: if the number of inputs is not that of the model.
    """
    x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    known = {"ids"}.union(*(layer.extra_keys for layer in layers))
    x, extra = split_inputs(model, x, known)
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != len(keras.tree.flatten(x)):
        shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(x)]
        given = list(x) if isinstance(x, dict) else shapes
        raise ValueError(
            f"Received the inputs {given} for a model with {len(inputs)}. Pass the "
            'inputs of the model; beside its "images", the callback takes only '
            f"{sorted(known)}."
        )
    return x, labels, sample_weight, extra


def _extra_for(layer: StructuredAdversary, extra: dict) -> dict:
    return {key: extra[key] for key in layer.extra_keys if key in extra}


def _check_images(images: Any) -> None:
    ragged = bool(getattr(images, "ragged_rank", None))
    if ragged or len(getattr(images, "shape", ())) != 4:
        raise ValueError(
            f"Received {'ragged ' if ragged else ''}images of shape "
            f"{tuple(images.shape)}. AdversarialTraining augments dense images of "
            "rank 4: add the channel axis, or resize the images to one size."
        )


def _check_extra(extra: dict, layers: Sequence[StructuredAdversary]) -> None:
    for number, layer in enumerate(layers):
        given = _extra_for(layer, extra)
        if given and any(x.moves_pixels for x in layers[:number]):
            raise ValueError(
                f"Received {sorted(given)} for layer {layer.name!r}, "
                "which comes after one that moves the images: they would no longer "
                "fit. Put this layer first in the list."
            )
    ids = extra.get("ids")
    if ids is not None and not backend.is_int_dtype(
        backend.standardize_dtype(ids.dtype)
    ):
        raise ValueError(
            f"Received ids of dtype {ids.dtype}. Pass one integer for each image."
        )
