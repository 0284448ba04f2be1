"""The augmentations that the paper compares with, as layers that go inside a model."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

AUTO_AUGMENT = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
"""The policy for CIFAR-10: for each sub-policy two (operation, probability, level)."""

RAND_AUGMENT = (
    ("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color")
    + ("Posterize", "Contrast", "Brightness", "Sharpness")
    + ("ShearX", "ShearY", "TranslateX", "TranslateY")
)
"""The operations among which RandAugment draws."""

_ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
_KINDS = (*RAND_AUGMENT, "Invert")
_LUMA = np.float32([19595, 38470, 7471]) / 65536  # Pillow's
_ONE = 65536  # of the fixed-point numbers in which Pillow computes places


class _Augmentation(keras.layers.Layer):
    """Changes each image of a batch in training, and none in inference.

    A subclass defines `augment`, float32 to float32.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple) -> None:
        """Checks the shape of the images.

        Raises:
            ValueError: if it is not (batch, height, width, 1 or 3).
        """
        shape = tuple(input_shape)
        if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
            raise ValueError(
                f"Received images of shape {shape}. Pass (batch, height, width, "
                "channels) with 1 or 3 channels, of which only batch may be None."
            )
        super().build(input_shape)

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Returns the images, changed in training, in the compute dtype."""
        if training:
            images = self.augment(ops.cast(images, "float32"))
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the images out, which is that of the images in."""
        return input_shape

    def get_config(self) -> dict:
        """Returns every constructor argument."""
        return {**super().get_config(), "seed": self.seed}

    def _draw(self, shape: tuple, end: int) -> Any:
        """Returns integers from 0 to `end - 1`, all as likely, int32."""
        return keras.random.randint(shape, 0, end, seed=self.seed_generator)


class _Policy(_Augmentation):
    """Draws operations for each image from those in `operations`."""

    operations: list[tuple[str, float]]

    def __init__(self, fill: float = 128.0, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.fill = float(fill)

    def draw_operations(self, batch: Any) -> list:
        """Returns indices into `operations`, int32, (batch,), in order of use."""
        raise NotImplementedError

    def augment(self, images: Any) -> Any:
        """Returns the images after the operations that were drawn for them."""
        for which in self.draw_operations(ops.shape(images)[0]):
            images = apply_operations(images, self.operations, which, self.fill)
        return images

    def get_config(self) -> dict:
        """Returns every constructor argument."""
        return {**super().get_config(), "fill": self.fill}


@keras.saving.register_keras_serializable(package="experiments")
class AutoAugment(_Policy):
    """The policy that AutoAugment found on CIFAR-10.

    For each image one of the 25 sub-policies is drawn, and each of its two operations
    is done with its probability. Level `k` is `k / 10` of the largest strength, as in
    the authors' code for CIFAR-10, which draws signs for shear, translation and
    rotation, but takes k from factor 0.1 to 1.9 in the enhancements. Posterize leaves 8
    to 4 bits, as in the paper (their code leaves 4 to 0).

    Args:
        fill: grey level of pixels that come from beyond the border, 0 to 255.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Input shape: (batch, height, width, 1 or 3), uint8 or float, 0 to 255.

    Output shape: as the input, in the compute dtype.

    Reference: Cubuk et al. (2019), arXiv:1805.09501, the table of operations and that
        of the policy for CIFAR-10 in the appendix. Code: tensorflow/models,
        research/autoaugment.
    """

    def __init__(self, fill: float = 128.0, seed: int | None = None, **kwargs: Any):
        super().__init__(fill=fill, seed=seed, **kwargs)
        # Each operation of the policy with either sign, after the one for "not done".
        self.operations = [("Identity", 0.0)]
        for name, _, level in (x for policy in AUTO_AUGMENT for x in policy):
            strengths = (level / 10, -level / 10)
            if name in _ENHANCEMENTS:
                strengths = (2 * level / 10 - 1,) * 2
            self.operations += [(name, strength) for strength in strengths]

    def draw_operations(self, batch: Any) -> list:
        """Returns indices into `operations`, int32, (batch,), in order of use."""
        policy = self._draw((batch,), len(AUTO_AUGMENT))
        drawn = []
        for place in (0, 1):
            # In tenths, because floats differ between backends and with XLA.
            tenths = [round(10 * sub[place][1]) for sub in AUTO_AUGMENT]
            done = self._draw((batch,), 10) < ops.take(np.int32(tenths), policy)
            index = 1 + 4 * policy + 2 * place + self._draw((batch,), 2)
            drawn.append(ops.where(done, index, 0))
        return drawn


@keras.saving.register_keras_serializable(package="experiments")
class RandAugment(_Policy):
    """RandAugment: operations drawn for each image, all of the same magnitude.

    At 0 only AutoContrast and Equalize do anything, and at 30 the strength is the
    largest of AutoAugment; the sign of shear, translation, rotation and of the
    enhancements, 1 - 0.9 to 1 + 0.9, is drawn. That is the scale of torchvision. The
    paper has 0 to 10 in one place and 0 to 30 in another, and its code divides by 10
    what may be 30: for a magnitude on the scale 0 to 10, pass three times as much.

    `keras.layers.RandAugment` is something else: it draws the operations once for a
    whole batch, from another list, draws the strengths, most of them for each image
    from U(0, factor), and does not compile with XLA on TensorFlow, for want of a kernel
    of `ImageProjectiveTransformV3`.

    Args:
        num_ops: operations on each image, one after the other, > 0.
        magnitude: strength of all of them, 0 to 30.
        fill: grey level of pixels that come from beyond the border, 0 to 255.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Input shape: (batch, height, width, 1 or 3), uint8 or float, 0 to 255.

    Output shape: as the input, in the compute dtype.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: Cubuk et al. (2019), arXiv:1909.13719.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9,
        fill: float = 128.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(fill=fill, seed=seed, **kwargs)
        if not (isinstance(num_ops, int) and num_ops > 0 and 0 <= magnitude <= 30):
            raise ValueError(
                f"Received num_ops={num_ops!r} and magnitude={magnitude!r}. Pass an "
                "integer > 0 and a number from 0 to 30."
            )
        self.num_ops = num_ops
        self.magnitude = magnitude
        signed = (magnitude / 30, -magnitude / 30)
        self.operations = [(name, x) for name in RAND_AUGMENT for x in signed]

    def draw_operations(self, batch: Any) -> list:
        """Returns indices into `operations`, int32, (batch,), in order of use."""
        end = len(self.operations)
        return [self._draw((batch,), end) for _ in range(self.num_ops)]

    def get_config(self) -> dict:
        """Returns every constructor argument."""
        config = {"num_ops": self.num_ops, "magnitude": self.magnitude}
        return {**super().get_config(), **config}


def base_augmentation(
    flip: bool, padding: int, cutout: int, seed: int | None = None
) -> list[keras.layers.Layer]:
    """Returns the layers of the base augmentation, in their order.

    Args:
        flip: whether to flip each image from left to right with probability 1/2.
        padding: pixels of zeros around each image, out of which its size is cropped
            again at random; 0 for none.
        cutout: side of the square of zeros, in pixels; 0 for none.
        seed: seed of the draws, which are others in each layer.

    Raises:
        ValueError: if `padding` or `cutout` is negative.
    """
    if padding < 0 or cutout < 0:
        raise ValueError(
            f"Received padding={padding} and cutout={cutout}. Pass numbers of pixels "
            ">= 0, 0 to leave the layer out."
        )
    seeds = [None] * 3 if seed is None else [3 * seed + k for k in range(3)]
    layers = []
    if flip:
        layers.append(keras.layers.RandomFlip("horizontal", seed=seeds[0]))
    if padding:
        layers.append(PadAndCrop(padding, seed=seeds[1]))
    if cutout:
        layers.append(Cutout(cutout, seed=seeds[2]))
    return layers


@keras.saving.register_keras_serializable(package="experiments")
class PadAndCrop(_Augmentation):
    """Pads with zeros and crops to the size again, each image at its own place.

    `keras.layers.RandomCrop` takes one place for a whole batch.

    Args:
        padding: pixels of zeros on each side; images move by as much at most.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, padding: int, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.padding = padding

    def augment(self, images: Any) -> Any:
        """Returns the images, each moved by whole pixels."""
        offset = self._draw((ops.shape(images)[0], 2), 2 * self.padding + 1)
        offset = offset - self.padding
        y = ops.arange(images.shape[1])[:, None] + offset[:, :1, None]
        x = ops.arange(images.shape[2])[None] + offset[:, 1:, None]
        return _pixels_at(images, y, x, fill=0.0)

    def get_config(self) -> dict:
        """Returns every constructor argument."""
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable(package="experiments")
class Cutout(_Augmentation):
    """Sets a square to zero, with its centre anywhere in the image.

    Near the border only a part of the square is within the image.

    Args:
        size: side of the square, in pixels.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Reference: DeVries and Taylor (2017), arXiv:1708.04552.
    """

    def __init__(self, size: int, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.size = size

    def augment(self, images: Any) -> Any:
        """Returns the images, each without its square."""
        within = []
        for length in images.shape[1:3]:
            first = self._draw((ops.shape(images)[0], 1), length) - self.size // 2
            place = ops.arange(length)
            within.append((place >= first) & (place < first + self.size))
        square = within[0][:, :, None] & within[1][:, None, :]
        return ops.where(square[..., None], 0.0, images)

    def get_config(self) -> dict:
        """Returns every constructor argument."""
        return {**super().get_config(), "size": self.size}


def apply_operations(
    images: Any, operations: list[tuple[str, float]], which: Any, fill: float = 128.0
) -> Any:
    """Returns images, each after the operation that was chosen for it.

    The values are those of Pillow. An operation on colours first cuts off what is less
    than a grey level, as a conversion to uint8 does.

    Args:
        images: float32, (batch, height, width, 1 or 3), 0 to 255.
        operations: pairs of a name and a strength from -1 to 1, of which the sign
            counts in shear, translation, rotation and the enhancements.
        which: int32, (batch,), indices into `operations`.
        fill: grey level of pixels that come from beyond the border.

    Returns:
        images: float32, the shape of `images`. The gradient takes rounding, Posterize
        and Equalize for the identity, so that it is not zero where they are.
    """
    kinds = np.int32([_KINDS.index(name) for name, _ in operations])
    amounts = np.float32([_amount(*x) for x in operations])
    places = np.int32([_fixed_point(*x, *images.shape[1:3]) for x in operations])
    # One movement for all: images whose operation is another one stay in place.
    images = _moved(images, ops.take(places, which, axis=0), fill)
    return _recolored(images, ops.take(kinds, which), ops.take(amounts, which))


def _amount(name: str, strength: float) -> float:
    """Returns what an operation on colours takes, 0 if it takes nothing."""
    if name in _ENHANCEMENTS:
        return 1 + 0.9 * strength  # factor
    if name == "Posterize":
        return 2.0 ** round(4 * abs(strength))  # grey levels that become one
    if name == "Solarize":
        return 256.0 - math.floor(256 * abs(strength))  # first level to invert
    return 0.0


def _fixed_point(name: str, strength: float, height: int, width: int) -> list[int]:
    """Returns (a, b, c, d, e, f) of Pillow: (x, y) is from (ax + by + c, dx + ey + f).

    Translations are of whole pixels, up to 10 on the images of 32 of CIFAR-10.
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
    numbers = a, b, c + (a + b) / 2, d, e, f + (d + e) / 2  # of the centres of pixels
    return [math.floor(_ONE * x + 0.5) for x in numbers]


def _moved(images: Any, places: Any, fill: float) -> Any:
    """Returns images whose pixels come from elsewhere; `places` int32, (batch, 6)."""
    a, b, c, d, e, f = ops.split(places[:, :, None], 6, axis=1)
    y = ops.arange(images.shape[1])[:, None]
    x = ops.arange(images.shape[2])[None]
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    return _pixels_at(
        images, ops.floor_divide(from_y, _ONE), ops.floor_divide(from_x, _ONE), fill
    )


def _pixels_at(images: Any, y: Any, x: Any, fill: float) -> Any:
    """Returns the pixels at (y, x), int32, that broadcast to (batch, height, width).

    By a gather: `keras.ops.image.affine_transform` has no XLA kernel on TensorFlow.
    """
    height, width, channels = images.shape[1:]
    within = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    first = height * width * ops.arange(ops.shape(images)[0])[:, None, None]
    place = first + width * ops.clip(y, 0, height - 1) + ops.clip(x, 0, width - 1)
    pixels = ops.take(ops.reshape(images, (-1, channels)), place, axis=0)
    return ops.where(within[..., None], pixels, fill)


def _recolored(images: Any, kinds: Any, amounts: Any) -> Any:
    """Returns images after the operations on colours; the others change nothing."""
    x = _whole(images)
    amounts = amounts[:, None, None, None]
    gray = x if x.shape[3] == 1 else _whole(ops.sum(x * _LUMA, -1, keepdims=True) + 0.5)
    # An enhancement goes from a degenerate image, at 0, to the image, at 1, and beyond.
    mean = _whole(ops.mean(gray, (1, 2), keepdims=True) + 0.5)
    start = ops.zeros_like(x)
    for name, y in (("Color", gray), ("Contrast", mean), ("Sharpness", _smooth(x))):
        start = ops.where(_is(kinds, name), y, start)
    enhanced = _whole(start + amounts * (x - start))
    step = ops.maximum(amounts, 1.0)  # of Posterize; others may have zero there
    # Half a level more, as TensorFlow may multiply by an approximate 1 / step.
    posterized = step * ops.floor((x + 0.5) / step)
    for names, y in (
        (_ENHANCEMENTS, enhanced),
        (("AutoContrast",), _stretched(x)),
        (("Equalize",), _straight_through(_equalized(x), x)),
        (("Invert",), 255.0 - x),
        (("Solarize",), ops.where(x < amounts, x, 255.0 - x)),
        (("Posterize",), _straight_through(posterized, x)),
    ):
        images = ops.where(_is(kinds, *names), y, images)
    return images


def _is(kinds: Any, *names: str) -> Any:
    """Returns whether the operation is one of those, bool, (batch, 1, 1, 1)."""
    those = np.int32([_KINDS.index(name) for name in names])
    return ops.any(kinds[:, None] == those, axis=1)[:, None, None, None]


def _straight_through(y: Any, x: Any) -> Any:
    """Returns the values of `y`, whole numbers, with the gradient of `x`."""
    return x + ops.stop_gradient(y - x)


def _whole(x: Any) -> Any:
    """Returns grey levels as uint8 has them; the gradient is that of the clipping."""
    x = ops.clip(x, 0.0, 255.0)
    return _straight_through(ops.floor(x), x)


def _smooth(x: Any) -> Any:
    """Returns images smoothed by 3x3 pixels, apart from those at the border."""
    height, width = x.shape[1:3]
    if height < 3 or width < 3:
        return x
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = _whole((box + 4 * x[:, 1:-1, 1:-1]) / 13 + 0.5)
    inner = ops.concatenate([x[:, 1:-1, :1], inner, x[:, 1:-1, -1:]], axis=2)
    return ops.concatenate([x[:, :1], inner, x[:, -1:]], axis=1)


def _stretched(x: Any) -> Any:
    """Returns images whose channels go from 0 to 255, apart from constant ones."""
    low = ops.min(x, axis=(1, 2), keepdims=True)
    span = ops.max(x, axis=(1, 2), keepdims=True) - low
    stretched = _whole(255 * (x - low) / ops.maximum(span, 1.0))
    return ops.where(span > 0, stretched, x)


def _equalized(x: Any) -> Any:
    """Returns images whose channels have as flat a histogram as whole levels allow."""
    batch, channels = ops.shape(x)[0], x.shape[3]
    channel = ops.arange(batch * channels)
    bins = 256 * ops.reshape(channel, (-1, 1, 1, channels)) + ops.cast(x, "int32")
    flat = ops.reshape(bins, (-1,))
    counts = ops.segment_sum(ops.ones_like(flat), flat, 256 * batch * channels)
    counts = ops.reshape(counts, (-1, 256))
    lower = ops.take(ops.reshape(ops.cumsum(counts, axis=1) - counts, (-1,)), bins)
    # All pixels but those of the brightest level, shared out among 255 levels.
    step = ops.floor_divide(ops.max(lower, axis=(1, 2), keepdims=True), 255)
    level = ops.floor_divide(lower + ops.floor_divide(step, 2), ops.maximum(step, 1))
    return ops.where(step > 0, ops.cast(ops.minimum(level, 255), x.dtype), x)
