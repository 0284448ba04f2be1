"""The image operations of AutoAugment and RandAugment, chosen for each image."""

import math
from typing import Any

import numpy as np
from keras import ops

OPERATIONS = (
    *("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color"),
    *("Posterize", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Invert"),
)
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
_LUMA = np.float32([19595, 38470, 7471]) / 65536  # Pillow's
_ONE = 65536  # 1 in the fixed-point coordinates of Pillow


def apply_operations(
    images: Any, operations: list[tuple[str, float]], which: Any, fill: float = 128.0
) -> Any:
    """Applies to each image the operation that was chosen for it.

    The results agree with Pillow's. Operations on colours first truncate to whole grey
    levels, as a conversion to uint8 does.

    Args:
        images: float32, (batch, height, width, 1 or 3), 0 to 255.
        operations: pairs of a name and a strength from -1 to 1. Shear, translation,
            rotation and the enhancements use its sign.
        which: int32, (batch,), indices into `operations`.
        fill: grey level beyond the border.

    Returns:
        images: float32, the shape of `images`. For the gradient, rounding, Posterize
        and Equalize are the identity; their true gradient is zero.
    """
    kinds = np.int32([OPERATIONS.index(name) for name, _ in operations])
    amounts = np.float32([_amount(*x) for x in operations])
    places = np.int32([_fixed_point(*x, *images.shape[1:3]) for x in operations])
    # One gather moves all images; those with another operation stay in place.
    images = _moved(images, ops.take(places, which, axis=0), fill)
    return _recolored(images, ops.take(kinds, which), ops.take(amounts, which))


def _amount(name: str, strength: float) -> float:
    """The amount of an operation on colours, 0 for operations without one."""
    if name in ENHANCEMENTS:
        return 1 + 0.9 * strength  # factor
    if name == "Posterize":
        return 2.0 ** round(4 * abs(strength))  # grey levels that become one
    if name == "Solarize":
        return 256.0 - math.floor(256 * abs(strength))  # first level to invert
    return 0.0


def _fixed_point(name: str, strength: float, height: int, width: int) -> list[int]:
    """Pillow's (a, b, c, d, e, f): (x, y) comes from (ax + by + c, dx + ey + f).

    Translations are of whole pixels, up to 10 on images of 32 pixels.
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "ShearX":
        b = 0.3 * strength
    elif name == "ShearY":
        d = 0.3 * strength
    elif name == "TranslateX":
        c = math.trunc(round(10 / 32 * width * strength, 6))
    elif name == "TranslateY":
        f = math.trunc(round(10 / 32 * height * strength, 6))
    elif name == "Rotate":
        angle = math.radians(-30 * strength)
        a, b, d, e = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
        c = (width - a * width - b * height) / 2
        f = (height - d * width - e * height) / 2
    numbers = a, b, c + (a + b) / 2, d, e, f + (d + e) / 2  # at the centres of pixels
    return [math.floor(_ONE * x + 0.5) for x in numbers]


def _moved(images: Any, places: Any, fill: float) -> Any:
    """Moves the pixels of images; `places` holds `_fixed_point`, int32, (batch, 6)."""
    a, b, c, d, e, f = ops.split(places[:, :, None], 6, axis=1)
    y = ops.arange(images.shape[1])[:, None]
    x = ops.arange(images.shape[2])[None]
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    return pixels_at(
        images, ops.floor_divide(from_y, _ONE), ops.floor_divide(from_x, _ONE), fill
    )


def pixels_at(images: Any, y: Any, x: Any, fill: float) -> Any:
    """Takes the pixels at (y, x), int32, which broadcast to (batch, height, width).

    A gather, since `keras.ops.image.affine_transform` has no XLA kernel on TensorFlow.
    """
    height, width, channels = images.shape[1:]
    within = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    first = height * width * ops.arange(ops.shape(images)[0])[:, None, None]
    place = first + width * ops.clip(y, 0, height - 1) + ops.clip(x, 0, width - 1)
    pixels = ops.take(ops.reshape(images, (-1, channels)), place, axis=0)
    return ops.where(within[..., None], pixels, fill)


def _recolored(images: Any, kinds: Any, amounts: Any) -> Any:
    """Applies the operations on colours; other images stay as they are."""
    x = _whole(images)
    amounts = amounts[:, None, None, None]
    gray = x if x.shape[3] == 1 else _whole(ops.sum(x * _LUMA, -1, keepdims=True) + 0.5)
    # An enhancement extrapolates from a degenerate image (0) past the image (1).
    mean = _whole(ops.mean(gray, (1, 2), keepdims=True) + 0.5)
    start = ops.zeros_like(x)
    for name, y in (("Color", gray), ("Contrast", mean), ("Sharpness", _smooth(x))):
        start = ops.where(_is(kinds, name), y, start)
    enhanced = _whole(start + amounts * (x - start))
    step = ops.maximum(amounts, 1.0)  # 0 for other operations
    # Half a level more: TensorFlow may multiply by an approximate 1 / step.
    posterized = step * ops.floor((x + 0.5) / step)
    for names, y in (
        (ENHANCEMENTS, enhanced),
        (("AutoContrast",), _stretched(x)),
        (("Equalize",), _straight_through(_equalized(x), x)),
        (("Invert",), 255.0 - x),
        (("Solarize",), ops.where(x < amounts, x, 255.0 - x)),
        (("Posterize",), _straight_through(posterized, x)),
    ):
        images = ops.where(_is(kinds, *names), y, images)
    return images


def _is(kinds: Any, *names: str) -> Any:
    """Whether the operation has one of the names, bool, (batch, 1, 1, 1)."""
    those = np.int32([OPERATIONS.index(name) for name in names])
    return ops.any(kinds[:, None] == those, axis=1)[:, None, None, None]


def _straight_through(y: Any, x: Any) -> Any:
    """The values of `y` with the gradient of `x`."""
    return x + ops.stop_gradient(y - x)


def _whole(x: Any) -> Any:
    """Truncates to the grey levels of uint8; the gradient is that of the clipping."""
    x = ops.clip(x, 0.0, 255.0)
    return _straight_through(ops.floor(x), x)


def _smooth(x: Any) -> Any:
    """Smooths by 3x3 pixels, except at the border."""
    height, width = x.shape[1:3]
    if height < 3 or width < 3:
        return x
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = _whole((box + 4 * x[:, 1:-1, 1:-1]) / 13 + 0.5)
    inner = ops.concatenate([x[:, 1:-1, :1], inner, x[:, 1:-1, -1:]], axis=2)
    return ops.concatenate([x[:, :1], inner, x[:, -1:]], axis=1)


def _stretched(x: Any) -> Any:
    """Stretches each channel to 0 to 255, except constant ones."""
    low = ops.min(x, axis=(1, 2), keepdims=True)
    span = ops.max(x, axis=(1, 2), keepdims=True) - low
    stretched = _whole(255 * (x - low) / ops.maximum(span, 1.0))
    return ops.where(span > 0, stretched, x)


def _equalized(x: Any) -> Any:
    """Flattens the histogram of each channel, on whole levels."""
    batch, channels = ops.shape(x)[0], x.shape[3]
    channel = ops.arange(batch * channels)
    bins = 256 * ops.reshape(channel, (-1, 1, 1, channels)) + ops.cast(x, "int32")
    flat = ops.reshape(bins, (-1,))
    counts = ops.segment_sum(ops.ones_like(flat), flat, 256 * batch * channels)
    counts = ops.reshape(counts, (-1, 256))
    lower = ops.take(ops.reshape(ops.cumsum(counts, axis=1) - counts, (-1,)), bins)
    # The pixels below the brightest level, divided among 255 levels.
    step = ops.floor_divide(ops.max(lower, axis=(1, 2), keepdims=True), 255)
    level = ops.floor_divide(lower + ops.floor_divide(step, 2), ops.maximum(step, 1))
    return ops.where(step > 0, ops.cast(ops.minimum(level, 255), x.dtype), x)
