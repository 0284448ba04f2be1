"""The layers: any argument, any structure of data."""

import contextlib
import math
import warnings

import keras
import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from tests.fuzz import values as v
from tests.fuzz.fuzz_models import FORMS, SHAPE, labels_for, model_of
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    Refused,
    assert_array,
    may_refuse,
    numpy,
    refuses,
    same_bits,
    unchanged,
    untouched,
    with_nan,
)

COMMON = {
    "rate": v.FRACTION,
    "value_range": v.PAIR,
    "seed": v.SEED,
    "data_format": v.LAYOUT,
    "bounding_box_format": (
        v.one_of(None, "xyxy", "rel_xywh", "center_xywh"),
        v.one_of("xxyy", 1, "XYXY", [], np.zeros(2)),
    ),
}
ADVERSARIAL = {
    "target": (
        v.one_of(None, "random", "most_confident_wrong"),
        v.one_of("wrong", 0, np.zeros(2), []),
    ),
    "steps": v.COUNT,
    "step_size": v.POSITIVE_OR_NONE,
    "random_start": v.FLAG,
}
FLOW = {
    "max_displacement": (st.one_of(st.none(), v.STRENGTH[0]), v.STRENGTH[1]),
    "smoothness": v.NUMBER_OR_NONE,
}
RECOLORING = {
    "magnitude": v.STRENGTH,
    "coherence": v.NUMBER,
    "damping": v.POSITIVE_OR_NONE,
    "edge_scale": v.POSITIVE,
    "rtol": v.NUMBER,
    "max_iterations": v.COUNT,
}
KINDS = {
    ksa.AdversarialFlow: {
        **FLOW,
        "alpha": v.POSITIVE_OR_NONE,
        "solver": (v.one_of("dct", "dense"), v.one_of("DCT", None, 1, [])),
        **ADVERSARIAL,
    },
    ksa.AdversarialRecoloring: {
        **RECOLORING,
        "lam": v.POSITIVE_OR_NONE,
        "rank": v.COUNT_OR_NONE,
        **ADVERSARIAL,
    },
    ksa.RandomFlow: FLOW,
    ksa.RandomRecoloring: RECOLORING,
}


@st.composite
def constructors(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    return kind, draw(v.arguments(**KINDS[kind], **COMMON))


@fuzz(0.07, case=constructors(), unknown=v.one_of(*[None] * 9, "p", "gamma", "mask"))
def test_arguments(case, unknown):
    kind, (given, wrong) = case
    extra = {} if unknown is None else {unknown: 1.0}
    with warnings.catch_warnings(), unchanged(given):
        warnings.simplefilter("ignore")  # of strengths in another unit
        if extra:
            with np.testing.assert_raises_regex(TypeError, f"{unknown!r}"):
                kind(**given, **extra)
            return
        with refuses(*[wrong] if wrong else []):
            layer = kind(**given)
        if wrong:
            return
        config = layer.get_config()
        again = kind.from_config(config).get_config()
        assert repr(again) == repr(config)
        assert set(given) <= set(config)


# Calls.

DTYPES = ["float32", "float32", "float16", "bfloat16", "mixed_float16", "float64"]
STRUCTURES = ["images", "labels", "weights", "dict", "dict and labels"]


@st.composite
def calls(draw):
    """Draws a layer by its arguments, and how it is called."""
    kind = draw(st.sampled_from([*KINDS, ksa.RandomFlow, ksa.AdversarialFlow]))
    batch, shape = draw(st.integers(0, 9)), SHAPE
    if kind is ksa.RandomFlow:  # nothing is compiled
        batch, *shape = draw(v.image_shapes())
    elif backend.backend() == "jax":
        batch = draw(v.one_of(0, 3))
    arguments = {
        "rate": draw(v.one_of(0, 0.3, 0.5, 1, 1)),
        "seed": draw(st.integers(0, 3)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "data_format": draw(v.LAYOUT[0]),  # the model takes both
        "value_range": draw(v.one_of((0, 255), (0, 1), (-1e30, 1e30))),
    }
    if kind.takes_gradient:
        arguments |= draw(
            v.one_of(
                {},
                {},
                {"steps": 2},
                {"random_start": True},
                {"target": "random"},
                {"target": "most_confident_wrong"},
            )
        )
    if issubclass(kind, ksa.AdversarialFlow):
        strength = draw(st.one_of(v.numbers(0.25, 9), v.one_of(0, (3, 3), (0, 1e30))))
        arguments["max_displacement"] = strength
        if kind is ksa.RandomFlow:
            arguments["smoothness"] = draw(v.numbers(0, 1000))
    else:
        arguments["magnitude"] = draw(v.one_of(0.1, (0.5, 0.5), 0, 1e-30))
    structure = draw(st.sampled_from(STRUCTURES))
    training = draw(v.one_of(None, True, True, False))
    rank = draw(v.one_of(4, 4, 4, 4, 3, 2, 5))
    images = draw(v.arrays((max(batch, int(rank == 3)), *shape)))
    form = draw(st.sampled_from(FORMS))
    return kind, arguments, structure, training, rank, images, form


@fuzz(0.07, case=calls())
def test_calls(case):
    kind, arguments, structure, training, rank, images, form = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges, which the values rarely fit
        check_call(kind, arguments, structure, training, rank, images.make(), form)


def check_call(kind, arguments, structure, training, rank, images, form):
    layer, model = kind(**arguments), model_of("logits")
    if kind.takes_gradient:
        layer.bind(model)
    labels, right = labels_for("logits", form, len(images), images.size)
    weights = np.linspace(0, 1, len(images))
    whole = images
    first = images[0] if len(images) else images
    images = {2: images[..., 0, 0], 3: first, 4: images, 5: images[None]}[rank]
    rank = images.ndim
    if rank == 3:
        labels = labels if labels is None else np.asarray(labels)
        labels = labels[0] if np.ndim(labels) else labels
        right = right or form == "scalar"
        weights = weights[0]
    data = {"images": images, "labels": labels, "name": ["any", object]}
    data = {key: x for key, x in data.items() if x is not None}
    args = {
        "images": (images,),
        "labels": (images, labels),
        "weights": (images, labels, weights),
        "dict": (data,),
        "dict and labels": ({"images": images, "other": weights}, labels),
    }[structure]
    acts = training is not False and arguments["rate"] > 0 and len(images)
    names = [] if rank in (3, 4) else ["images"]
    if not names and acts and structure != "images" and rank == 4:
        if kind.takes_gradient:
            names = ["label"] if right is False else []
        elif form in ("too few", "scalar"):
            names = ["label"]
    text = structure != "images" and form in ("text", "object")
    if text or (rank == 3 and form in ("too few", "mixup", "all present")):
        return  # Keras takes no text, and one label may have any form
    free = right is None and not names
    with untouched(model), unchanged(args), refuses(*names):
        try:
            with may_refuse("label") if free else contextlib.nullcontext():
                out = layer(*args, training=training)
        except Refused:
            return
    if names:
        return
    first = out[0] if isinstance(out, tuple) else out
    beside = out[1:] if isinstance(out, tuple) else ()
    if isinstance(args[0], dict):
        assert isinstance(first, dict) and list(first) == list(args[0])
        for key in set(first) - {"images", "labels"}:
            assert first[key] is args[0][key]
        if "labels" in first:
            assert same_labels(first["labels"], labels)
        first = first["images"]
    for x, given in zip(beside, [x for x in args[1:] if x is not None], strict=True):
        assert same_labels(x, given)
    dtype = layer.compute_dtype.replace("64", "32" if v.NARROW else "64")
    assert_array(first, images.shape, dtype)
    check_images(layer, numpy(first), images, acts)
    if acts and rank == 4 and len(images) > 1 and images.dtype.kind == "f":
        check_neighbours(layer, args, training, whole)


def same_labels(x, given):
    given = np.asarray(given)
    x = numpy(x)
    if v.NARROW:
        given = given.astype(str(given.dtype).replace("64", "32"))
    return same_bits(x, given)


def check_images(layer, out, images, acts):
    if images.ndim == 3:
        out, images = out[None], images[None]
    plain = numpy(keras.ops.cast(images, layer.compute_dtype))
    passed = numpy(keras.ops.cast(keras.ops.cast(images, "float32"), out.dtype.name))
    same = [
        same_bits(a, b) or (acts and same_bits(a, c))
        for a, b, c in zip(out, plain, passed)
    ]
    most = math.ceil(layer.rate * len(images)) if acts else 0
    assert sum(not x for x in same) <= most
    low, high = layer.value_range
    for a, x, is_same in zip(out, passed, same):
        if not is_same and np.isfinite(x.astype("float32")).all():
            a, x = a.astype("float64"), x.astype("float64")
            if layer.moves_pixels:
                low, high = x.min(), x.max()
            slack = 1e-2 * max(abs(low), abs(high)) + 1e-37
            if "float16" == layer.compute_dtype and slack > 600:
                continue  # float16 has no such numbers
            assert np.isfinite(a).all()
            assert (a >= low - slack).all() and (a <= high + slack).all()


def check_neighbours(layer, args, training, images):
    """Checks that a NaN in one image changes nothing of the others."""
    results = []
    for broken in (images, with_nan(images, -1)):
        twin = type(layer).from_config(layer.get_config())
        twin.binding = layer.binding
        first = {**args[0], "images": broken} if isinstance(args[0], dict) else broken
        out = twin(first, *args[1:], training=training)
        out = out[0] if isinstance(out, tuple) else out
        out = out["images"] if isinstance(out, dict) else out
        results.append(numpy(out)[:-1])
    assert same_bits(*results)
