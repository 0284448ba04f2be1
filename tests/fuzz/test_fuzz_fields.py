"""Fields from gradients, for any image, gradient and argument."""

import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from keras_structadv.checks import range_pair
from keras_structadv.flow import folded_fraction, longest_displacement
from keras_structadv.recoloring import recoloring_from_basis
from tests.fuzz import values as v
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import (
    assert_array,
    finite_images,
    numpy,
    refuses,
    same_bits,
    unchanged,
    with_nan,
)

SOLVERS = ["dct", "dct", "dct", "dense"]
SOLVERS += ["sparse"] if backend.backend() == "tensorflow" else []
FLOW = {
    "smoothness": (
        st.one_of(st.none(), v.numbers(0, 1e4), v.one_of(0, 1e30, 1e-30)),
        v.NUMBER[1],
    ),
    "max_displacement": (
        st.one_of(st.none(), v.numbers(0, 10), v.one_of(0, 1e30, 1e-30)),
        v.one_of(
            -1, 1e39, "1", 1j, np.nan, np.inf, [1.0] * 11, np.ones((1, 1)), [-1.0]
        ),
    ),
    "alpha": v.POSITIVE_OR_NONE,
    "solver": (
        st.sampled_from(SOLVERS),
        v.one_of("DCT", "", None, 1, ("dct",), ["dct"]),
    ),
}


@st.composite
def pairs(draw, shapes, wrong=0.1):
    """Draws images and gradients, and which of them has a wrong shape."""
    shape = draw(shapes)
    images, gradients = draw(v.arrays(shape)), draw(v.arrays(shape))
    name = None
    if draw(st.floats(0, 1)) < wrong:
        name = draw(st.sampled_from(["images", "gradients"]))
        others = [shape[:3], (*shape, 1), (), (*shape[:3], shape[3] + 1)]
        if name == "images":
            images = gradients = draw(v.arrays(draw(st.sampled_from(others[:3]))))
        else:
            gradients = draw(v.arrays(draw(st.sampled_from(others))))
    return images, gradients, name


def per_image(value, batch, many):
    """Returns a strength as one for each image, in half of the cases."""
    many = many and isinstance(value, (int, float)) and value >= 0 and batch > 0
    return np.linspace(0, float(value), batch) if many and value < np.inf else value


@fuzz(
    0.19,
    pair=pairs(v.image_shapes()),
    arguments=v.arguments(**FLOW),
    many=st.booleans(),
)
def test_adversarial_flow(pair, arguments, many):
    (images, gradients, misshapen), (given, wrong) = pair, arguments
    images, gradients = images.make(), gradients.make()
    # The iteration of the sparse solver takes long where the matrix is nearly singular.
    slow = wrong is None and given.get("solver") == "sparse"
    if (
        slow
        and (given.get("smoothness") or 0) > 1e4
        or images.size > 2**12
        and "solver" in given
    ):
        given.pop("solver", None)
        wrong = None if wrong == "solver" else wrong
    if wrong is None and "max_displacement" in given and not misshapen:
        limit = given["max_displacement"]
        given["max_displacement"] = per_image(limit, len(images), many)
    names = [x for x in (misshapen, wrong) if x]
    with unchanged(images, gradients, given), refuses(*names):
        flow = numpy(ksa.adversarial_flow(images, gradients, **given))
    if names:
        return
    assert_array(flow, (*images.shape[:3], 2), "float32")
    assert np.isfinite(flow).all()
    assert not flow[~finite_images(images, gradients)].any()
    limit = given.get("max_displacement")
    limit = min(images.shape[1:3]) / 16 if limit is None else limit
    longest = numpy(longest_displacement(flow.astype("float64")))
    assert (longest <= np.asarray(limit, "float64") * (1 + 1e-4)).all()
    if len(images) > 1 and images.dtype.kind == "f":
        other = numpy(ksa.adversarial_flow(with_nan(images, -1), gradients, **given))
        assert same_bits(other[:-1], flow[:-1])
        assert not other[-1].any()


@fuzz(
    0.07,
    images=v.image_shapes().flatmap(v.arrays),
    arguments=v.arguments(
        smoothness=FLOW["smoothness"],
        max_displacement=FLOW["max_displacement"],
    ),
    seed=st.integers(0, 100),
    misshapen=st.booleans(),
)
def test_random_flow(images, arguments, seed, misshapen):
    (given, wrong), images = arguments, images.make()
    misshapen = misshapen and seed < 20
    images = images[..., None] if misshapen else images
    names = [x for x in ("images" if misshapen else None, wrong) if x]
    with unchanged(images, given), refuses(*names):
        flow = numpy(ksa.random_flow(images, seed=seed, **given))
    if names:
        return
    assert_array(flow, (*images.shape[:3], 2), "float32")
    assert np.isfinite(flow).all()
    fraction = numpy(folded_fraction(flow))
    assert ((fraction >= 0) & (fraction <= 1)).all()
    assert same_bits(flow, numpy(ksa.random_flow(images, seed=seed, **given)))


FORMS = v.one_of(  # few: each is compiled
    {},
    {"rank": 2},
    {"coherence": 0, "max_iterations": 1, "rtol": 0},
    {"coherence": 1e30, "damping": 1e-30, "edge_scale": 1e-30, "rtol": 1e30},
    {"damping": 1e30, "edge_scale": 1e30, "max_iterations": 3},
)
WRONG_FORMS = {
    "coherence": v.NUMBER[1],
    "damping": v.POSITIVE[1],
    "edge_scale": v.POSITIVE[1],
    "rtol": v.NUMBER[1],
    "max_iterations": v.COUNT[1],
    "rank": v.COUNT_OR_NONE[1],
}
SIZE = {
    "magnitude": (
        st.one_of(v.numbers(0, 1), v.one_of(0, 1e-30, 10.0)),
        v.one_of(
            -0.1, 1e39, "1", None, np.nan, np.inf, [0.1] * 11, np.ones((1, 1)), [-1.0]
        ),
    ),
    "lam": v.POSITIVE_OR_NONE,
    "value_range": v.PAIR,
}
FEW_SHAPES = st.sampled_from([(0, 4, 4, 3), (1, 3, 1, 2), (3, 5, 4, 3), (9, 8, 8, 1)])


@fuzz(
    0.08,
    pair=pairs(FEW_SHAPES),
    form=FORMS,
    wrong_form=v.arguments(**{k: (st.none(), x) for k, x in WRONG_FORMS.items()}),
    arguments=v.arguments(**SIZE),
)
def test_adversarial_recoloring(pair, form, wrong_form, arguments):
    (images, gradients, misshapen), (given, wrong) = pair, arguments
    images, gradients = images.make(), gradients.make()
    given = {**form, **given}
    if wrong is None and wrong_form[1] is not None:
        wrong = wrong_form[1]
        given[wrong] = wrong_form[0][wrong]
    names = [x for x in (misshapen, wrong) if x]
    with unchanged(images, gradients, given), refuses(*names):
        changes = numpy(ksa.adversarial_recoloring(images, gradients, **given))
    if names:
        return
    assert_array(changes, images.shape, "float32")
    check_changes(changes, given)
    assert not changes[~finite_images(images, gradients)].any()
    if len(images) > 1 and images.dtype.kind == "f":
        other = ksa.adversarial_recoloring(with_nan(images, -1), gradients, **given)
        assert same_bits(numpy(other)[:-1], changes[:-1])
        assert not numpy(other)[-1].any()


def check_changes(changes, given):
    assert np.isfinite(changes).all()
    low, high = range_pair("value_range", given.get("value_range", (0, 255)))
    size = np.sqrt(np.mean(np.square(changes.astype("float64")), axis=(1, 2, 3)))
    limit = float(given.get("magnitude", 0.08)) * (float(high) - float(low))
    assert (size <= limit * (1 + 1e-4) + 1e-45).all()


@fuzz(
    0.07,
    shape=v.image_shapes(),
    rank=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    kinds=st.tuples(st.sampled_from(v.VALUES), st.sampled_from(v.VALUES)),
    dtype=st.sampled_from(v.FLOATS),
    arguments=v.arguments(**SIZE),
)
def test_recoloring_from_basis(shape, rank, seed, kinds, dtype, arguments):
    given, wrong = arguments
    gradients = v.Array(shape, "float32", kinds[0], seed).make()
    basis = v.Array((*shape, rank), dtype, kinds[1], seed).make()
    names = [] if wrong in (None, "lam") else [wrong]
    if wrong == "lam":
        given.pop("lam")
    with unchanged(gradients, basis, given), refuses(*names):
        changes = numpy(recoloring_from_basis(gradients, basis, **given))
    if names:
        return
    assert_array(changes, shape, "float32")
    check_changes(changes, given)
    if len(changes) > 1:
        other = recoloring_from_basis(with_nan(gradients, -1), basis, **given)
        assert same_bits(numpy(other)[:-1], changes[:-1])


@fuzz(
    0.01,
    shape=v.image_shapes(),
    thing=st.sampled_from(["abc", None, object, 1j, "1"]),
    function=st.sampled_from([ksa.adversarial_flow, ksa.adversarial_recoloring]),
    name=st.sampled_from(["images", "gradients"]),
)
def test_images_that_are_no_numbers(shape, thing, function, name):
    shape = (shape[0] + 1, *shape[1:])
    wrong = np.full(shape, thing, "complex64" if thing == 1j else object)
    pair = {"images": np.ones(shape), "gradients": np.ones(shape), name: wrong}
    with refuses(name):
        function(**pair)
