"""Masks, labels, boxes and points move with the images, along the same flow."""

import math
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.layers.layout import Layout
from keras_structadv.scaling import is_zero
from keras_structadv.warp import dense_image_warp, move_boxes, move_points

_BOXES = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw")
BOX_FORMATS = _BOXES + tuple(f"rel_{name}" for name in _BOXES if name != "center_yxhw")
MAY_BE_MASKS = ("labels", "sample_weight")


def move_annotations(
    data: dict,
    flow: Any,
    images: Any,
    *,
    layout: Layout,
    bounding_box_format: str | None,
) -> dict:
    """Returns the entries of `data` that move with the images, moved, dtypes kept.

    Masks are warped by the nearest pixel, and so are labels and sample weights with
    the height and width of the images. A box becomes the smallest box around its moved
    outline, within the image; one of which nothing is left gets the label -1, as in
    Keras. Points may leave the image.

    Args:
        data: labels, sample weights, masks, boxes, points, under the keys of `call`.
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.
        images: the images, for their shape.
        layout: that of images and masks.
        bounding_box_format: that of the boxes; required where there are any.

    Raises:
        ValueError: if masks, boxes or points have another shape than they should.
    """
    moved = {}
    for key in MAY_BE_MASKS:
        if data.get(key) is not None:
            moved[key] = keras.tree.map_structure(
                lambda x: (
                    move_mask(x, flow, layout) if is_mask(x, images, layout) else x
                ),
                data[key],
            )
    if "segmentation_masks" in data:
        masks = data["segmentation_masks"]
        if layout.size(masks) != layout.size(images):
            raise ValueError(
                f"Received segmentation_masks of shape {tuple(masks.shape)} for "
                f"images of shape {tuple(images.shape)}. Pass masks with their height "
                "and width, with or without a channel axis."
            )
        moved["segmentation_masks"] = move_mask(masks, flow, layout)
    if "keypoints" in data:
        moved["keypoints"] = move_keypoints(data["keypoints"], flow)
    if "bounding_boxes" in data:
        moved["bounding_boxes"] = move_bounding_boxes(
            data["bounding_boxes"], flow, layout.size(images), bounding_box_format
        )
    return moved


def is_mask(x: Any, images: Any, layout: Layout) -> bool:
    """Returns whether labels or weights have the height and width of the images.

    Raises:
        ValueError: if they have rank 3 or 4, but another size: they cannot move.
    """
    if x is None:
        return False
    size = layout.size(x)
    if size == layout.size(images):
        return True
    if size is not None and None in size:
        raise ValueError(
            f"Received labels or weights of shape {tuple(x.shape)} for images of shape "
            f"{tuple(images.shape)}. Their height and width must be known when the "
            "graph is built: set the static shape, e.g. by tf.ensure_shape."
        )
    if size is not None:
        raise ValueError(
            f"Received labels or weights of shape {tuple(x.shape)} for images of shape "
            f"{tuple(images.shape)}. They would stay while the image moves. Resize "
            "masks to the images. Call the layer itself with a dict to move boxes and "
            'points ("bounding_boxes", "keypoints"). Pass labels that do not move '
            "(text) as class ids, (batch, n), or reshape them in the loss."
        )
    return False


def move_mask(masks: Any, flow: Any, layout: Layout) -> Any:
    """Returns masks of rank 3 or 4 moved along a flow, by the nearest pixel."""
    if len(masks.shape) == 3:
        moved = dense_image_warp(masks[..., None], flow, interpolation="nearest")
        return moved[..., 0]
    masks = layout.channels_last(masks)
    return layout.restored(dense_image_warp(masks, flow, interpolation="nearest"))


def move_keypoints(points: Any, flow: Any) -> Any:
    """Returns points moved along a flow; what follows x and y is kept.

    Args:
        points: (batch, ..., 2 or more), x and y in pixels first.
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.
    """
    if len(points.shape) < 3 or points.shape[-1] is None or points.shape[-1] < 2:
        raise ValueError(
            f"Received keypoints of shape {tuple(points.shape)}. Pass (x, y) in "
            "pixels, (batch, count, 2); further values of a point come after them."
        )
    shape = ops.shape(points)
    flat = ops.reshape(points[..., :2], (shape[0], math.prod(shape[1:-1]), 2))
    moved = ops.reshape(move_points(flat, flow), (*shape[:-1], 2))
    still = ops.reshape(is_zero(flow), (-1,) + (1,) * (len(shape) - 1))
    moved = ops.where(still, points[..., :2], _in_dtype_of(points, moved))
    return ops.concatenate([moved, points[..., 2:]], axis=-1)


def move_bounding_boxes(
    bounding_boxes: dict, flow: Any, size: Any, box_format: str | None
) -> dict:
    """Returns a dict of boxes and their labels, moved along a flow.

    Args:
        bounding_boxes: `"boxes"`, (batch, count, 4), and `"labels"` or `"classes"`,
            (batch, count), -1 where there is no box.
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.
        size: height and width of the images.
        box_format: how the boxes are given, as `keras.utils.bounding_boxes` names it.
    """
    if box_format is None:
        raise ValueError(
            "Received bounding_boxes, and no bounding_box_format. Pass it to the "
            'layer, e.g. AdversarialFlow(bounding_box_format="xyxy").'
        )
    ids = _check_boxes(bounding_boxes)
    given, labels = bounding_boxes["boxes"], bounding_boxes[ids]
    height, width = size
    options = {"height": height, "width": width, "dtype": "float32"}
    boxes = ops.cast(given, "float32")
    boxes = keras.utils.bounding_boxes.convert_format(
        boxes, box_format, "xyxy", **options
    )
    clipped = keras.utils.bounding_boxes.clip_to_image_size(
        {"boxes": move_boxes(boxes, flow), "labels": labels}, height, width, "xyxy"
    )
    boxes = keras.utils.bounding_boxes.convert_format(
        clipped["boxes"], "xyxy", box_format, **options
    )
    # What does not move stays as it is to the bit, also where it was not clipped.
    still = is_zero(flow)[:, None] | (labels == ops.cast(-1, labels.dtype))
    return {
        **bounding_boxes,
        "boxes": ops.where(still[..., None], given, _in_dtype_of(given, boxes)),
        ids: ops.where(still, labels, ops.cast(clipped["labels"], labels.dtype)),
    }


def _check_boxes(bounding_boxes: Any) -> str:
    """Returns the key of the labels of boxes, after a check of the shapes."""
    received: Any = type(bounding_boxes).__name__
    ids, ranks = "labels", {}
    if isinstance(bounding_boxes, dict):
        received = {
            key: "ragged" if getattr(x, "ragged_rank", None) else tuple(x.shape)
            for key, x in bounding_boxes.items()
        }
        ids = "classes" if "classes" in received else "labels"
        ranks = {k: len(received[k]) for k in ("boxes", ids) if k in received}
    if ranks != {"boxes": 3, ids: 2}:
        raise ValueError(
            f"Received bounding_boxes ({received}). Pass a dict with "
            '"boxes", (batch, count, 4), and "labels", (batch, count), -1 where '
            "there is no box; make ragged ones dense, e.g. by to_tensor(-1)."
        )
    return ids


def _in_dtype_of(given: Any, moved: Any) -> Any:
    if not backend.is_float_dtype(backend.standardize_dtype(given.dtype)):
        moved = ops.round(moved)
    return ops.cast(moved, given.dtype)
