import numpy as np
import pytest

from keras_structadv.differences import central_difference, forward_difference


@pytest.mark.parametrize("shape", [(2, 7), (5, 2), (6, 9)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_central_difference_is_numpy_gradient(shape, axis):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = np.gradient(x, axis=axis)
    np.testing.assert_allclose(central_difference(x, axis), expected, atol=1e-6)


def test_central_difference_of_a_single_pixel_is_zero():
    x = np.full((3, 1, 4), 7.0, "float32")
    np.testing.assert_array_equal(central_difference(x, 1), np.zeros_like(x))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_forward_difference_ends_with_zero(axis):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    last = np.take(x, [-1], axis=axis)
    expected = np.diff(x, axis=axis, append=last)
    np.testing.assert_allclose(forward_difference(x, axis), expected, atol=1e-6)
