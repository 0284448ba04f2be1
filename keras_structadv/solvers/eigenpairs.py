"""The smallest eigenpairs of the edge-preserving operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import full_precision
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers.conjugate_gradients import conjugate_gradients
from keras_structadv.solvers.edge_preserving import edge_preserving_preconditioner

_BLOCKS = 6  # products with the inverse
_DAMPING = 1e-3
_RTOL, _MAX_ITERATIONS = 1e-3, 200  # of the solve in each product


@full_precision
def smallest_eigenpairs(operator: EdgePreserving, rank: int) -> tuple[Any, Any]:
    """Returns the smallest eigenvalues and their eigenvectors, for a batch of images.

    Block Lanczos on the inverse, with full orthogonalization; conjugate gradients apply
    the inverse to a block of k + 4 vectors. This takes some hundred products with the
    operator, and the memory of some twenty blocks.

    Args:
        operator: the edge-preserving operator of a batch of images.
        rank: k, the number of eigenpairs, at most C N.

    Returns:
        `(values, vectors)`: float32, (batch, k), ascending, and float32,
        (batch, height, width, channels, k), of length one.

    Raises:
        ValueError: if an image has fewer than k unknowns.

    Reference: Golub and Underwood (1977), The block Lanczos method for computing
        eigenvalues.
    """
    if rank > operator.size:
        raise ValueError(
            f"Received rank={rank} for images of {operator.size} values. Pass a rank "
            f"of at most {operator.size}."
        )
    width = min(rank + 4, operator.size)
    wide = operator.repeated(width)
    # Damping shifts all eigenvalues alike. With little of it, the inverse separates the
    # smallest ones better.
    surplus = max(0.0, operator.damping - _DAMPING)
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
            rtol=_RTOL,
            max_iterations=_MAX_ITERATIONS,
            batch_axis=-1,
        )[0]

    batch = ops.shape(wide.ties[0])[-1] // width
    start = np.random.default_rng(0).normal(size=(operator.size, 1, width))
    start = ops.broadcast_to(start.astype("float32"), (operator.size, batch, width))
    basis = _orthonormal(product(precondition, start))
    images = [product(wide.matvec, basis)]
    newest = basis
    for _ in range(_BLOCKS):
        newest = _orthonormal(product(inverse, newest), basis)
        images.append(product(wide.matvec, newest))
        basis = ops.concatenate([basis, newest], axis=-1)
    projected = ops.einsum("nbp,nbq->bpq", basis, ops.concatenate(images, axis=-1))
    projected = (projected + ops.swapaxes(projected, 1, 2)) / 2
    # Dependent columns are zero; a large eigenvalue sorts them last.
    empty = ops.cast(ops.einsum("nbp,nbp->bp", basis, basis) < 0.5, "float32")
    trace = ops.trace(projected, axis1=1, axis2=2)[:, None, None]
    identity = np.eye(basis.shape[-1], dtype="float32")
    projected = projected + ops.multiply(trace * empty[:, None, :], identity)
    values, small = ops.eigh(projected)
    vectors = ops.einsum("nbp,bpq->bnq", basis, small[:, :, :rank])
    return values[:, :rank] + surplus, ops.reshape(vectors, (-1, *shape[:3], rank))


def _orthonormal(vectors: Any, basis: Any = None) -> Any:
    """Orthonormalizes vectors against a basis and one another.

    Args:
        vectors: float32, (size, batch, p).
        basis: float32, (size, batch, q), orthonormal.

    Returns:
        float32, the shape of `vectors`; dependent columns are zero.

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
        vectors = normalized(vectors, 1e-5)  # shorter ones are rounding error
        gram = ops.einsum("nbp,nbq->bpq", vectors, vectors)
        values, rotation = ops.eigh(gram)
        enough = values > 1e-6 * values[:, -1:]
        scale = ops.where(enough, ops.rsqrt(ops.where(enough, values, 1.0)), 0.0)
        vectors = ops.einsum("nbp,bpq->nbq", vectors, rotation * scale[:, None, :])
    return vectors
