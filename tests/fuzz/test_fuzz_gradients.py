"""Gradients of models for labels and targets of every form."""

import contextlib

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from tests.fuzz import values as v
from tests.fuzz.fuzz_models import FORMS, LOSSES, SHAPE, labels_for, model_of
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    Refused,
    assert_array,
    finite_images,
    may_refuse,
    numpy,
    refuses,
    unchanged,
    untouched,
)

BATCHES = st.integers(0, 9) if backend.backend() != "jax" else v.one_of(0, 3)


@fuzz(
    0.03,
    kind=st.sampled_from(list(LOSSES)),
    batch=BATCHES,
    x=v.arrays(SHAPE),
    form=st.sampled_from(FORMS),
    target=v.one_of(
        None, None, "most_confident_wrong", "random", "labels", "function", "wrong", ""
    ),
)
def test_per_image_gradients(kind, batch, x, form, target):
    x = v.Array((batch, *SHAPE), x.dtype, x.values, x.seed).make()
    labels, right = labels_for(kind, form, batch, x.size)
    assume(not (form in ("text", "object") and batch == 0))
    given = {"target": target}
    if target == "labels":
        given["target"] = labels_for(kind, "right", batch, 1)[0]
    elif target == "function":
        assume(LOSSES[kind][0] > 1 and kind != "regression")
        given["target"] = lambda labels, predictions: np.zeros(batch, "int32")
    names = ["label"] if right is False else []
    names += ["target"] if target in ("wrong", "") else []
    model = model_of(kind)
    free = right is None and not names
    with untouched(model), unchanged(x, labels, given), refuses(*names):
        try:
            with may_refuse("label") if free else contextlib.nullcontext():
                gradients = numpy(ksa.per_image_gradients(model, x, labels, **given))
        except Refused:
            return
    if names:
        return
    assert_array(gradients, x.shape, "float32")
    small = np.abs(np.nan_to_num(x.astype("float32"))).max(initial=0) < 1e4
    if small:
        assert np.isfinite(gradients[finite_images(x)]).all()
