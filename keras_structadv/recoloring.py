"""From the gradient of the loss to an adversarial recolouring that keeps contours."""

from typing import Any

from keras import ops

from keras_structadv.backends import kept_program
from keras_structadv.checks import (
    check_count,
    check_images,
    check_number,
    range_pair,
)
from keras_structadv.dct import dct2, idct2
from keras_structadv.operators import EdgePreserving
from keras_structadv.scaling import limit_of, normalized
from keras_structadv.solvers import project, recoloring_basis, solve_edge_preserving


def adversarial_recoloring(
    images: Any,
    gradients: Any,
    *,
    magnitude: Any = 0.08,
    coherence: float = 1.0,
    damping: float = 1e-3,
    edge_scale: float = 0.05,
    lam: float | None = None,
    rank: int | None = None,
    rtol: float = 0.1,
    max_iterations: int = 50,
    value_range: tuple[float, float] = (0, 255),
) -> Any:
    """Returns the change of colours, contours kept, that raises the loss fastest.

    Args:
        images: float, (batch, height, width, channels), in `value_range`.
        gradients: float, the shape of `images`: the direction in which the loss
            rises, as `per_image_gradients` gives it. An image whose gradient is zero
            or not finite gets a zero perturbation.
        magnitude: root mean square of the perturbation, >= 0, as a fraction of the
            value range; a number, or one for each image, (batch,).
        coherence: weight of the term that ties neighbours with no edge between them,
            >= 0. Zero is the paper's own operator, damped; its perturbations are noise.
        damping: > 0; the smaller, the more of the change is common to the whole image.
        edge_scale: the edginess, > 0, in units of the value range, at which neighbours
            are tied by half.
        lam: `None` scales each perturbation to `magnitude`. A number > 0 gives eq. 33
            as it stands, for images scaled to [0, 1]; only a perturbation that is
            larger than `magnitude` is scaled, down to it.
        rank: `None` for the whole operator; k for its k eigenvectors with the smallest
            eigenvalues only, 1 <= k <= height * width * channels. The first of them,
            as many as there are channels, are the constants, in no order: pass more.
        rtol: relative error, in the energy norm, at which the solve of an image stops.
            0.1 gives a direction within about 5 degrees of the exact one.
        max_iterations: upper bound of the iterations, >= 1, for all images.
        value_range: the lowest and the highest value of the images.

    Returns:
        perturbation: float32, the shape of `images`, to be added to them. The sum is
        not clipped to `value_range`.

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of its range.

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
    images = ops.convert_to_tensor(images, "float32")
    gradients = ops.convert_to_tensor(gradients, "float32")
    check_images(images, gradients)
    check_recoloring_arguments(
        coherence, damping, edge_scale, lam, rank, rtol, max_iterations
    )
    value_range = range_pair("value_range", value_range)
    # Of an image with a pixel that is not a number nothing can be said.
    finite = ops.all(ops.isfinite(images), axis=(1, 2, 3), keepdims=True)
    images, gradients = (ops.where(finite, x, 0.0) for x in (images, gradients))
    images = scaled_to_unit(images, value_range)
    form = {
        "coherence": float(coherence),
        "damping": float(damping),
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
    """Returns the perturbation for a basis that was computed before.

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
    rhs, peak = normalized(ops.convert_to_tensor(gradients, "float32"))
    return _limited(project(rhs, basis), peak, magnitude, lam, value_range)


def recoloring_code(gradients: Any, size: int) -> Any:
    """Returns the lowest frequencies of each channel of a gradient.

    Args:
        gradients: float32, (batch, height, width, channels).
        size: k, the number of frequencies along each axis, at most those there are.

    Returns:
        float32, (batch, channels, min(k, height), min(k, width)), in [-1, 1]; zero
        where the gradient is zero or not finite.
    """
    planes = ops.transpose(gradients, (0, 3, 1, 2))
    return normalized(dct2(planes, size))[0]


def gradient_from_code(code: Any, shape: tuple[int, int]) -> Any:
    """Returns the gradient that a code describes, but for its size.

    Args:
        code: float32, (batch, channels, k, l), as `recoloring_code` gives it.
        shape: height and width of the images.

    Returns:
        float32, (batch, height, width, channels).
    """
    return ops.transpose(idct2(code, shape), (0, 2, 3, 1))


def root_mean_square(perturbation: Any, value_range: tuple[float, float]) -> Any:
    """Returns the size of each perturbation as a fraction of the value range.

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
    damping: float,
    edge_scale: float,
    lam: float | None,
    rank: int | None,
    rtol: float,
    max_iterations: int,
) -> None:
    """Raises a `ValueError` that names the argument that is out of its range."""
    check_number("coherence", coherence)
    check_number("damping", damping, positive=True)
    check_number("edge_scale", edge_scale, positive=True)
    if lam is not None:
        advice = ", or None to scale each perturbation to `magnitude`"
        check_number("lam", lam, positive=True, advice=advice)
    if rank is not None:
        check_count("rank", rank)
    check_count("max_iterations", max_iterations)
    check_number("rtol", rtol)


def scaled_to_unit(images: Any, value_range: tuple[float, float]) -> Any:
    """Returns images with `value_range` mapped to [0, 1]."""
    low, high = value_range
    return (images - low) / (high - low)


def _limited(
    solution: Any,
    peak: Any,
    magnitude: Any,
    lam: float | None,
    value_range: tuple[float, float],
) -> Any:
    """Returns the perturbation of a solution for the gradient over its peak."""
    span = value_range[1] - value_range[0]
    solution, largest = normalized(solution)
    size = ops.sqrt(ops.mean(ops.square(solution), axis=(1, 2, 3), keepdims=True))
    limit = limit_of("magnitude", magnitude, solution, "as a fraction of value_range")
    scale = ops.divide_no_nan(limit * span, size)
    if lam is not None:
        # The gradient of an image scaled to [0, 1] is that of the image times the span.
        scale = ops.where(
            peak > 0, ops.minimum(scale, largest * peak * (span**2 / lam)), 0.0
        )
    return solution * scale
