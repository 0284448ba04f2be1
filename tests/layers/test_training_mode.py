"""Whether a layer acts where nobody says in which mode it is called."""

import keras
import numpy as np
import pytest
from keras import backend, layers, ops

import keras_structadv as ksa
from tests.hosts import HOSTS, LOSS, backbone, compiled, flow_layer
from tests.models import small_model


class WithoutMode(keras.Model):
    """Does not say in which mode it is called, as many simple models do not."""

    def __init__(self):
        super().__init__()
        self.layer, self.rest = flow_layer(), backbone()

    def call(self, x):
        return self.rest(self.layer(x))


@pytest.mark.parametrize("bound", [False, True])
def test_a_model_without_a_mode_is_in_inference(bound, images, labels):
    model = compiled(WithoutMode())
    callback = ksa.AdversarialTraining()
    data = (images, labels)
    fit = {"verbose": 0, "callbacks": [callback], "validation_data": data}
    history = model.fit(images, labels, **fit).history
    np.testing.assert_allclose(history["mean_displacement"], 1.5, atol=1e-5)
    plain = model.rest(images, training=False)
    expected = float(LOSS(labels, plain))
    np.testing.assert_allclose(history["val_loss"][0], expected, rtol=1e-4)
    if bound:
        model.layer.bind(model)
    np.testing.assert_allclose(model(images), plain, atol=1e-5)
    np.testing.assert_allclose(model.predict(images, verbose=0), plain, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
def test_without_a_mode_a_layer_in_a_model_is_the_identity(host, images):
    model = compiled(host(flow_layer(), backbone()))
    expected = ops.convert_to_numpy(model(images, training=False))

    def same(predictions):
        predictions = ops.convert_to_numpy(predictions)
        np.testing.assert_allclose(predictions, expected, atol=1e-5)

    same(model(images))
    same(model.predict(images, verbose=0))
    weights = [x.value for x in model.trainable_variables]
    others = [x.value for x in model.non_trainable_variables]
    same(model.stateless_call(weights, others, images)[0])
    if backend.backend() == "tensorflow":
        tf = pytest.importorskip("tensorflow")
        same(tf.function(model)(images))
        with tf.name_scope("around"):
            same(model(images))
        data = tf.data.Dataset.from_tensor_slices(images).batch(6).map(model)
        same(next(iter(data)))


def test_without_a_mode_a_layer_by_itself_asks_for_a_model(images):
    says = "before it was bound to a model. Call layer.bind"
    with pytest.raises(ValueError, match=says):
        flow_layer().call(ops.convert_to_tensor(images))
    with pytest.raises(ValueError, match=says):
        flow_layer()(images)


@pytest.mark.backends("tensorflow")
def test_a_name_scope_is_no_model(images):
    tf = pytest.importorskip("tensorflow")
    says = "before it was bound to a model. Call layer.bind"
    with tf.name_scope("x"), pytest.raises(ValueError, match=says):
        flow_layer()(images)

    @tf.function
    def named(images):
        with tf.name_scope("x"), tf.name_scope("y"):
            return flow_layer()(images)

    with pytest.raises(ValueError, match=says):
        named(images)
    data = tf.data.Dataset.from_tensor_slices(images).batch(6)
    with tf.name_scope("x"), pytest.raises(ValueError, match=says):
        data.map(flow_layer())


def test_a_layer_that_is_added_to_a_model_later_is_the_identity_there(images, labels):
    rest = small_model()
    flow = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1)).bind(rest)
    assert np.abs(ops.convert_to_numpy(flow(images, labels)[0]) - images).max() > 0.01
    model = keras.Sequential([flow, rest])
    expected = rest(images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4)

    class Around(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = flow

        def call(self, x):
            return self.inner(x)

    inside = keras.Sequential([Around(), rest])
    np.testing.assert_allclose(inside(images), expected, rtol=1e-5)
    # By itself, a layer of layers is there to augment, as Keras' and KerasCV's are.
    assert np.abs(ops.convert_to_numpy(Around()(images)) - images).max() > 0.01


def test_a_direct_call_leaves_no_trace(images, labels):
    """Keras opens a call context for whoever asks for it, and nobody closes it."""
    flow = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1))
    with pytest.raises(ValueError, match="bound to a model"):
        flow.call(ops.convert_to_tensor(images))
    rest = small_model()
    flow.bind(rest)
    model = keras.Sequential([flow, rest])
    np.testing.assert_allclose(model(images), rest(images), rtol=1e-5)
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
