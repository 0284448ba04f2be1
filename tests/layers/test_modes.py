"""When a layer augments, and how many images of a batch."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import small_model


@pytest.mark.backends("tensorflow")
def test_a_name_scope_does_not_turn_a_layer_off(images):
    import tensorflow as tf

    with tf.name_scope("mine"), pytest.raises(ValueError, match="bound to a model"):
        ksa.AdversarialFlow(rate=1.0)(images)


def test_a_layer_that_is_added_to_a_model_later_is_the_identity_there(images, labels):
    backbone = small_model()
    flow = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1)).bind(backbone)
    assert np.abs(ops.convert_to_numpy(flow(images, labels)[0]) - images).max() > 0.01
    model = keras.Sequential([flow, backbone])
    expected = backbone(images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4)

    class Around(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = flow

        def call(self, x):
            return self.inner(x)

    inside = keras.Sequential([Around(), backbone])
    np.testing.assert_allclose(inside(images), expected, rtol=1e-5)
    # By itself, a layer of layers is there to augment, as Keras' and KerasCV's are.
    assert np.abs(ops.convert_to_numpy(Around()(images)) - images).max() > 0.01


def test_a_direct_call_leaves_no_trace(images, labels):
    """Keras opens a call context for whoever asks for it, and nobody closes it."""
    flow = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1))
    with pytest.raises(ValueError, match="bound to a model"):
        flow.call(ops.convert_to_tensor(images))
    backbone = small_model()
    flow.bind(backbone)
    model = keras.Sequential([flow, backbone])
    np.testing.assert_allclose(model(images), backbone(images), rtol=1e-5)
    assert np.abs(ops.convert_to_numpy(flow(images, labels)[0]) - images).max() > 0.01


def test_bound_before_it_was_added_it_attacks_the_rest_of_the_model(images, labels):
    """`inside` is decided at the call: a later `add` counts."""
    flow = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1))
    model = keras.Sequential([layers.Rescaling(2.0), flow, layers.Flatten()])
    model.add(layers.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model(images)
    early = keras.Sequential([layers.Rescaling(2.0)])
    early(images)
    late = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1)).bind(early)
    early.add(late)
    for layer in model.layers[2:]:
        early.add(layer)
    early.compile("sgd", loss)
    flow.bind(model)
    np.testing.assert_allclose(
        late(2 * images, labels)[0], flow(2 * images, labels)[0], atol=1e-4
    )


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("known", [False, True])
def test_small_rates_are_probabilities_in_batches_of_any_size(known, images):
    import tensorflow as tf

    layer = ksa.RandomFlow((2.0, 2.0), rate=0.02, value_range=(0, 1), seed=0)
    shape = (4 if known else None, 8, 8, 1)
    changed = tf.function(
        lambda x: tf.reduce_sum(layer.augment(x).active),
        input_signature=[tf.TensorSpec(shape, "float32")],
    )
    total = sum(float(changed(images[:4])) for _ in range(2000))
    assert 115 < total < 205  # 160 are expected, with a deviation of 12.5
    tiny = ksa.RandomFlow((2.0, 2.0), rate=1e-4, value_range=(0, 1), seed=0)
    count = tf.function(
        lambda x: tf.size(tiny.augment(x).active),
        input_signature=[tf.TensorSpec(shape, "float32")],
    )
    assert int(count(images[:4])) == 1  # one image, active with that probability
