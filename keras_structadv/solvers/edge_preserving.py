"""The edge-preserving solve and its preconditioner."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_structadv.backends import full_precision
from keras_structadv.dct import dct_matrix, laplacian_eigenvalues
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers.conjugate_gradients import SolveInfo, conjugate_gradients


def edge_preserving_preconditioner(operator: EdgePreserving) -> Callable[[Any], Any]:
    """Returns an approximate inverse of the operator, the sum of two levels.

    The coarse level solves `mean_weight * P + damping * I` by cosine transforms, on the
    lower half of the frequencies along each axis. The fine level divides by the
    diagonal, which knows every edge. All frequencies, or an exact solve with the
    coupling of each pixel, would cost more and save no iteration.

    Returns:
        A function of fields, float32, (height, width, channels, batch), to the same.
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
        return low + ops.multiply(fine, residual)

    return apply


@full_precision
def solve_edge_preserving(
    operator: EdgePreserving, rhs: Any, *, rtol: float = 0.1, max_iterations: int = 50
) -> tuple[Any, SolveInfo]:
    """Solves `A x = rhs` for the images of an operator.

    Args:
        operator: the edge-preserving operator of a batch of images.
        rhs: float32, (batch, height, width, channels).
        rtol: as in `adversarial_recoloring`.
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
