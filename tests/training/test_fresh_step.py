"""A step with fresh gradients trains on what the layers make."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import (
    KINDS,
    Subclassed,
    assert_plain,
    assert_same_weights,
    bind_as_fit_does,
    build,
    layer,
    loss_from_logits,
    one_step_by_hand,
    recolor,
)


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
    class Confident(Subclassed):
        """Is pulled towards its own answer."""

        def train_step(self, data):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            return super().train_step((x, ops.argmax(self(x), axis=-1)))

    model = Confident()
    model.compile("sgd", loss_from_logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    callback = ksa.AdversarialTraining(layer(loss=loss))
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


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_rate_zero_is_plain_training(images, labels, run_eagerly):
    model, plain = (build("functional", run_eagerly=run_eagerly) for _ in range(2))
    callback = ksa.AdversarialTraining(layer(rate=0.0))
    fit = {"shuffle": False, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[callback]).history
    plain.fit(images, labels, **fit)
    assert_same_weights(model, plain, atol=0)
    assert history["adversarial_loss_gain"] == [0]


def test_losses_without_a_config(images, labels):
    class Own:
        def __call__(self, y_true, y_pred):
            return loss_from_logits(y_true, y_pred)

    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(3)(x)])
    model.compile("sgd", [Own(), loss_from_logits], loss_weights=[1.0, 0.5])
    callback = ksa.AdversarialTraining(layer())
    history = model.fit(images, [labels, labels], verbose=0, callbacks=[callback])
    assert history.history["adversarial_loss_gain"][0] > 0


def test_class_weights_count_and_do_not_turn_the_field(images, labels):
    weights = {0: 1.0, 1: 0.0, 2: 3.0}
    model = build("functional")
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    callback = ksa.AdversarialTraining(layer())
    model.fit(images, labels, class_weight=weights, callbacks=[callback], **fit)
    by_hand = build("functional")
    of_each = np.array([weights[k] for k in labels], "float32")
    one_step_by_hand(by_hand, images, labels, of_each)
    assert_same_weights(model, by_hand)


def test_a_model_that_adds_losses(images, labels):
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(1e-3 * ops.sum(ops.square(x)))
            return x

    def make():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        x = layers.Dense(
            8, kernel_regularizer="l2", activity_regularizer="l2", activation="tanh"
        )(layers.Flatten()(Adds()(inputs)))
        model = keras.Model(inputs, layers.Dense(3)(x))
        model.compile(keras.optimizers.SGD(0.05), loss_from_logits)
        return model

    for gradient in ("fresh", "reuse"):
        callback = ksa.AdversarialTraining(
            layer(max_displacement=0.0), gradient=gradient
        )
        fit = {"batch_size": 3, "epochs": 2, "shuffle": False, "verbose": 0}
        model, plain = make(), make()
        history = model.fit(images, labels, callbacks=[callback], **fit).history
        expected = plain.fit(images, labels, **fit).history
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
        assert_same_weights(model, plain)
    model = make()
    model.fit(images, labels, callbacks=[ksa.AdversarialTraining(layer())], **fit)
    assert np.abs(model.get_weights()[0] - plain.get_weights()[0]).max() > 1e-4


@pytest.mark.parametrize("mix", [layers.MixUp(seed=1), layers.CutMix(seed=1)])
def test_soft_labels(mix, images, labels):
    tf = pytest.importorskip("tensorflow")
    soft = np.eye(3, dtype="float32")[labels]
    data = tf.data.Dataset.from_tensor_slices({"images": images, "labels": soft})
    data = data.batch(6).map(mix).map(lambda d: (d["images"], d["labels"])).cache()
    x, y = next(iter(data))
    assert ((y > 0.01) & (y < 0.99)).numpy().any()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model = build("functional", loss)
    callbacks = [ksa.AdversarialTraining(layer())]
    model.fit(data, verbose=0, callbacks=callbacks)
    by_hand = build("functional", loss)
    one_step_by_hand(by_hand, x, y)
    assert_same_weights(model, by_hand)


def test_classes_that_are_ignored(images, labels):
    """An image without a label has no gradient, and so stays as it is."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    some = np.where(labels == 1, -1, labels)
    seen = []

    class Watch(ksa.AdversarialFlow):
        def augment(self, *args, **kwargs):
            seen.append(super().augment(*args, **kwargs))
            return seen[-1]

    model = build("functional", loss, run_eagerly=True)
    watch = Watch(max_displacement=(2, 2), rate=1.0)
    fit = {"shuffle": False, "verbose": 0}
    model.fit(images, some, callbacks=[ksa.AdversarialTraining(watch)], **fit)
    sizes = ops.convert_to_numpy(seen[0].sizes)
    np.testing.assert_array_equal(sizes, np.where(labels == 1, 0, 2))


@pytest.mark.fused
@pytest.mark.parametrize("execution", [{}, {"jit_compile": True}], ids=str)
def test_layers_act_one_after_the_other(execution, images, labels):
    model = build("functional", **execution)
    both = [layer(), recolor()]
    history = model.fit(
        images,
        labels,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(both)],
    ).history
    by_hand = build("functional")
    moved = bind_as_fit_does(layer(), by_hand)(images, labels)[0]
    moved = bind_as_fit_does(recolor(), by_hand)(moved, labels)[0]
    by_hand.train_on_batch(ops.convert_to_numpy(moved), labels)
    assert_same_weights(model, by_hand)
    assert 1 < history["mean_displacement"][0] < 2
    assert 0 < history["mean_magnitude"][0] < 0.1
    assert history["adversarial_loss_gain"][0] > 0
    assert_plain(model)
    assert all(x.binding.model is None for x in both)


def test_moving_statistics_do_not_enter_the_gradient(images, labels):
    """Whatever their momentum, the training is the same; after it they differ."""
    found = []
    for momentum in (0.5, 0.999):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, activation="tanh"),
                layers.BatchNormalization(momentum=momentum),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        model.compile("sgd", loss_from_logits)
        history = model.fit(
            images,
            labels,
            batch_size=3,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer(steps=2))],
        ).history
        found.append((history, model.trainable_variables, model.get_weights()[-3]))
    (one, weights, statistics), (other, others, different) = found
    for key in ("loss", "adversarial_loss_gain", "mean_displacement"):
        np.testing.assert_allclose(one[key], other[key], rtol=1e-5)
    for a, b in zip(weights, others):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(statistics - different).max() > 1e-3
