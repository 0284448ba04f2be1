"""Random sequences of bind, call, fit, interrupt, save and load on one model."""

import pathlib
import shutil
import tempfile
import warnings

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from keras import backend

import keras_structadv as ksa
from tests.fuzz.harness import SETTINGS, blocks, counted, seed_of
from tests.fuzz.invariants import numpy, same_bits, state_of, unchanged, untouched
from tests.models import assert_plain
from tests.training.test_stopping import Raise

pytestmark = pytest.mark.backends("tensorflow", "jax")

COUNT, SHAPE = 6, (4, 4, 1)
X = np.random.default_rng(0).uniform(size=(COUNT, *SHAPE)).astype("float32")
Y = np.arange(COUNT) % 3
FIT = {"batch_size": 3, "shuffle": False, "verbose": 0}
EAGER = {"run_eagerly": True, "jit_compile": False}  # a new model compiles nothing
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(inside):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(SHAPE)])
    if inside:
        model.add(ksa.AdversarialFlow(1.0, rate=1.0, seed=3, name="inside"))
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS, **EAGER)
    model.optimizer.build(model.trainable_variables)
    return model


class Sequences(RuleBasedStateMachine):
    runs, calls = 0, 0

    def __init__(self):
        super().__init__()
        Sequences.runs += 1
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.layers = [
            ksa.AdversarialFlow(1.0, rate=0.5, seed=1),
            ksa.AdversarialRecoloring(0.1, rate=0.5, seed=2, value_range=(0, 1)),
        ]
        self.store = ksa.GradientStore(16)
        self.callbacks = {}
        self.bindings = [layer.binding for layer in self.layers]

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(inside=st.booleans())
    def start(self, inside):
        self.inside = inside
        self.model = build(inside)

    def callback(self, gradient, which, again):
        """Returns a callback, an earlier one if it is to be used again."""
        if self.inside:
            gradient, layers = "fresh", None
        else:
            layers = self.layers[:which] or None
            layers = layers or self.layers[1]
        key = (gradient, which)
        if not again or key not in self.callbacks:
            store = self.store if gradient == "store" and which == 2 else gradient
            store = "reuse" if store == "store" else store
            self.callbacks[key] = ksa.AdversarialTraining(layers, gradient=store)
        return self.callbacks[key]

    @rule(which=st.integers(0, 1), snapshot=st.booleans(), loss=st.booleans())
    def bind(self, which, snapshot, loss):
        snapshot = snapshot and backend.backend() == "tensorflow"
        with untouched(self.model):
            # A loss would keep the layer from reusing gradients.
            self.layers[which].bind(self.model, None, snapshot=snapshot)
        self.bindings[which] = self.layers[which].binding

    @rule(which=st.integers(0, 1), labels=st.booleans(), training=st.booleans())
    def call(self, which, labels, training):
        Sequences.calls += 1
        layer = self.layers[which]
        if layer.binding.model is not self.model and training:
            if layer.binding.model is None:
                with pytest.raises(ValueError, match="bound"):
                    layer(X, training=True)
            return
        arguments = (X, Y) if labels else (X,)
        with untouched(self.model), unchanged(X, Y):
            out = layer(*arguments, training=training)
        out = out[0] if labels else out
        assert training or same_bits(numpy(out), X)

    @rule(
        gradient=st.sampled_from(["fresh", "reuse", "store"]),
        which=st.integers(0, 2),
        again=st.booleans(),
        epochs=st.integers(1, 2),
    )
    def fit(self, gradient, which, again, epochs):
        Sequences.calls += 1
        callback = self.callback(gradient, which, again)
        bindings = [layer.binding for layer in self.layers]
        before = state_of(self.model)
        with unchanged(X, Y):
            history = self.run(epochs, callback)
        assert_plain(self.model)
        # An interrupted `fit` leaves its own; this one restores those of the user.
        for layer, user, old in zip(self.layers, self.bindings, bindings, strict=True):
            others = () if layer in callback.layers else (old,)
            assert layer.binding in (user, *others)
        assert not all(map(same_bits, state_of(self.model), before))
        assert "adversarial_loss_gain" in history
        if callback.gradient != "fresh":
            assert history["gradient_hit_rate"][1:] == [1.0] * (epochs - 1)

    def run(self, epochs, *callbacks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.model.fit(
                X, Y, epochs=epochs, callbacks=callbacks, **FIT
            ).history

    @rule(
        gradient=st.sampled_from(["fresh", "reuse", "store"]),
        which=st.integers(0, 2),
        again=st.booleans(),
        error=st.sampled_from([KeyboardInterrupt, RuntimeError]),
        place=st.sampled_from(["on_train_batch_begin", "on_train_batch_end"]),
        step=st.integers(0, 1),
        first=st.booleans(),
    )
    def interrupt(self, gradient, which, again, error, place, step, first):
        Sequences.calls += 1
        callback = self.callback(gradient, which, again)
        stop = Raise(error("stop"), place, step)
        callbacks = [stop, callback] if first else [callback, stop]
        with pytest.raises(error, match="stop"):
            self.run(1, *callbacks)

    @rule()
    def plain_fit(self):
        """The model trains as one that never saw a callback."""
        Sequences.calls += 1
        twin = self.twin()
        callbacks = [ksa.AdversarialTraining()] if self.inside else []
        if self.inside:
            self.seeds_of(twin)
        twin.fit(X, Y, callbacks=list(callbacks), **FIT)
        self.model.fit(X, Y, callbacks=list(callbacks), **FIT)
        assert_plain(self.model)
        for a, b in zip(state_of(self.model), state_of(twin), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)

    def twin(self):
        twin = build(self.inside)
        twin.set_weights(self.model.get_weights())
        for a, b in zip(twin.optimizer.variables, self.model.optimizer.variables):
            a.assign(b)
        return twin

    def seeds_of(self, twin):
        """Gives the layer inside a twin the same draws to come."""
        a, b = (one.get_layer("inside").seed_generator for one in (twin, self.model))
        a.state.assign(b.state)

    @rule()
    def evaluate(self):
        Sequences.calls += 1
        before = [numpy(x) for x in self.model.variables]
        twin = self.twin()
        expected = twin.evaluate(X, Y, verbose=0)
        np.testing.assert_allclose(
            self.model.evaluate(X, Y, verbose=0), expected, rtol=1e-5
        )
        predicted = self.model.predict(X, verbose=0)
        np.testing.assert_allclose(predicted, twin.predict(X, verbose=0), atol=1e-6)
        after = [numpy(x) for x in self.model.variables]
        assert all(map(same_bits, before, after))

    @rule()
    def save_and_load(self):
        Sequences.calls += 1
        path = self.folder / "model.keras"
        with untouched(self.model):
            self.model.save(path)
        loaded = keras.saving.load_model(path)
        loaded.run_eagerly = True
        for a, b in zip(loaded.get_weights(), self.model.get_weights(), strict=True):
            assert same_bits(a, b)
        for a, b in zip(loaded.optimizer.variables, self.model.optimizer.variables):
            assert same_bits(numpy(a), numpy(b))
        self.model = loaded

    @rule()
    def save_and_load_the_store(self):
        if self.store.built:
            path = self.folder / "store.npz"
            self.store.save(path)
            before = [numpy(x) for x in self.store.variables]
            self.store.load(path)
            assert all(map(same_bits, before, map(numpy, self.store.variables)))

    @rule()
    def compile(self):
        self.model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS, **EAGER)
        self.model.optimizer.build(self.model.trainable_variables)


@pytest.mark.parametrize("block,count", blocks(0.002))
def test_sequences(block, count, record_property):
    Sequences.runs = Sequences.calls = 0
    machine = hypothesis.seed(seed_of("sequences", block))(Sequences)
    chosen = settings(SETTINGS, max_examples=count, stateful_step_count=8)
    with counted(record_property, lambda: Sequences.runs):
        run_state_machine_as_test(machine, settings=chosen)
