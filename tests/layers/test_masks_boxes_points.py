"""Masks, boxes and points move with the image."""

import keras
import numpy as np
import pytest
import scipy.ndimage
from keras import backend, layers, ops

import keras_structadv as ksa
from keras_structadv.layers.masks_boxes_points import BOX_FORMATS
from tests.models import small_model


def scene():
    """Returns blobs, and where they are: as masks, boxes and points.

    Two more channels say of each pixel where in the image it is.
    """
    y, x = np.mgrid[:32, :32]
    points = np.float32([[[9, 10], [21, 20]]] * 4) + np.arange(4)[:, None, None]
    spread = ((x - points[..., :1, None]) ** 2 + (y - points[..., 1:, None]) ** 2) / 20
    blobs = np.exp(-spread).sum(1)
    masks = (blobs > 0.5).astype("uint8")[..., None]
    places = np.broadcast_to(np.stack([x, y], -1) / 31, (4, 32, 32, 2))
    blobs = np.concatenate([blobs[..., None], places], -1).astype("float32")
    boxes = np.concatenate([points - 4, points + 5], -1).astype("float32")
    return blobs, masks, boxes, points.astype("float32")


def on_blobs(**kwargs):
    keras.utils.set_random_seed(0)
    model = small_model(shape=(32, 32, 3))
    common = {"max_displacement": (3.0, 3.0), "seed": 1, "rate": 1.0}
    return ksa.AdversarialFlow(**{**common, **kwargs}).bind(model)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float32"])
@pytest.mark.parametrize("rank", [3, 4])
def test_masks_move_with_the_image(dtype, rank):
    blobs, masks, _, _ = scene()
    given = masks.astype(dtype) if rank == 4 else masks[..., 0].astype(dtype)
    out = on_blobs()({"images": blobs, "segmentation_masks": given})
    moved = ops.convert_to_numpy(out["segmentation_masks"])
    assert moved.dtype == given.dtype and moved.shape == given.shape
    expected = ops.convert_to_numpy(out["images"])[..., :1] > 0.5
    expected = expected if rank == 4 else expected[..., 0]
    assert (moved.astype(bool) != expected).mean() < 0.02
    assert (given.astype(bool) != expected).mean() > 0.03


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_points_and_boxes_move_with_the_image(rate):
    blobs, masks, boxes, points = scene()
    layer = on_blobs(rate=rate, bounding_box_format="xyxy")
    boxes = {"boxes": boxes, "labels": np.int32([[0, -1]] * 4), "other": np.arange(4)}
    seen = np.float32([[[1, 0]]] * 4)[:, [0, 0]]
    data = {"images": blobs, "bounding_boxes": boxes}
    out = layer({**data, "keypoints": np.concatenate([points, seen], -1)})
    moved = ops.convert_to_numpy(out["keypoints"])
    np.testing.assert_array_equal(moved[..., 2:], seen)
    images = ops.convert_to_numpy(out["images"])
    changed = np.abs(images - blobs).max(axis=(1, 2, 3)) > 0
    assert changed.sum() == 4 * rate
    np.testing.assert_array_equal(moved[~changed][..., :2], points[~changed])
    for k in np.flatnonzero(changed):
        assert np.abs(moved[k, :, :2] - points[k]).max() > 0.5
        for was, now in zip(points[k], moved[k, :, :2]):
            seen = [
                31 * scipy.ndimage.map_coordinates(images[k, ..., c], now[::-1, None])
                for c in (1, 2)
            ]
            assert np.abs(np.ravel(seen) - was).max() < 0.5
    boxed = out["bounding_boxes"]
    np.testing.assert_array_equal(boxed["other"], np.arange(4))
    np.testing.assert_array_equal(boxed["labels"], boxes["labels"])
    now = ops.convert_to_numpy(boxed["boxes"])
    np.testing.assert_array_equal(now[:, 1], boxes["boxes"][:, 1])  # there is none
    np.testing.assert_array_equal(now[~changed], boxes["boxes"][~changed])
    for k in np.flatnonzero(changed):
        px, py = moved[k, 0, :2]
        left, top, right, bottom = now[k, 0]
        assert left < px - 2 and right > px + 2 and top < py - 2 and bottom > py + 2
        assert 7 < right - left < 14 and 7 < bottom - top < 14


def test_every_format_of_boxes():
    blobs, _, boxes, _ = scene()
    size = {"height": 32, "width": 32, "dtype": "float32"}
    convert = keras.utils.bounding_boxes.convert_format
    expected = None
    for name in BOX_FORMATS:
        given = convert(boxes, "xyxy", name, **size)
        data = {"boxes": given, "classes": np.zeros((4, 2), "int64")}
        out = on_blobs(bounding_box_format=name)(
            {"images": blobs, "bounding_boxes": data}
        )
        now = convert(out["bounding_boxes"]["boxes"], name, "xyxy", **size)
        expected = now if expected is None else expected
        np.testing.assert_allclose(now, expected, atol=1e-3)
    assert np.abs(expected - boxes).max() > 0.5


def test_integers_are_rounded():
    blobs, _, boxes, points = scene()
    moved = on_blobs(bounding_box_format="xyxy")
    data = {"images": blobs, "segmentation_masks": None, "keypoints": points.round()}
    given = {"boxes": boxes.round(), "labels": np.zeros((4, 2), "int32")}
    out = moved({**data, "bounding_boxes": given})
    whole = {**given, "boxes": boxes.round().astype("int32")}
    data["keypoints"] = data["keypoints"].astype("int32")
    rounded = moved({**data, "bounding_boxes": whole})
    assert rounded["segmentation_masks"] is None
    for one, other in (
        (out["keypoints"], rounded["keypoints"]),
        (out["bounding_boxes"]["boxes"], rounded["bounding_boxes"]["boxes"]),
    ):
        assert backend.standardize_dtype(other.dtype) == "int32"
        one = ops.convert_to_numpy(one)
        np.testing.assert_array_equal(np.round(one), ops.convert_to_numpy(other))
        assert np.abs(one - np.round(one)).max() > 0.2


def test_boxes_that_leave_the_image_lose_their_label():
    blobs, _, boxes, _ = scene()
    boxes = boxes - [20.0, 0, 20, 0]  # nothing of the first ones is left
    data = {"boxes": boxes.astype("float32"), "labels": np.int32([[1, 2]] * 4)}
    out = on_blobs(bounding_box_format="xyxy")(
        {"images": blobs, "bounding_boxes": data}
    )
    np.testing.assert_array_equal(out["bounding_boxes"]["labels"], [[-1, 2]] * 4)
    now = ops.convert_to_numpy(out["bounding_boxes"]["boxes"])
    assert now[:, 1].min() >= 0


@pytest.mark.backends("tensorflow")
def test_labels_of_the_size_of_the_images_are_masks():
    blobs, masks, _, _ = scene()
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(2, 3, padding="same")]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    layer = ksa.AdversarialFlow((3.0, 3.0), rate=1.0).bind(model)
    for given in (masks, masks[..., 0], masks.astype("int64")):
        images, labels = layer(blobs, given)
        assert labels.dtype == given.dtype and labels.shape == given.shape
        moved = ops.convert_to_numpy(images)[..., 0] > 0.5
        labels = np.reshape(labels, moved.shape)
        assert (labels != moved).mean() < 0.02 < (masks[..., 0] != moved).mean()


def test_one_image_with_everything():
    blobs, masks, boxes, points = scene()
    layer = on_blobs(bounding_box_format="xyxy")
    data = {
        "images": blobs,
        "segmentation_masks": masks,
        "keypoints": points,
        "bounding_boxes": {"boxes": boxes, "labels": np.zeros((4, 2), "int32")},
    }
    whole = layer(data)
    one = layer(keras.tree.map_structure(lambda x: x[1], data))
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(whole)):
        np.testing.assert_allclose(a, b[1], atol=1e-4)


def test_boxes_may_be_lists():
    images, _, boxes, points = scene()
    ids = np.ones(boxes.shape[:2])
    layer = on_blobs(bounding_box_format="xyxy")
    data = {"bounding_boxes": {"boxes": boxes, "labels": ids}, "keypoints": points}
    listed = keras.tree.map_structure(lambda x: x.tolist(), data)
    moved = [
        on_blobs(bounding_box_format="xyxy")({"images": images, **x})
        for x in (data, listed)
    ]
    for a, b in zip(*(keras.tree.flatten(x) for x in moved)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    listed["bounding_boxes"]["labels"][0] = [1]
    with pytest.raises(ValueError, match="labels.. as lists of several"):
        layer({"images": images, **listed})
