"""What a `fit` takes from a model, and gives back."""

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from tests.models import (
    assert_plain,
    assert_same_weights,
    build,
    layer,
    loss_from_logits,
)


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
    assert set(vars(model)) == {*vars(plain), "_kept_adversarial_steps"}
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
    def __init__(self, place):
        super().__init__()
        setattr(self, place, self.stop)

    def stop(self, *_, **__):
        raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        """Keeps Keras from running the callbacks in another thread."""


def assert_trains_plainly(model, images, labels):
    assert "train_step" not in vars(model)
    reference = build("sequential")
    reference.set_weights(model.get_weights())
    fit = {"shuffle": False, "epochs": 2, "verbose": 0}
    history = model.fit(images, labels, **fit).history
    expected = reference.fit(images, labels, **fit).history
    assert set(history) == set(expected)
    assert_same_weights(model, reference, atol=1e-6)


@pytest.mark.parametrize("place", ["on_epoch_end", "on_train_batch_end"])
@pytest.mark.parametrize("first", [False, True])
def test_a_fit_that_is_interrupted_leaves_a_plain_model(images, labels, place, first):
    model = build("sequential")
    callbacks = [ksa.AdversarialTraining(layer()), Stop(place)]
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            images, labels, verbose=0, callbacks=callbacks[::-1] if first else callbacks
        )
    assert_trains_plainly(model, images, labels)


def test_data_of_unknown_length(images, labels):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    data = data.filter(lambda x, y: True)
    for arguments in ({}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        model = build("sequential", **arguments)
        callback = ksa.AdversarialTraining(layer())
        history = model.fit(data, epochs=3, verbose=0, callbacks=[callback]).history
        assert np.all(np.abs(history["adversarial_loss_gain"]) > 0)
        assert_plain(model)


def test_a_layer_that_was_bound_before_is_so_afterwards(images, labels):
    calls = []

    def own(y, p):
        calls.append(1)
        return loss_from_logits(y, p)

    model, teacher = build("sequential"), build("subclassed")
    bound = layer().bind(model, loss=own)
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(bound)])
    assert calls and bound.binding.model is model and bound.binding.loss is own
    bound.bind(teacher)
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(bound)])
    assert bound.binding.model is teacher
    free = layer()
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(free)])
    assert free.binding.model is None


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
    assert_trains_plainly(model, images, labels)
