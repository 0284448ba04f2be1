"""Whether a layer acts where nobody says in which mode it is called."""

import keras
import numpy as np
import pytest
from keras import backend, ops

import keras_structadv as ksa
from tests.hosts import HOSTS, LOSS, backbone, compiled, flow_layer


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
