"""The operator whose inverse makes a flow smooth."""

from typing import Any

import numpy as np
from keras import ops

from keras_structadv.backends import framework
from keras_structadv.differences import forward_difference, forward_difference_adjoint


class ScreenedPoisson:
    """The operator `I + smoothness * (DxᵀDx + DyᵀDy)` on a grid of pixels.

    Symmetric and positive definite, with eigenvalues in [1, 1 + 8 smoothness].

    Args:
        height: rows of the grid.
        width: columns of the grid.
        smoothness: gamma of eq. 12, >= 0, in squared pixels.

    Example:
    >>> operator = ScreenedPoisson(2, 1, smoothness=3.0)
    >>> operator.to_dense()
    array([[ 4., -3.],
           [-3.,  4.]])

    Reference: Luo, Mobahi, Bengio (2020), eq. 12 to 15.
    """

    def __init__(self, height: int, width: int, smoothness: float):
        self.height = height
        self.width = width
        self.smoothness = smoothness

    @property
    def size(self) -> int:
        """The number of pixels, N."""
        return self.height * self.width

    def matvec(self, planes: Any) -> Any:
        """Applies the operator.

        Args:
            planes: float32, (..., height, width).

        Returns:
            float32, the shape of `planes`.
        """
        planes = ops.convert_to_tensor(planes)
        laplacian = 0.0
        for axis in (-2, -1):
            difference = forward_difference(planes, axis)
            laplacian += forward_difference_adjoint(difference, axis)
        return planes + self.smoothness * laplacian

    def diagonal(self) -> np.ndarray:
        """Returns the diagonal, float64, (height, width)."""

        def neighbours(size: int) -> np.ndarray:
            count = np.full(size, 2.0)
            count[0] -= 1
            count[-1] -= 1
            return count

        count = neighbours(self.height)[:, None] + neighbours(self.width)[None, :]
        return 1.0 + self.smoothness * count

    def to_coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the non-zeros as `(rows, columns, values)`, sorted by row."""
        pixel = np.arange(self.size).reshape(self.height, self.width)
        pairs = [
            (pixel[1:].ravel(), pixel[:-1].ravel()),
            (pixel[:, 1:].ravel(), pixel[:, :-1].ravel()),
        ]
        first = np.concatenate([a for a, _ in pairs])
        second = np.concatenate([b for _, b in pairs])
        rows = np.concatenate([pixel.ravel(), first, second])
        columns = np.concatenate([pixel.ravel(), second, first])
        values = np.concatenate(
            [self.diagonal().ravel(), np.full(2 * len(first), -float(self.smoothness))]
        )
        order = np.lexsort((columns, rows))
        return rows[order], columns[order], values[order]

    def to_sparse(self) -> Any:
        """Returns the matrix as the backend's sparse tensor, float32, (N, N).

        Raises:
            NotImplementedError: if Keras has no sparse tensors on this backend.
        """
        rows, columns, values = self.to_coordinates()
        indices = np.stack([rows, columns], axis=1)
        shape = (self.size, self.size)
        return framework().sparse_matrix(indices, values.astype("float32"), shape)

    def to_dense(self) -> np.ndarray:
        """Returns the explicit matrix, float64, (N, N)."""
        rows, columns, values = self.to_coordinates()
        matrix = np.zeros((self.size, self.size))
        matrix[rows, columns] = values
        return matrix
