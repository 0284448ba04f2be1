"""The controls, which the claims of the README stand on."""

import numpy as np
import pytest

import keras_structadv as ksa
from experiments.controls import ColourJitter
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
