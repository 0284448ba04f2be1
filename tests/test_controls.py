"""The controls, which the claims of the documentation stand on."""

import numpy as np
import pytest

import keras_structadv as ksa
from experiments.controls import (
    ColourJitter,
    ComposedRandomFlow,
    MaxNormAdversary,
    MeanSquareAdversary,
    RandomSignFlow,
)
from tests.models import small_model


@pytest.mark.parametrize(
    "kind, strength",
    [(ksa.RandomFlow, 0.5), (ksa.RandomRecoloring, 0.05), (ColourJitter, 0.05)],
)
def test_a_random_field_is_of_the_size_and_knows_nothing_of_the_model(
    kind, strength, images, labels
):
    images = 0.25 + images / 2  # nothing is clipped
    model = small_model()
    arguments = {"rate": 1.0, "value_range": (0, 1), "seed": 1}
    layer = kind((strength, strength), **arguments).bind(model)
    first = layer.augment(images, labels).fields
    layer = kind((strength, strength), **arguments).bind(model)
    model.set_weights([-w for w in model.get_weights()])
    np.testing.assert_array_equal(layer.augment(images, labels).fields, first)
    callback = ksa.AdversarialTraining(layer)
    history = model.fit(images, labels, verbose=0, callbacks=[callback]).history
    np.testing.assert_allclose(history[layer.measure_name], strength, rtol=1e-4)


def test_two_random_flows_stay_within_the_strength(images):
    arguments = {"rate": 1.0, "value_range": (0, 1), "seed": 1}
    layer = ComposedRandomFlow((2.0, 2.0), **arguments)
    flows = layer.augment(images).fields
    single = ksa.RandomFlow((2.0, 2.0), **arguments).augment(images).fields
    assert np.all(layer.size_of(flows) <= 2.0 + 1e-4)
    assert np.all(np.abs(flows - single).max(axis=(1, 2, 3)) > 0.1)


def test_a_random_sign_leaves_the_rest_of_the_flow(images, labels):
    images, labels = np.repeat(images, 4, axis=0), np.repeat(labels, 4, axis=0)
    model = small_model()
    arguments = {"rate": 1.0, "value_range": (0, 1), "seed": 1}
    flows, signed, again = (
        np.asarray(layer.augment(images, labels).fields)
        for layer in (ksa.AdversarialFlow(2.0, **arguments).bind(model),)
        + (RandomSignFlow(2.0, **arguments).bind(model),) * 2
    )
    same = np.abs(signed - flows).max(axis=(1, 2, 3)) < 1e-6
    np.testing.assert_allclose(
        np.where(same[:, None, None, None], 1, -1) * flows, signed
    )
    assert 0 < same.mean() < 1
    assert not np.allclose(np.abs(again), again) and not np.allclose(again, signed)


@pytest.mark.parametrize("kind", [MaxNormAdversary, MeanSquareAdversary])
def test_pixel_norms(kind, images, labels):
    images = 0.25 + images / 2  # nothing is clipped
    model = small_model()
    layer = kind((0.05, 0.05), value_range=(0, 1), seed=1).bind(model)
    gradients = np.asarray(ksa.per_image_gradients(model, images, labels))
    field = np.asarray(layer.augment(images, labels).fields)
    if kind is MaxNormAdversary:
        np.testing.assert_allclose(field, 0.05 * np.sign(gradients), rtol=1e-5)
    else:
        size = np.sqrt(np.mean(gradients**2, axis=(1, 2, 3), keepdims=True))
        np.testing.assert_allclose(field, 0.05 * gradients / size, atol=1e-5)
    # A gradient of zero changes nothing, and values stay in their range.
    strength = np.full(len(images), 0.05, "float32")
    assert not np.any(layer.make_field(images, 0 * images, strength))
    changed = layer.apply(images, 100 * field)
    assert np.min(changed) == 0 and np.max(changed) == 1


@pytest.mark.parametrize("kind", [MaxNormAdversary, MeanSquareAdversary])
def test_projected_gradient_descent_stays_within_the_norm(kind, images, labels):
    model = small_model()
    arguments = {"magnitude": (0.1, 0.1), "value_range": (0, 1), "seed": 1}
    one = kind(**arguments).bind(model).augment(images, labels)
    arguments |= {"steps": 3, "step_size": 0.3}
    layer = kind(**arguments, random_start=True).bind(model)
    several = layer.augment(images, labels)
    assert np.all(np.asarray(layer.size_of(several.fields)) <= 0.1 + 1e-5)
    assert not np.allclose(one.fields, several.fields)
    random = layer.random_field(images, np.full(len(images), 0.1, "float32"))
    np.testing.assert_allclose(layer.size_of(random), 0.1, rtol=1e-5)
