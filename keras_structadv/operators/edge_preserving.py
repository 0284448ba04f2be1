"""The operator whose inverse recolours surfaces and keeps contours."""

import copy
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.defaults import damping_of
from keras_structadv.differences import forward_difference, forward_difference_adjoint

_EDGINESS_FLOOR = 1e-3


class EdgePreserving:
    """The edge-preserving operator of a batch of images, matrix-free.

    With the edginess `e = sqrt(sum_c Zx_c² + Zy_c²)` of an image Z and the directions
    `n_y,c = Zy_c / (e + 1e-3)` and `n_x,c = Zx_c / (e + 1e-3)`,

        A = BᵀB + coherence * sum_c (Dyᵀ W Dy + Dxᵀ W Dx) + damping * I
        B = sum_c (diag(n_y,c) Dy + diag(n_x,c) Dx),    W = 1 / (1 + (e / edge_scale)²)

    `BᵀB` is the paper's M; it penalizes changes of edginess. Its rank is at most N of
    C N unknowns, so M alone has no inverse. The second term couples neighbours where no
    edge lies between them.

    Fields have the batch as their last axis, (height, width, channels, batch). The
    inner loops then run over images, which is twice as fast as with the batch first.

    Args:
        images: float32, (batch, height, width, channels), scaled to [0, 1]; height,
            width and channels static.
        coherence: weight of the second term, >= 0; zero for the paper's own operator.
        damping: > 0; makes the operator positive definite. `None` for the default of
            the size.
        edge_scale: the edginess, > 0, at which the coupling W is one half.

    Reference: Luo, Mobahi, Bengio (2020), eq. 26 to 32.
    """

    def __init__(
        self,
        images: Any,
        coherence: float = 1.0,
        damping: float | None = None,
        edge_scale: float = 0.05,
    ):
        images = ops.transpose(images, (1, 2, 3, 0))
        self.height, self.width, self.channels = images.shape[:3]
        self.damping = damping_of(damping, self.height, self.width)
        zy, zx = forward_difference(images, 0), forward_difference(images, 1)
        squares = ops.sum(ops.square(zy) + ops.square(zx), axis=2, keepdims=True)
        edginess = ops.sqrt(squares)
        inverse = 1 / (edginess + _EDGINESS_FLOOR)
        self.direction = (zy * inverse, zx * inverse)
        self._mean_square = ops.mean(squares * ops.square(inverse), axis=(0, 1, 2))
        tie = coherence / (1 + ops.square(edginess / edge_scale))
        # The last pixel of a line has no next neighbour.
        rows, columns = np.ones((2, self.height, self.width, 1, 1), "float32")
        rows[-1], columns[:, -1] = 0, 0
        self.ties = (ops.multiply(tie, rows), ops.multiply(tie, columns))

    @property
    def size(self) -> int:
        """The number of unknowns of one image, C N."""
        return self.height * self.width * self.channels

    def repeated(self, times: int) -> "EdgePreserving":
        """Returns the operator for `times` consecutive fields of each image."""
        other = copy.copy(self)
        other.direction, other.ties, other._mean_square = keras.tree.map_structure(
            lambda x: ops.repeat(x, times, axis=-1),
            (self.direction, self.ties, self._mean_square),
        )
        return other

    def edginess_rate(self, fields: Any) -> Any:
        """Returns `B x`, the rate of change of the edginess along a field.

        Args:
            fields: float32, (height, width, channels, batch).

        Returns:
            float32, (height, width, 1, batch).
        """
        ny, nx = self.direction
        rates = ny * forward_difference(fields, 0) + nx * forward_difference(fields, 1)
        return ops.sum(rates, axis=2, keepdims=True)

    def edginess_rate_adjoint(self, rates: Any) -> Any:
        """Returns `Bᵀ r`, the adjoint of `edginess_rate`.

        Args:
            rates: float32, (height, width, 1, batch).

        Returns:
            float32, (height, width, channels, batch).
        """
        ny, nx = self.direction
        down = forward_difference_adjoint(ny * rates, 0)
        return down + forward_difference_adjoint(nx * rates, 1)

    def matvec(self, fields: Any) -> Any:
        """Returns `A x`.

        Args:
            fields: float32, (height, width, channels, batch).

        Returns:
            float32, the shape of `fields`.
        """
        (ny, nx), (tie_y, tie_x) = self.direction, self.ties
        dy, dx = forward_difference(fields, 0), forward_difference(fields, 1)
        rates = ops.sum(ny * dy + nx * dx, axis=2, keepdims=True)
        down = forward_difference_adjoint(ny * rates + tie_y * dy, 0)
        right = forward_difference_adjoint(nx * rates + tie_x * dx, 1)
        return down + right + self.damping * fields

    def diagonal(self) -> Any:
        """Returns the diagonal of A, float32, (height, width, channels, batch)."""
        (ny, nx), (tie_y, tie_x) = self.direction, self.ties
        # A difference involves a pixel and the next one. At its own pixel, B adds the
        # two differences before squaring. `roll` only wraps the last, which is zero.
        down = ops.roll(ops.square(ny) + tie_y, 1, axis=0)
        right = ops.roll(ops.square(nx) + tie_x, 1, axis=1)
        return ops.square(ny + nx) + tie_y + tie_x + down + right + self.damping

    def mean_weight(self) -> Any:
        """Returns the k for which `k (DxᵀDx + DyᵀDy)` is nearest to A, (batch,)."""
        tie = ops.mean(self.ties[0], axis=(0, 1, 2))
        return tie + self._mean_square / (2 * self.channels)

    def to_coordinates(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the entries of one image's matrix as `(rows, columns, values)`.

        Unknowns are ordered (height, width, channels). Repeated entries add up, as in
        `scipy.sparse.coo_array`.

        Args:
            index: of the image in the batch.
        """
        ny, nx, tie_y, tie_x = (
            ops.convert_to_numpy(x)[..., index].astype("float64")
            for x in (*self.direction, *self.ties)
        )
        channels, pixels = self.channels, self.height * self.width
        # A is a sum over pixels of small matrices, each on the values of a pixel and of
        # the pixels below and to the right.
        own = np.arange(self.size).reshape(self.height, self.width, channels)
        unknowns = np.concatenate(
            [own, np.roll(own, -1, axis=0), np.roll(own, -1, axis=1)], axis=-1
        ).reshape(pixels, 3 * channels)
        one, none = np.eye(channels), np.zeros((channels, channels))
        differences = np.block([[-one, one, none], [-one, none, one]])
        normal = np.concatenate([ny, nx], axis=-1).reshape(pixels, 2 * channels)
        ties = np.repeat(np.stack([tie_y, tie_x], axis=-2), channels, axis=-1)
        weights = normal[:, :, None] * normal[:, None, :]
        weights += ties.reshape(pixels, -1, 1) * np.eye(2 * channels)
        values = differences.T @ weights @ differences
        rows = np.broadcast_to(unknowns[:, :, None], values.shape)
        columns = np.broadcast_to(unknowns[:, None, :], values.shape)
        every = np.arange(self.size)
        return (
            np.concatenate([rows.ravel(), every]),
            np.concatenate([columns.ravel(), every]),
            np.concatenate([values.ravel(), np.full(self.size, self.damping)]),
        )
