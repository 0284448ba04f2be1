import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from keras import ops

from keras_structadv.dct import solve_screened_poisson
from keras_structadv.operators import ScreenedPoisson
from keras_structadv.solvers import (
    SOLVERS,
    conjugate_gradients,
    solve_dct,
    solve_dense,
    solve_sparse,
)

SMALL = [(2, 2), (2, 9), (7, 5), (16, 16), (33, 20), (64, 64)]
LARGE = [(96, 96), (224, 224), (150, 224)]


def reference(operator, rhs):
    """Returns the float64 solution: dense where that fits, sparse LU above."""
    flat = rhs.reshape(len(rhs), -1).astype("float64").T
    if operator.size <= 64 * 64:
        solution = np.linalg.solve(operator.to_dense(), flat)
    else:
        rows, columns, values = operator.to_coordinates()
        matrix = scipy.sparse.csc_matrix((values, (rows, columns)))
        solution = scipy.sparse.linalg.splu(matrix).solve(flat)
    return solution.T.reshape(rhs.shape)


def assert_solves(solver, shape, smoothness=100.0):
    operator = ScreenedPoisson(*shape, smoothness)
    rhs = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = reference(operator, rhs)
    error = ops.convert_to_numpy(solver(operator, rhs)) - expected
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_agrees_with_float64(name, shape):
    assert_solves(SOLVERS[name], shape)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("solver", [solve_dct, solve_sparse])
def test_solvers_without_a_dense_operator_agree_on_large_images(solver, shape):
    assert_solves(solver, shape)


@pytest.mark.parametrize("smoothness", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_agrees_at_every_smoothness(name, smoothness):
    assert_solves(SOLVERS[name], (12, 10), smoothness)


def test_dense_names_the_bytes_that_it_would_need():
    operator = ScreenedPoisson(224, 224, 100.0)
    with pytest.raises(ValueError, match=r"224x224 .* 10,070,523,904 bytes .*dct"):
        solve_dense(operator, np.zeros((1, 224, 224), "float32"))


def test_conjugate_gradients_stops_each_system_by_itself():
    rng = np.random.default_rng(0)
    operator = ScreenedPoisson(16, 16, 100.0)
    hard = rng.normal(size=(16, 16))
    easy = np.ones((16, 16))  # an eigenvector: one iteration, and one to see it
    rhs = np.stack([hard, easy, np.zeros((16, 16)), 1e-12 * hard]).astype("float32")
    x, info = conjugate_gradients(operator.matvec, rhs, rtol=1e-5)
    iterations = ops.convert_to_numpy(info.iterations)
    assert iterations[1] == 2
    assert iterations[2] == 0
    assert iterations[0] == iterations[3] > 10  # scaling a system changes nothing
    assert np.all(ops.convert_to_numpy(info.error) <= 1e-5)
    residual = rhs - ops.convert_to_numpy(operator.matvec(x))
    norm = np.linalg.norm(residual.reshape(4, -1), axis=1)
    assert np.all(norm <= 5e-5 * np.linalg.norm(rhs.reshape(4, -1), axis=1))
    alone, _ = conjugate_gradients(operator.matvec, rhs[:1], rtol=1e-5)
    np.testing.assert_allclose(x[:1], alone, rtol=1e-5, atol=1e-7)


def test_conjugate_gradients_stops_at_the_bound():
    operator = ScreenedPoisson(16, 16, 100.0)
    rhs = np.random.default_rng(0).normal(size=(2, 16, 16)).astype("float32")
    _, info = conjugate_gradients(operator.matvec, rhs, rtol=1e-6, max_iterations=7)
    np.testing.assert_array_equal(info.iterations, [7, 7])
    assert np.all(ops.convert_to_numpy(info.residual) > 1e-6)


def test_iteration_counts():
    rhs = np.random.default_rng(0).normal(size=(4, 32, 32)).astype("float32")
    operator = ScreenedPoisson(32, 32, 100.0)
    _, plain = conjugate_gradients(operator.matvec, rhs, rtol=1e-4)
    _, exact = conjugate_gradients(
        operator.matvec,
        rhs,
        preconditioner=lambda r: solve_screened_poisson(r, 100.0),
        rtol=1e-4,
    )
    assert ops.convert_to_numpy(plain.iterations).max() <= 100
    assert ops.convert_to_numpy(exact.iterations).max() == 2
