"""The photometric augmentation as a layer."""

import warnings
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import shared
from keras_structadv.dct import filter_length_for
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.recoloring import (
    MEAN_WEIGHT,
    adversarial_recoloring,
    check_recoloring_arguments,
    gradient_from_code,
    recoloring_code,
    recoloring_code_size,
    recoloring_from_basis,
    root_mean_square,
)
from keras_structadv.scaling import is_zero


@keras.saving.register_keras_serializable(package="keras_structadv")
class AdversarialRecoloring(StructuredAdversary):
    """Recolours images, contours kept, as it raises the loss of a model fastest.

    Bind it to a model, or give it to `AdversarialTraining`. In inference it is the
    identity. The result is clipped to `value_range`.

    Args:
        magnitude: root mean square of the perturbation, as a fraction of the value
            range. A number `m` draws it for each image from U(0, m), a pair
            `(low, high)` from U(low, high).
        coherence: weight of the term that ties neighbours with no edge between them,
            >= 0. Zero is the paper's own operator, damped; its perturbations are noise.
        damping: > 0; the smaller, the more of the change is common to the whole image.
            `None` for `10 / s**2`, where s is the shorter side of the images.
        edge_scale: the edginess, > 0, in units of the value range, at which neighbours
            are tied by half.
        lam: `None` scales each perturbation to its drawn magnitude. A number > 0 gives
            eq. 33 as it stands, scaled only where it is larger than that.
        rank: `None` for the whole operator, which is faster; k for its k eigenvectors
            with the smallest eigenvalues only. They can be computed once and given with
            the images: see `precompute_basis`.
        rtol: as in `adversarial_recoloring`.
        max_iterations: upper bound of the iterations, for all images.
        rate: the fraction of the images that is augmented, in [0, 1]. The gradient is
            computed for `ceil(rate * batch)` images only.
        target: `None` to ascend the loss of the true label; `"most_confident_wrong"`
            or `"random"` to descend the loss of a wrong one.
        steps: how often gradient, solve and application are repeated, >= 1. The
            magnitude bounds the whole perturbation.
        step_size: the size of each step, > 0, as a fraction of the strength. `None`
            for 1 with one step, 2.5 / steps with several.
        random_start: whether a random recolouring of the drawn magnitude comes first,
            and the gradient is taken there. Fields then differ from epoch to epoch.
        loss: a loss as `model.compile` takes it; `None` for the model's own.
        value_range: the lowest and the highest value of the images: `(0, 1)` for
            images scaled to [0, 1]. Magnitudes are fractions of it.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: accepted for uniformity; a recolouring moves nothing.
        name: of the layer.
        dtype: as for every Keras layer. Fields are computed in float32.
        **kwargs: further arguments of `keras.layers.Layer`.

    Input shape:
        (height, width, channels) or (batch, height, width, channels), alone,
        or with labels, or with labels and sample weights, or in a dict. There, the key
        `"basis"`, (height, width, channels, k) for each image, replaces the solve.

    Output shape:
        as the input.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    ... )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(loss=loss)
    >>> recolor = AdversarialRecoloring(rate=1.0, seed=0).bind(model)
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    >>> recolored, labels = recolor(images, np.array([0, 1, 2, 0]))
    >>> tuple(recolored.shape)
    (4, 8, 8, 3)

    Reference: Luo, Mobahi, Bengio (2020), section 5.
    """

    strength_name = "magnitude"
    scale_name = "lam"
    stateless = True
    measure_name = "mean_magnitude"
    moves_pixels = False
    uses_value_range = True
    extra_keys = ("basis",)

    def __init__(
        self,
        magnitude: float | tuple[float, float] = 0.1,
        coherence: float = 1.0,
        damping: float | None = None,
        edge_scale: float = 0.05,
        lam: float | None = None,
        rank: int | None = None,
        rtol: float = 0.1,
        max_iterations: int = 50,
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
        check_recoloring_arguments(
            coherence, damping, edge_scale, lam, rank, rtol, max_iterations
        )
        self._set_strength(magnitude)
        self.coherence = float(coherence)
        self.damping = None if damping is None else float(damping)
        self.edge_scale = float(edge_scale)
        self.lam = None if lam is None else float(lam)
        self.rank = None if rank is None else int(rank)
        self.rtol = float(rtol)
        self.max_iterations = int(max_iterations)

    def check_unit(self, value: Any, highest: float) -> None:
        """Warns of a magnitude that seems to be in the units of the images."""
        if highest > 1:
            low, high = self.value_range
            warnings.warn(
                f"Received magnitude={value}. It is a fraction of value_range "
                f"{self.value_range}. Divide a change in the units of the images by "
                f"{high - low:g}.",
                stacklevel=4 if self.takes_gradient else 5,
            )

    def make_field(
        self,
        images: Any,
        gradients: Any,
        strength: Any,
        basis: Any = None,
        **extra: Any,
    ) -> Any:
        """Returns the perturbation, float32, the shape of the images."""
        return self._solve(images, gradients, strength, basis, self.lam)

    def random_field(
        self, images: Any, strength: Any, basis: Any = None, **extra: Any
    ) -> Any:
        """Returns the perturbations that noise makes in the place of a gradient."""
        noise = keras.random.normal(ops.shape(images), seed=self.noise_generator)
        return self._solve(images, noise, strength, basis, None)

    def _solve(
        self,
        images: Any,
        gradients: Any,
        strength: Any,
        basis: Any,
        lam: float | None,
    ) -> Any:
        if basis is not None:
            solve = shared(_from_basis, lam=lam, value_range=self.value_range)
            return solve(gradients, strength, basis)
        solve = shared(
            _solved,
            coherence=self.coherence,
            damping=self.damping,
            edge_scale=self.edge_scale,
            lam=lam,
            rank=self.rank,
            rtol=self.rtol,
            max_iterations=self.max_iterations,
            value_range=self.value_range,
        )
        return solve(images, gradients, strength)

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the sum of two perturbations."""
        return first + second

    def apply(self, images: Any, field: Any) -> Any:
        """Returns the images with the perturbation added, clipped to `value_range`."""
        return ops.clip(ops.add(images, field), *self.value_range)

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of the gradient, (batch, channels, k, l)."""
        return recoloring_code(gradients, size)

    def code_size(self, images: Any) -> int:
        """Returns the k for which a code of k x k frequencies holds the recolouring."""
        return recoloring_code_size(images.shape[1:3], self.coherence, self.damping)

    def smoothing_for(self, images: Any, size: int) -> str:
        """Returns the damping for which codes of this size are enough."""
        if self.coherence == 0:
            return "coherence=1.0"
        length = filter_length_for(images.shape[1:3], size)
        return f"damping={MEAN_WEIGHT * self.coherence / length**2:.1e}"

    def decode(
        self,
        images: Any,
        codes: Any,
        size: int,
        strength: Any,
        basis: Any = None,
        **extra: Any,
    ) -> Any:
        """Returns the perturbation that a code describes, the shape of the images."""
        height, width, channels = images.shape[1:]
        shape = (-1, channels, min(size, height), min(size, width))
        gradients = gradient_from_code(ops.reshape(codes, shape), (height, width))
        return self.make_field(images, gradients, strength, basis)

    def measure(self, images: Any, changed: Any, field: Any, strength: Any) -> Any:
        """Returns the size of each change after clipping, as `size_of` a field."""
        change = root_mean_square(changed - images, self.value_range)
        return ops.where(is_zero(field), 0.0, change)  # images may not be finite

    def size_of(self, field: Any) -> Any:
        """Returns the root mean square of each perturbation over the value range."""
        return root_mean_square(field, self.value_range)


def _solved(images: Any, gradients: Any, strength: Any, **settings: Any) -> Any:
    return adversarial_recoloring(images, gradients, magnitude=strength, **settings)


def _from_basis(gradients: Any, strength: Any, basis: Any, **settings: Any) -> Any:
    return recoloring_from_basis(gradients, basis, magnitude=strength, **settings)
