"""The geometric augmentation as a layer."""

import math
import warnings
from typing import Any

import keras
from keras import ops

from keras_structadv.checks import check_images
from keras_structadv.dct import filter_length_for
from keras_structadv.defaults import default_displacement
from keras_structadv.flow import (
    adversarial_flow,
    check_flow_arguments,
    flow_code,
    flow_code_size,
    flow_from_code,
    longest_displacement,
    random_flow,
)
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.layers.masks_boxes_points import is_mask, move_annotations
from keras_structadv.scaling import is_zero
from keras_structadv.warp import compose_flows, dense_image_warp


@keras.saving.register_keras_serializable(package="keras_structadv")
class AdversarialFlow(StructuredAdversary):
    """Warps images along the smooth flow that raises the loss of a model fastest.

    Bind it to a model, or give it to `AdversarialTraining`. In inference it is the
    identity.

    Args:
        max_displacement: the longest displacement of a flow, in pixels. A number `m`
            draws it for each image from U(0, m), a pair `(low, high)` from
            U(low, high). `None` for U(0, s / 8), where s is the shorter side of the
            images.
        smoothness: gamma of eq. 12, >= 0, in squared pixels. `None` for `(s / 3)**2`.
        alpha: `None` scales each flow to its drawn displacement. A number > 0 gives
            eq. 15 as it stands, scaled only where it is longer than that.
        solver: `"dct"`, `"sparse"` (not with XLA or PyTorch) or `"dense"`; see
            `adversarial_flow`.
        rate: the fraction of the images that is augmented, in [0, 1]. The gradient is
            computed for `ceil(rate * batch)` images only.
        target: `None` to ascend the loss of the true label; `"most_confident_wrong"`
            or `"random"` to descend the loss of a wrong one.
        steps: how often gradient, solve and application are repeated, >= 1. The
            longest displacement bounds the whole flow.
        step_size: the size of each step, > 0, as a fraction of the strength. `None`
            for 1 with one step, 2.5 / steps with several.
        random_start: whether a random flow of the drawn displacement comes first, and
            the gradient is taken there. Fields then differ from epoch to epoch.
        loss: a loss as `model.compile` takes it; `None` for the model's own.
        value_range: the lowest and the highest value of the images.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: format of the `"boxes"` of `"bounding_boxes"`, a name of
            `keras.utils.bounding_boxes` such as `"xyxy"`.
        name: of the layer.
        dtype: as for every Keras layer. Fields are computed in float32.
        **kwargs: further arguments of `keras.layers.Layer`.

    Input shape:
        (height, width, channels) or (batch, height, width, channels), alone,
        or with labels, or with labels and sample weights, or in a dict.

    Output shape:
        as the input.

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
    stateless = True
    measure_name = "mean_displacement"
    moves_pixels = True

    def __init__(
        self,
        max_displacement: float | tuple[float, float] | None = None,
        smoothness: float | None = None,
        alpha: float | None = None,
        solver: str = "dct",
        *,
        rate: float = 0.5,
        target: str | None = None,
        steps: int = 1,
        step_size: float | None = None,
        random_start: bool = False,
        loss: Any = None,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        data_format: str | None = None,
        bounding_box_format: str | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            rate=rate,
            target=target,
            steps=steps,
            step_size=step_size,
            random_start=random_start,
            loss=loss,
            value_range=value_range,
            seed=seed,
            data_format=data_format,
            bounding_box_format=bounding_box_format,
            name=name,
            dtype=dtype,
            **kwargs,
        )
        check_flow_arguments(smoothness, alpha, solver)
        self.max_displacement: float | tuple[float, float] | None = None
        if max_displacement is not None:
            self._set_strength(max_displacement)
        self.smoothness = None if smoothness is None else float(smoothness)
        self.alpha = None if alpha is None else float(alpha)
        self.solver = solver

    def check_unit(self, value: Any, highest: float) -> None:
        """Warns of a displacement that is hardly a motion."""
        if 0 < highest < 0.25:
            warnings.warn(
                f"Received max_displacement={value}. It is in pixels, not a fraction "
                "of the image: nothing moves by a quarter of a pixel. Pass "
                "about an eighth of the shorter side.",
                stacklevel=4 if self.takes_gradient else 5,
            )

    def strength_bounds(self, images: Any) -> tuple[float, float]:
        """Returns the shortest and the longest displacement to draw, in pixels."""
        if self.max_displacement is None:
            check_images(images, images)
            return 0.0, default_displacement(*images.shape[1:3])
        return super().strength_bounds(images)

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """Returns the flow, float32, (batch, height, width, 2), (dy, dx) in pixels."""
        return adversarial_flow(
            images,
            gradients,
            smoothness=self.smoothness,
            max_displacement=strength,
            alpha=self.alpha,
            solver=self.solver,
        )

    def random_field(self, images: Any, strength: Any, **extra: Any) -> Any:
        """Returns random flows of the same smoothness, (batch, height, width, 2)."""
        return random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.noise_generator,
        )

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the flow that moves as `first` and then `second` do."""
        return compose_flows(first, second)

    def apply(self, images: Any, field: Any) -> Any:
        """Returns the images warped along the flow."""
        return dense_image_warp(images, field)

    def move(self, data: dict, field: Any, images: Any) -> dict:
        """Returns masks, boxes and points moved with the images, dtypes kept."""
        return move_annotations(
            data,
            field,
            images,
            layout=self.layout,
            bounding_box_format=self.bounding_box_format,
        )

    def is_mask(self, x: Any, images: Any) -> bool:
        """Returns whether labels or weights belong to pixels and move with them.

        Raises:
            ValueError: if they are images of another size.
        """
        return is_mask(x, images, self.layout)

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of `[d_y, d_x]`, (batch, 2, k, l)."""
        return flow_code(images, gradients, size)

    def code_size(self, images: Any) -> int:
        """Returns the k for which a code of k x k frequencies holds the flow."""
        return flow_code_size(images.shape[1:3], self.smoothness)

    def smoothing_for(self, images: Any, size: int) -> str:
        """Returns the smoothness for which codes of this size are enough."""
        length = filter_length_for(images.shape[1:3], size)
        return f"smoothness={math.ceil(length**2)}"

    def decode(
        self, images: Any, codes: Any, size: int, strength: Any, **extra: Any
    ) -> Any:
        """Returns the flow that a code describes, (batch, height, width, 2), pixels."""
        height, width = images.shape[1:3]
        return flow_from_code(
            ops.reshape(codes, (-1, 2, min(size, height), min(size, width))),
            (height, width),
            smoothness=self.smoothness,
            max_displacement=strength,
        )

    def measure(self, images: Any, changed: Any, field: Any, strength: Any) -> Any:
        """Returns the longest displacement of each flow, float32, (batch,), pixels."""
        if self.alpha is None and self.plan.is_single:
            return ops.where(is_zero(field), 0.0, strength)  # as it was made
        return self.size_of(field)

    def size_of(self, field: Any) -> Any:
        """Returns the longest displacement of each flow, float32, (batch,), pixels."""
        return longest_displacement(field)
