"""What a `fit` takes from a model, keeps with it, and gives back."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from tests.models import small_model


class Counting(ksa.AdversarialFlow):
    """Counts how often it is traced."""

    traced = 0

    def apply(self, images, field):
        type(self).traced += 1
        return super().apply(images, field)


def fit(model, images, labels, *callbacks, **arguments):
    arguments = {"batch_size": 3, "epochs": 1} | arguments
    return model.fit(images, labels, verbose=0, callbacks=callbacks, **arguments)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counting, "traced", 0)
    return Counting(rate=1.0, seed=1, value_range=(0, 1))


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("gradient", ["fresh", "reuse", "inside"])
def test_a_second_fit_compiles_nothing(counted, gradient, images, labels):
    inside = gradient == "inside"
    callback = (
        ksa.AdversarialTraining()
        if inside
        else ksa.AdversarialTraining(counted, gradient=gradient)
    )
    model = small_model()
    if inside:
        model = keras.Sequential([counted, *model.layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    fit(model, images, labels, callback)
    traced = counted.traced
    assert traced >= 1
    for _ in range(2):
        history = fit(model, images, labels, callback).history
        assert history["mean_displacement"][0] > 0
    assert counted.traced == traced


@pytest.mark.backends("tensorflow", "jax")
def test_a_plain_fit_afterwards_runs_what_was_compiled_before(images, labels):
    model = small_model()
    fit(model, images, labels)
    plain = model.train_function
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow(value_range=(0, 1)))
    fit(model, images, labels, callback)
    assert model.train_function is plain
    fit(model, images, labels)
    assert model.train_function is plain


@pytest.mark.backends("tensorflow", "jax")
def test_what_changes_the_step_compiles_a_new_one(counted, images, labels):
    model = small_model()
    callback = ksa.AdversarialTraining(counted)
    fit(model, images, labels, callback)
    counted.smoothness = 5.0
    traced = counted.traced
    fit(model, images, labels, callback)
    assert counted.traced > traced
    model.compile("sgd", "mean_squared_error")
    traced = counted.traced
    fit(model, images, np.zeros((6, 3)), callback)
    assert counted.traced > traced
    traced = counted.traced
    fit(model, images, np.zeros((6, 3)), ksa.AdversarialTraining(counted))
    assert counted.traced == traced  # another callback with the same layer
    reuse = ksa.AdversarialTraining(counted, gradient="reuse")
    fit(model, images, np.zeros((6, 3)), reuse)
    assert counted.traced > traced


class MakesTheStepAnew(keras.callbacks.Callback):
    """Unfreezes layers in the middle of a training, as fine-tuning does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("first", [False, True])
def test_another_callback_may_make_the_train_function_anew(images, labels, first):
    callback = ksa.AdversarialTraining(
        ksa.AdversarialFlow((1.0, 1.0), rate=1.0, value_range=(0, 1))
    )
    both = [callback, MakesTheStepAnew()]
    history = fit(
        small_model(), images, labels, *(both[::-1] if first else both), epochs=3
    ).history
    np.testing.assert_allclose(history["mean_displacement"], 1.0, rtol=1e-5)


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
@pytest.mark.parametrize("kind", [ksa.AdversarialFlow, ksa.AdversarialRecoloring])
def test_a_callback_holds_no_model_that_was_dropped(kind, gradient, images, labels):
    callback = ksa.AdversarialTraining(kind(value_range=(0, 1)), gradient=gradient)
    model = small_model()
    fit(model, images, labels, callback)
    gone = weakref.ref(model)
    callback.set_model(None)  # Keras' part of a callback does
    del model
    keras.utils.clear_session()
    gc.collect()
    assert gone() is None


def test_hooks_without_a_fit_say_so():
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow())
    with pytest.raises(RuntimeError, match="No `fit` is going on"):
        callback.on_train_batch_begin(0)
