"""The edge-preserving inverse restricted to a few eigenvectors."""

import math
from typing import Any

from keras import ops

from keras_structadv.backends import full_precision
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers.eigenpairs import smallest_eigenpairs


def recoloring_basis(operator: EdgePreserving, rank: int) -> Any:
    """Returns the paper's low-rank factor of `A^-1`.

    `basis @ basisᵀ` is `A^-1` restricted to the k eigenvectors of A with the smallest
    eigenvalues. It depends on the image alone and serves every model.

    Args:
        operator: the edge-preserving operator of a batch of images.
        rank: k, the number of eigenvectors.

    Returns:
        float32, (batch, height, width, channels, k): eigenvectors of length one,
        divided by the square roots of their eigenvalues.

    Reference: Luo, Mobahi, Bengio (2020), section 5.
    """
    values, vectors = smallest_eigenpairs(operator, rank)
    return vectors / ops.sqrt(values)[:, None, None, None, :]


@full_precision
def project(gradients: Any, basis: Any) -> Any:
    """Returns `basis @ basisᵀ @ gradient` for each image.

    Args:
        gradients: float32, (batch, height, width, channels).
        basis: float, (batch, height, width, channels, k), from `recoloring_basis` or
            `precompute_basis`.

    Returns:
        float32, the shape of `gradients`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    basis = ops.cast(basis, "float32")
    known = zip(basis.shape[:-1], gradients.shape)
    if len(basis.shape) != 5 or any(
        None not in pair and len({*pair}) > 1 for pair in known
    ):
        raise ValueError(
            f"Received a basis of shape {tuple(basis.shape)} for images of shape "
            f"{tuple(gradients.shape)}. Pass the basis of these images, of shape "
            "(batch, height, width, channels, rank)."
        )
    unknowns = math.prod(gradients.shape[1:])
    flat = ops.reshape(gradients, (-1, 1, unknowns))
    basis = ops.reshape(basis, (-1, unknowns, ops.shape(basis)[-1]))
    solution = ops.matmul(ops.matmul(flat, basis), ops.swapaxes(basis, 1, 2))
    return ops.reshape(solution, ops.shape(gradients))
