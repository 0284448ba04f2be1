"""The recolouring raises the loss; its arguments and its config."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from keras_structadv.operators import EdgePreserving
from keras_structadv.recoloring import scaled_to_unit
from keras_structadv.solvers import recoloring_basis
from tests.models import numpy, small_model


def losses(model, images, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    return numpy(loss(labels, model(images, training=False)))


def bound(model=None, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    return ksa.AdversarialRecoloring(**kwargs).bind(model or small_model())


@pytest.fixture(scope="module")
def photographs():
    """Returns a model that tells photographs apart, and crops it was not trained on."""
    keras.utils.set_random_seed(0)
    (x, y), (x_test, y_test) = ksa.datasets.load_photographs(size=32, crops=12)
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    for filters in (8, 16):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, 40, 15, verbose=0)
    return model, x_test.astype("float32"), y_test


def test_the_loss_rises_more_than_under_random_recolouring(photographs):
    model, x, y = photographs
    layer = ksa.AdversarialRecoloring((0.05, 0.05), rate=1.0).bind(model)
    before = losses(model, x, y).mean()
    adversarial = losses(model, layer(x, y)[0], y).mean()
    noise = np.random.default_rng(0).normal(size=x.shape)
    random = x + numpy(ksa.adversarial_recoloring(x, noise, magnitude=0.05))
    random = losses(model, np.clip(random, 0, 255), y).mean()
    assert adversarial > before + 0.5
    assert adversarial > random + 0.5


def test_the_gain_is_the_first_order_rise(photographs):
    model, x, y = photographs
    layer = ksa.AdversarialRecoloring((0.002, 0.002), rate=1.0).bind(model)
    augmented = layer.augment(x, y)
    rise = losses(model, augmented.images, y) - losses(model, x, y)
    np.testing.assert_allclose(numpy(augmented.gain).mean(), rise.mean(), rtol=0.1)


def test_more_steps_raise_the_loss_further_within_the_budget(photographs):
    model, x, y = photographs
    means = []
    for steps in (1, 10):
        layer = ksa.AdversarialRecoloring(
            (0.1, 0.1), rate=1.0, steps=steps, seed=0
        ).bind(model)
        augmented = layer.augment(x, y)
        means.append(losses(model, augmented.images, y).mean())
        inside = np.clip(x + numpy(augmented.fields), 0, 255)
        np.testing.assert_allclose(augmented.images, inside, atol=1e-3)
        assert numpy(augmented.sizes).max() <= 0.1 + 1e-5
    assert means[1] > means[0] + 0.1


def test_the_images_stay_in_their_range(photographs):
    model, x, y = photographs
    layer = ksa.AdversarialRecoloring((0.5, 0.5), rate=1.0).bind(model)
    out = numpy(layer(x, y)[0])
    assert out.min() == 0 and out.max() == 255
    assert np.abs(out - x).mean() > 40


def test_the_drawn_magnitudes(images, labels):
    many = np.tile(images, (100, 1, 1, 1))
    layer = bound(magnitude=0.2)
    augmented = layer.augment(many, np.tile(labels, 100))
    drawn = np.sqrt(np.square(numpy(augmented.fields)).mean(axis=(1, 2, 3)))
    assert 0 <= drawn.min() < 0.01 and 0.19 < drawn.max() <= 0.2 + 1e-5
    assert abs(drawn.mean() - 0.1) < 0.01
    change = numpy(augmented.images) - many  # after clipping: not all of what was drawn
    measured = np.sqrt(np.square(change).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(augmented.sizes, measured, atol=1e-5)
    assert (measured <= drawn + 1e-5).all() and measured.mean() < 0.99 * drawn.mean()


@pytest.mark.parametrize("kwargs", [{"lam": 1e-6}, {"lam": 100.0}, {"steps": 2}])
def test_the_sizes_are_the_root_mean_squares(images, labels, kwargs):
    kwargs = {"damping": 1e-3, **kwargs}
    layer = bound(magnitude=(0.1, 0.1), value_range=(-1, 3), **kwargs)
    augmented = layer.augment(images, labels)
    expected = np.sqrt(np.square(numpy(augmented.fields)).mean(axis=(1, 2, 3))) / 4
    np.testing.assert_allclose(augmented.sizes, expected, rtol=1e-4)
    assert 0 < expected.max() <= 0.1 + 1e-5


@pytest.mark.backends("tensorflow", "torch")
def test_a_basis_replaces_the_solve(photographs):
    model, x, y = photographs
    x, y = x[:8], y[:8]
    expected = ksa.AdversarialRecoloring((0.1, 0.1), rank=4, rate=1.0).bind(model)
    expected = numpy(expected(x, y)[0])
    basis = numpy(recoloring_basis(EdgePreserving(scaled_to_unit(x, (0, 255))), 4))
    layer = ksa.AdversarialRecoloring((0.1, 0.1), rate=1.0).bind(model)
    data = {"images": x, "labels": y, "basis": basis}
    out = layer(data)
    assert out["basis"] is basis
    np.testing.assert_allclose(out["images"], expected, atol=0.5)
    one = {"images": x[3], "labels": y[3], "basis": basis[3].astype("float16")}
    np.testing.assert_allclose(layer(one)["images"], expected[3], atol=1.0)
    half = ksa.AdversarialRecoloring((0.1, 0.1), rate=0.5, seed=0).bind(model)
    out = numpy(half(data)["images"])
    changed = np.abs(out - x).max(axis=(1, 2, 3)) > 0
    assert changed.sum() == 4
    np.testing.assert_allclose(out[changed], expected[changed], atol=0.5)
    with pytest.raises(ValueError, match=r"basis of shape \(7,"):
        layer({**data, "basis": basis[:7]})
    with pytest.raises(ValueError, match="basis of shape .* images of shape"):
        layer({**data, "basis": basis[:, :16]})


def test_masks_boxes_and_points_stay_where_they_are(images, labels):
    data = {"images": images, "labels": labels, "segmentation_masks": images > 0.5}
    out = bound()(data)
    assert out["segmentation_masks"] is data["segmentation_masks"]
    masks = images[..., 0] > 0.5
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 1)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    out = bound(model)(images, masks)
    np.testing.assert_array_equal(out[1], masks)
    assert np.abs(numpy(out[0]) - images).max() > 0.01


def test_config_round_trip():
    arguments = {
        "magnitude": (0.05, 0.2),
        "coherence": 2.0,
        "damping": 0.01,
        "edge_scale": 0.1,
        "lam": 3.0,
        "rank": 4,
        "rtol": 0.01,
        "max_iterations": 80,
        "rate": 0.25,
        "target": "random",
        "steps": 3,
        "step_size": 0.5,
        "random_start": True,
        "value_range": (0, 1),
        "seed": 7,
        "data_format": "channels_first",
        "name": "adversary",
    }
    layer = ksa.AdversarialRecoloring(**arguments)
    config = layer.get_config()
    assert set(arguments) <= set(config)
    again = ksa.AdversarialRecoloring.from_config(config)
    assert again.get_config() == config
    for name in arguments:
        assert getattr(again, name) == arguments[name], name
    numbers = ksa.AdversarialRecoloring(
        np.float32(0.5), np.int64(1), rank=np.int64(3), max_iterations=np.int32(9)
    )
    assert '"rank": 3' in json.dumps(numbers.get_config())


def test_a_saved_model_with_the_layer_loads(images, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            ksa.AdversarialRecoloring(0.2, coherence=2.0),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].magnitude == 0.2 and again.layers[0].coherence == 2.0
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_image_stays_and_leaves_its_neighbours_alone(images, labels, bad):
    model = small_model()
    expected = numpy(bound(model)(images, labels)[0])
    given = images.copy()
    given[2, 3, 3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an infinite value is not in any range
        out = numpy(bound(model)(given, labels)[0])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(out[others], expected[others], atol=1e-5)
    np.testing.assert_array_equal(out[2], given[2])


@pytest.mark.parametrize("shape", [(1, 9, 1), (9, 1, 1), (1, 1, 3), (2, 2, 1)])
def test_tiny_images(shape):
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tiny = np.random.default_rng(0).uniform(size=(4, *shape)).astype("float32")
    out = numpy(bound(model)(tiny, np.array([0, 1, 2, 0]))[0])
    assert np.isfinite(out).all() and out.shape == tiny.shape
    assert np.abs(out - tiny).max() > 0.001


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"magnitude": None}, "magnitude=None"),
        ({"magnitude": (0.3, 0.2)}, r"magnitude=\(0.3, 0.2\)"),
        ({"coherence": -1}, "coherence=-1"),
        ({"damping": 0}, "damping=0"),
        ({"edge_scale": None}, "edge_scale=None"),
        ({"lam": -1}, "lam=-1"),
        ({"rank": 0}, "rank=0"),
        ({"rtol": "low"}, "rtol='low'"),
        ({"max_iterations": 1.5}, "max_iterations=1.5"),
        ({"rate": 2}, "rate=2"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.AdversarialRecoloring(**kwargs)
