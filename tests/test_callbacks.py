import keras
import numpy as np
import pytest
from conftest import small_model
from keras import layers, ops

import keras_structadv as ksa

LOSS = "sparse_categorical_crossentropy"


def loss_from_logits(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(x))


class OwnStep(Subclassed):
    """Steps with half of the gradient, and reports so."""

    def train_step(self, data):
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), sample_weight)
        variables = self.trainable_variables
        halves = [0.5 * g for g in tape.gradient(loss, variables)]
        self.optimizer.apply(halves, variables)
        return {"loss": loss, "own": 1.0}


def functional():
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


KINDS = {
    "sequential": lambda: small_model(compiled=False),
    "functional": functional,
    "subclassed": Subclassed,
    "own train_step": OwnStep,
}


def layer(**kwargs):
    return ksa.AdversarialFlow(
        **{"rate": 0.5, "seed": 1, "max_displacement": (1, 2), **kwargs}
    )


def build(kind, loss=loss_from_logits, metrics=("accuracy",), **compile_arguments):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    if kind != "own train_step":
        compile_arguments = {"metrics": list(metrics), **compile_arguments}
    model.compile(keras.optimizers.SGD(0.05), loss, **compile_arguments)
    model(np.zeros((1, 8, 8, 1)))
    return model


def one_step_by_hand(model, images, labels, sample_weight=None, **kwargs):
    """Trains on a batch that the layer augmented outside of the train step."""
    moved = layer(**kwargs).bind(model)(images, labels)[0]
    model.train_on_batch(ops.convert_to_numpy(moved), labels, sample_weight)


def assert_same_weights(a, b, atol=1e-5):
    for x, y in zip(a.get_weights(), b.get_weights()):
        np.testing.assert_allclose(x, y, atol=atol)


def assert_plain(model):
    assert "train_step" not in vars(model)
    assert model.train_function is None


def assert_matches_by_hand(
    kind, images, labels, sample_weight=None, **compile_arguments
):
    model = build(kind, **compile_arguments)
    history = model.fit(
        images,
        labels,
        sample_weight=sample_weight,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(layer())],
    ).history
    by_hand = build(kind, **compile_arguments)
    start = by_hand.get_weights()
    one_step_by_hand(by_hand, images, labels, sample_weight)
    assert_same_weights(model, by_hand)
    plain = build(kind, **compile_arguments)
    plain.train_on_batch(images, labels, sample_weight)
    assert np.abs(plain.get_weights()[0] - model.get_weights()[0]).max() > 1e-4
    assert np.abs(start[0] - model.get_weights()[0]).max() > 1e-4
    assert history["adversarial_loss_gain"][0] > 0
    assert_plain(model)
    return history


@pytest.mark.parametrize(
    "execution", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_what_the_layer_makes(kind, execution, images, labels):
    history = assert_matches_by_hand(kind, images, labels, **execution)
    assert ("own" in history) == (kind == "own train_step")


@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights(kind, images, labels):
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32")
    assert_matches_by_hand(kind, images, labels, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_one_hot_labels(kind, images, labels):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    one_hot = keras.utils.to_categorical(labels, 3)
    assert_matches_by_hand(kind, images, one_hot, loss=loss)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_per_execution(kind, images, labels, jit_compile):
    def train(steps_per_execution):
        model = build(
            kind, steps_per_execution=steps_per_execution, jit_compile=jit_compile
        )
        callback = ksa.AdversarialTraining(layer())
        fit = {"batch_size": 2, "epochs": 3, "shuffle": False, "verbose": 0}
        history = model.fit(images, labels, **fit, callbacks=[callback]).history
        assert_plain(model)
        return model, history

    (one, first), (three, second) = train(1), train(3)
    assert_same_weights(one, three)
    np.testing.assert_allclose(
        first["adversarial_loss_gain"], second["adversarial_loss_gain"], rtol=1e-4
    )


def test_the_weights_in_the_middle_of_an_epoch_are_used(images, labels):
    model = build("sequential")
    fit = {"batch_size": 2, "shuffle": False, "verbose": 0}
    callback = ksa.AdversarialTraining(layer(rate=1.0, max_displacement=(2, 2)))
    model.fit(images, labels, **fit, callbacks=[callback])
    by_hand = build("sequential")
    for k in range(0, 6, 2):
        one_step_by_hand(
            by_hand,
            images[k : k + 2],
            labels[k : k + 2],
            rate=1.0,
            max_displacement=(2, 2),
        )
    assert_same_weights(model, by_hand)


def test_a_last_batch_that_is_smaller(images, labels):
    for jit_compile in (False, True):
        model = build("sequential", jit_compile=jit_compile)
        callback = ksa.AdversarialTraining(layer())
        fit = {"batch_size": 4, "epochs": 2, "verbose": 0}
        history = model.fit(images, labels, **fit, callbacks=[callback]).history
        assert np.all(np.isfinite(history["loss"]))


def test_without_labels_in_the_data(images):
    class Autoencoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(1, 3, padding="same")

        def call(self, x):
            return self.conv(x)

        def train_step(self, data):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            return super().train_step((x, x))

    model = Autoencoder()
    model.compile("sgd", "mse")
    callback = ksa.AdversarialTraining(
        layer(loss=lambda y, p: ops.mean(p**2, [1, 2, 3]))
    )
    history = model.fit(images, verbose=0, callbacks=[callback]).history
    assert history["adversarial_loss_gain"][0] > 0


def test_the_step_is_traced_once(images, labels):
    traces = []

    class Counting(Subclassed):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    def fit(callbacks):
        traces.clear()
        model = Counting()
        model.compile("sgd", loss_from_logits)
        model(images)
        model.optimizer.build(model.trainable_variables)
        arguments = {"batch_size": 3, "epochs": 4, "verbose": 0}
        model.fit(images, labels, **arguments, callbacks=callbacks)
        return len(traces)

    callback = ksa.AdversarialTraining(layer(), schedule=lambda epoch: epoch / 4)
    assert fit([callback]) == fit([]) == 1


def test_the_gain_is_the_mean_over_the_augmented_images(images, labels):
    model = build("subclassed", metrics=())
    model.optimizer.learning_rate = 0.0
    fit = {"batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(
        images, labels, **fit, callbacks=[ksa.AdversarialTraining(layer())]
    ).history
    by_hand = layer().bind(build("subclassed"))
    for epoch in range(2):
        gains = [
            float(by_hand.augment(images[k : k + 2], labels[k : k + 2]).gain[0])
            for k in range(0, 6, 2)
        ]
        np.testing.assert_allclose(
            history["adversarial_loss_gain"][epoch], np.mean(gains), rtol=1e-3
        )


def test_the_schedule_scales_the_displacement(images, labels):
    seen = []

    class Recorder(ksa.AdversarialFlow):
        def make_field(self, images, gradients, strength):
            flow = super().make_field(images, gradients, strength)
            seen.append(ops.convert_to_numpy(flow))
            return flow

    recorder = Recorder(max_displacement=(2, 2), rate=1.0)
    model = build("sequential", run_eagerly=True)
    callback = ksa.AdversarialTraining(
        recorder, schedule=lambda epoch: [0, 0.5, 1][epoch]
    )
    fit = {"batch_size": 6, "epochs": 3, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[callback]).history
    longest = [np.linalg.norm(flow, axis=-1).max(axis=(1, 2)) for flow in seen]
    for actual, expected in zip(longest, (0.0, 1.0, 2.0)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert history["adversarial_loss_gain"][0] == 0
    assert history["adversarial_loss_gain"][2] > 0


def test_a_schedule_starts_at_the_initial_epoch(images, labels):
    epochs = []
    model = build("sequential")
    callback = ksa.AdversarialTraining(
        layer(), schedule=lambda epoch: epochs.append(epoch) or 1.0
    )
    fit = {"epochs": 7, "initial_epoch": 4, "verbose": 0}
    model.fit(images, labels, **fit, callbacks=[callback])
    assert epochs == [4, 5, 6]


def test_validation_and_evaluation_are_plain(images, labels):
    model = build("sequential")
    model.optimizer.learning_rate = 0.0
    validation = (images, labels)
    model.layers[1].trainable = False
    history = model.fit(
        images,
        labels,
        verbose=0,
        validation_data=validation,
        callbacks=[ksa.AdversarialTraining(layer(rate=1.0))],
    ).history
    assert "val_adversarial_loss_gain" not in history
    np.testing.assert_allclose(
        history["val_loss"][0], model.evaluate(images, labels, verbose=0)[0], rtol=1e-6
    )


def test_afterwards_the_model_is_the_plain_one(images, labels, tmp_path):
    model = build("functional")
    names = [w.path for w in model.weights]
    plain = build("functional")
    plain.fit(images, labels, verbose=0)
    callback = ksa.AdversarialTraining(layer())
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "during.keras")
    model.fit(images, labels, verbose=0, callbacks=[callback, checkpoint])
    assert [w.path for w in model.weights] == names
    assert set(vars(model)) == set(vars(plain))
    assert model.metrics_names == plain.metrics_names
    assert_plain(model)
    custom = {"loss_from_logits": loss_from_logits}
    saved = keras.saving.load_model(tmp_path / "during.keras", custom_objects=custom)
    assert_same_weights(saved, model, atol=0)
    history = model.fit(images, labels, verbose=0).history
    assert "adversarial_loss_gain" not in history


def test_a_train_step_of_the_instance_is_kept(images, labels):
    model = build("sequential")
    calls = []
    plain = model.train_step

    def own(data):
        calls.append(1)
        return plain(data)

    model.train_step = own
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(layer())])
    assert calls and model.train_step is own


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def test_a_fit_that_is_interrupted_leaves_a_plain_model(images, labels):
    model = build("sequential")
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            images,
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer()), Stop()],
        )
    reference = build("sequential")
    reference.set_weights(model.get_weights())
    history = model.fit(images, labels, shuffle=False, verbose=0).history
    expected = reference.fit(images, labels, shuffle=False, verbose=0).history
    assert set(history) == set(expected)
    assert_same_weights(model, reference, atol=1e-6)


def test_an_error_inside_the_step_leaves_a_plain_model(images, labels):
    tf = pytest.importorskip("tensorflow")

    def broken():
        yield images, labels
        raise RuntimeError("the disk is gone")

    data = tf.data.Dataset.from_generator(
        broken,
        output_signature=(
            tf.TensorSpec((6, 8, 8, 1)),
            tf.TensorSpec((6,), "int64"),
        ),
    )
    model = build("sequential")
    with pytest.raises(tf.errors.OpError, match="the disk is gone"):
        model.fit(data, verbose=0, callbacks=[ksa.AdversarialTraining(layer())])
    assert_plain(model)


def test_one_callback_serves_several_models(images, labels):
    callback = ksa.AdversarialTraining(layer(rate=1.0))
    first, second = build("sequential"), build("subclassed")
    for model in (first, second, first):
        history = model.fit(images, labels, verbose=0, callbacks=[callback]).history
        assert history["adversarial_loss_gain"][0] > 0


def test_a_bad_image_does_not_spoil_the_gain(images, labels):
    images[1] = np.nan
    model = build("sequential")
    seen = []

    class Watch(ksa.AdversarialFlow):
        def augment(self, *args, **kwargs):
            augmented = super().augment(*args, **kwargs)
            seen.append(ops.convert_to_numpy(augmented.gain))
            return augmented

    model.compile("sgd", loss_from_logits, run_eagerly=True)
    callback = ksa.AdversarialTraining(Watch(rate=1.0))
    model.fit(images, labels, shuffle=False, verbose=0, callbacks=[callback])
    assert np.isfinite(seen[0]).all() and seen[0][1] == 0


def test_bad_arguments_are_named(images, labels):
    with pytest.raises(NotImplementedError, match="no layer"):
        ksa.AdversarialTraining()
    with pytest.raises(ValueError, match="layer='flow'.*AdversarialFlow"):
        ksa.AdversarialTraining("flow")
    with pytest.raises(ValueError, match="gradient='stale'.*fresh"):
        ksa.AdversarialTraining(layer(), gradient="stale")
    with pytest.raises(ValueError, match="schedule=0.5.*function"):
        ksa.AdversarialTraining(layer(), schedule=0.5)
    model = build("sequential")
    callback = ksa.AdversarialTraining(layer(), schedule=lambda epoch: 2)
    with pytest.raises(ValueError, match=r"schedule\(0\) returned 2"):
        model.fit(images, labels, verbose=0, callbacks=[callback])
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    flat.compile("sgd", loss_from_logits)
    with pytest.raises(ValueError, match=r"one input, images of rank 4.*\(None, 4\)"):
        flat.fit(
            np.zeros((6, 4)),
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer())],
        )
