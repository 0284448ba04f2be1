"""Audits of any images, labels and arguments."""

import functools
import warnings

import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from keras_structadv.audit.audit import Audit
from tests.fuzz import values as v
from tests.fuzz.fuzz_models import FORMS, SHAPE, labels_for, model_of
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    Refused,
    may_refuse,
    refuses,
    unchanged,
    untouched,
)

BATCH = 4  # a batch is filled up to it, so that one size is compiled
STRENGTHS = (0, 0.5, 2)


@functools.cache
def audit_of(kind, perturbation):
    layer = {
        "flow": ksa.AdversarialFlow,
        "recoloring": functools.partial(
            ksa.AdversarialRecoloring, value_range=(0, 1), max_iterations=3
        ),
    }[perturbation]
    strengths = STRENGTHS if perturbation == "flow" else (0, 0.1)
    options = {"steps": 1, "restarts": 1, "random": 1, "metric": None}
    audit = Audit(layer(), strengths=strengths, batch_size=BATCH, seed=0, **options)
    return audit, model_of(kind)


@fuzz(
    0.004,
    kind=v.one_of("logits", "one-hot", "binary"),
    perturbation=v.one_of("flow", "flow", "recoloring"),
    count=st.just(BATCH) if backend.backend() == "jax" else st.integers(0, 9),
    x=v.arrays(SHAPE, ["float32", "float32", "uint8"]),
    form=st.sampled_from(FORMS),
)
def test_audit(kind, perturbation, count, x, form):
    count = max(count, BATCH) if 0 < count else 0
    x = v.Array((count, *SHAPE), x.dtype, x.values, x.seed).make()
    y, right = labels_for(kind, form, count, x.size)
    audit, model = audit_of(kind, perturbation)
    if form == "mixup":
        right = kind == "one-hot"
    names = [] if right is not False else ["label", " y", "y="]
    names = names if count else ["images", "label", " y", "y=", "lengths"]
    with untouched(model), unchanged(x, y), refuses(*names), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if right is None and not names:
                with may_refuse("label"):
                    report = audit.run(model, x, y)
            else:
                report = audit.run(model, x, y)
        except Refused:
            return
    if names:
        return
    for scores in (report.adversarial, report.random_worst, report.clean):
        scores = np.asarray(scores)
        assert np.all((scores >= 0) & (scores <= 1))
    for name in ("adversarial", "random_worst"):
        images = report.of_images(name)
        assert images.shape == (count, len(audit.strengths))
        assert np.all(np.diff(images, axis=1) <= 0)


@fuzz(
    0.007,
    arguments=v.arguments(
        strengths=(
            st.just(STRENGTHS),
            v.one_of((), (1, 0), (-1,), (0, np.nan), "01", 1, None, (0, 0), [[1]]),
        ),
        steps=(st.just(1), v.COUNT[1]),
        restarts=(st.just(1), v.COUNT[1]),
        random=(st.just(1), v.COUNT[1]),
        batch_size=(st.just(BATCH), v.COUNT[1]),
        seed=(st.just(0), v.one_of(-1, 1.5, "1", [1])),
        metric=(st.just(None), v.one_of("accuracy", 1, [])),
        perturbation=(
            v.one_of(None, ksa.AdversarialFlow()),
            v.one_of("flow", 1, ksa.RandomFlow(), ksa.AdversarialFlow),
        ),
    ),
    wrong_model=st.integers(0, 9).map(lambda n: n == 0),
)
def test_arguments_of_an_audit(arguments, wrong_model):
    """Nothing is attacked: the images are refused at last."""
    given, wrong = arguments
    given.setdefault("strengths", STRENGTHS)
    names = [wrong] if wrong and not wrong_model else []
    names = ["model"] if wrong_model else names or ["images"]
    if wrong == "perturbation":
        names += ["gradient"]
    model = "model" if wrong_model else model_of("logits")
    none = np.zeros((0, *SHAPE), "float32")
    with refuses(*names):
        ksa.evaluate_robustness(model, none, **given, verbose=0)
