from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from keras import ops

import keras_structadv as ksa
from keras_structadv.operators import EdgePreserving
from keras_structadv.recoloring import (
    gradient_from_code,
    recoloring_code,
    recoloring_from_basis,
    root_mean_square,
    scaled_to_unit,
)
from keras_structadv.solvers import project, recoloring_basis


@pytest.fixture
def photographs():
    """Returns four crops, 0 to 255, and smooth gradients for them."""
    (images, _), _ = ksa.datasets.load_photographs(size=32, crops=1)
    images = images[[0, 2, 7, 8]].astype("float32")
    rng = np.random.default_rng(0)
    return images, rng.normal(size=images.shape).astype("float32")


def recolor(images, gradients, **kwargs):
    return ops.convert_to_numpy(ksa.adversarial_recoloring(images, gradients, **kwargs))


def sizes(perturbation):
    return np.sqrt(np.square(perturbation).mean(axis=(1, 2, 3)))


def exact(image, gradient, **kwargs):
    """Returns `A^-1 g` in float64 for one image scaled to [0, 1]."""
    operator = EdgePreserving(image[None].astype("float32"), **kwargs)
    rows, columns, values = operator.to_coordinates(0)
    matrix = scipy.sparse.coo_array((values, (rows, columns))).tocsc()
    rhs = gradient.ravel().astype("float64")
    return scipy.sparse.linalg.spsolve(matrix, rhs).reshape(image.shape)


@pytest.mark.parametrize(
    "kwargs", [{}, {"coherence": 3.0, "edge_scale": 0.2}, {"damping": 0.1}], ids=str
)
def test_it_is_the_solution_scaled_to_the_magnitude(photographs, kwargs):
    images, gradients = photographs
    magnitudes = np.array([0.0, 0.05, 0.1, 0.2])
    perturbation = recolor(
        images,
        gradients,
        magnitude=magnitudes,
        rtol=1e-4,
        max_iterations=300,
        **kwargs,
    )
    assert np.all(perturbation[0] == 0)
    for i in (1, 2, 3):
        expected = exact(images[i] / 255, gradients[i], **kwargs)
        expected *= 255 * magnitudes[i] / np.sqrt(np.square(expected).mean())
        error = np.linalg.norm(perturbation[i] - expected)
        assert error < 1e-3 * np.linalg.norm(expected)
    np.testing.assert_allclose(
        root_mean_square(perturbation, (0, 255)), magnitudes, rtol=1e-4
    )


def test_the_papers_own_operator(photographs):
    images, gradients = photographs
    perturbation = recolor(
        images, gradients, coherence=0.0, rtol=1e-4, max_iterations=2000
    )
    for i in range(4):
        expected = exact(images[i] / 255, gradients[i], coherence=0.0)
        expected *= 255 * 0.08 / np.sqrt(np.square(expected).mean())
        error = np.linalg.norm(perturbation[i] - expected)
        assert error < 1e-2 * np.linalg.norm(expected)


def test_contours_are_kept_and_surfaces_recoloured(photographs):
    """Most of the change of the change lies where the image has its edges."""
    images, gradients = photographs
    image = images[2]  # a motorcycle
    steps = [np.diff(image, axis=0)[:, :-1], np.diff(image, axis=1)[:-1]]
    edginess = np.sqrt(sum(np.square(step).sum(axis=-1) for step in steps))
    edges = edginess > np.quantile(edginess, 0.8)

    def share(field):
        steps = [np.diff(field, axis=0)[:, :-1], np.diff(field, axis=1)[:-1]]
        square = sum(np.square(step).sum(axis=-1) for step in steps)
        return square[edges].sum() / square.sum()

    assert share(recolor(images, gradients)[2]) > 0.6
    assert share(recolor(images, gradients, coherence=0.0)[2]) < 0.4
    assert share(gradients[2]) < 0.3


def test_value_range_is_but_a_unit(photographs):
    images, gradients = photographs
    expected = recolor(images, gradients)
    unit = recolor(images / 255, gradients, value_range=(0, 1))
    np.testing.assert_allclose(unit * 255, expected, rtol=1e-3, atol=1e-2)
    unit = recolor(images / 255, gradients, value_range=np.array([0, 1]))
    np.testing.assert_allclose(unit * 255, expected, rtol=1e-3, atol=1e-2)
    signed = recolor(images / 127.5 - 1, gradients, value_range=(-1, 1))
    np.testing.assert_allclose(signed * 127.5, expected, rtol=1e-3, atol=1e-2)


def test_lam_gives_equation_33_up_to_the_magnitude(photographs):
    images, gradients = photographs
    images, gradients = images[2:] / 255, 1e-4 * gradients[2:]
    accurate = {"rtol": 1e-4, "max_iterations": 300}
    small = recolor(images, gradients, lam=10.0, value_range=(0, 1), **accurate)
    for i in range(2):
        expected = exact(images[i], gradients[i]) / 10
        error = np.linalg.norm(small[i] - expected)
        assert error < 1e-3 * np.linalg.norm(expected)
    assert sizes(small).max() < 0.08
    # The same change of the same image, whatever unit it is in.
    bytes_ = recolor(images * 255, gradients / 255, lam=10.0, **accurate)
    np.testing.assert_allclose(bytes_, 255 * small, rtol=1e-3, atol=1e-5)
    large = recolor(images, gradients, lam=1e-6, value_range=(0, 1), **accurate)
    np.testing.assert_allclose(sizes(large), 0.08, rtol=1e-4)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_gradient_that_is_zero_or_not_finite_changes_nothing(photographs, bad):
    images, gradients = photographs
    expected = recolor(images, gradients)
    gradients = gradients.copy()
    gradients[1] = bad if bad == 0 else gradients[1]
    gradients[1, 3, 4, 0] = bad
    out = recolor(images, gradients)
    assert np.all(out[1] == 0)
    np.testing.assert_allclose(out[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-2)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_pixel_that_is_not_finite_leaves_its_image_alone(photographs, rank):
    images, gradients = (x[:, :16, :16].copy() for x in photographs)
    images[1, 3, 4, 0] = np.nan
    out = recolor(images, gradients, rank=rank)
    assert np.all(out[1] == 0) and np.isfinite(out).all()
    np.testing.assert_allclose(sizes(out)[[0, 2, 3]], 0.08 * 255, rtol=1e-4)


def test_the_smallest_arguments_are_no_trouble(photographs):
    images, gradients = photographs
    out = recolor(images, gradients * [[[[0]]], [[[1]]], [[[1]]], [[[1]]]], lam=1e-30)
    assert np.all(out[0] == 0)
    np.testing.assert_allclose(sizes(out)[1:], 0.08 * 255, rtol=1e-4)
    out = recolor(images, gradients, edge_scale=1e-30)
    np.testing.assert_allclose(sizes(out), 0.08 * 255, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_the_gradient_does_not_matter(photographs, scale):
    images, gradients = photographs
    scaled = recolor(images, gradients * np.float32(scale))
    np.testing.assert_allclose(scaled, recolor(images, gradients), atol=0.05)


@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.rare
def test_a_low_rank_is_the_projection_on_the_smoothest_changes(photographs):
    images, gradients = photographs
    out = recolor(images, gradients, rank=3)
    # The three smallest eigenvalues are those of the constants, one for each channel.
    mean = gradients.mean(axis=(1, 2), keepdims=True)
    expected = np.broadcast_to(mean, images.shape)
    expected = expected * (0.08 * 255 / sizes(expected))[:, None, None, None]
    np.testing.assert_allclose(out, expected, atol=0.2)
    whole = recolor(images, gradients, rtol=1e-4, max_iterations=300)

    def cosines(rank):
        low = recolor(images, gradients, rank=rank)
        return (low * whole).sum(axis=(1, 2, 3)) / (
            np.linalg.norm(low.reshape(4, -1), axis=1)
            * np.linalg.norm(whole.reshape(4, -1), axis=1)
        )

    assert np.all(cosines(12) > cosines(3)) and cosines(12).min() > 0.5


@pytest.mark.backends("tensorflow", "torch")
def test_a_basis_gives_what_the_rank_gives(photographs):
    images, gradients = photographs
    scaled = scaled_to_unit(ops.convert_to_tensor(images), (0, 255))
    basis = recoloring_basis(EdgePreserving(scaled), 6)
    assert tuple(basis.shape) == (4, 32, 32, 3, 6)
    expected = recolor(images, gradients, rank=6)
    out = recoloring_from_basis(gradients, basis)
    np.testing.assert_allclose(out, expected, atol=1e-3)
    half = ops.convert_to_numpy(basis).astype("float16")
    out = recoloring_from_basis(gradients, half)
    np.testing.assert_allclose(out, expected, atol=0.1)
    with pytest.raises(ValueError, match="basis of shape.*images of shape"):
        project(gradients, basis[:, :16])


def test_a_code_keeps_the_lowest_frequencies(photographs):
    images, gradients = photographs
    y, x = np.mgrid[:32, :32]
    wave = np.cos(np.pi * 2 * (2 * y + 1) / 64) * np.cos(np.pi * 5 * (2 * x + 1) / 64)
    smooth = wave[None, ..., None] * np.array([1.0, -0.5, 0.2], "float32")
    code = recoloring_code(ops.cast(smooth, "float32"), 6)
    assert tuple(code.shape) == (1, 3, 6, 6)
    back = ops.convert_to_numpy(gradient_from_code(code, (32, 32)))
    np.testing.assert_allclose(back / back.max(), smooth / smooth.max(), atol=1e-5)
    # Of a gradient that is noise, the coefficients make much of the recolouring.
    whole = recolor(images, gradients)
    low = gradient_from_code(recoloring_code(gradients, 8), (32, 32))
    kept = recolor(images, low)
    cosine = (whole * kept).sum(axis=(1, 2, 3)) / (32 * 32 * 3 * (0.08 * 255) ** 2)
    assert cosine.min() > 0.6
    assert tuple(recoloring_code(gradients[:, :4], 6).shape) == (4, 3, 4, 6)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rank", [None, 3])
def test_in_a_graph_with_an_unknown_batch_size(photographs, jit_compile, rank):
    tf = pytest.importorskip("tensorflow")
    images, gradients = (x[:, :8, :8] for x in photographs)

    @tf.function(
        input_signature=[tf.TensorSpec((None, 8, 8, 3))] * 2, jit_compile=jit_compile
    )
    def compiled(images, gradients):
        return ksa.adversarial_recoloring(images, gradients, rank=rank)

    expected = recolor(images, gradients, rank=rank)
    for size in (4, 1):
        out = compiled(images[:size], gradients[:size])
        np.testing.assert_allclose(out, expected[:size], atol=0.02)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"magnitude": -0.1}, "magnitude=-0.1.*fraction"),
        ({"magnitude": np.float32(-0.1)}, "magnitude=.*-0.1"),
        ({"magnitude": np.ones(3)}, r"magnitude of shape \(3,\) for 4 images"),
        ({"coherence": -1}, r"coherence=-1.*\[0, 1e30\]"),
        ({"damping": 0}, r"damping=0.*\[1e-30, 1e30\]"),
        ({"edge_scale": 0.0}, r"edge_scale=0.0.*\[1e-30"),
        ({"lam": 0}, "lam=0.*None"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.5}, "rank=2.5"),
        ({"rank": 10**9}, "rank=1000000000. Pass an integer <= 1024"),
        ({"rtol": -1}, "rtol=-1"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"max_iterations": 10**9}, "max_iterations=10*. Pass an integer <= 10000"),
        ({"value_range": (1, 1)}, r"value_range=\(1, 1\)"),
        ({"value_range": ("a", "b")}, "value_range=.'a', 'b'."),
        ({"value_range": (float("nan"), 1)}, r"value_range=\(nan, 1\)"),
        ({"value_range": None}, "value_range=None"),
        ({"value_range": (0, 1e39)}, "value_range=.*1e30"),
        ({"value_range": (0, 10**400)}, "value_range=.*1e30"),
        ({"magnitude": 1e39}, r"magnitude=1e\+39.*1e30"),
        ({"magnitude": None}, "magnitude=None"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(photographs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.adversarial_recoloring(*photographs, **kwargs)


def test_numbers_may_be_of_every_type(photographs):
    kwargs = {"damping": 0.01, "lam": 3, "magnitude": 0.1}
    expected = recolor(*photographs, **kwargs)
    for kind in (np.float64, Fraction):
        given = {name: kind(value) for name, value in kwargs.items()}
        np.testing.assert_array_equal(recolor(*photographs, **given), expected)


def test_a_basis_that_overflows_changes_nothing():
    gradients = np.ones((2, 3, 3, 1), "float32")
    basis = np.stack([np.full((3, 3, 1, 1), x, "float32") for x in (0.3, 1e30)])
    for lam in (None, 1e-3):
        for value_range in ((0, 255), (0, 1e30)):
            out = recoloring_from_basis(
                gradients, basis, lam=lam, value_range=value_range
            )
            out = ops.convert_to_numpy(out)
            assert np.isfinite(out).all() and out[0].min() > 0 and not out[1].any()


@pytest.mark.parametrize("rank", [None, 2])
def test_an_image_that_overflows_stays_alone(rank):
    rng = np.random.default_rng(0)
    images, gradients = rng.uniform(0, 255, (2, 3, 5, 4, 3)).astype("float32")
    expected = recolor(images, gradients, rank=rank)
    images[1] *= 1e30
    actual = recolor(images, gradients, rank=rank)
    np.testing.assert_array_equal(actual[1], 0)
    np.testing.assert_array_equal(actual[[0, 2]], expected[[0, 2]])


def test_no_images_get_no_perturbations():
    none = np.zeros((0, 4, 4, 3), "float32")
    assert recolor(none, none).shape == none.shape
    basis = np.zeros((*none.shape, 2), "float16")
    assert tuple(recoloring_from_basis(none, basis).shape) == none.shape


def test_bad_shapes_are_named(photographs):
    images, gradients = photographs
    with pytest.raises(ValueError, match=r"images of shape \(32, 32, 3\)"):
        ksa.adversarial_recoloring(images[0], gradients[0])
    with pytest.raises(
        ValueError, match="gradients of shape .* two arrays of the same shape"
    ):
        ksa.adversarial_recoloring(images, gradients[:, :16])
