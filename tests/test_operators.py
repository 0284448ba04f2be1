import numpy as np
import pytest
from keras import ops

from keras_structadv.operators import EdgePreserving, ScreenedPoisson


def differences_by_hand(height, width):
    """Returns Dy and Dx from Kronecker products of one-dimensional differences."""

    def difference(size):
        matrix = np.eye(size, k=1) - np.eye(size)
        matrix[-1] = 0
        return matrix

    dy = np.kron(difference(height), np.eye(width))
    dx = np.kron(np.eye(height), difference(width))
    return dy, dx


def laplacian_by_hand(height, width):
    dy, dx = differences_by_hand(height, width)
    return dx.T @ dx + dy.T @ dy


def edge_preserving_by_hand(image, coherence, damping, edge_scale):
    """Returns the matrices B and A of DESIGN.md, unknowns channel by channel."""
    height, width, channels = image.shape
    dy, dx = differences_by_hand(height, width)
    planes = image.reshape(-1, channels).T.astype("float64")
    zy, zx = planes @ dy.T, planes @ dx.T
    edginess = np.sqrt((zy**2 + zx**2).sum(axis=0))
    b = np.concatenate(
        [
            np.diag(zx[c] / (edginess + 1e-3)) @ dx
            + np.diag(zy[c] / (edginess + 1e-3)) @ dy
            for c in range(channels)
        ],
        axis=1,
    )
    weights = np.diag(1 / (1 + (edginess / edge_scale) ** 2))
    tie = dx.T @ weights @ dx + dy.T @ weights @ dy
    identity = np.eye(channels)
    a = b.T @ b + coherence * np.kron(identity, tie)
    return b, a + damping * np.eye(len(a))


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


@pytest.mark.backends("tensorflow", "jax")
def test_the_sparse_form_multiplies_as_the_dense_one():
    operator = ScreenedPoisson(4, 3, smoothness=10.0)
    x = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    product = ops.matmul(operator.to_sparse(), x)
    np.testing.assert_allclose(product, operator.to_dense() @ x, rtol=1e-5, atol=1e-4)


IMAGES = [(1, 1, 1), (1, 4, 3), (4, 1, 2), (5, 3, 1), (6, 7, 3)]


def edge_preserving(shape, **kwargs):
    """Returns three images, flat, smooth and noisy, and their operator."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.02 * (y + 2 * x)[..., None] * np.arange(1, shape[2] + 1)
    images = np.stack([np.full(shape, 0.4), smooth, rng.uniform(size=shape)])
    return images, EdgePreserving(images.astype("float32"), **kwargs)


def by_channel(fields):
    """Returns (height, width, channels, batch) as (batch, unknowns), by channel."""
    fields = ops.convert_to_numpy(fields)
    return fields.transpose(3, 2, 0, 1).reshape(fields.shape[3], -1)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("coherence,edge_scale", [(1.0, 0.05), (0.0, 0.05), (3.0, 0.5)])
def test_the_edge_preserving_operator_is_that_of_the_paper(
    shape, coherence, edge_scale
):
    images, operator = edge_preserving(
        shape, coherence=coherence, damping=0.01, edge_scale=edge_scale
    )
    rng = np.random.default_rng(1)
    fields = rng.normal(size=(*shape, 3)).astype("float32")
    rates = rng.normal(size=(*shape[:2], 1, 3)).astype("float32")
    products = by_channel(operator.matvec(fields))
    changes = by_channel(operator.edginess_rate(fields))
    back = by_channel(operator.edginess_rate_adjoint(rates))
    diagonals = by_channel(operator.diagonal())
    order = np.arange(operator.size).reshape(shape).transpose(2, 0, 1).ravel()
    for i, image in enumerate(images):
        b, a = edge_preserving_by_hand(image, coherence, 0.01, edge_scale)
        x = by_channel(fields)[i]
        np.testing.assert_allclose(products[i], a @ x, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(changes[i], b @ x, rtol=1e-4, atol=2e-5)
        expected = b.T @ by_channel(rates)[i]
        np.testing.assert_allclose(back[i], expected, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(diagonals[i], np.diag(a), rtol=1e-4, atol=2e-5)
        matrix = np.zeros_like(a)
        rows, columns, values = operator.to_coordinates(i)
        np.add.at(matrix, (rows, columns), values)
        np.testing.assert_allclose(matrix[order][:, order], a, rtol=1e-4, atol=2e-5)


def test_the_papers_own_operator_has_no_inverse():
    (_, _, noise), _ = edge_preserving((6, 7, 3))
    b, a = edge_preserving_by_hand(noise, coherence=0.0, damping=0.0, edge_scale=1.0)
    assert np.linalg.matrix_rank(a) <= 6 * 7 < len(a) == 3 * 6 * 7


def test_mean_weight_is_that_of_the_nearest_laplacian():
    images, operator = edge_preserving((12, 12, 3), damping=1e-6)
    laplacian = np.kron(np.eye(3), laplacian_by_hand(12, 12))
    weights = ops.convert_to_numpy(operator.mean_weight())
    for image, weight in zip(images, weights):
        _, a = edge_preserving_by_hand(image, 1.0, 1e-6, 0.05)
        np.testing.assert_allclose(weight, a.trace() / laplacian.trace(), rtol=0.3)
    assert weights[0] > 0.9  # no edges: tied everywhere


def test_a_repeated_operator_acts_on_several_fields_of_each_image():
    _, operator = edge_preserving((5, 4, 3))
    fields = np.random.default_rng(2).normal(size=(5, 4, 3, 3, 2)).astype("float32")
    wide = ops.convert_to_numpy(
        operator.repeated(2).matvec(fields.reshape(5, 4, 3, 6))
    ).reshape(fields.shape)
    for i in range(2):
        np.testing.assert_allclose(
            wide[..., i], operator.matvec(fields[..., i]), atol=1e-6
        )
