"""Solvers for `A x = rhs`, for a whole batch of right-hand sides at once."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from keras import ops

from keras_structadv.backends import full_precision
from keras_structadv.dct import (
    dct_matrix,
    laplacian_eigenvalues,
    solve_screened_poisson,
)
from keras_structadv.operators import EdgePreserving, ScreenedPoisson

DENSE_LIMIT = 2**30
_LANCZOS_DAMPING = 1e-3


class SolveInfo(NamedTuple):
    """What a solver did, one entry for each system.

    Attributes:
        iterations: int32, (batch,), the iterations until that system stopped.
        residual: float32, (batch,), `|rhs - A x| / |rhs|` as the solver tracked it.
        error: float32, (batch,), the relative error in the energy norm that is compared
            with `rtol`.
    """

    iterations: Any
    residual: Any
    error: Any


def conjugate_gradients(
    matvec: Callable[[Any], Any],
    rhs: Any,
    *,
    preconditioner: Callable[[Any], Any] | None = None,
    rtol: float = 1e-6,
    max_iterations: int = 1000,
    batch_axis: Literal[0, -1] = 0,
) -> tuple[Any, SolveInfo]:
    """Returns the solutions of `A x = rhs` for every system of a batch.

    Each system stops by itself, and the loop ends when all have stopped. A system whose
    right-hand side is zero gets zero.

    The k-th iteration brings the energy `<x, A x>` nearer to that of the solution by
    `alpha_k <r_k, z_k>`. A system stops once an iteration brings less than `rtol²` of
    the energy so far: then the relative error in the energy norm was about `rtol`
    before that iteration. The size of the residual says less here, because the least
    of it lies where the error is largest.

    Args:
        matvec: applies the symmetric positive definite operator to the whole batch.
        rhs: float32, one system for each entry of `batch_axis`.
        preconditioner: applies an approximate inverse, symmetric positive definite;
            `None` for none.
        rtol: relative error in the energy norm at which a system stops.
        max_iterations: upper bound for all systems.
        batch_axis: the axis along which the systems lie, the first or the last.

    Returns:
        `(x, info)`: float32, the shape of `rhs`, and a `SolveInfo`.

    Reference: Saad, Iterative Methods for Sparse Linear Systems, 2nd ed.,
        algorithm 9.1; the error: Hestenes and Stiefel (1952), theorem 6:1.
    """
    precondition = preconditioner or (lambda r: r)
    dot = functools.partial(_dot, batch_axis=batch_axis)

    def unfinished(active: Any, *_: Any) -> Any:
        return ops.any(active)

    def step(
        active: Any,
        x: Any,
        r: Any,
        p: Any,
        rz: Any,
        energy: Any,
        gain: Any,
        iterations: Any,
    ) -> tuple:
        ap = matvec(p)
        alpha = ops.where(active, ops.divide_no_nan(rz, dot(p, ap)), 0.0)  # line 3
        x = x + alpha * p  # line 4
        r = r - alpha * ap  # line 5
        z = precondition(r)
        rz_next = dot(r, z)
        beta = ops.divide_no_nan(rz_next, rz)  # line 7
        p = z + beta * p  # line 8; where alpha is zero from now on, of no effect
        gain = ops.where(active, alpha * rz, gain)
        energy = ops.where(active, energy + gain, energy)
        iterations = iterations + ops.cast(active, "int32")
        active = active & (gain > rtol**2 * energy)
        return active, x, r, p, rz_next, energy, gain, iterations

    rhs = ops.convert_to_tensor(rhs)
    z = precondition(rhs)
    rz = dot(rhs, z)
    none = ops.zeros_like(rz)
    _, x, r, _, _, energy, gain, iterations = ops.while_loop(
        unfinished,
        step,
        (
            rz > 0,
            ops.zeros_like(rhs),
            rhs,
            z,
            rz,
            none,
            none,
            ops.cast(none, "int32"),
        ),
        maximum_iterations=max_iterations,
    )
    residual = ops.sqrt(ops.divide_no_nan(dot(r, r), dot(rhs, rhs)))
    error = ops.sqrt(ops.divide_no_nan(gain, energy))
    iterations, residual, error = (
        ops.reshape(v, (-1,)) for v in (iterations, residual, error)
    )
    return x, SolveInfo(iterations, residual, error)


def _dot(a: Any, b: Any, batch_axis: int) -> Any:
    """Returns `<a, b>` for each system, of length one along the other axes."""
    axes = tuple(range(1, len(a.shape)))
    if batch_axis == 0:
        return ops.sum(a * b, axis=axes, keepdims=True)
    # XLA sums along outer axes four times as fast where it is told to add slices.
    size = math.prod(a.shape[:-1])
    folds = math.gcd(size, 16)
    folded = [ops.reshape(v, (folds, size // folds, -1)) for v in (a, b)]
    total = ops.sum(sum(u * v for u, v in zip(*map(ops.unstack, folded))), axis=0)
    return ops.reshape(total, (1,) * len(axes) + (-1,))


def edge_preserving_preconditioner(operator: EdgePreserving) -> Callable[[Any], Any]:
    """Returns an approximate inverse of the operator in two levels.

    The coarse level is the solve of `mean_weight * P + damping * I` on the lower half
    of the frequencies along each axis, by cosine transforms; the fine level divides by
    the diagonal, which sees every edge. The full transform needs as many iterations and
    almost three times the operations; an exact solve with the ties as weights, in its
    place, saves no iteration either.
    """
    height, width = operator.height, operator.width
    rows, columns = -(-height // 2), -(-width // 2)
    down, right = dct_matrix(height)[:rows], dct_matrix(width)[:columns]
    eigenvalues = laplacian_eigenvalues(height, width)[:rows, :columns, None, None]
    coarse = ops.multiply(operator.mean_weight(), eigenvalues)
    coarse = 1 / (operator.damping + coarse)
    fine = 1 / operator.diagonal()

    def apply(residual: Any) -> Any:
        low = ops.matmul(down, ops.reshape(residual, (height, -1)))
        low = ops.matmul(right, ops.reshape(low, (rows, width, -1)))
        low = ops.reshape(low, (rows, columns, operator.channels, -1)) * coarse
        low = ops.matmul(right.T, ops.reshape(low, (rows, columns, -1)))
        low = ops.matmul(down.T, ops.reshape(low, (rows, -1)))
        low = ops.reshape(low, (height, width, operator.channels, -1))
        return low + fine * residual

    return apply


@full_precision
def solve_edge_preserving(
    operator: EdgePreserving, rhs: Any, *, rtol: float = 0.1, max_iterations: int = 50
) -> tuple[Any, SolveInfo]:
    """Returns the solution of `A x = rhs` for the images of an operator.

    Args:
        operator: the edge-preserving operator of a batch of images.
        rhs: float32, (batch, height, width, channels).
        rtol: relative error in the energy norm; see `conjugate_gradients`.
        max_iterations: upper bound for all images.

    Returns:
        `(x, info)`: float32, the shape of `rhs`, and a `SolveInfo`.
    """
    solution, info = conjugate_gradients(
        operator.matvec,
        ops.transpose(rhs, (1, 2, 3, 0)),
        preconditioner=edge_preserving_preconditioner(operator),
        rtol=rtol,
        max_iterations=max_iterations,
        batch_axis=-1,
    )
    return ops.transpose(solution, (3, 0, 1, 2)), info


@full_precision
def smallest_eigenpairs(
    operator: EdgePreserving,
    rank: int,
    *,
    blocks: int = 6,
    rtol: float = 1e-3,
    max_iterations: int = 200,
) -> tuple[Any, Any]:
    """Returns the smallest eigenvalues and their eigenvectors, for a batch of images.

    A block of a few more vectors than are wanted is multiplied by the inverse of the
    operator again and again, by conjugate gradients; the eigenvectors are sought in the
    span of all the blocks (block Lanczos, with full orthogonalization). That takes some
    hundred products with the operator, and the memory of some twenty blocks.

    Args:
        operator: the edge-preserving operator of a batch of images.
        rank: k, the number of eigenpairs, at most C N.
        blocks: number of products with the inverse.
        rtol: of each of these solves; see `conjugate_gradients`.
        max_iterations: of each of these solves.

    Returns:
        `(values, vectors)`: float32, (batch, k), ascending, and
        (batch, height, width, channels, k), of length one.

    Raises:
        ValueError: if an image has less than k unknowns.

    Reference: Golub and Underwood (1977), The block Lanczos method for computing
        eigenvalues.
    """
    if rank > operator.size:
        raise ValueError(
            f"Received rank={rank} for images of {operator.size} values. Pass at most "
            "that."
        )
    width = min(rank + 4, operator.size)
    wide = operator.repeated(width)
    # Damping adds the same to all eigenvalues; with little of it the inverse sets the
    # smallest ones apart.
    surplus = max(0.0, operator.damping - _LANCZOS_DAMPING)
    wide.damping = operator.damping - surplus
    precondition = edge_preserving_preconditioner(wide)
    shape = (operator.height, operator.width, operator.channels, -1)

    def product(function: Callable[[Any], Any], vectors: Any) -> Any:
        fields = ops.reshape(vectors, shape)
        return ops.reshape(function(fields), (operator.size, -1, width))

    def inverse(fields: Any) -> Any:
        return conjugate_gradients(
            wide.matvec,
            fields,
            preconditioner=precondition,
            rtol=rtol,
            max_iterations=max_iterations,
            batch_axis=-1,
        )[0]

    batch = ops.shape(wide.ties[0])[-1] // width
    start = np.random.default_rng(0).normal(size=(operator.size, 1, width))
    start = ops.broadcast_to(start.astype("float32"), (operator.size, batch, width))
    basis = _orthonormal(product(precondition, start))
    images = [product(wide.matvec, basis)]
    newest = basis
    for _ in range(blocks):
        newest = _orthonormal(product(inverse, newest), basis)
        images.append(product(wide.matvec, newest))
        basis = ops.concatenate([basis, newest], axis=-1)
    projected = ops.einsum("nbp,nbq->bpq", basis, ops.concatenate(images, axis=-1))
    projected = (projected + ops.swapaxes(projected, 1, 2)) / 2
    # Columns that were found to depend on the others are zero: to the end of the list.
    empty = ops.cast(ops.einsum("nbp,nbp->bp", basis, basis) < 0.5, "float32")
    trace = ops.trace(projected, axis1=1, axis2=2)[:, None, None]
    identity = np.eye(basis.shape[-1], dtype="float32")
    projected = projected + ops.multiply(trace * empty[:, None, :], identity)
    values, small = ops.eigh(projected)
    vectors = ops.einsum("nbp,bpq->bnq", basis, small[:, :, :rank])
    return values[:, :rank] + surplus, ops.reshape(vectors, (-1, *shape[:3], rank))


def _orthonormal(vectors: Any, basis: Any = None) -> Any:
    """Returns an orthonormal basis of what vectors add to the span of another basis.

    Args:
        vectors: float32, (size, batch, p).
        basis: float32, (size, batch, q), orthonormal.

    Returns:
        float32, the shape of `vectors`; columns that add nothing are zero.

    Reference: Stathopoulos and Wu (2002), A block orthogonalization procedure with
        constant synchronization requirements.
    """

    def normalized(vectors: Any, least: float) -> Any:
        length = ops.sqrt(ops.sum(ops.square(vectors), axis=0, keepdims=True))
        inverse = ops.where(length > least, ops.divide_no_nan(1.0, length), 0.0)
        return vectors * inverse

    vectors = normalized(vectors, 0.0)
    for _ in range(3):  # in float32, once is not enough
        if basis is not None:
            known = ops.einsum("nbp,nbq->bpq", basis, vectors)
            vectors = vectors - ops.einsum("nbp,bpq->nbq", basis, known)
        vectors = normalized(vectors, 1e-5)  # what is shorter is rounding error
        gram = ops.einsum("nbp,nbq->bpq", vectors, vectors)
        values, rotation = ops.eigh(gram)
        enough = values > 1e-6 * values[:, -1:]
        scale = ops.where(enough, ops.rsqrt(ops.where(enough, values, 1.0)), 0.0)
        vectors = ops.einsum("nbp,bpq->nbq", vectors, rotation * scale[:, None, :])
    return vectors


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
        float32, (batch, height, width), to a relative error of about 1e-6 in the energy
        norm; it agrees with `solve_dct` to 1e-4 up to a smoothness of 1e4.
    """
    matrix = operator.to_sparse()

    def matvec(vectors: Any) -> Any:
        return ops.transpose(ops.matmul(matrix, ops.transpose(vectors)))

    flat = ops.reshape(rhs, (-1, operator.size))
    solution, _ = conjugate_gradients(matvec, flat)
    return ops.reshape(solution, (-1, operator.height, operator.width))


@full_precision
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
