"""Warps of images, points and boxes along any flow."""

import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from keras_structadv.warp import compose_flows, move_boxes, move_points
from tests.fuzz import values as v
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    assert_array,
    finite_images,
    numpy,
    refuses,
    same_bits,
    unchanged,
    with_nan,
)


def flows(shape):
    """Flows of an image shape: of every size, also not finite."""
    kinds = [*v.VALUES, "normal", "normal", "unit"]
    return v.arrays((*shape[:3], 2), v.FLOATS, kinds)


@st.composite
def moved(draw):
    """Draws images and a flow, and whether the flow has another shape."""
    shape = draw(v.image_shapes())
    misshapen = draw(st.floats(0, 1)) < 0.1
    other = (*shape[:2], shape[2] + 1, 1) if misshapen else shape
    return draw(v.arrays(shape)), draw(flows(other)), misshapen


@fuzz(
    0.14,
    pair=moved(),
    interpolation=v.one_of("bilinear", "bilinear", "nearest", "cubic", None, []),
)
def test_dense_image_warp(pair, interpolation):
    images, flow, misshapen = pair
    images, flow = images.make(), flow.make()
    wrong = interpolation not in ("bilinear", "nearest")
    names = ["interpolation"] if wrong else ["flow"] if misshapen else []

    def warp(images, flow):
        warped = ksa.dense_image_warp(images, flow, interpolation=interpolation)
        return numpy(warped)

    with unchanged(images, flow), refuses(*names):
        warped = warp(images, flow)
    if names:
        return
    is_float = images.dtype.kind not in "biu"
    dtype = images.dtype.name if is_float or interpolation == "nearest" else "float32"
    if v.NARROW:
        dtype = dtype.replace("64", "32")
    assert_array(warped, images.shape, dtype)
    usable = finite_images(images, flow)
    assert np.isfinite(warped[usable].astype("float32")).all()
    low, high = (
        f(images[usable].astype("float64"), axis=(1, 2), keepdims=True)
        for f in (np.min, np.max)
    )
    near = warped[usable].astype("float64")
    slack = 0 if interpolation == "nearest" else 1e-6 * np.maximum(abs(low), abs(high))
    if interpolation == "bilinear":  # processors may take subnormal numbers as zero
        slack = slack + float(np.finfo("float32").tiny)
    if images.dtype.name in ("bfloat16", "float16") and interpolation == "bilinear":
        slack = slack + 1e-2 * np.maximum(abs(low), abs(high))
    assert ((near >= low - slack) & (near <= high + slack)).all()
    if len(images) > 1:
        other = warp(images, with_nan(flow, -1))
        assert same_bits(other[:-1], warped[:-1])
        if is_float:
            other = warp(with_nan(images, -1), flow)
            assert same_bits(other[:-1], warped[:-1])


@fuzz(0.02, shape=v.image_shapes(), flow=st.data())
def test_flows_compose_with_stillness(shape, flow):
    first = flow.draw(flows(shape)).make().astype("float32")
    composed = numpy(compose_flows(first, np.zeros_like(first)))
    assert_array(composed, first.shape, "float32")
    usable = finite_images(first)
    np.testing.assert_allclose(composed[usable], first[usable], 1e-6, 1e-37)


@st.composite
def places(draw, width):
    """Draws points or boxes, (batch, count, width), and a flow."""
    shape = draw(v.image_shapes())
    count = draw(st.integers(0, 5)) if backend.backend() != "jax" else 2
    kinds = ["bytes", "normal", "unit", "huge", "zero", "nan", "inf", "subnormal"]
    dtypes = [*v.FLOATS, "int32", "int64", "uint8"]
    return draw(v.arrays((shape[0], count, width), dtypes, kinds)), draw(flows(shape))


@fuzz(0.01, pair=places(2))
def test_points(pair):
    points, flow = pair[0].make(), pair[1].make()
    with unchanged(points, flow):
        moved = numpy(move_points(points, flow))
    assert_array(moved, points.shape, "float32")
    check_places(move_points, points, flow, moved)


@fuzz(0.01, pair=places(4))
def test_boxes(pair):
    boxes, flow = pair[0].make(), pair[1].make()
    boxes = np.sort(boxes, axis=-1)[..., [0, 1, 3, 2]]
    with unchanged(boxes, flow):
        moved = numpy(move_boxes(boxes, flow))
    assert_array(moved, boxes.shape, "float32")
    check_places(move_boxes, boxes, flow, moved)
    usable = finite_images(boxes, flow) if boxes.size else np.zeros(0, bool)
    left, top, right, bottom = np.moveaxis(moved[usable], -1, 0)
    assert (left <= right).all() and (top <= bottom).all()


def check_places(move, places, flow, moved):
    if not moved.size:
        return
    usable = finite_images(places, flow)
    assert np.isfinite(moved[usable]).all()
    if len(places) > 1:  # the others as before, and the last one does not move
        other = np.array(flow)
        other[-1] = 0
        other = numpy(move(places, other))
        assert same_bits(other[:-1], moved[:-1])
        last = places[-1].astype("float32")
        if np.isfinite(last).all():
            scale = 1 + np.max(np.abs(last), axis=-1, keepdims=True)
            assert (np.abs(other[-1] - last) <= 1e-6 * scale).all()
