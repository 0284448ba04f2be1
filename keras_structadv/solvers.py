"""Solvers for `A x = rhs`, for a whole batch of right-hand sides at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_structadv.dct import solve_screened_poisson
from keras_structadv.operators import ScreenedPoisson

DENSE_LIMIT = 2**30


class SolveInfo(NamedTuple):
    """What a solver did, one entry for each system.

    Attributes:
        iterations: int32, (batch,), the iterations until that system stopped.
        residual: float32, (batch,), `|rhs - A x| / |rhs|` as the solver tracked it.
    """

    iterations: Any
    residual: Any


def conjugate_gradients(
    matvec: Callable[[Any], Any],
    rhs: Any,
    *,
    preconditioner: Callable[[Any], Any] | None = None,
    rtol: float = 1e-6,
    max_iterations: int = 1000,
) -> tuple[Any, SolveInfo]:
    """Returns the solutions of `A x = rhs` for every system of a batch.

    Each system stops by itself once `|rhs - A x| <= rtol * |rhs|`; the loop ends
    when all have stopped. A system whose right-hand side is zero gets zero.

    Args:
        matvec: applies the symmetric positive definite operator to the whole batch.
        rhs: float32, (batch, ...), one system for each entry of the first axis.
        preconditioner: applies an approximate inverse, symmetric positive definite;
            `None` for none.
        rtol: relative residual at which a system stops.
        max_iterations: upper bound for all systems.

    Returns:
        `(x, info)`: float32, the shape of `rhs`, and a `SolveInfo`.

    Reference: Saad, Iterative Methods for Sparse Linear Systems, 2nd ed.,
        algorithm 9.1.
    """
    precondition = preconditioner or (lambda r: r)
    axes = tuple(range(1, len(rhs.shape)))

    def dot(a: Any, b: Any) -> Any:
        return ops.sum(a * b, axis=axes, keepdims=True)

    norm2 = dot(rhs, rhs)
    threshold = rtol**2 * norm2

    def unfinished(active: Any, *_: Any) -> Any:
        return ops.any(active)

    def step(active: Any, x: Any, r: Any, p: Any, rz: Any, iterations: Any) -> tuple:
        ap = matvec(p)
        alpha = ops.where(active, ops.divide_no_nan(rz, dot(p, ap)), 0.0)  # line 3
        x = x + alpha * p  # line 4
        r = r - alpha * ap  # line 5
        z = precondition(r)
        rz_next = dot(r, z)
        beta = ops.divide_no_nan(rz_next, rz)  # line 7
        p = ops.where(active, z + beta * p, p)  # line 8
        rz = ops.where(active, rz_next, rz)
        iterations = iterations + ops.cast(active, "int32")
        return active & (dot(r, r) > threshold), x, r, p, rz, iterations

    z = precondition(rhs)
    active = norm2 > 0
    _, x, r, _, _, iterations = ops.while_loop(
        unfinished,
        step,
        (
            active,
            ops.zeros_like(rhs),
            rhs,
            z,
            dot(rhs, z),
            ops.cast(norm2 * 0, "int32"),
        ),
        maximum_iterations=max_iterations,
    )
    residual = ops.sqrt(ops.divide_no_nan(dot(r, r), norm2))
    return x, SolveInfo(ops.squeeze(iterations, axes), ops.squeeze(residual, axes))


def solve_dct(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the exact solution through the cosine transform.

    Args:
        operator: the screened-Poisson operator.
        rhs: float32, (batch, height, width).

    Returns:
        float32, (batch, height, width).
    """
    return solve_screened_poisson(rhs, operator.smoothness)


def solve_sparse(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the solution by conjugate gradients on a stored sparse matrix.

    XLA cannot compile TensorFlow's sparse product: `jit_compile` needs `solve_dct`.

    Args:
        operator: the screened-Poisson operator.
        rhs: float32, (batch, height, width).

    Returns:
        float32, (batch, height, width), to a relative residual of 1e-6.
    """
    matrix = operator.to_sparse()

    def matvec(vectors: Any) -> Any:
        return ops.transpose(ops.matmul(matrix, ops.transpose(vectors)))

    flat = ops.reshape(rhs, (-1, operator.size))
    solution, _ = conjugate_gradients(matvec, flat)
    return ops.reshape(solution, (-1, operator.height, operator.width))


def solve_dense(operator: ScreenedPoisson, rhs: Any) -> Any:
    """Returns the solution with the explicit inverse, as the paper's Algorithm 1.

    The inverse is computed once for each size and smoothness, and kept.

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
