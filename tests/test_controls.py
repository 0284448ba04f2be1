"""The controls, which the claims of the README stand on."""

import numpy as np
import pytest

import keras_structadv as ksa
from experiments.controls import ColourJitter
from tests.models import small_model


@pytest.mark.parametrize("kind", [ksa.RandomFlow, ksa.RandomRecoloring, ColourJitter])
def test_a_random_field_is_of_the_size_and_knows_nothing_of_the_model(
    kind, images, labels
):
    model = small_model()
    layer = kind((0.1, 0.1), rate=1.0, value_range=(0, 1), seed=1).bind(model)
    first = layer.augment(images, labels).fields
    layer = kind((0.1, 0.1), rate=1.0, value_range=(0, 1), seed=1).bind(model)
    model.set_weights([-w for w in model.get_weights()])
    np.testing.assert_array_equal(layer.augment(images, labels).fields, first)
    callback = ksa.AdversarialTraining(layer)
    history = model.fit(images, labels, verbose=0, callbacks=[callback]).history
    np.testing.assert_allclose(history[layer.measure_name], 0.1, rtol=1e-4)
