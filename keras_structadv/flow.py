"""From the gradient of the loss to a smooth adversarial flow."""

import math
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import largest
from keras_structadv.checks import as_tensor, check_images, check_number, is_one_of
from keras_structadv.dct import (
    dct2,
    enough_frequencies,
    idct2,
    laplacian_eigenvalues,
)
from keras_structadv.defaults import default_displacement, smoothness_of
from keras_structadv.differences import central_difference, forward_difference
from keras_structadv.operators import ScreenedPoisson
from keras_structadv.scaling import limit_of, normalized
from keras_structadv.solvers import SOLVERS


def adversarial_flow(
    images: Any,
    gradients: Any,
    *,
    smoothness: float | None = None,
    max_displacement: Any = None,
    alpha: float | None = None,
    solver: str = "dct",
) -> Any:
    """Computes the smooth motion of the pixels that raises the loss fastest.

    Args:
        images: float, (batch, height, width, channels), in any range.
        gradients: float, the shape of `images`: the gradients of a loss to raise, as
            from `per_image_gradients`. A gradient that is zero or not finite gives a
            zero flow.
        smoothness: gamma of eq. 12, >= 0, in squared pixels. `None` for `(s / 3)**2`,
            where s is the shorter side of the images.
        max_displacement: length of the longest displacement, >= 0, in pixels; a
            number, or one for each image, (batch,). `None` for `s / 16`.
        alpha: `None` scales each flow to `max_displacement`. A number > 0 gives the
            flow of eq. 15; only flows that exceed `max_displacement` are scaled down.
        solver: `"dct"`, exact and without a stored matrix; `"sparse"`, conjugate
            gradients on a sparse matrix, not for XLA or PyTorch; or `"dense"`, the
            explicit inverse of the paper's Algorithm 1, up to 1 GiB.

    Returns:
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels, the forward
        motion: `warped[y, x] = image[y - dy, x - dx]`.

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of range.

    Example:
    >>> import numpy as np
    >>> images = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
    >>> flow = adversarial_flow(images, images - 0.5, max_displacement=1.5)
    >>> longest = np.sqrt(np.max(np.sum(np.square(flow), axis=-1), axis=(1, 2)))
    >>> longest.round(5).tolist()
    [1.5, 1.5]

    Reference: Luo, Mobahi, Bengio (2020), eq. 15 and Algorithm 1.
    """
    images = as_tensor("images", images, "float32")
    gradients = as_tensor("gradients", gradients, "float32")
    check_images(images, gradients)
    return flow_from_rhs(
        flow_rhs(images, gradients),
        smoothness=smoothness,
        max_displacement=max_displacement,
        alpha=alpha,
        solver=solver,
    )


def flow_rhs(images: Any, gradients: Any) -> Any:
    """Returns the right-hand side `[d_y, d_x]` of eq. 15.

    Args:
        images: float32, (batch, height, width, channels).
        gradients: float32, the shape of `images`.

    Returns:
        float32, (batch, 2, height, width).

    Reference: Luo, Mobahi, Bengio (2020), eq. 8 and 9.
    """
    dy = ops.sum(gradients * central_difference(images, 1), axis=-1)
    dx = ops.sum(gradients * central_difference(images, 2), axis=-1)
    return ops.stack([dy, dx], axis=1)


def flow_from_rhs(
    rhs: Any,
    *,
    smoothness: float | None = None,
    max_displacement: Any = None,
    alpha: float | None = None,
    solver: str = "dct",
) -> Any:
    """Returns the flow of eq. 15 for a right-hand side.

    Args:
        rhs: float32, (batch, 2, height, width), from `flow_rhs`.
        smoothness: as in `adversarial_flow`.
        max_displacement: as in `adversarial_flow`.
        alpha: as in `adversarial_flow`.
        solver: as in `adversarial_flow`.

    Returns:
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_flow_arguments(smoothness, alpha, solver)
    height, width = rhs.shape[2:]
    smoothness = smoothness_of(smoothness, height, width)
    rhs, peak = normalized(rhs)
    rhs = ops.reshape(rhs, (-1, height, width))
    solution = SOLVERS[solver](ScreenedPoisson(height, width, smoothness), rhs)
    flow = -ops.reshape(solution, (-1, 2, height, width))
    return _limited(
        flow, max_displacement, None if alpha is None else peak / float(alpha)
    )


def flow_code(images: Any, gradients: Any, size: int) -> Any:
    """Compresses a gradient to the lowest frequencies of its right-hand side.

    The solve damps all higher frequencies, so `flow_from_code` gives nearly the flow of
    the whole gradient.

    Args:
        images: float32, (batch, height, width, channels).
        gradients: float32, the shape of `images`.
        size: k, the number of frequencies to keep along each axis.

    Returns:
        code: float32, (batch, 2, min(k, height), min(k, width)), in [-1, 1]; zero for a
        gradient that is zero or not finite.
    """
    coefficients, _ = normalized(dct2(flow_rhs(images, gradients), size))
    return coefficients


def flow_code_size(shape: tuple[int, int], smoothness: float | None) -> int:
    """Returns the `size` of `flow_code` that a flow needs; see `enough_frequencies`.

    Args:
        shape: height and width of the images.
        smoothness: as in `adversarial_flow`.
    """
    return enough_frequencies(shape, math.sqrt(smoothness_of(smoothness, *shape)))


def flow_from_code(
    code: Any,
    shape: tuple[int, int],
    *,
    smoothness: float | None = None,
    max_displacement: Any = None,
) -> Any:
    """Returns the flow of eq. 15 for the right-hand side in a code.

    Args:
        code: float32, (batch, 2, k, l), from `flow_code`.
        shape: height and width of the images.
        smoothness: as in `adversarial_flow`.
        max_displacement: as in `adversarial_flow`.

    Returns:
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.
    """
    rows, columns = code.shape[2:]
    eigenvalues = laplacian_eigenvalues(*shape)[:rows, :columns]
    smoothing = 1.0 + smoothness_of(smoothness, *shape) * eigenvalues
    flow = -idct2(ops.divide(code, smoothing), shape)
    return _limited(flow, max_displacement)


def longest_displacement(flow: Any) -> Any:
    """Returns the length of the longest displacement of each flow, in pixels.

    Args:
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.

    Returns:
        float32, (batch,).
    """
    return ops.sqrt(largest(ops.sum(ops.square(flow), axis=-1), axis=(1, 2)))


def random_flow(
    images: Any,
    *,
    smoothness: float | None = None,
    max_displacement: Any = None,
    seed: Any = None,
) -> Any:
    """Draws a random flow with the smoothness and size of an adversarial one.

    It solves eq. 15 for white noise, of which it draws the frequencies that the solve
    leaves. It is the control for claims about adversarial flows.

    Args:
        images: (batch, height, width, channels); only the shape is used.
        smoothness: as in `adversarial_flow`.
        max_displacement: as in `adversarial_flow`.
        seed: integer, `keras.random.SeedGenerator` or `None`.

    Returns:
        flow: float32, (batch, height, width, 2), (dy, dx) in pixels.

    Raises:
        ValueError: if the images are no batch, or an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> flow = random_flow(np.zeros((2, 8, 8, 1)), max_displacement=1.5, seed=0)
    >>> np.round(longest_displacement(flow), 5).tolist()
    [1.5, 1.5]

    Reference: Luo, Mobahi, Bengio (2020), eq. 15, with noise as right-hand side.
    """
    images = ops.convert_to_tensor(images)
    check_images(images, images)
    check_flow_arguments(smoothness, None, "dct")
    shape = images.shape[1:3]
    # Cosines are orthonormal, so that the noise is white in their basis too.
    rows, columns = (min(side, 2 * flow_code_size(shape, smoothness)) for side in shape)
    noise = keras.random.normal((ops.shape(images)[0], 2, rows, columns), seed=seed)
    return flow_from_code(
        noise, shape, smoothness=smoothness, max_displacement=max_displacement
    )


def folded_fraction(flow: Any) -> Any:
    """Returns the fraction of the pixels at which the flow folds the image.

    At a fold, the Jacobian determinant of `(y, x) -> (y - dy, x - dx)` is not positive,
    and the warped image repeats some content.

    Args:
        flow: float, (batch, height, width, 2), (dy, dx) in pixels.

    Returns:
        float32, (batch,), in [0, 1].
    """
    flow = ops.convert_to_tensor(flow, "float32")
    along_y = forward_difference(flow, 1)
    along_x = forward_difference(flow, 2)
    determinant = (1 - along_y[..., 0]) * (1 - along_x[..., 1]) - (
        along_x[..., 0] * along_y[..., 1]
    )
    return ops.mean(ops.cast(determinant <= 0, "float32"), axis=(1, 2))


def check_flow_arguments(
    smoothness: float | None, alpha: float | None, solver: str
) -> None:
    """Raises unless the arguments of `adversarial_flow` are in range.

    Raises:
        ValueError: if one is not; it names the argument.
    """
    if smoothness is not None:
        advice = ", in squared pixels, or None for the default of the size"
        check_number("smoothness", smoothness, advice=advice)
    if alpha is not None:
        advice = ", or None to scale each flow to `max_displacement`"
        check_number("alpha", alpha, positive=True, advice=advice)
    if not is_one_of(solver, SOLVERS):
        raise ValueError(f"Received solver={solver!r}. Pass one of {list(SOLVERS)}.")


def _limited(flow: Any, max_displacement: Any, scale: Any = None) -> Any:
    """Scales (batch, 2, height, width) to its longest displacement; moves axis 1 last.

    With a `scale`, multiplies by it, and by less where the flow would be too long.
    `None` for the mean of the displacements that a layer draws.
    """
    if max_displacement is None:
        max_displacement = default_displacement(*flow.shape[2:]) / 2
    longest = ops.sqrt(largest(ops.sum(ops.square(flow), axis=1), axis=(1, 2)))
    limit = limit_of("max_displacement", max_displacement, flow, "in pixels")
    limit = ops.divide_no_nan(limit, longest[:, None, None, None])
    flow = flow * (limit if scale is None else ops.minimum(limit, scale))
    return ops.stack([flow[:, 0], flow[:, 1]], axis=-1)
