import json

import keras
import numpy as np
import pytest
import scipy.ndimage
from conftest import small_model
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.flow import random_flow
from keras_structadv.layers.annotations import BOX_FORMATS


def numpy(x):
    return ops.convert_to_numpy(x)


def bound(model=None, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    return ksa.AdversarialFlow(**kwargs).bind(model or small_model())


# What it does to a trained model.


def losses(model, images, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    return numpy(loss(labels, model(images, training=False)))


def batches(images, labels, count=10, size=64):
    for k in range(count):
        yield images[k * size : (k + 1) * size], labels[k * size : (k + 1) * size]


def test_the_loss_rises_more_than_under_a_random_flow(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(1.5, 1.5), rate=1.0).bind(model)
    beats_random = 0
    for images, labels in batches(x, y):
        before = losses(model, images, labels).mean()
        adversarial = losses(model, layer(images, labels)[0], labels).mean()
        flow = random_flow(images, smoothness=100.0, max_displacement=1.5, seed=0)
        random = losses(model, ksa.dense_image_warp(images, flow), labels).mean()
        assert adversarial > before
        beats_random += adversarial > random
    assert beats_random >= 9


def test_the_loss_falls_towards_a_target(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(1.5, 1.5), rate=1.0).bind(model)
    for images, labels in batches(x, y):
        data = {"images": images, "labels": labels, "targets": labels}
        moved = layer(data)["images"]
        before = losses(model, images, labels).mean()
        assert losses(model, moved, labels).mean() < before
    wrong = (y[:64] + 1) % 10
    data = {"images": x[:64], "labels": y[:64], "targets": wrong}
    before = losses(model, x[:64], wrong).mean()
    assert losses(model, layer(data)["images"], wrong).mean() < before


@pytest.mark.parametrize("target", ["most_confident_wrong", "random"])
def test_wrong_targets_raise_the_loss_of_the_label(trained, target):
    model, x, y = trained
    layer = ksa.AdversarialFlow((1.5, 1.5), rate=1.0, target=target).bind(model)
    moved = layer(x[:256], y[:256])[0]
    before = losses(model, x[:256], y[:256]).mean()
    assert losses(model, moved, y[:256]).mean() > before


def test_more_steps_raise_the_loss_further(trained):
    model, x, y = trained
    means = []
    for steps in (1, 3, 6):
        layer = ksa.AdversarialFlow((0.5, 0.5), rate=1.0, steps=steps).bind(model)
        means.append(losses(model, layer(x[:128], y[:128])[0], y[:128]).mean())
    assert means[0] < means[1] < means[2]


def test_the_gain_is_the_first_order_rise(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(0.05, 0.05), rate=1.0).bind(model)
    augmented = layer.augment(x[:128], y[:128])
    rise = losses(model, augmented.images, y[:128]) - losses(model, x[:128], y[:128])
    np.testing.assert_allclose(numpy(augmented.gain).mean(), rise.mean(), rtol=0.1)


def test_the_first_order_prediction_matches_the_loss_along_the_flow():
    # d.(I + gamma P)^-1 d / alpha, on an image that is smooth enough for it.
    y, x = np.mgrid[:32, :32] / 31
    image = np.sin(5 * y) * np.cos(4 * x) + 0.5 * np.sin(3 * x + 2 * y)
    image = image[None, ..., None].astype("float32")
    label = np.array([1])
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.AveragePooling2D(4),
            layers.Conv2D(8, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gradient = ksa.per_image_gradients(model, image, label)
    flow = numpy(ksa.adversarial_flow(image, gradient, alpha=1.0, max_displacement=1e9))
    d = numpy(gradient) * np.stack(np.gradient(image[0, ..., 0]), axis=-1)[None]
    predicted = -(d * flow).sum()
    assert predicted > 0
    step = 0.05 / np.abs(flow).max()
    ahead = losses(model, ksa.dense_image_warp(image, step * flow), label)
    behind = losses(model, ksa.dense_image_warp(image, -step * flow), label)
    measured = (ahead - behind)[0] / (2 * step)
    np.testing.assert_allclose(measured, predicted, rtol=0.05)


# The contract of a call.


def test_python_data_and_numpy_numbers_are_taken(images, labels):
    layer = bound(smoothness=np.float32(100), rate=np.float64(1), steps=np.int64(1))
    expected = numpy(layer(images, labels)[0])
    out = bound(layer.binding.model)(images, labels.tolist())
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    np.testing.assert_array_equal(out[1], labels)
    assert tuple(layer(images[0], 1)[0].shape) == (8, 8, 1)
    data = {"images": images, "labels": labels.tolist()}
    assert tuple(layer(data)["images"].shape) == images.shape


def test_the_drawn_displacements(images, labels):
    many = np.tile(images, (100, 1, 1, 1))
    layer = bound(max_displacement=3.0)
    fields = numpy(layer.augment(many, np.tile(labels, 100)).fields)
    drawn = np.linalg.norm(fields, axis=-1).max(axis=(1, 2))
    assert 0 <= drawn.min() < 0.1 and 2.9 < drawn.max() <= 3.0 + 1e-5
    assert abs(drawn.mean() - 1.5) < 0.15
    layer = bound(max_displacement=(2.0, 2.5))
    fields = numpy(layer.augment(many, np.tile(labels, 100)).fields)
    drawn = np.linalg.norm(fields, axis=-1).max(axis=(1, 2))
    assert 2.0 - 1e-5 <= drawn.min() and drawn.max() <= 2.5 + 1e-5


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1e-3}, {"steps": 2}])
def test_the_sizes_are_the_longest_displacements(images, labels, kwargs):
    images[1] = 0.5  # nothing can move in it
    augmented = bound(rate=0.5, **kwargs).augment(images, labels)
    expected = np.linalg.norm(numpy(augmented.fields), axis=-1).max(axis=(1, 2))
    np.testing.assert_allclose(augmented.sizes, expected, atol=1e-5)
    augmented = bound(rate=1.0, **kwargs).augment(images, labels)
    assert numpy(augmented.sizes)[1] == 0 and numpy(augmented.sizes)[0] > 0


# Which images.


# Graphs.


# What it holds.


def test_config_round_trip():
    arguments = {
        "max_displacement": (0.5, 2.0),
        "smoothness": 30.0,
        "alpha": 0.5,
        "solver": "sparse",
        "rate": 0.25,
        "target": "random",
        "steps": 3,
        "loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        "value_range": (0, 1),
        "seed": 7,
        "data_format": "channels_first",
        "name": "adversary",
        "dtype": "float16",
    }
    layer = ksa.AdversarialFlow(**arguments)
    config = layer.get_config()
    assert set(arguments) <= set(config)
    again = ksa.AdversarialFlow.from_config(config)
    assert again.get_config() == config
    assert again.loss.get_config() == arguments["loss"].get_config()
    for name in set(arguments) - {"loss", "dtype"}:
        assert getattr(again, name) == arguments[name], name
    assert again.compute_dtype == "float16"
    numbers = ksa.AdversarialFlow(
        np.float32(2), smoothness=np.int64(3), rate=np.float32(0.5), steps=np.int64(2)
    )
    assert '"smoothness": 3.0' in json.dumps(numbers.get_config())
    default = ksa.AdversarialFlow()
    assert ksa.AdversarialFlow.from_config(default.get_config()).rate == 0.5


def test_a_saved_model_with_the_layer_loads(images, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            ksa.AdversarialFlow(2.0, loss="mse"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].max_displacement == 2.0 and again.layers[0].loss == "mse"
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )


# Bad images and bad arguments.


@pytest.mark.parametrize("bad", [0.0, 0.7, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [False, True])
def test_a_bad_image_stays_and_leaves_its_neighbours_alone(images, labels, bad, whole):
    model = small_model()
    expected = numpy(bound(model)(images, labels)[0])
    given = images.copy()
    if whole:
        given[2] = bad
    else:
        given[2, 3, 3] = bad
    out = numpy(bound(model)(given, labels)[0])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(out[others], expected[others], atol=1e-6)
    if whole or not np.isfinite(bad):
        np.testing.assert_array_equal(out[2], given[2])


@pytest.mark.parametrize("shape", [(1, 9, 1), (9, 1, 1), (1, 1, 3), (2, 2, 1)])
def test_tiny_images(shape):
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tiny = np.random.default_rng(0).uniform(size=(4, *shape)).astype("float32")
    out = numpy(bound(model)(tiny, np.array([0, 1, 2, 0]))[0])
    assert np.isfinite(out).all() and out.shape == tiny.shape
    assert (np.abs(out - tiny).max() > 0) == (max(shape[:2]) > 1)


def test_bad_input_is_named(images, labels):
    layer = bound()
    with pytest.raises(ValueError, match=r"labels of shape \(4,\) for images"):
        layer(images, labels[:4])
    with pytest.raises(ValueError, match=r"targets of shape \(2,\)"):
        layer({"images": images, "labels": labels, "targets": labels[:2]})
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\).*rank 3"):
        layer(images[0, ..., 0])
    with pytest.raises(ValueError, match=r"keys \['labels', 'x'\].*\"images\""):
        layer({"x": images, "labels": labels})
    with pytest.raises(ValueError, match="segmentation_masks of shape .*7, 8"):
        layer({"images": images, "segmentation_masks": images[:, 1:]})
    with pytest.raises(ValueError, match=r"keypoints of shape \(6, 2\)"):
        layer({"images": images, "keypoints": images[:, 0, :2, 0]})
    boxes = {"boxes": np.zeros((6, 1, 4)), "labels": np.zeros((6, 1))}
    with pytest.raises(ValueError, match='no bounding_box_format.*"xyxy"'):
        layer({"images": images, "bounding_boxes": boxes})
    with pytest.raises(
        ValueError, match=r"bounding_boxes .*boxes.*6, 1, 4.*Pass a dict"
    ):
        layer = bound(bounding_box_format="xywh")
        layer({"images": images, "bounding_boxes": {"boxes": boxes["boxes"]}})
    with pytest.raises(ValueError, match="bounding_box_format='corners'"):
        bound(bounding_box_format="corners")
    with pytest.raises(TypeError, match="model='resnet'"):
        layer.bind("resnet")


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"rate": 1.5}, "rate=1.5"),
        ({"rate": "all"}, "rate='all'"),
        ({"target": "nearest"}, "target='nearest'.*targets"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": True}, "steps=True"),
        ({"max_displacement": None}, "max_displacement=None"),
        ({"max_displacement": (1, 2, 3)}, "max_displacement="),
        ({"smoothness": 1e39}, "smoothness=1e"),
        ({"value_range": (1, 0)}, r"value_range=\(1, 0\)"),
        ({"data_format": "NHWC"}, "data_format='NHWC'"),
        ({"max_displacement": -1}, "max_displacement=-1"),
        ({"max_displacement": (3, 2)}, r"max_displacement=\(3, 2\)"),
        ({"smoothness": -1}, "smoothness=-1"),
        ({"alpha": -1}, "alpha=-1"),
        ({"solver": "lu"}, "solver='lu'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.AdversarialFlow(**kwargs)


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
