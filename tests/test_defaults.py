"""Strength, smoothness and damping of `None` go with the shorter side of the image."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.flow import longest_displacement
from keras_structadv.operators import EdgePreserving
from tests.models import numpy, small_model

SHAPE = (24, 32)  # the shorter side is 24
SMOOTHNESS, DISPLACEMENT, DAMPING = 64.0, 3.0, 10 / 576


def case(count=4, channels=1):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(count, *SHAPE, channels)).astype("float32")
    return images, rng.normal(size=images.shape).astype("float32")


def test_functions_take_the_middle_of_what_layers_draw():
    images, gradients = case()
    explicit = {"smoothness": SMOOTHNESS, "max_displacement": DISPLACEMENT / 2}
    np.testing.assert_allclose(
        ksa.adversarial_flow(images, gradients),
        ksa.adversarial_flow(images, gradients, **explicit),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        ksa.random_flow(images, seed=1),
        ksa.random_flow(images, seed=1, **explicit),
        atol=1e-6,
    )
    recolored, expected = (
        ksa.adversarial_recoloring(images, gradients, value_range=(0, 1), **given)
        for given in ({}, {"damping": DAMPING})
    )
    np.testing.assert_allclose(recolored, expected, atol=1e-6)
    assert EdgePreserving(ops.array(images)).damping == DAMPING


@pytest.mark.slow
def test_the_basis_of_the_default_says_its_damping(tmp_path):
    images, _ = case(2)
    arguments = {"rank": 2, "value_range": (0, 1), "verbose": 0}
    made = ksa.precompute_basis(images, tmp_path / "basis.npy", **arguments)
    record = json.loads((tmp_path / "basis.npy.json").read_text())
    assert record["damping"] == DAMPING
    again = ksa.precompute_basis(
        images, tmp_path / "basis.npy", damping=DAMPING, **arguments
    )
    np.testing.assert_array_equal(made, again)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ksa.AdversarialFlow, ksa.RandomFlow])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_layer_draws_up_to_an_eighth_of_the_shorter_side(kind, data_format):
    shape = (*SHAPE, 1) if data_format == "channels_last" else (1, *SHAPE)
    images = np.random.default_rng(0).uniform(size=(300, *shape)).astype("float32")
    model = small_model(shape=shape)
    arguments = {"rate": 1.0, "seed": 1, "value_range": (0, 1)}
    layers = [
        kind(*given, data_format=data_format, **arguments).bind(model)
        for given in ((), (DISPLACEMENT, SMOOTHNESS))
    ]
    fields = [layer.augment(images, np.arange(300) % 3).fields for layer in layers]
    np.testing.assert_allclose(*fields, atol=1e-4)
    drawn = numpy(longest_displacement(fields[0]))
    assert drawn.min() < 0.1 and 2.9 < drawn.max() <= DISPLACEMENT + 1e-4
    assert tuple(layers[0](images[0], training=True).shape) == shape


def test_a_recolouring_has_the_damping_of_its_images():
    images, _ = case(channels=3)
    made = [
        numpy(
            ksa.RandomRecoloring(rate=1.0, seed=1, value_range=(0, 1), **given)(images)
        )
        for given in ({}, {"damping": DAMPING})
    ]
    np.testing.assert_allclose(*made, atol=1e-5)


def test_none_is_kept():
    layer = ksa.AdversarialFlow(seed=1)
    config = layer.get_config()
    assert config["max_displacement"] is None and config["smoothness"] is None
    again = ksa.AdversarialFlow.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config and again.can_change
    assert ksa.AdversarialRecoloring().get_config()["damping"] is None
    assert not ksa.AdversarialFlow(rate=0.0).can_change
    assert not ksa.AdversarialFlow(0.0).can_change
    assert not ksa.AdversarialFlow((0, 0)).can_change


@pytest.mark.slow
def test_a_random_flow_is_paired_with_its_twin():
    images, _ = case(12)
    labels = np.arange(12) % 3
    adversarial = ksa.AdversarialFlow(rate=0.5, seed=3, value_range=(0, 1))
    adversarial.bind(small_model(shape=images.shape[1:]))
    random = ksa.RandomFlow(rate=0.5, seed=3, value_range=(0, 1))
    ours, other = random.augment(images), adversarial.augment(images, labels)
    np.testing.assert_array_equal(ours.selection.places, other.selection.places)
    np.testing.assert_allclose(ours.sizes, other.sizes, atol=1e-5)


def test_reused_flows_are_those_of_the_numbers():
    images, gradients = map(ops.array, case())
    strength = np.full(4, 2.0, "float32")
    made = []
    for given in ((), (DISPLACEMENT, SMOOTHNESS)):
        layer = ksa.AdversarialFlow(*given).twin()
        codes = layer.code_of(images, gradients, 6)
        made.append(layer.changed_by_codes(images, codes, strength, {}, 6)[1])
    np.testing.assert_allclose(*made, atol=1e-5)
    assert ksa.AdversarialFlow().twin() is ksa.AdversarialFlow(5.0).twin()


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_a_model_trains_with_the_defaults(gradient):
    images, _ = case(6)
    model = small_model(shape=images.shape[1:])
    layer = ksa.AdversarialFlow(rate=1.0, seed=1, value_range=(0, 1))
    callback = ksa.AdversarialTraining(layer, gradient=gradient)
    history = model.fit(
        images, np.arange(6) % 3, epochs=2, verbose=0, callbacks=[callback]
    ).history
    assert 0 < history["mean_displacement"][1] < DISPLACEMENT


@pytest.mark.backends("tensorflow")
def test_images_of_unknown_size_are_an_error_that_says_so():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_generator(
        lambda: [np.zeros((2, *SHAPE, 1), "float32")],
        output_signature=tf.TensorSpec((None, None, None, 1)),
    )
    with pytest.raises(ValueError, match="must be known when the graph is built"):
        data.map(ksa.RandomFlow(rate=1.0))


@pytest.mark.backends("tensorflow")
def test_the_batch_size_may_be_unknown():
    images, _ = case()
    layer = ksa.RandomFlow(rate=1.0, seed=1, value_range=(0, 1))
    model = keras.Sequential([keras.Input((*SHAPE, 1)), layer])
    moved = numpy(model(images, training=True))
    assert moved.shape == images.shape and np.abs(moved - images).max() > 0.01
