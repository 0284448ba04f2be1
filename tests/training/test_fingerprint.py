"""Keys of images: equal for equal ones, different for all others."""

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.training.fingerprint import fingerprint
from tests.models import numpy


@pytest.mark.backends("tensorflow")
def test_the_fingerprint_is_exact_however_it_is_computed():
    tf = pytest.importorskip("tensorflow")
    images = (
        np.random.default_rng(0).uniform(-3, 300, (64, 12, 10, 3)).astype("float32")
    )
    whole = numpy(fingerprint(images))
    assert whole.shape == (64, 4) and whole.min() >= 0 and whole.max() < 2**16
    np.testing.assert_array_equal(whole, np.round(whole))
    alone = np.concatenate([fingerprint(images[k : k + 1]) for k in range(64)])
    np.testing.assert_array_equal(alone, whole)
    for jit_compile in (False, True):
        compiled = tf.function(fingerprint, jit_compile=jit_compile)
        np.testing.assert_array_equal(compiled(images), whole)
    shuffled = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(fingerprint(images[shuffled]), whole[shuffled])


@pytest.mark.parametrize(
    "dtype,offset,step",
    [
        ("uint8", 0, 1),
        ("int32", 0, 1),
        ("int64", 2**40, 1),
        ("float32", 0, 1),
        ("float32", 0, 1 / 255),
        ("float32", -1, 2 / 255),
        ("float32", 40000, 1),
        ("float32", 0, 1e-9),
        ("float16", 0, 1 / 255),
    ],
)
def test_the_smallest_change_changes_the_fingerprint(dtype, offset, step):
    rng = np.random.default_rng(0)
    image = (offset + rng.integers(0, 200, (1, 8, 8, 3)) * step).astype(dtype)
    variants = np.tile(image, (193, 1, 1, 1)).reshape(193, -1)
    for k in range(192):
        variants[k + 1, k] += np.asarray(step, dtype)
    variants = ops.convert_to_tensor(variants.reshape(193, 8, 8, 3))
    keys = numpy(fingerprint(variants))
    assert len(np.unique(keys, axis=0)) == 193


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32"])
def test_round_numbers_are_told_apart(dtype):
    """Their lower bits are all alike, and a sum alone would lose the upper ones."""
    step = 2**30 if dtype != "float32" else 1.0
    images = np.array([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)]) * step
    keys = numpy(fingerprint(ops.convert_to_tensor(images.astype(dtype))))
    assert len(np.unique(keys, axis=0)) == 8


def test_minus_zero_is_zero():
    zeros = np.zeros((1, 4), "float32")
    np.testing.assert_array_equal(fingerprint(zeros), fingerprint(-zeros))


@pytest.mark.backends("tensorflow", "torch")
def test_large_ids_are_told_apart():
    ids = np.int64([5, 5 + 2**32, 5 + 2**40, -5, 5 - 2**63])
    keys = numpy(fingerprint(ops.convert_to_tensor(ids[:, None])))
    assert len(np.unique(keys, axis=0)) == 5


def test_the_fingerprint_spreads_over_the_sets():
    digits = np.concatenate([x for x, _ in ksa.datasets.load_digits()])
    keys = numpy(fingerprint(digits.astype("float32"))).astype(int)
    assert len(np.unique(keys, axis=0)) == len(digits)
    counts = np.bincount(keys[:, 2] % 64, minlength=64)
    expected = len(digits) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110  # chi2, 63 degrees
