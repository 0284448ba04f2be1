"""Training that is interrupted, resumed, stopped early, saved on the way."""

import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from keras_structadv.training.fit import Fit
from tests.models import small_model

PLACES = ["outside", "inside"]


FIT = {"batch_size": 2, "shuffle": False, "verbose": 0}


STEPS = 3  # in an epoch


def flow():
    """Returns a layer that draws nothing: what it does depends on the weights alone."""
    return ksa.AdversarialFlow(rate=1.0, max_displacement=(1.0, 1.0), seed=1)


def build(place):
    keras.utils.set_random_seed(0)
    model = small_model(compiled=False)
    if place == "inside":
        model = keras.Sequential([keras.Input((8, 8, 1)), flow(), *model.layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def training(place, **kwargs):
    return ksa.AdversarialTraining(flow() if place == "outside" else None, **kwargs)


def twin(model, place):
    """Returns a model with the same weights and state that never saw a callback."""
    other = build(place)
    other.optimizer.build(other.trainable_variables)
    other.set_weights(model.get_weights())
    for variable, value in zip(other.optimizer.variables, model.optimizer.variables):
        variable.assign(value)
    return other


def state(model):
    values = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    assert len(values) > 2
    return [*model.get_weights(), *values]


def assert_same(a, b, atol=1e-6):
    assert len(state(a)) == len(state(b))
    for x, y in zip(state(a), state(b)):
        np.testing.assert_allclose(x, y, atol=atol)


def predictions(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def distance(a, b):
    return np.abs(a.get_weights()[0] - b.get_weights()[0]).max()


class Raise(keras.callbacks.Callback):
    """Raises an error at one place of one step."""

    def __init__(self, error, place="on_train_batch_end", step=1, epoch=0):
        super().__init__()
        self.error, self.step, self.epoch, self.now = error, step, epoch, None
        setattr(self, place, self.stop)

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Keeps Keras from running the callbacks in another thread."""

    def stop(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.step):
            raise self.error


@pytest.mark.parametrize("place,last", [("outside", True), ("inside", False)])
def test_a_resumed_run_is_the_uninterrupted_one(place, last, images, labels, tmp_path):
    def train(folder, *others):
        epochs = []

        def schedule(epoch):
            epochs.append(epoch)
            return (epoch + 1) / 4

        model = build(place)
        callbacks = [
            training(place, schedule=schedule),
            keras.callbacks.BackupAndRestore(tmp_path / folder),
        ]
        callbacks = callbacks if last else callbacks[::-1]
        try:
            history = model.fit(
                images, labels, epochs=4, callbacks=[*callbacks, *others], **FIT
            ).history
        except RuntimeError:
            history = {}
        return model, epochs, history

    whole, all_epochs, expected = train("whole")
    cut, before, _ = train("cut", Raise(RuntimeError("power cut"), epoch=2))
    resumed, after, history = train("cut")
    assert all_epochs == [0, 1, 2, 3]
    assert before == [0, 1, 2] and after == [2, 3]
    assert distance(whole, cut) > 1e-3
    assert_same(whole, resumed)
    np.testing.assert_allclose(history["mean_displacement"], [0.75, 1], rtol=1e-5)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values[2:], rtol=1e-4)


FRESH_PROCESS = """
    import sys

    import keras
    import numpy as np

    folder = sys.argv[1]
    data = np.load(folder + "/data.npz")
    images, labels = data["images"], data["labels"]

    def results(place, callbacks):
        model = keras.saving.load_model(f"{folder}/{place}.keras")
        before = model.predict(images, verbose=0)
        fit = {"batch_size": 2, "shuffle": False, "verbose": 0}
        history = model.fit(images, labels, callbacks=callbacks, **fit).history
        after = model.predict(images, verbose=0)
        return {place: before, place + " trained": after}, sorted(history)

    saved, names = results("outside", [])
    assert "keras_structadv" not in sys.modules
    assert names == ["accuracy", "loss"], names
    import keras_structadv

    inside, names = results("inside", [keras_structadv.AdversarialTraining()])
    assert "mean_displacement" in names
    np.savez(folder + "/results.npz", **saved, **inside)
"""


@pytest.mark.slow
def test_a_checkpoint_loads_in_a_fresh_process(images, labels, tmp_path):
    models = {}
    for place in PLACES:
        models[place] = build(place)
        path = tmp_path / f"{place}.keras"
        checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq=STEPS)
        callbacks = [training(place), checkpoint]
        models[place].fit(images, labels, epochs=2, callbacks=callbacks, **FIT)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    root = pathlib.Path(__file__).parents[2]
    script = textwrap.dedent(FRESH_PROCESS)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = np.load(tmp_path / "results.npz")
    for place, model in models.items():
        expected = predictions(model, images)
        np.testing.assert_allclose(results[place], expected, atol=1e-6)
        callbacks = [] if place == "outside" else [training(place)]
        model.fit(images, labels, callbacks=callbacks, **FIT)
        expected = predictions(model, images)
        assert np.abs(results[place] - expected).max() > 1e-3
        np.testing.assert_allclose(results[f"{place} trained"], expected, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_early_stopping_restores_the_best_weights(place, images, labels):
    model = build(place)
    weights = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())

    strengths = [1.0, 0.25, 0.5, 0.75, 1.0]
    stopping = keras.callbacks.EarlyStopping(
        monitor="mean_displacement", mode="min", patience=2, restore_best_weights=True
    )
    history = model.fit(
        images,
        labels,
        epochs=5,
        callbacks=[training(place, schedule=strengths.__getitem__), Keep(), stopping],
        **FIT,
    ).history
    np.testing.assert_allclose(history["mean_displacement"], strengths[:4], rtol=1e-5)
    assert stopping.best_epoch == 1 and len(weights) == 4
    for best, actual in zip(weights[1], model.get_weights()):
        np.testing.assert_array_equal(actual, best)
    assert np.abs(weights[3][0] - weights[1][0]).max() > 1e-3
    assert not isinstance(model.train_function, Fit)


def assert_goes_on(model, place, images, labels, atol=1e-6):
    """Checks that a model trains, and is saved, as one that saw no callback yet."""
    reference = twin(model, place)
    before = predictions(reference, images)
    np.testing.assert_allclose(predictions(model, images), before, atol=1e-6)
    assert "train_step" not in vars(model)
    histories = []
    for one in (model, reference):
        callbacks = [] if place == "outside" else [training(place)]
        histories.append(one.fit(images, labels, callbacks=callbacks, **FIT).history)
    assert set(histories[0]) == set(histories[1])
    assert ("mean_displacement" in histories[0]) == (place == "inside")
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)
    assert_same(model, reference, atol)
    assert np.abs(predictions(model, images) - before).max() > 1e-3


def assert_saved(model, images, tmp_path):
    model.save(tmp_path / "after.keras")
    saved = keras.saving.load_model(tmp_path / "after.keras")
    assert_same(saved, model, atol=0)
    np.testing.assert_array_equal(
        predictions(saved, images), predictions(model, images)
    )


@pytest.mark.parametrize(
    "place,where,error",
    [
        ("outside", "on_train_batch_begin", KeyboardInterrupt),
        ("inside", "on_train_batch_begin", KeyboardInterrupt),
        ("outside", "on_train_batch_end", RuntimeError),
        ("inside", "on_train_batch_end", KeyboardInterrupt),
    ],
)
def test_after_an_error_in_another_callback(
    place, where, error, images, labels, tmp_path
):
    model = build(place)
    callbacks = [training(place), Raise(error("stop"), where)]
    with pytest.raises(error, match="stop"):
        model.fit(images, labels, callbacks=callbacks, **FIT)
    assert distance(model, build(place)) > 1e-3
    assert_saved(model, images, tmp_path)
    assert_goes_on(model, place, images, labels)


@pytest.mark.parametrize(
    "place,error", [("outside", KeyboardInterrupt), ("inside", RuntimeError)]
)
def test_after_an_error_in_the_data(place, error, images, labels, tmp_path):
    def batches():
        yield images[:2], labels[:2]
        yield images[2:4], labels[2:4]
        raise error("no more")

    model = build(place)
    with pytest.raises(BaseException, match="no more"):
        model.fit(batches(), steps_per_epoch=3, verbose=0, callbacks=[training(place)])
    assert distance(model, build(place)) > 1e-3
    assert_saved(model, images, tmp_path)
    # The step was traced for batches of unknown size, and is kept: it rounds otherwise.
    assert_goes_on(model, place, images, labels, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_after_an_error_the_callback_can_be_used_again(place, images, labels):
    callback = training(place)
    model = build(place)
    with pytest.raises(KeyboardInterrupt):
        callbacks = [callback, Raise(KeyboardInterrupt())]
        model.fit(images, labels, callbacks=callbacks, **FIT)
    reference = twin(model, place)
    history = model.fit(images, labels, callbacks=[callback], **FIT).history
    expected = reference.fit(images, labels, callbacks=[training(place)], **FIT).history
    assert_same(model, reference)
    np.testing.assert_allclose(
        history["mean_displacement"], expected["mean_displacement"], rtol=1e-6
    )


def test_after_an_error_with_reused_gradients(images, labels):
    model = build("outside")
    callback = ksa.AdversarialTraining(flow(), gradient="reuse")
    with pytest.raises(KeyboardInterrupt):
        callbacks = [callback, Raise(KeyboardInterrupt(), epoch=1)]
        model.fit(images, labels, epochs=3, callbacks=callbacks, **FIT)
    assert "compute_loss" not in vars(model)
    assert_goes_on(model, "outside", images, labels)


def test_what_was_bound_after_an_interrupted_fit_stays_bound(images, labels):
    """A later `fit` ends the interrupted one, and takes nothing back."""
    stop = Raise(RuntimeError(), "on_train_batch_begin", step=0)
    layer = ksa.AdversarialFlow(rate=1.0)
    callback = ksa.AdversarialTraining(layer)
    model, other = build("outside"), build("outside")
    with pytest.raises(RuntimeError):
        model.fit(images, labels, verbose=0, callbacks=[callback, stop])
    layer.bind(other)
    model.fit(images, labels, verbose=0)
    assert layer.binding.model is other

    layer = ksa.AdversarialFlow(rate=1.0)
    callback = ksa.AdversarialTraining(layer)
    with pytest.raises(RuntimeError):
        model.fit(images, labels, verbose=0, callbacks=[callback, stop])
    other.fit(images, labels, verbose=0, callbacks=[callback])
    assert layer.binding.model is None
    for one in (model, other):
        assert not isinstance(one.train_function, Fit)


@pytest.mark.parametrize("bound", [False, True])
def test_an_interrupted_fit_is_not_what_was_there_before(bound, images, labels):
    """Also where `compile` has dropped all that the interrupted one left."""
    stop = Raise(RuntimeError(), "on_train_batch_begin", step=0)
    layer, model = ksa.AdversarialFlow(rate=1.0), build("outside")
    before = layer.binding
    if bound:
        before = layer.bind(build("outside")).binding
    for _ in range(2):
        callbacks = [ksa.AdversarialTraining(layer), stop]
        with pytest.raises(RuntimeError):
            model.fit(images, labels, verbose=0, callbacks=callbacks)
    assert layer.binding.model is model
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = ksa.AdversarialTraining(layer)
    model.fit(images, labels, verbose=0, callbacks=[callback])
    assert layer.binding is before


def test_train_on_batch_after_an_interrupt_is_plain(images, labels):
    model = build("outside")
    stop = Raise(RuntimeError(), "on_train_batch_begin", step=0)
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow(rate=1.0))
    with pytest.raises(RuntimeError):
        model.fit(images, labels, verbose=0, callbacks=[callback, stop])
    other = twin(model, "outside")
    expected = other.train_on_batch(images, labels, return_dict=True)
    actual = model.train_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)
    assert_same(model, other)
