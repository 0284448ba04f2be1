"""Layers inside the model that is trained."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import small_model
from keras import backend, layers, ops

import keras_structadv as ksa
from keras_structadv.layers.binding import layers_inside

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def flow_layer(**kwargs):
    kwargs = {"rate": 1.0, "max_displacement": (1.5, 1.5), "seed": 1, **kwargs}
    return ksa.AdversarialFlow(**kwargs)


def backbone():
    return keras.Sequential(
        [
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self, layer, rest, before=None):
        super().__init__()
        self.parts = [before or layers.Rescaling(2.0), layer]
        self.rest = rest

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return self.rest(x, training=training)


def sequential(layer, rest):
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(2.0), layer, rest]
    )


def functional(layer, rest):
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(2.0)(inputs)
    return keras.Model(inputs, rest(layer(x)))


def nested(layer, rest):
    augmentation = keras.Sequential([layers.Rescaling(2.0), layer])
    return keras.Sequential([keras.Input((8, 8, 1)), augmentation, rest])


HOSTS = [sequential, functional, nested, Subclassed]


def compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"], **kwargs)
    return model


@pytest.mark.parametrize("host", HOSTS)
def test_the_gradient_is_that_of_the_rest_with_true_labels(host, images, labels):
    rest = backbone()
    rest.build((None, 8, 8, 1))
    rest.compile(loss=LOSS)
    expected = flow_layer().bind(rest)(2 * images, labels)[0]

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
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(flow(x)))
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
    recolor = ksa.AdversarialRecoloring((0.05, 0.05), rate=1.0, value_range=(0, 1))
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


def test_the_value_range_is_that_at_the_layer(images, labels):
    def model_with(value_range):
        recolor = ksa.AdversarialRecoloring(0.05, value_range=value_range)
        parts = [layers.Rescaling(1 / 255), recolor, backbone()]
        return compiled(keras.Sequential([keras.Input((8, 8, 1)), *parts]))

    fit = {"verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    model_with((0, 1)).fit(255 * images, labels, **fit)
    fit = {"verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    with pytest.warns(UserWarning, match="value_range=.0, 255.*Pass the range"):
        model_with((0, 255)).fit(255 * images, labels, **fit)


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


def test_layers_are_found_however_deep():
    class Block(layers.Layer):
        def __init__(self, deep):
            super().__init__()
            self.named = {"deep": deep}

    flows = [flow_layer() for _ in range(4)]
    pipeline = layers.Pipeline([layers.RandomFlip(), flows[0]])
    inner = keras.Sequential([keras.Input((8, 8, 1)), flows[1]])
    model = Subclassed(flows[2], keras.Sequential([pipeline, inner, Block(flows[3])]))
    assert sorted(map(id, layers_inside(model))) == sorted(map(id, flows))


def test_what_cannot_be_done_inside_a_model_is_named(images, labels):
    model = compiled(sequential(flow_layer(), backbone()))
    with pytest.raises(ValueError, match="inside the model, with .*Training"):
        model.fit(images, labels, verbose=0)
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
