"""The call contract: structures in, one dict of data, the same structures out."""

import itertools
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends import check_keras, check_native

KEYS = ("images", "labels", "targets")
_NAMES = ("images", "labels", "sample_weight", "training")
ANNOTATIONS = ("segmentation_masks", "bounding_boxes", "keypoints")


class ImageLayer(keras.layers.Layer):
    """Base of the layers that take images alone, with labels, or in a dict.

    A subclass implements `augment_data`. Labels, weights and annotations keep their
    dtypes; nothing that was passed is changed.
    """

    moves_pixels: bool
    """Whether the layer moves what is in the image, and so masks, boxes and points."""

    def __init__(self, **kwargs: Any):
        check_keras()
        super().__init__(autocast=False, **kwargs)  # labels keep their dtype
        self.built = True

    def augment_data(self, data: dict, training: bool | None) -> dict:
        """Returns the entries that change: the images and what moves with them.

        Args:
            data: images, labels, targets, sample weights, annotations, under the keys
                of `call`; images of rank 3 or 4, the rest accordingly.
            training: as in `call`.
        """
        raise NotImplementedError

    def known_keys(self) -> set[str]:
        """Returns the keys of a dict that `augment_data` reads."""
        return {*KEYS, *(ANNOTATIONS if self.moves_pixels else ())}

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; unknown keys of a dict pass through untouched."""
        check_native((images, args, kwargs))
        given = itertools.zip_longest(_NAMES[: len(args) + 1], (images, *args))
        images, *others = (_as_array(name, x) for name, x in given)
        kwargs = {k: _as_array(k, x) for k, x in kwargs.items()}
        if not isinstance(images, dict):
            _check_dense(images)
            return super().__call__(images, *others, **kwargs)
        if "images" not in images:
            raise ValueError(
                f"Received a dict with the keys {sorted(images)}. Pass the images "
                'under the key "images".'
            )
        _check_dense(images["images"])
        keys = self.known_keys()
        known = {
            key: _as_array(key, x)
            for key, x in images.items()
            if key in keys and x is not None
        }
        result = super().__call__(known, *others, **kwargs)
        data, *beside = result if isinstance(result, tuple) else (result,)
        changed = {key: data[key] for key in (*KEYS[:2], *ANNOTATIONS) if key in data}
        merged = {**images, **changed}
        return (merged, *beside) if beside else merged

    def call(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Returns the augmented data in the structure in which it came.

        A layer that moves pixels also moves the `"segmentation_masks"`,
        `"bounding_boxes"` and `"keypoints"` of a dict. Labels and sample weights with
        the height and width of the images are masks, and move too.

        Args:
            images: one image (rank 3), a batch (rank 4), or a dict with the key
                `"images"`. Further keys are `"labels"`, `"targets"`, and what the
                model takes beside the images.
            labels: one for each image, in the form that the loss takes.
            sample_weight: passed through; does not enter the gradient.
            training: `False` for the identity. `None` is inference where a model calls
                the layer, and training where the user or another layer does.

        Returns:
            Images alone, `(images, labels)`, `(images, labels, sample_weight)` or a
            dict, as the arguments were. The images have the layer's compute dtype;
            everything else keeps its own.
        """
        data = images if isinstance(images, dict) else {"images": images}
        beside = {"labels": labels, "sample_weight": sample_weight}
        beside = {key: x for key, x in beside.items() if x is not None}
        given = {**data, **beside}
        out = {**given, **self.augment_data(given, training)}
        first = {key: out[key] for key in data}
        first = first if isinstance(images, dict) else first["images"]
        return (first, *(out[key] for key in beside)) if beside else first

    def compute_output_spec(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Returns the symbolic outputs of `call`."""

        def spec(x: Any) -> keras.KerasTensor:
            return keras.KerasTensor(x.shape, dtype=x.dtype)

        data = images if isinstance(images, dict) else {"images": images}
        out = keras.KerasTensor(data["images"].shape, dtype=self.compute_dtype)
        if isinstance(images, dict):
            out = {**keras.tree.map_structure(spec, images), "images": out}
        beside = [x for x in (labels, sample_weight) if x is not None]
        return (out, *keras.tree.map_structure(spec, beside)) if beside else out

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the images out: that of the images in."""
        return input_shape


def with_batch_axis(data: dict) -> dict:
    """Returns the data of one image as a batch of one."""
    return keras.tree.map_structure(
        lambda x: None if x is None else ops.convert_to_tensor(x)[None], data
    )


def without_batch_axis(data: dict) -> dict:
    """Returns a batch of one as the data of one image."""
    return keras.tree.map_structure(lambda x: x[0], data)


def _as_array(name: str, x: Any) -> Any:
    """Converts numbers and lists of numbers to arrays, also in dicts, and no others."""
    if isinstance(x, dict) and name in ANNOTATIONS:
        return {key: _as_array(f"{name}[{key!r}]", entry) for key, entry in x.items()}
    leaves = keras.tree.flatten(x) if isinstance(x, (list, tuple)) else [x]
    if name == "training" or not all(isinstance(y, numbers.Number) for y in leaves):
        return x
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"Received {name} as lists of several lengths. Pass lists of one length, "
            "or an array."
        ) from error


def _check_dense(images: Any) -> None:
    if getattr(images, "ragged_rank", None):  # symbolic tensors have one of None
        raise ValueError(
            f"Received ragged images of shape {tuple(images.shape)}. The layer needs "
            "images of one size: resize or pad them before it "
            "(keras.layers.Resizing, images.to_tensor())."
        )
