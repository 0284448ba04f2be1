"""The geometric augmentation as a layer."""

import math
from typing import Any

import keras
from keras import ops

from keras_structadv.flow import (
    adversarial_flow,
    check_flow_arguments,
    flow_code,
    flow_from_code,
    longest_displacement,
)
from keras_structadv.layers.base import (
    StructuredAdversary,
    is_zero,
    strength_range,
)
from keras_structadv.warp import compose_flows, dense_image_warp


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
        solver: `"dct"`, `"sparse"` (not with XLA) or `"dense"`; see
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
        low, high = strength_range("max_displacement", max_displacement)
        self._displacement_range = (low, high)
        pair = isinstance(max_displacement, (tuple, list))
        self.max_displacement = (low, high) if pair else high
        self.smoothness = float(smoothness)
        self.alpha = None if alpha is None else float(alpha)
        self.solver = solver

    def draw_strength(self, count: Any) -> Any:
        """Returns the longest displacement of each image, float32, (count,), pixels."""
        low, high = self._displacement_range
        return low + (high - low) * self.draw_uniform(count)

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

    def check_reuse(self) -> None:
        """Raises a `ValueError` where the gradient of training cannot serve."""
        super().check_reuse()
        if self.alpha is not None:
            raise ValueError(
                f"Received a layer with alpha={self.alpha}. Of a reused gradient only "
                'the direction is kept: leave alpha=None, or pass gradient="fresh".'
            )

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of `[d_y, d_x]`, (batch, 2 * size**2)."""
        code = flow_code(images, gradients, size)
        return ops.reshape(code, (-1, math.prod(code.shape[1:])))

    def decode(self, images: Any, codes: Any, size: int, strength: Any) -> Any:
        """Returns the flow that a code describes, (batch, height, width, 2), pixels."""
        height, width = images.shape[1:3]
        return flow_from_code(
            ops.reshape(codes, (-1, 2, min(size, height), min(size, width))),
            (height, width),
            smoothness=self.smoothness,
            max_displacement=strength,
        )

    def measure(self, field: Any, strength: Any) -> Any:
        """Returns the longest displacement of each flow, float32, (batch,), pixels."""
        if self.alpha is None and self.steps == 1:  # it was made to have that length
            return ops.where(is_zero(field), 0.0, strength)
        return longest_displacement(field)

    def get_config(self) -> dict:
        """Returns every constructor argument; the bound model is not one."""
        return {
            **super().get_config(),
            "max_displacement": self.max_displacement,
            "smoothness": self.smoothness,
            "alpha": self.alpha,
            "solver": self.solver,
        }
