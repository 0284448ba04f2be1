"""The geometric augmentation by random flows, as a layer."""

from typing import Any

import keras

from keras_structadv.layers.adversarial_flow import AdversarialFlow
from keras_structadv.layers.base import OF_GRADIENTS


@keras.saving.register_keras_serializable(package="keras_structadv")
class RandomFlow(AdversarialFlow):
    """Warps images along random flows of the smoothness of an `AdversarialFlow`.

    White noise takes the place of the gradient, so that the layer needs no model. It is
    an augmentation in its own right and the control for adversarial flows: with the
    same seed and rate it chooses the same images and displacements. In inference it is
    the identity.

    Args:
        max_displacement: the longest displacement of a flow, in pixels. A number `m`
            draws it for each image from U(0, m), a pair `(low, high)` from
            U(low, high). `None` for U(0, s / 8), where s is the shorter side of the
            images.
        smoothness: gamma of eq. 12, >= 0, in squared pixels. `None` for `(s / 3)**2`.
        rate: the fraction of the images that is augmented, in [0, 1].
        value_range: accepted for uniformity; a flow keeps the values.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: format of the `"boxes"` of `"bounding_boxes"`, a name of
            `keras.utils.bounding_boxes` such as `"xyxy"`.
        name: of the layer.
        dtype: as for every Keras layer. Fields are computed in float32.
        **kwargs: further arguments of `keras.layers.Layer`.

    Input shape:
        as for `AdversarialFlow`; masks, boxes and points move along.

    Output shape:
        as the input.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1))
    >>> warped = RandomFlow(max_displacement=2.0, rate=1.0, seed=0)(images)
    >>> tuple(warped.shape)
    (4, 8, 8, 1)

    Reference: Luo, Mobahi, Bengio (2020), eq. 15, with noise as right-hand side.
    """

    takes_gradient = False
    fixed_arguments = (*OF_GRADIENTS, "alpha", "solver")

    def __init__(
        self,
        max_displacement: float | tuple[float, float] | None = None,
        smoothness: float | None = None,
        *,
        rate: float = 0.5,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        data_format: str | None = None,
        bounding_box_format: str | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        self._check_names(kwargs)
        super().__init__(
            max_displacement,
            smoothness,
            rate=rate,
            value_range=value_range,
            seed=seed,
            data_format=data_format,
            bounding_box_format=bounding_box_format,
            name=name,
            dtype=dtype,
            **kwargs,
        )

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """Returns a random flow, float32, (batch, height, width, 2), in pixels."""
        return self.random_field(images, strength)
