import numpy as np
import pytest
import scipy.ndimage
from keras import ops

import keras_structadv as ksa
from keras_structadv.warp import compose_flows, move_boxes, move_points


def warp(images, flow, **kwargs):
    return ops.convert_to_numpy(ksa.dense_image_warp(images, flow, **kwargs))


def random_case(shape, size, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=shape).astype("float32")
    flow = rng.uniform(-size, size, shape[:3] + (2,)).astype("float32")
    return images, flow


@pytest.mark.parametrize("interpolation,order", [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize("shape", [(2, 6, 9, 3), (1, 2, 2, 1), (3, 1, 5, 2)])
def test_it_resamples_as_scipy(shape, interpolation, order):
    images, flow = random_case(shape, 4.0)
    y, x = np.mgrid[: shape[1], : shape[2]]
    expected = np.empty_like(images)
    for k in range(shape[0]):
        at = [y - flow[k, ..., 0], x - flow[k, ..., 1]]
        for c in range(shape[3]):
            expected[k, ..., c] = scipy.ndimage.map_coordinates(
                images[k, ..., c], at, order=order, mode="nearest"
            )
    actual = warp(images, flow, interpolation=interpolation)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_no_images_are_warped_to_none(interpolation):
    none = np.zeros((0, 4, 5, 3), "uint8")
    flow = np.zeros((0, 4, 5, 2), "float32")
    warped = warp(none, flow, interpolation=interpolation)
    assert warped.shape == none.shape
    assert warped.dtype == ("uint8" if interpolation == "nearest" else "float32")
    assert tuple(compose_flows(flow, flow).shape) == flow.shape
    assert tuple(move_points(np.zeros((0, 3, 2)), flow).shape) == (0, 3, 2)
    assert tuple(move_boxes(np.zeros((0, 3, 4)), flow).shape) == (0, 3, 4)


def test_a_zero_flow_changes_nothing():
    images, flow = random_case((2, 5, 7, 3), 0.0)
    np.testing.assert_array_equal(warp(images, flow), images)


@pytest.mark.parametrize("dy,dx", [(1, 0), (0, -2), (2, 3)])
def test_a_constant_flow_shifts_forward(dy, dx):
    images, _ = random_case((1, 8, 8, 1), 0.0)
    flow = np.broadcast_to(np.float32([dy, dx]), (1, 8, 8, 2))
    shifted = np.roll(images, (dy, dx), axis=(1, 2))
    np.testing.assert_array_equal(warp(images, flow)[:, 3:5, 3:5], shifted[:, 3:5, 3:5])


def test_masks_keep_their_dtype_and_values():
    mask = np.random.default_rng(0).integers(0, 200, (2, 8, 8, 1)).astype("uint8")
    _, flow = random_case((2, 8, 8, 1), 2.0)
    moved = warp(mask, flow, interpolation="nearest")
    assert moved.dtype == np.uint8
    assert set(np.unique(moved)) <= set(np.unique(mask))


@pytest.mark.parametrize(
    "dtype,expected",
    [("float16", "float16"), ("float32", "float32"), ("uint8", "float32")],
)
def test_bilinear_dtypes(dtype, expected):
    images, flow = random_case((1, 6, 6, 1), 1.5)
    images = (images * 255).astype(dtype)
    moved = warp(images, flow)
    assert moved.dtype == expected
    exact = warp(images.astype("float32"), flow)
    np.testing.assert_allclose(moved.astype("float32"), exact, rtol=1e-3)


def test_a_flow_that_is_not_a_number_stays_in_its_pixel():
    images, flow = random_case((2, 6, 6, 1), 1.5)
    expected = warp(images, flow)
    flow[0, 2, 3] = np.nan
    moved = warp(images, flow)
    assert np.isnan(moved[0, 2, 3])
    moved[0, 2, 3] = expected[0, 2, 3]
    np.testing.assert_array_equal(moved, expected)


def test_composed_flows_move_as_two_warps():
    y, x = np.mgrid[:32, :32].astype("float32")
    image = np.sin(y / 6) + np.cos(x / 5)
    image = image[None, ..., None]
    first = np.stack([2 * np.sin(x / 9), np.cos(y / 8)], axis=-1)[None]
    second = np.stack([np.cos(y / 7), np.sin(x / 8)], axis=-1)[None]
    twice = warp(warp(image, first), second)
    once = warp(image, compose_flows(first, second))
    np.testing.assert_allclose(once[:, 3:-3, 3:-3], twice[:, 3:-3, 3:-3], atol=0.02)
    wrong_order = warp(image, compose_flows(second, first))
    assert np.abs(wrong_order - twice)[:, 3:-3, 3:-3].max() > 0.05


@pytest.mark.parametrize(
    "images,flow,kwargs,message",
    [
        (np.ones((8, 8, 1)), np.ones((1, 8, 8, 2)), {}, r"\(8, 8, 1\)"),
        (
            np.ones((1, 8, 8, 1)),
            np.ones((1, 8, 7, 2)),
            {},
            r"flow of shape \(1, 8, 7, 2\)",
        ),
        (np.ones((1, 8, 8, 1)), np.ones((1, 8, 8, 3)), {}, r"\(1, 8, 8, 2\)"),
        (
            np.ones((1, 8, 8, 1)),
            np.ones((1, 8, 8, 2)),
            {"interpolation": "cubic"},
            "'cubic'",
        ),
    ],
)
def test_bad_input_is_named(images, flow, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.dense_image_warp(images, flow, **kwargs)


def smooth_flow(seed, size=48, longest=4.0):
    """Returns a flow as the layer makes them: of that smoothness, and that long."""
    noise = np.random.default_rng(seed).normal(size=(2, size, size, 2))
    flow = scipy.ndimage.gaussian_filter(noise, (0, 6, 6, 0))
    flow /= np.sqrt((flow**2).sum(-1)).max(axis=(1, 2))[:, None, None, None]
    return (longest * flow).astype("float32")


@pytest.mark.parametrize("seed", range(3))
def test_points_move_with_what_is_in_the_image(seed):
    flow = smooth_flow(seed)
    points = np.random.default_rng(seed).uniform(12, 35, (2, 5, 2)).astype("float32")
    y, x = np.mgrid[:48, :48]
    moved = ops.convert_to_numpy(move_points(points, flow))
    assert np.abs(moved - points).max() > 1.0
    for k, i in np.ndindex(2, 5):
        px, py = points[k, i]
        blob = np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4.0)[None, ..., None]
        seen = warp(blob.astype("float32"), flow[k : k + 1])[0, ..., 0] ** 2
        at = np.array([(seen * x).sum(), (seen * y).sum()]) / seen.sum()
        assert np.abs(at - moved[k, i]).max() < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_boxes_move_with_what_is_in_the_image(seed):
    flow = smooth_flow(seed, longest=3.0)
    boxes = np.array([[[10, 8, 30, 20], [20, 22, 40, 41]]] * 2, "float32")
    moved = ops.convert_to_numpy(move_boxes(boxes, flow))
    assert np.abs(moved - boxes).max() > 1.0
    for k, i in np.ndindex(2, 2):
        left, top, right, bottom = boxes[k, i].astype(int)
        content = np.zeros((1, 48, 48, 1), "float32")
        content[:, top:bottom, left:right] = 1
        fine = np.kron(content, np.ones((1, 8, 8, 1), "float32"))
        finer = np.kron(flow[k : k + 1], np.ones((1, 8, 8, 1), "float32"))
        finer = scipy.ndimage.gaussian_filter(finer, (0, 4, 4, 0)) * 8
        seen = warp(fine, finer, interpolation="nearest")[0, ..., 0] > 0
        rows, columns = (np.flatnonzero(seen.any(axis)) / 8 for axis in (1, 0))
        at = [columns[0], rows[0], columns[-1] + 1 / 8, rows[-1] + 1 / 8]
        np.testing.assert_allclose(moved[k, i], at, atol=0.5)


def test_points_and_boxes_of_a_shift():
    flow = np.broadcast_to(np.float32([2.0, -1.0]), (1, 9, 9, 2))
    points = np.float32([[[3, 4], [-5, 20]]])  # outside they move with the border
    np.testing.assert_allclose(move_points(points, flow), points + [-1, 2], atol=1e-5)
    boxes = np.float32([[[1, 2, 5, 6]]])
    np.testing.assert_allclose(move_boxes(boxes, flow), boxes + [-1, 2, -1, 2])
    for count in (0, 1):
        assert move_points(points[:, :count], flow).shape == (1, count, 2)
        assert move_boxes(boxes[:, :count], flow).shape == (1, count, 4)


def test_a_fold_gives_a_point_of_the_image():
    flow = smooth_flow(0, longest=30.0)
    points = np.random.default_rng(0).uniform(0, 47, (2, 20, 2)).astype("float32")
    moved = ops.convert_to_numpy(move_points(points, flow))
    assert np.isfinite(moved).all() and np.abs(moved - points).max() <= 30 + 1e-3
