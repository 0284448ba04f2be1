"""What lower precision of matrix products may change, and what it must not."""

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from benchmarks.precision import BITS, angles, rounded, rounded_products
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers import conjugate_gradients, solve_edge_preserving
from keras_structadv.training.fingerprint import fingerprint
from keras_structadv.warp import compose_flows, move_boxes, move_points
from tests.models import numpy


@pytest.fixture
def given():
    """Returns images, a gradient, a flow and boxes of a batch."""
    random = np.random.default_rng(3)
    images = random.uniform(0, 1, (3, 20, 20, 3)).cumsum(axis=1) / 20
    gradients = random.normal(size=images.shape)
    flow = random.normal(size=(3, 20, 20, 2))
    boxes = np.array([[[2.0, 3.0, 9.0, 12.0]]] * 3)
    arrays = (images, gradients, flow, boxes)
    return [ops.convert_to_tensor(x.astype("float32")) for x in arrays]


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_rounding_is_to_the_nearest(bits):
    random = np.random.default_rng(0)
    x = random.normal(size=5000) * 10.0 ** random.integers(-9, 9, 5000)
    x = np.append(x, [0.0, 1.0, -2.0]).astype("float32")
    found = numpy(rounded(x, bits))
    assert not (found.view("uint32") & (2 ** (24 - bits) - 1)).any()
    step = 2.0 ** (np.frexp(x)[1] - bits)
    assert (np.abs(found.astype("float64") - x) <= step / 2).all()
    np.testing.assert_array_equal(found[-3:], x[-3:])


def test_places_and_keys_are_the_same_to_the_bit(given):
    images, gradients, flow, boxes = given

    def found():
        points = ops.reshape(boxes, (3, 2, 2))
        operator = EdgePreserving(images)
        moved = ops.transpose(gradients, (1, 2, 3, 0))
        solution, info = conjugate_gradients(operator.matvec, moved, max_iterations=9)
        results = (
            fingerprint(images),
            ksa.dense_image_warp(images, flow),
            ksa.dense_image_warp(images, flow, interpolation="nearest"),
            compose_flows(flow, flow),
            move_points(points, flow),
            move_boxes(boxes, flow),
            *(solution, info.residual, info.error),
        )
        return [numpy(x) for x in results]

    exact = found()
    with rounded_products(BITS["bfloat16"]):
        for one, other in zip(found(), exact):
            np.testing.assert_array_equal(one, other)


def test_a_flow_keeps_its_length_and_nearly_its_direction(given):
    images, gradients, *_ = given

    def flow():
        form = {"max_displacement": 2.0, "smoothness": 20.0}
        return numpy(ksa.adversarial_flow(images, gradients, **form))

    exact = flow()
    for bits, most in ((BITS["TF32"], 0.1), (BITS["bfloat16"], 1.0)):
        with rounded_products(bits):
            field = flow()
        assert (angles(field, exact) > 0).all()
        assert angles(field, exact).max() < most
        longest = np.sqrt(np.square(field).sum(axis=-1)).max(axis=(1, 2))
        np.testing.assert_allclose(longest, 2.0, rtol=1e-6)


def test_a_recolouring_is_solved_whatever_the_products_lose(given):
    images, gradients, *_ = given
    operator = EdgePreserving(images)

    def solution():
        form = {"rtol": 1e-5, "max_iterations": 200}
        return numpy(solve_edge_preserving(operator, gradients, **form)[0])

    exact = solution()
    with rounded_products(BITS["bfloat16"]):  # only the preconditioner has products
        found = solution()
    assert (found != exact).any()
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found / scale, exact / scale, atol=2e-4)
