"""The gradient pass in inference mode, with moving statistics or those of the batch."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.gradients import Inference
from keras_structadv.gradients.inference import parts_of
from tests.models import bind_as_fit_does, numpy


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
    images = np.concatenate([images, 0.5 * images[::-1]])
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


def test_a_call_of_the_layer_itself_is_left_to_it(images):
    model = network()
    norm = model.layers[-2]
    own = norm.call = functools.partial(norm.call)
    Inference(model, batch_statistics=True)(images)
    assert vars(norm)["call"] is own


def test_frozen_layers_keep_their_statistics(images):
    model = network()
    for layer in parts_of(model, layers.BatchNormalization):
        layer.trainable = False
    found = Inference(model, batch_statistics=True)(images)
    np.testing.assert_allclose(found, model(images, training=False), atol=1e-6)


def test_a_batch_of_one_is_finite(images):
    found = Inference(network(), batch_statistics=True)(images[:1])
    assert np.isfinite(numpy(found)).all()


def test_few_values_are_normalized_by_the_moving_statistics():
    model = keras.Sequential([keras.Input((5,)), layers.BatchNormalization()])
    model.layers[0].moving_variance.assign(np.full(5, 4.0))
    x = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
    for count, few in ((7, True), (8, False)):
        found = numpy(Inference(model, batch_statistics=True)(x[:count]))
        plain = numpy(model(x[:count], training=False))
        assert np.allclose(found, plain, atol=1e-6) == few


def test_a_model_that_keeps_a_part_in_inference(images):
    class Finetuned(keras.Model):
        def __init__(self):
            super().__init__()
            self.base = keras.Sequential([layers.BatchNormalization()])
            self.norm = layers.BatchNormalization(center=False)

        def call(self, x, training=None):
            return self.norm(self.base(x, training=False), training=training)

    model, twin = Finetuned(), Finetuned()
    for one in (model, twin):
        one(images)
    twin.norm.momentum = 0.0
    twin(images, training=True)
    found = Inference(model, batch_statistics=True)(images)
    np.testing.assert_allclose(found, twin(images, training=False), atol=1e-4)


@pytest.mark.parametrize("mode", ["full", "activations"])
def test_rematerialized_layers_keep_their_moving_statistics(mode, images, labels):
    with keras.RematScope(mode=mode):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3),
                layers.BatchNormalization(momentum=0.5),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    norm = model.layers[1]
    before = numpy(norm.moving_mean)
    layer = ksa.AdversarialFlow((1.0, 1.0), rate=1.0, value_range=(0, 1))
    layer.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    flow = numpy(bind_as_fit_does(layer, model)(images, labels)[0])
    assert np.abs(flow - images).max() > 0.01
    np.testing.assert_array_equal(numpy(norm.moving_mean), before)
