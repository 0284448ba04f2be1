"""The geometric augmentation as a layer."""

import math
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.flow import (
    adversarial_flow,
    check_flow_arguments,
    flow_code,
    flow_from_code,
    longest_displacement,
)
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.scaling import is_zero
from keras_structadv.warp import (
    compose_flows,
    dense_image_warp,
    move_boxes,
    move_points,
)


@keras.saving.register_keras_serializable(package="keras_structadv")
class AdversarialFlow(StructuredAdversary):
    """Warps images along the smooth flow that raises the loss of a model fastest.

    Bind it to a model, or give it to `AdversarialTraining`. In inference it is the
    identity.

    Args:
        max_displacement: the longest displacement, in pixels, of each of the `steps`.
            A number `m` draws it for each image from U(0, m), a pair `(low, high)`
            from U(low, high).
        smoothness: gamma of eq. 12, >= 0, in squared pixels.
        alpha: `None` scales each flow to its drawn displacement. A number > 0 gives
            eq. 15 as it stands, scaled only where it is longer than that.
        solver: `"dct"`, `"sparse"` (not with XLA or PyTorch) or `"dense"`; see
            `adversarial_flow`.
        **common: `rate`, `target`, `steps`, `loss`, `value_range`, `seed`,
            `data_format`, `name` and `dtype`; see `StructuredAdversary`.

    Input shape: (height, width, channels) or (batch, height, width, channels), alone,
        or with labels, or with labels and sample weights, or in a dict.

    Output shape: as the input.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    ... )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(loss=loss)
    >>> flow = AdversarialFlow(max_displacement=2.0, rate=1.0, seed=0).bind(model)
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1))
    >>> warped, labels = flow(images, np.array([0, 1, 2, 0]))
    >>> tuple(warped.shape)
    (4, 8, 8, 1)

    Reference: Luo, Mobahi, Bengio (2020), section 4 and Algorithm 1.
    """

    strength_name = "max_displacement"
    scale_name = "alpha"
    measure_name = "mean_displacement"
    moves_pixels = True

    def __init__(
        self,
        max_displacement: float | tuple[float, float] = 3.0,
        smoothness: float = 100.0,
        alpha: float | None = None,
        solver: str = "dct",
        **common: Any,
    ):
        super().__init__(**common)
        check_flow_arguments(smoothness, alpha, solver)
        self._set_strength(max_displacement)
        self.smoothness = float(smoothness)
        self.alpha = None if alpha is None else float(alpha)
        self.solver = solver

    def make_field(self, images: Any, gradients: Any, strength: Any) -> Any:
        """Returns the flow, float32, (batch, height, width, 2), (dy, dx) in pixels."""
        return adversarial_flow(
            images,
            gradients,
            smoothness=self.smoothness,
            max_displacement=strength,
            alpha=self.alpha,
            solver=self.solver,
        )

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the flow that moves as `first` and then `second` do."""
        return compose_flows(first, second)

    def apply(self, images: Any, field: Any) -> Any:
        """Returns the images warped along the flow."""
        return dense_image_warp(images, field)

    def move(self, data: dict, field: Any, images: Any) -> dict:
        """Returns masks, boxes and points moved with the images, dtypes kept.

        Masks move by the nearest pixel, and so do labels and sample weights of the
        height and width of the images. A box becomes the smallest one around what was
        in it, within the image; if nothing of it is left, it gets the label -1, as
        Keras has it. Points may leave the image.
        """
        size = self._size(images)
        moved = {}
        for key in ("labels", "sample_weight"):
            if data.get(key) is not None:
                moved[key] = keras.tree.map_structure(
                    lambda x: (
                        self._moved_mask(x, field) if self.is_mask(x, images) else x
                    ),
                    data[key],
                )
        if "segmentation_masks" in data:
            masks = data["segmentation_masks"]
            if self._size(masks) != size:
                raise ValueError(
                    f"Received segmentation_masks of shape {tuple(masks.shape)} for "
                    f"images of shape {tuple(images.shape)}. Pass masks of their "
                    "height and width, with or without a channel axis."
                )
            moved["segmentation_masks"] = self._moved_mask(masks, field)
        if "keypoints" in data:
            moved["keypoints"] = _moved_points(data["keypoints"], field)
        if "bounding_boxes" in data:
            moved["bounding_boxes"] = self._moved_boxes(
                data["bounding_boxes"], field, size
            )
        return moved

    def is_mask(self, x: Any, images: Any) -> bool:
        """Returns whether labels or weights are of the pixels and move with them.

        Raises:
            ValueError: if they are images of another size.
        """
        if x is None:
            return False
        mask = self._size(x) == self._size(images)
        if not mask and len(x.shape) == 4:
            raise ValueError(
                f"Received labels of shape {tuple(x.shape)} for images of shape "
                f"{tuple(images.shape)}. They would have to move with the images, and "
                "have another size: resize them in the model or in its loss."
            )
        return mask

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of `[d_y, d_x]`, (batch, 2, k, l)."""
        return flow_code(images, gradients, size)

    def decode(self, images: Any, codes: Any, size: int, strength: Any) -> Any:
        """Returns the flow that a code describes, (batch, height, width, 2), pixels."""
        height, width = images.shape[1:3]
        return flow_from_code(
            ops.reshape(codes, (-1, 2, min(size, height), min(size, width))),
            (height, width),
            smoothness=self.smoothness,
            max_displacement=strength,
        )

    def size_of(self, field: Any) -> Any:
        """Returns the longest displacement of each flow, float32, (batch,), pixels."""
        return longest_displacement(field)

    def _size(self, masks: Any) -> tuple | None:
        """Returns the height and width of what may be masks."""
        if len(masks.shape) == 3:
            return tuple(masks.shape[1:])
        first = 2 if self.data_format == "channels_first" else 1
        return tuple(masks.shape[first : first + 2]) if len(masks.shape) == 4 else None

    def _moved_mask(self, masks: Any, flow: Any) -> Any:
        """Returns masks, with or without a channel axis, moved along a flow."""
        if len(masks.shape) == 3:
            moved = dense_image_warp(masks[..., None], flow, interpolation="nearest")
            return moved[..., 0]
        masks = self._channels_last(masks)
        return self._as_came(dense_image_warp(masks, flow, interpolation="nearest"))

    def _moved_boxes(self, bounding_boxes: dict, flow: Any, size: tuple) -> dict:
        """Returns a dict of boxes with their labels, moved along a flow."""
        if self.bounding_box_format is None:
            raise ValueError(
                "Received bounding_boxes, and no bounding_box_format. Pass it to the "
                f'layer, e.g. {type(self).__name__}(bounding_box_format="xyxy").'
            )
        what = type(bounding_boxes).__name__
        ids = "labels"
        if isinstance(bounding_boxes, dict):
            what = {
                key: "ragged" if getattr(x, "ragged_rank", None) else tuple(x.shape)
                for key, x in bounding_boxes.items()
            }
            ids = "classes" if "classes" in what else "labels"
        ranks = {key: len(what[key]) for key in ("boxes", ids) if key in what}
        if ranks != {"boxes": 3, ids: 2}:
            raise ValueError(
                f"Received bounding_boxes ({what}). Pass a dict with "
                '"boxes", (batch, count, 4), and "labels", (batch, count), -1 where '
                "there is no box; make ragged ones dense, e.g. by to_tensor(-1)."
            )
        given, labels = bounding_boxes["boxes"], bounding_boxes[ids]
        height, width = size
        format = {"height": height, "width": width, "dtype": "float32"}
        boxes = ops.cast(given, "float32")
        boxes = keras.utils.bounding_boxes.convert_format(
            boxes, self.bounding_box_format, "xyxy", **format
        )
        clipped = keras.utils.bounding_boxes.clip_to_image_size(
            {"boxes": move_boxes(boxes, flow), "labels": labels}, height, width, "xyxy"
        )
        boxes = keras.utils.bounding_boxes.convert_format(
            clipped["boxes"], "xyxy", self.bounding_box_format, **format
        )
        # What does not move stays as it is to the bit, also where it was not clipped.
        still = is_zero(flow)[:, None] | (labels == ops.cast(-1, labels.dtype))
        return {
            **bounding_boxes,
            "boxes": ops.where(still[..., None], given, _in_dtype_of(given, boxes)),
            ids: ops.where(still, labels, ops.cast(clipped["labels"], labels.dtype)),
        }

    def get_config(self) -> dict:
        """Returns every constructor argument; the bound model is not one."""
        return {
            **super().get_config(),
            "max_displacement": self.max_displacement,
            "smoothness": self.smoothness,
            "alpha": self.alpha,
            "solver": self.solver,
        }


def _moved_points(points: Any, flow: Any) -> Any:
    """Returns points moved along a flow; what follows x and y is kept."""
    if len(points.shape) < 3 or points.shape[-1] is None or points.shape[-1] < 2:
        raise ValueError(
            f"Received keypoints of shape {tuple(points.shape)}. Pass (x, y) in "
            "pixels, (batch, count, 2), and what else belongs to a point after them."
        )
    shape = ops.shape(points)
    flat = ops.reshape(points[..., :2], (shape[0], math.prod(shape[1:-1]), 2))
    moved = ops.reshape(move_points(flat, flow), (*shape[:-1], 2))
    still = ops.reshape(is_zero(flow), (-1,) + (1,) * (len(shape) - 1))
    moved = ops.where(still, points[..., :2], _in_dtype_of(points, moved))
    return ops.concatenate([moved, points[..., 2:]], axis=-1)


def _in_dtype_of(given: Any, moved: Any) -> Any:
    if not backend.is_float_dtype(backend.standardize_dtype(given.dtype)):
        moved = ops.round(moved)
    return ops.cast(moved, given.dtype)
