"""Scaling, cosine transforms, fingerprints, and the store of gradients."""

import pathlib
import tempfile

import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from keras_structadv.dct import dct2, enough_frequencies, idct2
from keras_structadv.scaling import limit_of, normalized
from keras_structadv.training.fingerprint import fingerprint
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


@fuzz(0.03, x=v.image_shapes().flatmap(lambda s: v.arrays(s, ["float32"])))
def test_normalized(x):
    x = x.make()
    with unchanged(x):
        scaled, peaks = (numpy(y) for y in normalized(x))
    assert_array(scaled, x.shape, "float32")
    assert_array(peaks, (len(x), 1, 1, 1), "float32")
    assert np.isfinite(scaled).all() and np.isfinite(peaks).all()
    assert (np.abs(scaled) <= 1).all()
    assert not scaled[~finite_images(x)].any()
    if len(x) > 1:
        assert same_bits(numpy(normalized(with_nan(x, 0))[0])[1:], scaled[1:])


@fuzz(
    0.03,
    batch=st.integers(0, 9),
    strength=st.one_of(
        v.STRENGTH[0],
        v.STRENGTH[1],
        st.lists(st.floats(-1, 1e31), max_size=9),
        st.integers(1, 4).map(lambda n: np.full((n, n), 0.5)),
    ),
)
def test_limits(batch, strength):
    try:
        values = np.asarray(strength).astype("float64")
        good = np.asarray(strength).dtype.kind not in "USc"
        good &= values.ndim == 0 or values.shape == (batch,)
        good &= bool(np.all((values >= 0) & (values <= 1e30)))
    except (TypeError, ValueError, OverflowError):
        good = False
    with refuses(*() if good else ("size",)):
        limit = numpy(limit_of("size", strength, np.zeros((batch, 1, 1, 1)), "x"))
    if good:
        assert limit.dtype == "float32" and limit.shape[1:] == (1, 1, 1)
        assert len(limit) in (1, batch)
        assert np.isfinite(limit).all()


@fuzz(
    0.03,
    x=v.image_shapes().flatmap(
        lambda s: v.arrays(s[:3], ["float32"], ["unit", "normal", "tiny", "zero"])
    ),
    size=st.integers(1, 50),
    length=v.numbers(0, 1000),
)
def test_cosines(x, size, length):
    x = x.make()
    with unchanged(x):
        np.testing.assert_allclose(
            numpy(idct2(dct2(x))), x, atol=1e-5 * np.max(np.abs(x), initial=0)
        )
        few = numpy(dct2(x, size))
    shape = (len(x), *(min(size, side) for side in x.shape[1:]))
    assert_array(few, shape, "float32")
    assert_array(idct2(few, x.shape[1:]), x.shape, "float32")
    assert 1 <= enough_frequencies(x.shape[1:], length) <= max(x.shape[1:])


@fuzz(0.06, images=v.image_shapes().flatmap(v.arrays))
def test_fingerprints(images):
    images = images.make()
    with unchanged(images):
        keys = numpy(fingerprint(_tensor(images)))
    assert_array(keys, (len(images), 4), "float32")
    assert ((keys >= 0) & (keys < 2**16) & (keys == np.floor(keys))).all()
    for k in range(min(2, len(images))):
        alone = numpy(fingerprint(_tensor(images[k : k + 1])))
        assert same_bits(alone[0], keys[k])
    given = numpy(_tensor(images))  # JAX has no 64 bits
    if given.dtype.kind not in "biu":
        with np.errstate(over="ignore"):
            given = given.astype("float32")
        given = np.where(np.abs(given) < 1.2e-38, 0, given)  # as processors may do
    rows = [x.tobytes() for x in given]
    if given.dtype.kind == "b" or not np.isnan(given.astype("float32")).any():
        same = np.array([[a == b for b in rows] for a in rows]).reshape(
            2 * (len(rows),)
        )
        assert (same == (keys[:, None] == keys[None]).all(-1)).all()


def _tensor(x):
    from keras import ops

    return ops.convert_to_tensor(x)


@st.composite
def writes(draw):
    """Draws a capacity, the length of codes, and batches of images to write or read."""
    batch = st.lists(st.integers(0, 30), min_size=1, max_size=6)
    if backend.backend() == "jax":
        batch = st.lists(st.integers(0, 30), min_size=4, max_size=4)
    few = st.lists(st.tuples(st.booleans(), batch), min_size=1, max_size=6)
    return draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(few)


@fuzz(0.03, case=writes(), seed=st.integers(0, 1000), kind=st.sampled_from(v.VALUES))
def test_the_store_never_mixes_images(case, seed, kind):
    capacity, length, batches = case
    store = ksa.GradientStore(capacity)
    store.build(length, "codes")
    assert store.capacity % 4 == 0 and capacity <= store.capacity < capacity + 4
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**16, (31, 4)).astype("float32")
    keys[:, [0, 2]] %= 8  # so that sets are crowded
    written = {}
    for write, batch in batches:
        if write:
            code = v.Array((len(batch), length), "float32", kind, seed).make()
            code = np.clip(code, -1, 1)
            store.write(keys[batch], code)
            for image, row in zip(batch, code):
                if np.isfinite(row).all() and row.any():
                    written.setdefault(image, []).append(row.astype("float16"))
        codes, found = (numpy(x) for x in store.read(keys[batch]))
        assert_array(codes, (len(batch), length), "float32")
        for image, code, there in zip(batch, codes, found):
            if there:
                assert any(same_bits(code, x.astype("float32")) for x in written[image])
            else:
                assert not code.any()
    if seed < 100:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "store.npz")
            store.save(path)
            other = ksa.GradientStore(store.capacity)
            other.load(path)
        for a, b in zip(store.variables, other.variables):
            assert same_bits(numpy(a), numpy(b))


@fuzz(
    0.01,
    arguments=v.arguments(
        capacity=v.COUNT, size=v.COUNT_OR_NONE, delete_checkpoint=(st.booleans(),) * 2
    ),
)
def test_arguments_of_the_store(arguments):
    given, wrong = arguments
    wrong = None if wrong == "delete_checkpoint" else wrong
    with refuses(*[wrong] if wrong else []):
        ksa.GradientStore(**given)
