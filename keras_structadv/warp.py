"""Moves images, points and boxes along a flow."""

from typing import Any

import numpy as np
from keras import backend, ops

from keras_structadv.backends import largest

_ITERATIONS = 12  # error below .01 pixels where neighbours differ by less than .6
_SIDE = 9  # points on each side of a box


def dense_image_warp(images: Any, flow: Any, *, interpolation: str = "bilinear") -> Any:
    """Warps images along a flow: `warped[y, x] = image[y - dy, x - dx]`.

    Coordinates are clamped to the image. Values and gradients equal those of
    `tfa.image.dense_image_warp(image, flow)`, with one exception: at whole coordinates
    the gradient with respect to the flow is the slope to the next pixel, not zero.

    Args:
        images: (batch, height, width, channels); all but the batch size is static.
        flow: float, (batch, height, width, 2), (dy, dx) in pixels.
        interpolation: `"bilinear"`, or `"nearest"` for masks and other integers.

    Returns:
        warped: the shape and dtype of `images`; `"bilinear"` turns integers into
            float32.

    Raises:
        ValueError: if the shapes do not fit or the interpolation is unknown.

    Example:
    One pixel down:

    >>> import numpy as np
    >>> images = np.array([1.0, 2.0, 3.0]).reshape((1, 3, 1, 1))
    >>> flow = np.broadcast_to([1.0, 0.0], (1, 3, 1, 2))
    >>> np.ravel(dense_image_warp(images, flow)).tolist()
    [1.0, 1.0, 2.0]

    Reference: Luo, Mobahi, Bengio (2020), Algorithm 1, line 15.
    """
    images = ops.convert_to_tensor(images)
    flow = ops.convert_to_tensor(flow, "float32")  # float16 cannot address 224 pixels
    _check(images, flow, interpolation)
    height, width = images.shape[1:3]
    y = ops.arange(height, dtype="float32")[:, None] - flow[..., 0]
    x = ops.arange(width, dtype="float32")[None, :] - flow[..., 1]
    return _sample(images, y, x, interpolation)


def compose_flows(first: Any, second: Any) -> Any:
    """Returns the flow that equals `first` followed by `second`.

    One warp along it interpolates once, so that it blurs less than two warps.

    Args:
        first: float, (batch, height, width, 2), (dy, dx) in pixels.
        second: float, the shape of `first`.

    Returns:
        flow: float32, the shape of `first`; exact up to the interpolation of `first`.
    """
    second = ops.convert_to_tensor(second, "float32")
    return second + dense_image_warp(first, second)


def move_points(points: Any, flow: Any) -> Any:
    """Moves points with the content of an image.

    Solves `q - flow(q) = p` for q by fixed-point iteration and returns the iterate of
    smallest error. The iteration converges where the flow does not fold the image.

    Args:
        points: float, (batch, count, 2), (x, y) in pixels; whole numbers are centres
            of pixels. Points outside the image move with its border.
        flow: float, (batch, height, width, 2), (dy, dx) in pixels.

    Returns:
        moved: float32, the shape of `points`.
    """
    points = ops.cast(points, "float32")
    flow = ops.convert_to_tensor(flow, "float32")

    def moved(place: Any) -> Any:
        return points + ops.flip(_sample(flow, place[..., 1], place[..., 0]), axis=-1)

    best = place = moved(points)
    least = np.inf
    for _ in range(_ITERATIONS):
        following = moved(place)
        error = ops.sum(ops.square(following - place), axis=-1, keepdims=True)
        best = ops.where(error < least, place, best)
        least = ops.minimum(error, least)
        place = following
    return best


def move_boxes(boxes: Any, flow: Any) -> Any:
    """Moves boxes with the content of an image.

    Moves nine points on each side of a box and returns the smallest box around them.

    Args:
        boxes: float, (batch, count, 4), (left, top, right, bottom) in pixels; (0, 0)
            is the upper left corner of the upper left pixel.
        flow: float, (batch, height, width, 2), (dy, dx) in pixels.

    Returns:
        moved: float32, the shape of `boxes`.
    """
    boxes = ops.cast(boxes, "float32")
    if boxes.shape[1] == 0:
        return boxes
    boxes = boxes - 0.5  # points have whole numbers at the centres of pixels
    left, top, right, bottom = (boxes[..., i : i + 1] for i in range(4))
    along = np.linspace(0, 1, _SIDE, dtype="float32")
    x = left + ops.multiply(right - left, along)
    y = top + ops.multiply(bottom - top, along)
    left, top, right, bottom = (
        ops.broadcast_to(z, ops.shape(x)) for z in (left, top, right, bottom)
    )
    xs = ops.concatenate([x, x, left, right], axis=-1)
    ys = ops.concatenate([top, bottom, y, y], axis=-1)
    outline = ops.stack([xs, ys], axis=-1)
    batch, count = ops.shape(boxes)[:2]
    points = ops.reshape(outline, (batch, count * 4 * _SIDE, 2))
    moved = ops.reshape(move_points(points, flow), (batch, count, 4 * _SIDE, 2))
    corners = [  # `least` allows zero boxes
        -largest(-moved, axis=-2, least=-np.inf),
        largest(moved, axis=-2, least=-np.inf),
    ]
    return ops.concatenate(corners, axis=-1) + 0.5


def _sample(images: Any, y: Any, x: Any, interpolation: str = "bilinear") -> Any:
    """Samples images at clamped coordinates; returns (batch, ..., channels)."""
    height, width, channels = images.shape[1:]
    dtype = backend.standardize_dtype(images.dtype)
    if interpolation != "nearest" and not backend.is_float_dtype(dtype):
        dtype = "float32"
    if images.shape[0] == 0:  # of which JAX takes none in another shape
        return ops.zeros((*ops.shape(y), channels), dtype)
    row = ops.arange(ops.shape(images)[0], dtype="int32") * (height * width)
    for _ in y.shape[1:]:
        row = row[..., None]
    pixels = ops.reshape(images, (-1, channels))

    if interpolation == "nearest":
        y0, _ = _split(y + 0.5, height, height - 1)
        x0, _ = _split(x + 0.5, width, width - 1)
        return ops.take(pixels, row + y0 * width + x0, axis=0)

    # The upper left corner has a neighbour to the right and below, if there is any.
    y0, fraction_y = _split(y, height, max(height - 2, 0))
    x0, fraction_x = _split(x, width, max(width - 2, 0))
    down = width if height > 1 else 0
    right = 1 if width > 1 else 0
    corner = row + y0 * width + x0
    # Gathering whole pixels by flat index was fastest on a CPU, with and without XLA
    # (benchmarks/solve_and_warp.py).
    a, b, c, d = (
        ops.cast(ops.take(pixels, corner + offset, axis=0), "float32")
        for offset in (0, right, down, down + right)
    )
    # One weight for each corner is exact where a fraction is 0 or 1, and takes fewer
    # products of image size than interpolating along y after x.
    rest_y, rest_x = 1 - fraction_y, 1 - fraction_x
    top = (rest_y * rest_x) * a + (rest_y * fraction_x) * b
    bottom = (fraction_y * rest_x) * c + (fraction_y * fraction_x) * d
    return ops.cast(top + bottom, dtype)


def _split(coordinate: Any, size: int, last: int) -> tuple[Any, Any]:
    """Splits a coordinate into a pixel, at most `last`, and the distance from it."""
    coordinate = ops.clip(coordinate, 0.0, size - 1.0)
    # Clipping the integer keeps NaN coordinates inside the image.
    pixel = ops.clip(ops.cast(ops.floor(coordinate), "int32"), 0, last)
    return pixel, (coordinate - ops.cast(pixel, "float32"))[..., None]


def _check(images: Any, flow: Any, interpolation: str) -> None:
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(
            f'Received interpolation={interpolation!r}. Pass "bilinear" or "nearest".'
        )
    shape, flow_shape = tuple(images.shape), tuple(flow.shape)
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            f"Received images of shape {shape}. Pass shape (batch, height, width, "
            "channels); only the batch size may be unknown."
        )
    expected = shape[:3] + (2,)
    if len(flow_shape) != 4 or any(
        None not in (a, b) and a != b for a, b in zip(expected, flow_shape)
    ):
        raise ValueError(
            f"Received flow of shape {flow_shape} for images of shape {shape}. Pass a "
            f"flow of shape {expected}, (dy, dx) in pixels."
        )
