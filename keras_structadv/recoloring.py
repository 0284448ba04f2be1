"""From the gradient of the loss to a recolouring that keeps contours."""

import math
from typing import Any

from keras import ops

from keras_structadv.backends import kept_program
from keras_structadv.checks import (
    as_tensor,
    check_count,
    check_images,
    check_number,
    range_pair,
)
from keras_structadv.dct import dct2, enough_frequencies, idct2
from keras_structadv.defaults import damping_of
from keras_structadv.operators import EdgePreserving
from keras_structadv.scaling import limit_of, normalized
from keras_structadv.solvers import project, recoloring_basis, solve_edge_preserving

MEAN_WEIGHT = 0.7
"""The `mean_weight` of the operator of a typical photograph at `coherence=1`."""

# A configuration from elsewhere must not fill the memory or run for ever. No more
# eigenvectors approximate anything; a solve of so many iterations does not converge.
_MOST_RANK, _MOST_ITERATIONS = 1024, 10_000


def adversarial_recoloring(
    images: Any,
    gradients: Any,
    *,
    magnitude: Any = 0.08,
    coherence: float = 1.0,
    damping: float | None = None,
    edge_scale: float = 0.05,
    lam: float | None = None,
    rank: int | None = None,
    rtol: float = 0.1,
    max_iterations: int = 50,
    value_range: tuple[float, float] = (0, 255),
) -> Any:
    """Computes the recolouring that raises the loss fastest and keeps contours.

    Args:
        images: float, (batch, height, width, channels), in `value_range`.
        gradients: float, the shape of `images`: the gradients of a loss to raise, as
            from `per_image_gradients`. A gradient that is zero or not finite gives a
            zero perturbation.
        magnitude: root mean square of the perturbation, >= 0, as a fraction of the
            value range; a number, or one for each image, (batch,).
        coherence: weight of the term that couples neighbours with no edge between them,
            >= 0. Zero is the paper's own operator, damped; its perturbations are noise.
        damping: > 0; smaller values give a more uniform change of the whole image.
            `None` for `10 / s**2`, where s is the shorter side of the images.
        edge_scale: the edginess, > 0, as a fraction of the value range, at which this
            coupling is one half.
        lam: `None` scales each perturbation to `magnitude`. A number > 0 gives eq. 33
            for images scaled to [0, 1]; only perturbations that exceed `magnitude` are
            scaled down.
        rank: `None` for the whole operator; k for its k eigenvectors with the smallest
            eigenvalues, 1 <= k <= height * width * channels. The first ones, one for
            each channel, are constants: pass more.
        rtol: the solve of an image stops when an iteration adds less than this share,
            in the energy norm. At 0.1 the relative error is up to 0.35, and the
            direction within 20 degrees of the exact one (mostly within 5 to 12). At
            `coherence=0`, where `max_iterations` ends the solve, the error is up to 0.8
            and the direction within 50 degrees.
        max_iterations: upper bound of the iterations, >= 1, for all images.
        value_range: the lowest and the highest value of the images.

    Returns:
        perturbation: float32, the shape of `images`, to add to them. The sum may leave
        `value_range`.

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of range.

    Example:
    >>> import numpy as np
    >>> images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    >>> perturbation = adversarial_recoloring(images, images - 127, magnitude=0.1)
    >>> size = np.sqrt(np.mean(np.square(perturbation), axis=(1, 2, 3)))
    >>> size.round(3).tolist()
    [25.5, 25.5]

    Reference: Luo, Mobahi, Bengio (2020), eq. 33, with the terms that make its operator
        invertible; see `EdgePreserving`.
    """
    images = as_tensor("images", images, "float32")
    gradients = as_tensor("gradients", gradients, "float32")
    check_images(images, gradients)
    check_recoloring_arguments(
        coherence, damping, edge_scale, lam, rank, rtol, max_iterations
    )
    value_range = range_pair("value_range", value_range)
    images = scaled_to_unit(images, value_range)
    # An image gets no perturbation if a pixel is not finite, or its square overflows.
    usable = ops.all(ops.abs(images) < 1e15, axis=(1, 2, 3), keepdims=True)
    images, gradients = (ops.where(usable, x, 0.0) for x in (images, gradients))
    form = {
        "coherence": float(coherence),
        "damping": None if damping is None else float(damping),
        "edge_scale": float(edge_scale),
    }
    if rank is not None:
        basis = _basis(images, rank=int(rank), **form)
        return recoloring_from_basis(
            gradients, basis, magnitude=magnitude, lam=lam, value_range=value_range
        )
    rhs, peak = normalized(gradients)
    solution = _solution(
        images, rhs, rtol=float(rtol), max_iterations=int(max_iterations), **form
    )
    return _limited(solution, peak, magnitude, lam, value_range)


@kept_program("rank", "coherence", "damping", "edge_scale")
def _basis(images: Any, *, rank: int, **form: float) -> Any:
    return recoloring_basis(EdgePreserving(images, **form), rank)


@kept_program("rtol", "max_iterations", "coherence", "damping", "edge_scale")
def _solution(
    images: Any, rhs: Any, *, rtol: float, max_iterations: int, **form: float
) -> Any:
    operator = EdgePreserving(images, **form)
    return solve_edge_preserving(
        operator, rhs, rtol=rtol, max_iterations=max_iterations
    )[0]


def recoloring_from_basis(
    gradients: Any,
    basis: Any,
    *,
    magnitude: Any = 0.08,
    lam: float | None = None,
    value_range: tuple[float, float] = (0, 255),
) -> Any:
    """Returns the perturbation for a precomputed basis.

    Args:
        gradients: as in `adversarial_recoloring`.
        basis: float, (batch, height, width, channels, k).
        magnitude: as in `adversarial_recoloring`.
        lam: as in `adversarial_recoloring`.
        value_range: as in `adversarial_recoloring`.

    Returns:
        perturbation: float32, the shape of `gradients`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    value_range = range_pair("value_range", value_range)
    rhs, peak = normalized(as_tensor("gradients", gradients, "float32"))
    return _limited(project(rhs, basis), peak, magnitude, lam, value_range)


def recoloring_code(gradients: Any, size: int) -> Any:
    """Compresses a gradient to the lowest frequencies of each channel.

    Args:
        gradients: float32, (batch, height, width, channels).
        size: k, the number of frequencies to keep along each axis.

    Returns:
        code: float32, (batch, channels, min(k, height), min(k, width)), in [-1, 1];
        zero for a gradient that is zero or not finite.
    """
    planes = ops.transpose(gradients, (0, 3, 1, 2))
    return normalized(dct2(planes, size))[0]


def recoloring_code_size(
    shape: tuple[int, int], coherence: float, damping: float | None
) -> int:
    """Returns the `size` of `recoloring_code` that a recolouring needs.

    See `enough_frequencies`. Edges weaken the filter, so that codes hold less than of
    flows: of white noise, a cosine of 0.88 to 0.96.

    Args:
        shape: height and width of the images.
        coherence: as in `adversarial_recoloring`.
        damping: as in `adversarial_recoloring`.
    """
    squared = MEAN_WEIGHT * coherence / damping_of(damping, *shape)
    return enough_frequencies(shape, math.sqrt(squared))


def gradient_from_code(code: Any, shape: tuple[int, int]) -> Any:
    """Returns the gradient in a code, up to a positive factor.

    Args:
        code: float32, (batch, channels, k, l), from `recoloring_code`.
        shape: height and width of the images.

    Returns:
        float32, (batch, height, width, channels).
    """
    return ops.transpose(idct2(code, shape), (0, 2, 3, 1))


def root_mean_square(perturbation: Any, value_range: tuple[float, float]) -> Any:
    """Returns the root mean square of each perturbation, as a fraction of the range.

    Args:
        perturbation: float32, (batch, height, width, channels).
        value_range: the lowest and the highest value of the images.

    Returns:
        float32, (batch,).
    """
    size = ops.sqrt(ops.mean(ops.square(perturbation), axis=(1, 2, 3)))
    return size / (value_range[1] - value_range[0])


def check_recoloring_arguments(
    coherence: float,
    damping: float | None,
    edge_scale: float,
    lam: float | None,
    rank: int | None,
    rtol: float,
    max_iterations: int,
) -> None:
    """Raises unless the arguments of `adversarial_recoloring` are in range.

    Raises:
        ValueError: if one is not; it names the argument.
    """
    check_number("coherence", coherence)
    if damping is not None:
        advice = ", or None for the default of the size"
        check_number("damping", damping, positive=True, advice=advice)
    check_number("edge_scale", edge_scale, positive=True)
    if lam is not None:
        advice = ", or None to scale each perturbation to `magnitude`"
        check_number("lam", lam, positive=True, advice=advice)
    if rank is not None:
        check_count("rank", rank, most=_MOST_RANK)
    check_count("max_iterations", max_iterations, most=_MOST_ITERATIONS)
    check_number("rtol", rtol)


def scaled_to_unit(images: Any, value_range: tuple[float, float]) -> Any:
    """Maps `value_range` to [0, 1]."""
    low, high = value_range
    return (images - low) / (high - low)


def _limited(
    solution: Any,
    peak: Any,
    magnitude: Any,
    lam: float | None,
    value_range: tuple[float, float],
) -> Any:
    """Scales the solution for a gradient divided by its peak to a perturbation."""
    span = value_range[1] - value_range[0]
    solution, largest = normalized(solution)
    size = ops.sqrt(ops.mean(ops.square(solution), axis=(1, 2, 3), keepdims=True))
    limit = limit_of("magnitude", magnitude, solution, "as a fraction of value_range")
    scale = ops.divide_no_nan(limit * span, size)
    if lam is not None:
        # Images scaled to [0, 1] have gradients larger by the span.
        steepness = largest * peak
        scale = ops.where(
            steepness > 0, ops.minimum(scale, steepness * (span**2 / float(lam))), 0.0
        )
    return solution * scale
