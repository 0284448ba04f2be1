"""What a `fit` takes from a model, keeps with it, and gives back."""

import functools
import gc
import warnings
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
def test_a_step_that_is_made_anew_keeps_the_strength_of_the_epoch(
    gradient, images, labels
):
    layer = ksa.AdversarialFlow((2.0, 2.0), rate=1.0, value_range=(0, 1))
    callback = ksa.AdversarialTraining(
        layer, gradient=gradient, schedule=lambda epoch: 0.1
    )
    both = [callback, MakesTheStepAnew()]
    history = fit(small_model(), images, labels, *both, epochs=3).history
    expected = [0.2 if gradient == "fresh" else 0.0, 0.2, 0.2]
    np.testing.assert_allclose(history["mean_displacement"], expected, rtol=1e-4)


@pytest.mark.backends("tensorflow", "jax")
def test_callbacks_in_turn_compile_once_each(counted, images, labels):
    model = small_model()
    both = [
        ksa.AdversarialTraining(counted, gradient=how) for how in ("fresh", "reuse")
    ]
    for callback in both:
        fit(model, images, labels, callback)
    traced = counted.traced
    for callback in (*both, *both):
        fit(model, images, labels, callback)
    assert counted.traced == traced


def test_an_error_at_the_begin_leaves_the_layers_as_they_were(
    images, labels, monkeypatch
):
    layer = ksa.AdversarialFlow(value_range=(0, 1))
    callback = ksa.AdversarialTraining(layer)

    def fails(model):
        raise ValueError("no step")

    monkeypatch.setattr(callback, "_make_step", fails)
    with pytest.raises(ValueError, match="no step"):
        fit(small_model(), images, labels, callback)
    assert layer.binding.model is None


@pytest.mark.backends("tensorflow", "jax")
def test_a_loss_that_cannot_be_serialized_is_no_obstacle(images, labels):
    loss = functools.partial(
        keras.losses.sparse_categorical_crossentropy, from_logits=True
    )
    layer = ksa.AdversarialFlow((1.0, 1.0), rate=1.0, loss=loss, value_range=(0, 1))
    callback = ksa.AdversarialTraining(layer)
    history = fit(small_model(), images, labels, callback).history
    np.testing.assert_allclose(history["mean_displacement"], 1.0, rtol=1e-4)


class Lazy(keras.Model):
    """Is marked as built without weights, as Keras does with a default `build`."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(x))


class OwnOptimizer(Lazy):
    """Trains by an optimizer of its own."""

    def compile(self, **arguments):
        super().compile(**arguments)
        self.optimizer, self.own = None, keras.optimizers.SGD(0.01)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.own.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("kind", [Lazy, OwnOptimizer])
def test_the_optimizer_is_left_to_models_of_their_own_kind(kind, images, labels):
    model = kind()
    if kind is Lazy:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.build((None, 8, 8, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss)
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow(value_range=(0, 1)))
    assert np.isfinite(fit(model, images, labels, callback).history["loss"][0])


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


@pytest.mark.backends("tensorflow", "jax")
def test_arrays_among_the_arguments_of_a_layer(images, labels):
    class Weighted(Counting):
        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)
            self.table = table

        def arguments(self):
            return {**super().arguments(), "table": np.array(self.table)}

    layer = Weighted(np.ones(2), rate=1.0, value_range=(0, 1))
    callback, model = ksa.AdversarialTraining(layer), small_model()
    for _ in range(2):  # whether they have changed cannot be told
        traced = Weighted.traced
        history = fit(model, images, labels, callback).history
        assert history["mean_displacement"][0] > 0 and Weighted.traced > traced


@pytest.mark.backends("tensorflow")  # on JAX Keras itself refuses such data
def test_what_layers_inside_cannot_move_is_refused(images, labels):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), ksa.AdversarialFlow(), *small_model().layers]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = {"images": images, "ids": np.arange(6)}
    with pytest.raises(ValueError, match=r"\['ids'\] beside the images"):
        fit(model, data, labels, ksa.AdversarialTraining())
