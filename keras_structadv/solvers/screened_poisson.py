"""Three solvers of the screened Poisson equation, for a whole batch."""

import functools
from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import full_precision
from keras_structadv.dct import dct2, idct2, laplacian_eigenvalues
from keras_structadv.operators import ScreenedPoisson
from keras_structadv.solvers.conjugate_gradients import conjugate_gradients

DENSE_LIMIT = 2**30


def solve_dct(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the exact solution, by cosine transforms.

    P is diagonal in the cosine basis: the solve is four small matrix products, and
    nothing is stored.

    Args:
        operator: the screened-Poisson operator.
        rhs: float32, (..., height, width), height and width static.

    Returns:
        float32, the shape of `rhs`.

    Reference: Luo, Mobahi, Bengio (2020), eq. 15.
    """
    laplacian = laplacian_eigenvalues(operator.height, operator.width)
    return idct2(ops.divide(dct2(rhs), 1.0 + operator.smoothness * laplacian))


def solve_sparse(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the solution, by conjugate gradients on a sparse matrix.

    XLA cannot compile TensorFlow's sparse product; use `solve_dct` with `jit_compile`.

    Args:
        operator: the screened-Poisson operator.
        rhs: float32, (batch, height, width).

    Returns:
        float32, (batch, height, width); agrees with `solve_dct` to 1e-4 up to a
        smoothness of 1e4.

    Raises:
        NotImplementedError: if Keras has no sparse tensors on this backend.
    """
    matrix = operator.to_sparse()

    def matvec(vectors: Any) -> Any:
        return ops.transpose(ops.matmul(matrix, ops.transpose(vectors)))

    flat = ops.reshape(rhs, (-1, operator.size))
    solution, _ = conjugate_gradients(matvec, flat)
    return ops.reshape(solution, (-1, operator.height, operator.width))


@full_precision
def solve_dense(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the solution, by the explicit inverse of the paper's Algorithm 1.

    The inverses of the last four sizes and smoothnesses are cached.

    Args:
        operator: the screened-Poisson operator.
        rhs: float32, (batch, height, width).

    Returns:
        float32, (batch, height, width).

    Raises:
        ValueError: if the inverse would need more than 1 GiB.
    """
    required = 4 * operator.size**2
    if required > DENSE_LIMIT:
        raise ValueError(
            f"The dense inverse for {operator.height}x{operator.width} images needs "
            f"{required:,} bytes ({required / 2**30:.1f} GiB), above the limit of "
            f'{DENSE_LIMIT:,}. Use solver="dct", which is exact and stores nothing.'
        )
    inverse = _dense_inverse(operator.height, operator.width, operator.smoothness)
    flat = ops.reshape(rhs, (-1, operator.size))
    solution = ops.matmul(flat, inverse)  # symmetric: no transpose
    return ops.reshape(solution, (-1, operator.height, operator.width))


@functools.lru_cache(maxsize=4)
def _dense_inverse(height: int, width: int, smoothness: float) -> np.ndarray:
    matrix = ScreenedPoisson(height, width, smoothness).to_dense()
    return np.linalg.inv(matrix).astype("float32")


SOLVERS = {"dct": solve_dct, "sparse": solve_sparse, "dense": solve_dense}
