"""Channels first and channels last."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.models import numpy


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_data_formats_agree(bound, images, labels, data_format):
    first = data_format == "channels_first"
    inputs = keras.Input((1, 8, 8) if first else (8, 8, 1))
    x = layers.Permute((2, 3, 1))(inputs) if first else inputs
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    keras.utils.set_random_seed(0)
    reference = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)]
    )
    model.set_weights(reference.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = {"loss": loss, "rate": 0.5, "steps": 2}
    expected = numpy(bound(reference, **arguments)(images, labels)[0])
    given = images.transpose(0, 3, 1, 2) if first else images
    layer = bound(model, data_format=data_format, **arguments)
    actual = numpy(layer(given, labels)[0])
    if first:
        actual = actual.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
