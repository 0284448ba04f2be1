"""The photometric augmentation by random perturbations, as a layer."""

from typing import Any

import keras

from keras_structadv.layers.adversarial_recoloring import AdversarialRecoloring
from keras_structadv.layers.base import OF_GRADIENTS


@keras.saving.register_keras_serializable(package="keras_structadv")
class RandomRecoloring(AdversarialRecoloring):
    """Recolours images at random, contours kept as by an `AdversarialRecoloring`.

    White noise takes the place of the gradient, so that the layer needs no model. It is
    an augmentation in its own right and the control for adversarial recolourings: with
    the same seed and rate it chooses the same images and magnitudes. In inference it is
    the identity. The result is clipped to `value_range`.

    Args:
        magnitude: root mean square of the perturbation, as a fraction of the value
            range. A number `m` draws it for each image from U(0, m), a pair
            `(low, high)` from U(low, high).
        coherence: as in `AdversarialRecoloring`.
        damping: as in `AdversarialRecoloring`.
        edge_scale: as in `AdversarialRecoloring`.
        rtol: as in `AdversarialRecoloring`.
        max_iterations: as in `AdversarialRecoloring`.
        rate: the fraction of the images that is augmented, in [0, 1].
        value_range: the lowest and the highest value of the images.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: accepted for uniformity; a recolouring moves nothing.
        name: of the layer.
        dtype: as for every Keras layer. Fields are computed in float32.
        **kwargs: further arguments of `keras.layers.Layer`.

    Input shape:
        as for `AdversarialRecoloring`.

    Output shape:
        as the input.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    >>> recolored = RandomRecoloring(rate=1.0, seed=0)(images)
    >>> tuple(recolored.shape)
    (4, 8, 8, 3)

    Reference: Luo, Mobahi, Bengio (2020), eq. 33, with noise as right-hand side.
    """

    takes_gradient = False
    fixed_arguments = (*OF_GRADIENTS, "lam", "rank")

    def __init__(
        self,
        magnitude: float | tuple[float, float] = 0.1,
        coherence: float = 1.0,
        damping: float | None = None,
        edge_scale: float = 0.05,
        *,
        rtol: float = 0.1,
        max_iterations: int = 50,
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
            magnitude,
            coherence,
            damping,
            edge_scale,
            rtol=rtol,
            max_iterations=max_iterations,
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
        self,
        images: Any,
        gradients: Any,
        strength: Any,
        basis: Any = None,
        **extra: Any,
    ) -> Any:
        """Returns the perturbation that noise makes in the place of a gradient."""
        return self.random_field(images, strength, basis)
