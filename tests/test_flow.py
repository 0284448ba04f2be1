from fractions import Fraction

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.dct import dct2, laplacian_eigenvalues
from keras_structadv.flow import folded_fraction, random_flow
from keras_structadv.operators import ScreenedPoisson


def case(shape=(3, 9, 7, 2), seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=shape), rng.normal(size=shape)


def flow_of(images, gradients, **kwargs):
    return ops.convert_to_numpy(ksa.adversarial_flow(images, gradients, **kwargs))


def longest(flow):
    return np.linalg.norm(flow, axis=-1).max(axis=(1, 2))


@pytest.mark.parametrize(
    "solver",
    [
        "dct",
        pytest.param("sparse", marks=pytest.mark.backends("tensorflow", "jax")),
        "dense",
    ],
)
@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_it_is_equation_15(solver, alpha):
    images, gradients = case()
    inverse = np.linalg.inv(ScreenedPoisson(9, 7, 20.0).to_dense())
    expected = np.empty((3, 9, 7, 2))
    for k in range(3):
        for axis in (0, 1):
            derivative = np.gradient(images[k], axis=axis)
            d = (gradients[k] * derivative).sum(axis=-1)
            expected[k, ..., axis] = -(inverse @ d.ravel()).reshape(9, 7) / alpha
    actual = flow_of(
        images,
        gradients,
        smoothness=20.0,
        alpha=alpha,
        max_displacement=1e3,
        solver=solver,
    )
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_without_alpha_the_longest_displacement_is_exact():
    images, gradients = case()
    flow = flow_of(images, gradients, max_displacement=1.25)
    np.testing.assert_allclose(longest(flow), 1.25, rtol=1e-6)
    flow = flow_of(images, gradients, max_displacement=np.array([0.0, 0.5, 4.0]))
    np.testing.assert_allclose(longest(flow), [0.0, 0.5, 4.0], rtol=1e-6)


def test_with_alpha_only_longer_flows_are_scaled():
    images, gradients = case()
    free = flow_of(images, gradients, alpha=1.0, max_displacement=1e6)
    limit = np.sort(longest(free))[1]  # between the shortest and the longest
    flow = flow_of(images, gradients, alpha=1.0, max_displacement=float(limit))
    for k in range(3):
        factor = min(1.0, limit / longest(free)[k])
        np.testing.assert_allclose(flow[k], factor * free[k], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_the_size_of_the_gradient_does_not_matter_without_alpha(scale):
    images, gradients = case()
    expected = flow_of(images, gradients)
    np.testing.assert_allclose(
        flow_of(images, gradients * scale), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_a_useless_gradient_stills_its_image_alone(bad):
    images, gradients = case()
    expected = flow_of(images, gradients)
    if bad == 0:
        gradients[1] = 0
    else:
        gradients[1, 4, 4, 0] = bad
    flow = flow_of(images, gradients)
    np.testing.assert_array_equal(flow[1], 0)
    np.testing.assert_allclose(flow[[0, 2]], expected[[0, 2]], atol=1e-6)


def test_greater_smoothness_gives_a_smoother_flow():
    images, gradients = case((2, 32, 32, 1))
    roughness = [
        np.abs(np.diff(flow_of(images, gradients, smoothness=s), axis=1)).mean()
        for s in (0.0, 10.0, 1000.0)
    ]
    assert roughness[0] > 2 * roughness[1] > 4 * roughness[2]


def test_random_flows_have_the_spectrum_of_the_solve_of_white_noise():
    height, width, smoothness = 20, 24, 36.0
    images = np.zeros((2000, height, width, 1), "float32")
    flows = ops.convert_to_numpy(random_flow(images, smoothness=smoothness, seed=1))
    spectrum = np.square(ops.convert_to_numpy(dct2(flows.transpose(0, 3, 1, 2))))
    drawn = spectrum.mean((0, 1))
    filtered = 1 / (1 + smoothness * laplacian_eigenvalues(height, width)) ** 2
    drawn, filtered = drawn / drawn.sum(), filtered / filtered.sum()
    np.testing.assert_allclose(drawn[:6, :6], filtered[:6, :6], rtol=0.25)
    assert filtered[drawn < 1e-9].sum() < 0.01  # what is not drawn
    assert (drawn < 1e-9).any()


def test_a_random_flow_has_the_size_and_the_smoothness():
    images, gradients = case((16, 32, 32, 1))
    arguments = {"smoothness": 100.0, "max_displacement": 3.0}
    random = ops.convert_to_numpy(random_flow(images, seed=1, **arguments))
    np.testing.assert_allclose(longest(random), 3.0, rtol=1e-5)
    adversarial = flow_of(images, gradients, **arguments)  # of a random gradient
    steps = [np.abs(np.diff(flow, axis=2)).mean() for flow in (random, adversarial)]
    assert 0.7 < steps[0] / steps[1] < 1.4
    again = ops.convert_to_numpy(random_flow(images, seed=1, **arguments))
    np.testing.assert_array_equal(random, again)
    assert np.abs(random[0] - random[1]).max() > 0.1


def test_folding_is_found():
    y, x = np.mgrid[:16, :16].astype("float32")
    identity = np.zeros((16, 16, 2), "float32")
    mild = np.stack([0.5 * np.sin(y / 2), 0.5 * np.sin(x / 2)], axis=-1)
    folding = np.stack([8 * np.sin(y / 2), np.zeros_like(x)], axis=-1)
    fractions = ops.convert_to_numpy(
        folded_fraction(np.stack([identity, mild, folding]))
    )
    np.testing.assert_array_equal(fractions[:2], 0)
    assert 0.2 < fractions[2] < 0.8


def test_flows_of_two_pixels_do_not_fold():
    images, gradients = case((32, 28, 28, 1))
    flow = flow_of(images, gradients, smoothness=100.0, max_displacement=2.0)
    assert ops.convert_to_numpy(folded_fraction(flow)).max() == 0


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64, Fraction])
def test_numbers_may_be_of_every_type(number):
    images, gradients = case()
    given, plain = (
        {"smoothness": kind(4), "max_displacement": kind(2), "alpha": kind(3)}
        for kind in (number, float)
    )
    flow = flow_of(images, gradients, **given)
    np.testing.assert_array_equal(flow, flow_of(images, gradients, **plain))
    del given["alpha"]
    flow = ops.convert_to_numpy(random_flow(images, seed=0, **given))
    assert flow.dtype == "float32"


@pytest.mark.parametrize("wrong", [np.complex64(1j), "1", None])
@pytest.mark.parametrize("name", ["images", "gradients"])
def test_what_is_no_number_is_named(wrong, name):
    pair = dict(zip(("images", "gradients"), case()))
    pair[name] = np.full(pair[name].shape, wrong)
    with pytest.raises(ValueError, match=f"Received {name} that are no real numbers"):
        ksa.adversarial_flow(**pair)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"smoothness": -1.0}, "smoothness=-1.0"),
        ({"smoothness": float("nan")}, "smoothness=nan"),
        ({"max_displacement": -2.0}, "max_displacement=-2.0"),
        ({"max_displacement": [1.0, float("inf"), 1.0]}, "inf"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"solver": "lu"}, "'lu'.*dct"),
        ({"solver": ["dct"]}, r"solver=\['dct'\]"),
        ({"max_displacement": 1e39}, r"max_displacement=1e\+39.*1e30"),
        ({"max_displacement": 10**400}, "max_displacement=10"),
        ({"max_displacement": "2"}, "max_displacement='2'"),
        ({"max_displacement": 1j}, "max_displacement=1j"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.adversarial_flow(*case(), **kwargs)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"max_displacement of shape \(2,\) for 3"):
        ksa.adversarial_flow(*case(), max_displacement=[1.0, 2.0])
    images, gradients = case()
    with pytest.raises(ValueError, match=r"\(9, 7, 2\).*batch"):
        ksa.adversarial_flow(images[0], gradients[0])
    with pytest.raises(ValueError, match=r"gradients of shape \(2, 9, 7, 2\)"):
        ksa.adversarial_flow(images, gradients[:2])
