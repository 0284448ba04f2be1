import functools
import itertools
import pathlib

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from keras import ops

import keras_structadv as ksa
from keras_structadv import datasets
from keras_structadv.operators import EdgePreserving, ScreenedPoisson
from keras_structadv.solvers import (
    SOLVERS,
    SolveInfo,
    conjugate_gradients,
    edge_preserving_preconditioner,
    smallest_eigenpairs,
    solve_dct,
    solve_dense,
    solve_edge_preserving,
    solve_sparse,
)
from tests.models import small_model

SMALL = [(2, 2), (2, 9), (7, 5), (16, 16), (33, 20), (64, 64)]
# Mean and largest number of iterations on photographs at the default rtol.
PINNED = {32: (9, 19), 64: (11, 18), 128: (12, 17), 224: (11, 18)}
PAGE = pathlib.Path(__file__).parents[1] / "docs/how_it_works.md"
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


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_agrees_with_float64(name, shape):
    assert_solves(SOLVERS[name], shape)


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("solver", [solve_dct, solve_sparse])
def test_solvers_without_a_dense_operator_agree_on_large_images(solver, shape):
    assert_solves(solver, shape)


@pytest.mark.backends("tensorflow", "jax")
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
        preconditioner=lambda r: solve_dct(operator, r),
        rtol=1e-4,
    )
    assert ops.convert_to_numpy(plain.iterations).max() <= 100
    assert ops.convert_to_numpy(exact.iterations).max() == 2


# The edge-preserving operator, against SciPy in float64.


@functools.cache
def problems(size, channels, crops=1):
    """Returns crops of ten photographs, one flat and one of noise, and gradients."""
    rng = np.random.default_rng(0)
    (images, _), _ = datasets.load_photographs(size, crops, seed=2)
    images = images / 255
    if channels == 1:
        images = images.mean(axis=-1, keepdims=True)
    flat = np.full_like(images[:1], 0.3)
    images = np.concatenate([images, flat, rng.uniform(size=flat.shape)])
    return images.astype("float32"), rng.normal(size=images.shape).astype("float32")


def matrix_of(operator, index):
    rows, columns, values = operator.to_coordinates(index)
    shape = (operator.size, operator.size)
    return scipy.sparse.coo_array((values, (rows, columns)), shape=shape).tocsc()


def exact(operator, rhs, index):
    factors = scipy.sparse.linalg.splu(matrix_of(operator, index))
    return factors.solve(rhs[index].ravel().astype("float64"))


def test_the_preconditioner_is_nearly_the_inverse_where_nothing_is_an_edge():
    operator = EdgePreserving(np.full((1, 32, 32, 3), 0.5, "float32"))
    y, x = np.mgrid[:32, :32]
    wave = np.cos(np.pi * 3 * (2 * y + 1) / 64) * np.cos(np.pi * 2 * (2 * x + 1) / 64)
    wave = np.broadcast_to(wave[..., None, None], (32, 32, 3, 1)).astype("float32")
    back = edge_preserving_preconditioner(operator)(operator.matvec(wave))
    np.testing.assert_allclose(back, wave, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, channels",
    [
        *itertools.product((32, 64), (1, 3)),
        (224, 1),
        pytest.param(224, 3, marks=pytest.mark.rare),
    ],
)
def test_the_edge_preserving_solve_agrees_with_float64(size, channels):
    images, rhs = problems(size, channels)
    operator = EdgePreserving(images)
    # The sparse factors of a large image take half a minute.
    chosen = range(len(images)) if size < 224 else [7, 10, 11] if channels == 1 else [7]
    default = ops.convert_to_numpy(solve_edge_preserving(operator, rhs)[0])
    solution, info = solve_edge_preserving(operator, rhs, rtol=1e-4, max_iterations=300)
    solution = ops.convert_to_numpy(solution)
    assert np.all(ops.convert_to_numpy(info.iterations) < 300)
    cosines = []
    for i in chosen:
        x = exact(operator, rhs, i)
        error = np.linalg.norm(solution[i].ravel() - x) / np.linalg.norm(x)
        assert error <= 1e-3, i
        y = default[i].ravel()
        cosines.append(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    assert np.mean(cosines) >= 0.98
    assert np.min(cosines) >= 0.93


def images_of(kind):
    """Returns images scaled to [0, 1]."""
    if kind == "colour glyphs":
        return datasets.load_colour_glyphs()[1][0][:600:20] / 255
    if kind == "pixel noise":
        return np.random.default_rng(3).uniform(size=(8, 32, 32, 3))
    return datasets.load_photographs(32, crops=2, seed=3)[1][0] / 255


def accuracy(images, rhs, **form):
    """Returns errors in the energy norm, angles in degrees, and what was reported."""
    operator = EdgePreserving(images, **form)
    solution, info = solve_edge_preserving(operator, rhs)
    errors, angles = [], []
    for i, found in enumerate(ops.convert_to_numpy(solution).astype("float64")):
        x, y = exact(operator, rhs, i), found.ravel()
        difference = matrix_of(operator, i) @ (y - x) @ (y - x)
        errors.append(np.sqrt(difference / (rhs[i].ravel() @ x)))
        cosine = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
        angles.append(np.degrees(np.arccos(cosine)))
    return np.array(errors), np.array(angles), ops.convert_to_numpy(info.error)


# Docstrings and documentation give these numbers.
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind,form,error,angle,factor",
    [
        ("photographs", {"damping": 1e-3}, 0.35, 20, 4),
        ("colour glyphs", {}, 0.35, 20, 4),
        ("pixel noise", {}, 0.35, 20, 4),
        ("photographs", {"coherence": 0.0}, 0.8, 50, 12),
    ],
)
def test_the_default_rtol_is_as_accurate_as_documented(
    kind, form, error, angle, factor
):
    images = images_of(kind).astype("float32")
    model = small_model(10, images.shape[1:])
    labels = np.arange(len(images)) % 10
    found = [
        accuracy(images, rhs / np.abs(rhs).max(axis=(1, 2, 3), keepdims=True), **form)
        for rhs in (
            np.random.default_rng(4).normal(size=images.shape).astype("float32"),
            ops.convert_to_numpy(ksa.per_image_gradients(model, images, labels)),
        )
    ]
    errors, angles, reported = map(np.concatenate, zip(*found))
    assert errors.max() <= error and angles.max() <= angle
    assert np.all(errors <= factor * reported)
    assert errors.max() > error / 2  # the promise is not an empty one
    for text in (ksa.adversarial_recoloring.__doc__, PAGE.read_text()):
        text = " ".join(text.split())
        assert f"{error}" in text and f"{angle} degrees" in text
    assert f"up to {factor} times" in " ".join(SolveInfo.__doc__.split())


@pytest.mark.slow
def test_iteration_counts_of_the_edge_preserving_solve():
    """A worse preconditioner, or one that the size of the image matters to, fails."""
    mean, most = {}, {}
    for size, crops in ((32, 4), (64, 4), (128, 2), (224, 1)):
        images, rhs = problems(size, 3, crops)
        _, info = solve_edge_preserving(EdgePreserving(images), rhs)
        photographs = ops.convert_to_numpy(info.iterations)[:-2]
        mean[size], most[size] = photographs.mean(), photographs.max()
    assert mean[224] <= mean[64] * 4 / 3
    for size, bound in PINNED.items():
        assert mean[size] <= bound[0] and most[size] <= bound[1], size


def test_the_edge_preserving_solve_does_not_depend_on_the_batch():
    images, rhs = problems(32, 3)
    together, info = solve_edge_preserving(EdgePreserving(images), rhs)
    for i in (0, 4, 11):
        alone, own = solve_edge_preserving(
            EdgePreserving(images[i : i + 1]), rhs[i : i + 1]
        )
        atol = 1e-5 * np.abs(together[i]).max()
        np.testing.assert_allclose(alone[0], together[i], atol=atol)
        assert own.iterations[0] == info.iterations[i]


def test_a_zero_right_hand_side_gets_zero():
    images, rhs = problems(32, 3)
    rhs = rhs.copy()
    rhs[4] = 0
    solution, info = solve_edge_preserving(EdgePreserving(images), rhs)
    assert np.all(ops.convert_to_numpy(solution)[4] == 0)
    assert ops.convert_to_numpy(info.iterations)[4] == 0
    assert ops.convert_to_numpy(info.error)[4] == 0


@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.slow
@pytest.mark.parametrize(
    "size,channels,rank",
    [(32, 3, 8), (32, 1, 5), pytest.param(64, 3, 4, marks=pytest.mark.rare)],
)
def test_the_smallest_eigenpairs_are_those_of_scipy(size, channels, rank):
    images, rhs = problems(size, channels)
    images, rhs = images[:6], rhs[:6]
    operator = EdgePreserving(images)
    values, vectors = map(ops.convert_to_numpy, smallest_eigenpairs(operator, rank))
    assert vectors.shape == (*images.shape, rank)
    separate = 0
    for i in range(len(images)):
        expected, basis = scipy.sparse.linalg.eigsh(
            matrix_of(operator, i), rank + 1, sigma=-1e-4
        )
        found = vectors[i].reshape(-1, rank).astype("float64")
        np.testing.assert_allclose(values[i], expected[:rank], rtol=2e-3)
        np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-4)
        # Where the next eigenvalue is all but equal, no space is distinguished.
        if expected[rank] < 1.005 * expected[rank - 1]:
            continue
        separate += 1
        basis = basis[:, :rank]
        assert scipy.linalg.subspace_angles(basis, found).max() < 1e-2
        g = rhs[i].ravel().astype("float64")
        direction = basis @ ((basis.T @ g) / expected[:rank])
        projected = found @ ((found.T @ g) / values[i])
        error = np.linalg.norm(projected - direction) / np.linalg.norm(direction)
        assert error < 1e-2
    assert separate >= 3


@pytest.mark.slow
def test_damping_shifts_eigenvalues_and_leaves_eigenvectors():
    images, _ = problems(32, 3)
    values, vectors = zip(
        *(
            map(
                ops.convert_to_numpy,
                smallest_eigenpairs(EdgePreserving(x, damping=d), 3),
            )
            for x, d in ((images[:2], 1e-3), (images[:2], 0.05))
        )
    )
    np.testing.assert_allclose(values[1] - values[0], 0.049, rtol=1e-3)
    for one, other in zip(*vectors):
        one, other = (x.reshape(-1, 3).astype("float64") for x in (one, other))
        assert scipy.linalg.subspace_angles(one, other).max() < 1e-2
        # The first are the constants, one for each channel.
        assert np.var(other.reshape(-1, 3, 3), axis=0).max() < 1e-8


@pytest.mark.slow
def test_all_eigenpairs_of_a_tiny_image():
    image = np.random.default_rng(0).uniform(size=(1, 2, 3, 1)).astype("float32")
    operator = EdgePreserving(image)
    values, vectors = smallest_eigenpairs(operator, 6)
    expected = np.linalg.eigvalsh(matrix_of(operator, 0).toarray())
    np.testing.assert_allclose(values[0], expected, rtol=1e-3)
    with pytest.raises(ValueError, match="rank=7 for images of 6 values"):
        smallest_eigenpairs(operator, 7)
