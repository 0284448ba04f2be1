"""The flow raises the loss; its arguments and its config."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from keras_structadv.flow import random_flow
from tests.models import numpy, small_model


def bound(model=None, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    return ksa.AdversarialFlow(**kwargs).bind(model or small_model())


def losses(model, images, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    return numpy(loss(labels, model(images, training=False)))


def batches(images, labels, count=10, size=64):
    for k in range(count):
        yield images[k * size : (k + 1) * size], labels[k * size : (k + 1) * size]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["most_confident_wrong", "random"])
def test_wrong_targets_raise_the_loss_of_the_label(trained, target):
    model, x, y = trained
    layer = ksa.AdversarialFlow((1.5, 1.5), rate=1.0, target=target).bind(model)
    moved = layer(x[:256], y[:256])[0]
    before = losses(model, x[:256], y[:256]).mean()
    assert losses(model, moved, y[:256]).mean() > before


@pytest.mark.slow
def test_more_steps_raise_the_loss_further(trained):
    model, x, y = trained
    means = []
    for steps in (1, 3, 10):
        layer = ksa.AdversarialFlow((1.5, 1.5), rate=1.0, steps=steps).bind(model)
        means.append(losses(model, layer(x[:128], y[:128])[0], y[:128]).mean())
    assert means[0] < means[1] < means[2]


@pytest.mark.slow
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


def test_python_data_and_numpy_numbers_are_taken(images, labels):
    layer = bound(smoothness=np.float32(100), rate=np.float64(1), steps=np.int64(1))
    expected = numpy(layer(images, labels)[0])
    out = bound(layer.binding.model, smoothness=100)(images, labels.tolist())
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


@pytest.mark.parametrize(
    "kwargs", [{}, {"alpha": 1e-3}, {"steps": 2}, {"random_start": True}]
)
def test_the_sizes_are_the_longest_displacements(images, labels, kwargs):
    images[1] = 0.5  # nothing can move in it
    augmented = bound(rate=0.5, **kwargs).augment(images, labels)
    expected = np.linalg.norm(numpy(augmented.fields), axis=-1).max(axis=(1, 2))
    np.testing.assert_allclose(augmented.sizes, expected, atol=1e-5)
    augmented = bound(rate=1.0, **kwargs).augment(images, labels)
    still = numpy(augmented.sizes)[1] == 0
    assert still == ("random_start" not in kwargs) and numpy(augmented.sizes)[0] > 0


def test_config_round_trip():
    arguments = {
        "max_displacement": (0.5, 2.0),
        "smoothness": 30.0,
        "alpha": 0.5,
        "solver": "sparse",
        "rate": 0.25,
        "target": "random",
        "steps": 3,
        "step_size": 0.5,
        "random_start": True,
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
