"""The gradient pass in inference mode, with moving statistics or those of the batch."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_structadv.gradients import Inference
from keras_structadv.gradients.inference import parts_of
from tests.models import numpy


class Block(layers.Layer):
    """Keeps normalization layers where Keras finds them: in attributes and lists."""

    def __init__(self, momentum, axis):
        super().__init__()
        self.norm = layers.BatchNormalization(axis, momentum)
        self.many = [layers.BatchNormalization(axis, momentum, center=False)]

    def build(self, shape):
        self.norm.build(shape)
        self.many[0].build(shape)

    def call(self, x, training=None):
        return self.many[0](ops.tanh(self.norm(x, training=training)))


def network(momentum=0.99, axis=-1):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            Block(momentum, axis),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(5, use_bias=False),
            layers.BatchNormalization(momentum=momentum, scale=False),
            layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("axis", [-1, 1, 3])
def test_the_statistics_are_those_of_the_batch(images, axis):
    model, twin = network(axis=axis), network(momentum=0.0, axis=axis)
    # Statistics without memory are those of the last batch.
    for layer in [x for x in twin.layers if isinstance(x, layers.Dropout)]:
        layer.rate = 0.0
    twin(images, training=True)
    before = [numpy(v) for v in model.variables]
    found = Inference(model, batch_statistics=True)(images)
    np.testing.assert_allclose(found, twin(images, training=False), atol=1e-4)
    assert np.abs(numpy(found) - numpy(model(images, training=False))).max() > 0.1
    for old, new in zip(before, model.variables):
        np.testing.assert_array_equal(old, numpy(new))


def test_layers_are_left_as_they_were(images):
    model = network()
    norms = parts_of(model, layers.BatchNormalization)
    assert len(norms) == 3
    calls = [layer.call for layer in norms]
    Inference(model, batch_statistics=True)(images)
    with pytest.raises(Exception, match="shape"):
        Inference(model, batch_statistics=True)(images[:, :4])
    assert [layer.call for layer in norms] == calls
    assert not any("call" in vars(layer) for layer in norms)


def test_frozen_layers_keep_their_statistics(images):
    model = network()
    for layer in parts_of(model, layers.BatchNormalization):
        layer.trainable = False
    found = Inference(model, batch_statistics=True)(images)
    np.testing.assert_allclose(found, model(images, training=False), atol=1e-6)


def test_a_batch_of_one_is_finite(images):
    found = Inference(network(), batch_statistics=True)(images[:1])
    assert np.isfinite(numpy(found)).all()
