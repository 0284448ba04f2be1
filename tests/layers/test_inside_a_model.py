"""Layers inside the model that is trained."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.hosts import (
    HOSTS,
    LOSS,
    Subclassed,
    backbone,
    compiled,
    flow_layer,
    sequential,
)
from tests.models import bind_as_fit_does, small_model


@pytest.mark.parametrize("host", HOSTS)
def test_the_gradient_is_that_of_the_rest_with_true_labels(host, images, labels):
    rest = backbone()
    rest.build((None, 8, 8, 1))
    rest.compile(loss=LOSS)
    expected = bind_as_fit_does(flow_layer(), rest)(2 * images, labels)[0]

    seen = []

    class Keep(layers.Layer):
        def call(self, x, training=None):
            if training:
                seen.append(x)
            return x

    keep = Keep()
    model = compiled(
        host(flow_layer(), keras.Sequential([keep, rest])), run_eagerly=True
    )
    model.optimizer.learning_rate = 0.0
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    model.fit(images, labels, callbacks=[ksa.AdversarialTraining()], **fit)
    np.testing.assert_allclose(seen[-1], expected, atol=1e-5)
    assert np.abs(expected - 2 * images).max() > 0.01


@pytest.mark.parametrize("host", HOSTS)
def test_without_the_callback_the_most_likely_label_is_taken(host, images, labels):
    rest = backbone()
    layer = flow_layer()
    model = compiled(host(layer, rest))
    model.predict(images, verbose=0)
    rest.compile(loss=LOSS)
    layer.bind(model)
    own = ops.argmax(model(images, training=False), -1)
    expected = flow_layer().bind(rest)(2 * images, own)[0]
    moved = layer(2 * images)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    history = model.fit(images, labels, epochs=12, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    "host,execution",
    [(host, {}) for host in HOSTS] + [(Subclassed, {"jit_compile": True})],
)
def test_it_trains_and_leaves_no_trace(host, execution, images, labels, tmp_path):
    keras.utils.set_random_seed(0)
    layer, rest = flow_layer(), backbone()
    model = compiled(host(layer, rest), **execution)
    keras.utils.set_random_seed(0)
    plain_rest = backbone()
    plain = compiled(host(layers.Identity(), plain_rest), **execution)
    assert len(model.weights) in (0, len(plain.weights))  # none before a first call
    fit = {"batch_size": 3, "epochs": 20, "verbose": 0, "shuffle": False}
    history = model.fit(
        images, labels, callbacks=[ksa.AdversarialTraining()], **fit
    ).history
    plain.fit(images, labels, **fit)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["adversarial_loss_gain"][0] > 0
    np.testing.assert_allclose(history["mean_displacement"], 1.5, atol=1e-5)
    # No doubled weights, and no identical ones either: it was not the plain training.
    assert [w.shape for w in model.weights] == [w.shape for w in plain.weights]
    moved = zip(model.get_weights(), plain.get_weights())
    assert max(np.abs(a - b).max() for a, b in moved) > 1e-3
    assert layer.binding.model is None
    # Identity at inference.
    np.testing.assert_allclose(
        model.predict(images, verbose=0), rest(2 * images, training=False), atol=1e-5
    )


@pytest.mark.backends("tensorflow", "torch")
def test_statistics_move_once(images, labels):
    """The gradient pass must not update what the layers behind keep, nor its mode."""

    class Host(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.norm = layer, layers.BatchNormalization()
            self.drop = layers.Dropout(0.5, seed=1)
            self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

        def call(self, x, training=None):
            x = self.layer(x)
            x = self.drop(self.norm(x))  # their mode comes from the call around them
            return self.dense(self.flatten(x))

    def statistics(layer, callbacks):
        model = compiled(Host(layer))
        fit = {"batch_size": 6, "epochs": 3, "verbose": 0, "shuffle": False}
        model.fit(images, labels, callbacks=callbacks, **fit)
        seeds = ops.convert_to_numpy(model.drop.seed_generator.state)
        return ops.convert_to_numpy(model.norm.moving_mean), seeds

    still = flow_layer(max_displacement=0.0)
    mean, seeds = statistics(still, [ksa.AdversarialTraining()])
    plain_mean, plain_seeds = statistics(layers.RandomBrightness(0.0), [])
    np.testing.assert_allclose(mean, plain_mean, rtol=1e-5)
    np.testing.assert_array_equal(seeds, plain_seeds)
    assert mean[0] > 0.001


@pytest.mark.parametrize(
    "behind",
    [
        layers.RandomFlip(seed=3),
        pytest.param(  # whose inference elsewhere does not crop
            layers.RandomCrop(6, 6, seed=3), marks=pytest.mark.backends("tensorflow")
        ),
    ],
)
def test_behind_other_augmentation(behind, images, labels):
    big = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    model = compiled(
        keras.Sequential([keras.Input((10, 10, 1)), behind, flow_layer(), backbone()])
    )
    history = model.fit(
        big, labels, epochs=3, verbose=0, callbacks=[ksa.AdversarialTraining()]
    ).history
    assert history["adversarial_loss_gain"][0] > 0
    np.testing.assert_allclose(history["mean_displacement"], 1.5, atol=1e-5)
    # Without the callback as well, where the sizes before and behind differ.
    model.layers[1].bind(model)
    assert np.isfinite(model.fit(big, labels, verbose=0).history["loss"][0])


def changing_sizes():
    yield keras.Input((8, 8, 1)), [layers.Conv2D(3, 1)]
    yield keras.Input((16, 16, 1)), [layers.Flatten(), layers.Dense(64)]
    yield keras.Input((None, None, 1)), [layers.Conv2D(3, 1)]


@pytest.mark.parametrize("number", range(3))
def test_behind_layers_that_change_the_shape(number, images, labels):
    inputs, before = list(changing_sizes())[number]
    x = inputs
    for layer in before:
        x = layer(x)
    x = x if len(x.shape) == 4 else layers.Reshape((8, 8, 1))(x)
    flow = flow_layer()
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="tanh")(flow(x)))
    model = compiled(keras.Model(inputs, layers.Dense(3)(x)))
    given = np.tile(images, (1, 2, 2, 1)) if inputs.shape[1] == 16 else images
    fit = {"verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    history = model.fit(given, labels, **fit).history
    np.testing.assert_allclose(history["mean_displacement"], 1.5, atol=1e-5)
    flow.bind(model)  # and without the callback
    assert np.isfinite(model.fit(given, labels, verbose=0).history["loss"][0])


@pytest.mark.backends("tensorflow")
def test_a_way_around_the_layer_keeps_the_real_input(images, labels):
    """The gradient is that of what comes behind the layer, the rest held fixed."""
    tf = pytest.importorskip("tensorflow")
    seen = []

    class Watch(ksa.AdversarialFlow):
        def gradient(self, forward, images, labels, targets):
            gradients = super().gradient(forward, images, labels, targets)
            seen.append((images, gradients))
            return gradients

    inputs = keras.Input((8, 8, 1))
    one, two = layers.Dense(3), layers.Dense(3)
    flat = layers.Flatten()(Watch(rate=1.0)(layers.Rescaling(0.1)(inputs)))
    outputs = layers.Multiply()([one(flat), two(layers.Flatten()(inputs))])
    model = compiled(keras.Model(inputs, outputs), run_eagerly=True)
    model.optimizer.learning_rate = 0.0
    fit = {"shuffle": False, "verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    model.fit(images, labels, **fit)
    at, actual = seen[0]
    at = tf.constant(at)
    with tf.GradientTape() as tape:
        tape.watch(at)
        way = two(np.reshape(images, (6, -1)))
        loss = LOSS(labels, one(tf.reshape(at, (6, -1))) * way)
    expected = 6 * tape.gradient(loss, at)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


def test_before_other_augmentation(images, labels):
    model = compiled(
        keras.Sequential(
            [keras.Input((8, 8, 1)), flow_layer(), layers.RandomFlip(), backbone()]
        )
    )
    history = model.fit(
        images, labels, epochs=10, verbose=0, callbacks=[ksa.AdversarialTraining()]
    ).history
    assert history["adversarial_loss_gain"][0] > 0


def test_two_layers_and_the_schedule(images, labels):
    # The range is wide, so that nothing is clipped.
    recolor = ksa.AdversarialRecoloring((0.05, 0.05), rate=1.0, value_range=(-1, 3))
    model = compiled(
        keras.Sequential([keras.Input((8, 8, 1)), flow_layer(), recolor, backbone()])
    )
    callback = ksa.AdversarialTraining(schedule=lambda epoch: epoch / 2)
    history = model.fit(
        images, labels, epochs=3, verbose=0, callbacks=[callback]
    ).history
    np.testing.assert_allclose(history["mean_displacement"], [0, 0.75, 1.5], atol=1e-5)
    np.testing.assert_allclose(history["mean_magnitude"], [0, 0.025, 0.05], atol=1e-4)
    assert callback.layers == (model.layers[0], recolor)


@pytest.mark.slow
def test_the_saved_model_predicts_the_same_in_a_fresh_process(images, labels, tmp_path):
    model = compiled(sequential(flow_layer(), backbone()))
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining()])
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import keras, numpy as np, keras_structadv\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('out.npy', model.predict(np.load('images.npy'), verbose=0))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    out = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(out, model.predict(images, verbose=0), atol=1e-6)
    again = keras.models.load_model(tmp_path / "model.keras")
    history = again.fit(
        images, labels, verbose=0, callbacks=[ksa.AdversarialTraining()]
    ).history
    assert history["adversarial_loss_gain"][0] > 0


def test_what_cannot_be_done_inside_a_model_is_named(images, labels):
    model = compiled(sequential(flow_layer(), backbone()))
    with pytest.raises(ValueError, match="inside the model, with .*Training"):
        model.fit(images, labels, verbose=0)
    # On JAX, Keras 3.10 leaves no weights in a model whose `fit` failed.
    model = compiled(sequential(flow_layer(), backbone()))
    with pytest.raises(ValueError, match="layer of the model itself.*Pass no layer"):
        model.fit(
            images,
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(model.layers[1])],
        )
    with pytest.raises(ValueError, match="no adversarial layer inside"):
        small_model().fit(
            images, labels, verbose=0, callbacks=[ksa.AdversarialTraining()]
        )
    with pytest.raises(ValueError, match="gradient='reuse' and no layer"):
        ksa.AdversarialTraining(gradient="reuse")
    shared = flow_layer()
    inputs = keras.Input((8, 8, 1))
    x = layers.Concatenate()([shared(inputs), shared(inputs)])
    twice = compiled(keras.Model(inputs, backbone()(x)))
    with pytest.raises(ValueError, match="is called 2 times"):
        twice.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining()])
    both = compiled(sequential(flow_layer(), backbone()))
    with pytest.raises(ValueError, match="inside, which were not passed"):
        callback = ksa.AdversarialTraining(flow_layer())
        both.fit(images, labels, verbose=0, callbacks=[callback])
    masks = (images > 0.5).astype("int32")
    dense = keras.Sequential([keras.Input((8, 8, 1)), flow_layer(), layers.Dense(2)])
    with pytest.raises(ValueError, match="cannot move them with the images"):
        compiled(dense).fit(
            images, masks, verbose=0, callbacks=[ksa.AdversarialTraining()]
        )
