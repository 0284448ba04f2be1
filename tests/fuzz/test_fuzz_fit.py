"""`fit` with the callback, for any images, labels and weights; its arguments."""

import functools
import warnings

import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from tests.fuzz import values as v
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    finite_images,
    numpy,
    refuses,
    unchanged,
)
from tests.models import assert_plain, small_model

SHAPE = (4, 4, 1)
MODES = {
    "fresh flow": ("fresh", ["flow"]),
    "fresh both": ("fresh", ["flow", "recoloring"]),
    "reused flow": ("reuse", ["flow"]),
    "reused both": ("reuse", ["recoloring", "flow"]),
}


@functools.cache
def trained(mode):
    """Returns a model, layers and a store, whose step is compiled once."""
    keras.utils.set_random_seed(0)
    model = small_model(shape=SHAPE, compiled=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    kinds = {
        "flow": lambda: ksa.AdversarialFlow(1.0, rate=0.7, seed=1),
        "recoloring": lambda: ksa.AdversarialRecoloring(seed=2, value_range=(0, 1)),
    }
    gradient, names = MODES[mode]
    layers = [kinds[name]() for name in names]
    store = gradient if gradient == "fresh" else ksa.GradientStore(16)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    variables = list({id(x): x for x in variables}.values())
    return model, layers, store, variables, [numpy(x) for x in variables]


JAX = backend.backend() == "jax"


@st.composite
def fits(draw):
    """Draws data and arguments of a `fit`; few shapes, because each is compiled."""
    count = 6 if JAX else draw(st.integers(1, 9))
    dtype = draw(v.one_of("float32", "float32", "uint8"))
    x = draw(v.arrays((count, *SHAPE), [dtype]))
    return {
        "mode": draw(st.sampled_from(list(MODES))),
        "x": x,
        "weights": draw(v.one_of(None, None, "unit", "zero", "nan", "too few")),
        "labels": draw(v.one_of("right", "right", "right", "too few", "text")),
        "batch_size": 3 if JAX else draw(st.integers(1, 4)),
        "epochs": draw(st.integers(1, 2)),
        "strength": draw(v.one_of(None, None, 0, 0.5, 1, 1.5, -1, np.nan)),
        "ids": draw(v.one_of(None, None, None, "ids", "floats", "unknown")),
    }


@fuzz(0.004, case=fits())
def test_fit(case):
    model, layers, store, variables, initial = trained(case["mode"])
    for variable, value in zip(variables, initial):
        variable.assign(value)
    if store != "fresh":
        store.clear()
    x = case["x"].make()
    rng = np.random.default_rng(0)
    count = len(x) + (case["labels"] == "too few")
    y = rng.integers(0, 3, count)
    y = y.astype("str") if case["labels"] == "text" else y
    weights = case["weights"]
    if weights is not None:
        size = len(x) + (weights == "too few")
        kind = "unit" if weights == "too few" else weights
        weights = v.Array((size,), "float32", kind, 0).make()
    data = x
    if case["ids"]:
        ids = np.arange(len(x)) + (0.5 if case["ids"] == "floats" else 0)
        name = "other" if case["ids"] == "unknown" else "ids"
        data = {"images": x, name: ids}
    strength = case["strength"]
    schedule = None if strength is None else lambda epoch: strength
    callback = ksa.AdversarialTraining(layers, gradient=store, schedule=schedule)
    bindings = [layer.binding for layer in layers]

    def fit():
        return model.fit(
            data,
            y,
            sample_weight=weights,
            batch_size=case["batch_size"],
            epochs=case["epochs"],
            callbacks=[callback],
            verbose=0,
        ).history

    wrong = []
    if case["labels"] != "right" or case["weights"] == "too few":
        wrong = [""]  # refused by Keras, in its own words
    elif strength is not None and not 0 <= strength <= 1:
        wrong = ["schedule"]
    elif case["ids"] in ("floats", "unknown"):
        wrong = ["ids" if case["ids"] == "floats" else "inputs"]
    with unchanged(data, y, weights), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges and gains
        if wrong == [""]:
            with pytest.raises((ValueError, TypeError)):
                fit()
        else:
            with refuses(*wrong):
                history = fit()
    if wrong:
        callback.on_train_end()  # as a later `fit` would do
    assert_plain(model)
    assert [layer.binding for layer in layers] == bindings
    if wrong:
        return
    for layer in layers:
        sizes = np.array(history[layer.measure_name])
        if layer.moves_pixels:
            assert np.all((sizes >= 0) & (sizes <= 1.0 + 1e-3))
        elif case["x"].values == "unit" and case["x"].dtype == "float32":
            assert np.all((sizes >= 0) & (sizes <= 0.1 + 1e-3))
    if store != "fresh":
        hits = np.array(history["gradient_hit_rate"])
        assert np.all((hits >= 0) & (hits <= 1))
    now = [numpy(x) for x in variables]
    assert all(a.shape == b.shape for a, b in zip(now, initial))
    mild = x.dtype == "uint8" or np.abs(x).max() < 1e3
    if mild and finite_images(x).all() and case["weights"] != "nan":
        assert all(np.isfinite(a).all() for a in now)


@fuzz(
    0.015,
    arguments=v.arguments(
        layer=(
            v.one_of("flow", "both", None),
            v.one_of(1, "flow", [], ["x"], keras.layers.Flatten(), "twice"),
        ),
        gradient=(
            v.one_of("fresh", "reuse", "store"),
            v.one_of("", "Fresh", None, 1, [], np.zeros(2)),
        ),
        schedule=(
            v.one_of(None, float, "function"),
            v.one_of(0.5, "linear", [0.5], {}),
        ),
    ),
    steps=v.one_of(1, 1, 2),
)
def test_arguments_of_the_callback(arguments, steps):
    given, wrong = arguments
    flow = ksa.AdversarialFlow(1.0, seed=1, steps=steps)
    known = {
        "both": [flow, ksa.AdversarialRecoloring(seed=2)],
        "store": ksa.GradientStore(4),
        "function": lambda epoch: 1.0,
        "twice": [flow, flow],
    }
    if wrong != "layer":
        known["flow"] = flow
    given = {
        name: known.get(x, x) if isinstance(x, str) and x in known else x
        for name, x in given.items()
    }
    names = [wrong] if wrong else []
    if wrong != "gradient" and given.get("gradient", "fresh") != "fresh":
        if given.get("layer") is None or steps == 2:
            names += ["gradient"]
    with refuses(*names):
        callback = ksa.AdversarialTraining(**given)
    if not names:
        assert callback.gradient is given.get("gradient", callback.gradient)
