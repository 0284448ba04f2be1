"""Properties that hold for every shape and every input."""

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.dct import dct2, idct2
from keras_structadv.differences import forward_difference, forward_difference_adjoint
from keras_structadv.operators import EdgePreserving, ScreenedPoisson
from keras_structadv.solvers import edge_preserving_preconditioner, solve_dct

SHAPES = [(1, 1), (1, 6), (2, 2), (5, 3), (17, 24)]


def planes(shape, seed):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype("float32")


def dot(a, b):
    return (
        ops.convert_to_numpy(a).astype("float64")
        * ops.convert_to_numpy(b).astype("float64")
    ).sum()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "operator,adjoint",
    [
        (
            lambda x: forward_difference(x, 1),
            lambda x: forward_difference_adjoint(x, 1),
        ),
        (
            lambda x: forward_difference(x, 2),
            lambda x: forward_difference_adjoint(x, 2),
        ),
        (dct2, idct2),
    ],
    ids=["Dy", "Dx", "DCT"],
)
def test_adjoints(operator, adjoint, shape):
    u, v = planes(shape, 1), planes(shape, 2)
    left, right = dot(operator(u), v), dot(u, adjoint(v))
    assert abs(left - right) <= 1e-5 * np.linalg.norm(u) * np.linalg.norm(v)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operator_is_symmetric_and_positive_definite(shape):
    apply = ScreenedPoisson(*shape, smoothness=50.0).matvec
    u, v = planes(shape, 1), planes(shape, 2)
    assert abs(dot(apply(u), v) - dot(u, apply(v))) <= 1e-5 * 401 * dot(u, u)
    assert dot(u, apply(u)) >= dot(u, u) * (1 - 1e-5)


def edge_preserving(shape, channels=3):
    images = np.random.default_rng(3).uniform(size=(2, *shape, channels))
    return EdgePreserving(images.astype("float32"))


def fields(shape, seed, channels=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, channels, 2)).astype("float32")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_rate_of_edginess_and_its_adjoint(shape):
    operator = edge_preserving(shape)
    u, v = fields(shape, 1), fields(shape, 2, channels=1)
    left = dot(operator.edginess_rate(u), v)
    right = dot(u, operator.edginess_rate_adjoint(v))
    assert abs(left - right) <= 1e-5 * np.linalg.norm(u) * np.linalg.norm(v)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_edge_preserving_operator_and_its_preconditioner(shape, channels):
    operator = edge_preserving(shape, channels)
    u, v = fields(shape, 1, channels), fields(shape, 2, channels)
    precondition = edge_preserving_preconditioner(operator)
    for apply, bound in ((operator.matvec, 20), (precondition, 2e3)):
        assert abs(dot(apply(u), v) - dot(u, apply(v))) <= 1e-5 * bound * dot(u, u)
        assert dot(u, apply(u)) > 0
    assert dot(u, operator.matvec(u)) >= 1e-3 * dot(u, u) * (1 - 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_solve_inverts_the_operator(shape):
    x = planes(shape, 1)
    operator = ScreenedPoisson(*shape, smoothness=50.0)
    rhs = operator.matvec(x)
    np.testing.assert_allclose(solve_dct(operator, rhs), x, atol=2e-4)


@pytest.mark.parametrize("size", [(5, 9), (12, 12)], ids=str)
def test_turning_the_image_turns_the_flow(size):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, *size, 3))
    gradients = rng.normal(size=images.shape)
    flow = ops.convert_to_numpy(ksa.adversarial_flow(images, gradients))
    swapped = ksa.adversarial_flow(
        images.transpose(0, 2, 1, 3), gradients.transpose(0, 2, 1, 3)
    )
    swapped = ops.convert_to_numpy(swapped).transpose(0, 2, 1, 3)[..., ::-1]
    np.testing.assert_allclose(swapped, flow, atol=1e-5)
    mirrored = ksa.adversarial_flow(images[:, ::-1], gradients[:, ::-1])
    mirrored = ops.convert_to_numpy(mirrored)[:, ::-1] * [-1, 1]
    np.testing.assert_allclose(mirrored, flow, atol=1e-5)


def test_turning_the_image_turns_the_recolouring():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 5, 9, 3))
    gradients = rng.normal(size=images.shape)

    def recolor(x, g):
        return ops.convert_to_numpy(
            ksa.adversarial_recoloring(
                x, g, value_range=(0, 1), rtol=1e-5, max_iterations=500
            )
        )

    perturbation = recolor(images, gradients)
    turned = (a.transpose(0, 2, 1, 3) for a in (images, gradients))
    turned = recolor(*turned).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(turned, perturbation, atol=1e-4)
    swapped = recolor(images[..., ::-1], gradients[..., ::-1])[..., ::-1]
    np.testing.assert_allclose(swapped, perturbation, atol=1e-4)


def test_the_recolouring_is_a_direction_of_ascent():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, size=(5, 24, 24, 3))
    gradients = rng.normal(size=images.shape)
    for max_iterations in (1, 3, 50):  # also where the solve was cut short
        perturbation = ops.convert_to_numpy(
            ksa.adversarial_recoloring(images, gradients, max_iterations=max_iterations)
        )
        assert np.all((perturbation * gradients).sum(axis=(1, 2, 3)) > 0)


def test_the_flow_is_a_direction_of_ascent():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24] / 24
    for k in range(5):
        image = np.sin(rng.uniform(2, 5) * y + rng.uniform(2, 5) * x + k)
        image = image[None, ..., None].astype("float32")
        gradient = rng.normal(size=image.shape).astype("float32")
        flow = ksa.adversarial_flow(image, gradient, max_displacement=0.5)
        moved = ops.convert_to_numpy(ksa.dense_image_warp(image, flow))
        assert ((moved - image) * gradient).sum() > 0


def test_mask_and_image_move_together():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    image = (np.hypot(y - 30, x - 35) < 15)[None, ..., None].astype("float32")
    flow = ksa.adversarial_flow(
        image, rng.normal(size=image.shape), max_displacement=3.0
    )
    moved = ops.convert_to_numpy(ksa.dense_image_warp(image, flow))
    mask = ksa.dense_image_warp(image.astype("uint8"), flow, interpolation="nearest")
    mask = ops.convert_to_numpy(mask)
    # They may differ only on the edge, where the image is between the two values.
    assert np.abs(moved - mask).max() < 1
    assert (np.abs(moved - mask) > 0.5).mean() < 0.005
    assert (mask != image).sum() > 20
