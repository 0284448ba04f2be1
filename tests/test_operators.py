import numpy as np
import pytest
from keras import backend, ops

from keras_structadv.operators import ScreenedPoisson


def laplacian_by_hand(height, width):
    """Returns DxᵀDx + DyᵀDy from Kronecker products of one-dimensional differences."""

    def difference(size):
        matrix = np.eye(size, k=1) - np.eye(size)
        matrix[-1] = 0
        return matrix

    dy = np.kron(difference(height), np.eye(width))
    dx = np.kron(np.eye(height), difference(width))
    return dx.T @ dx + dy.T @ dy


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 2), (5, 3)])
@pytest.mark.parametrize("smoothness", [0.0, 1.0, 100.0])
def test_every_form_is_the_matrix_of_the_paper(shape, smoothness):
    operator = ScreenedPoisson(*shape, smoothness)
    expected = np.eye(operator.size) + smoothness * laplacian_by_hand(*shape)
    np.testing.assert_allclose(operator.to_dense(), expected, atol=1e-9)
    np.testing.assert_allclose(operator.diagonal().ravel(), np.diag(expected))
    unit_vectors = np.eye(operator.size, dtype="float32").reshape(-1, *shape)
    columns = ops.convert_to_numpy(operator.matvec(unit_vectors))
    np.testing.assert_allclose(
        columns.reshape(operator.size, -1), expected, rtol=1e-6, atol=1e-4
    )


@pytest.mark.skipif(backend.backend() == "torch", reason="no sparse form")
def test_the_sparse_form_multiplies_as_the_dense_one():
    operator = ScreenedPoisson(4, 3, smoothness=10.0)
    x = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    product = ops.matmul(operator.to_sparse(), x)
    np.testing.assert_allclose(product, operator.to_dense() @ x, rtol=1e-5, atol=1e-4)
