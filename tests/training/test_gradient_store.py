"""A table of codes: what was written is read, or nothing."""

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from keras_structadv.training.fingerprint import fingerprint
from tests.models import numpy


def keys_of(ids):
    return fingerprint(np.reshape(ids, (-1, 1)).astype("int32"))


def codes_of(ids, length=4):
    """Returns a code that tells whose it is, exactly also in float16."""
    ids = np.asarray(ids)[:, None]
    digits = (ids // 64 ** np.arange(length)) % 64
    return (digits + 1).astype("float32") / 64


def store_of(capacity=64, length=4):
    store = ksa.GradientStore(capacity, size=1)
    store.build(length)
    return store


def test_what_was_written_is_read():
    store = store_of()
    codes, found = store.read(keys_of(np.arange(5)))
    assert not numpy(found).any() and not numpy(codes).any()
    store.write(keys_of([3, 1, 4]), codes_of([3, 1, 4]))
    codes, found = store.read(keys_of(np.arange(5)))
    np.testing.assert_array_equal(found, [False, True, False, True, True])
    np.testing.assert_array_equal(numpy(codes)[[1, 3, 4]], codes_of([1, 3, 4]))
    np.testing.assert_array_equal(numpy(codes)[[0, 2]], 0)
    store.write(keys_of([1]), codes_of([9]))  # again: the newer one
    np.testing.assert_array_equal(store.read(keys_of([1]))[0], codes_of([9]))


@pytest.mark.parametrize(
    "jit_compile",
    [
        None,
        pytest.param(False, marks=pytest.mark.backends("tensorflow")),
        pytest.param(True, marks=pytest.mark.backends("tensorflow")),
    ],
)
def test_200_000_images_in_65_536_places_are_never_confused(jit_compile):
    store = store_of(capacity=65536)

    def read_and_write(keys, codes):
        before = store.read(keys)
        store.write(keys, codes)
        return before

    if jit_compile is not None:
        tf = pytest.importorskip("tensorflow")
        read_and_write = tf.function(read_and_write, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    seen = 0
    for epoch in range(2):
        for ids in np.array_split(rng.permutation(200_000), 50):
            codes, found = read_and_write(keys_of(ids), codes_of(ids))
            found = numpy(found)
            np.testing.assert_array_equal(numpy(codes)[found], codes_of(ids)[found])
            seen += found.sum()
            assert epoch or not found.any()
    assert seen > 10_000  # the table was full, and of use all the same


def test_real_images_are_never_confused():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3000, 6, 6, 1)).astype("float32")
    images[1000:2000] = images[:1000]
    images[1000:2000, 3, 3] += 1  # differ in one pixel by one level
    images[2000:] = np.linspace(0, 255, 1000)[:, None, None, None]  # of one colour
    store = store_of(capacity=512)
    for ids in np.array_split(rng.permutation(3000), 30):
        store.write(fingerprint(images[ids]), codes_of(ids))
        codes, found = store.read(fingerprint(images))
        found = numpy(found)
        assert found.sum() > 50
        np.testing.assert_array_equal(
            numpy(codes)[found], codes_of(np.arange(3000))[found]
        )


def test_images_that_want_one_place_in_one_batch_do_not_mix():
    store = store_of(capacity=4)  # one set for all
    for _ in range(20):
        ids = np.random.default_rng(0).permutation(100)[:32]
        store.write(keys_of(ids), codes_of(ids))
        codes, found = store.read(keys_of(np.arange(100)))
        found = numpy(found)
        assert 1 <= found.sum() <= 4
        np.testing.assert_array_equal(
            numpy(codes)[found], codes_of(np.arange(100))[found]
        )


def test_an_image_twice_in_a_batch_keeps_the_last_code():
    store = store_of()
    store.write(keys_of([7, 8, 7]), codes_of([1, 2, 3]))
    np.testing.assert_array_equal(store.read(keys_of([7]))[0], codes_of([3]))
    np.testing.assert_array_equal(store.read(keys_of([8]))[0], codes_of([2]))


def test_useless_codes_are_not_written():
    store = store_of()
    store.write(keys_of([1, 2, 3]), codes_of([1, 2, 3]))
    codes = codes_of([4, 5, 6])
    codes[0] = 0
    codes[1, 2] = np.nan
    store.write(keys_of([1, 2, 4]), codes)
    held, found = store.read(keys_of([1, 2, 3, 4]))
    assert numpy(found).all()
    np.testing.assert_array_equal(held, codes_of([1, 2, 3, 6]))


def test_half_full_nearly_all_find_their_place():
    store = store_of(capacity=8192)
    for ids in np.array_split(np.arange(4096), 32):
        store.write(keys_of(ids), codes_of(ids))
    assert numpy(store.read(keys_of(np.arange(4096)))[1]).mean() > 0.96


def test_the_memory_is_as_stated():
    store = ksa.GradientStore(capacity=1024, size=8)
    layer = ksa.AdversarialFlow()
    store.build(layer.code_length(np.zeros((1, 32, 32, 3), "float32"), store.size))
    variables = [store._keys, store._codes]
    used = sum(numpy(v).nbytes for v in variables)
    assert numpy(store._codes).dtype == np.float16
    assert used == 1025 * (4 * 8**2 + 16)


def test_a_capacity_is_rounded_up():
    assert ksa.GradientStore(3594).capacity == 3596
    assert ksa.GradientStore(np.int64(64)).capacity == 64


def test_an_emptied_store_finds_nothing():
    store = store_of()
    store.write(keys_of([3, 1, 4]), codes_of([3, 1, 4]))
    store.clear()
    codes, found = store.read(keys_of([3, 1, 4]))
    assert not numpy(found).any() and not numpy(codes).any()


def test_saving_and_loading(tmp_path):
    store = store_of()
    store.write(keys_of([3, 1, 4]), codes_of([3, 1, 4]))
    store.save(tmp_path / "folder" / "store.npz")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["store.npz"]
    again = ksa.GradientStore(64, size=1)
    again.load(tmp_path / "folder" / "store.npz")
    for x, y in zip(store.read(keys_of(range(5))), again.read(keys_of(range(5)))):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match=r"64 places.*32.*capacity=64"):
        ksa.GradientStore(32).load(tmp_path / "folder" / "store.npz")


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"capacity": 30.5}, "capacity=30.5"),
        ({"capacity": 0}, "capacity=0"),
        ({"size": 0}, "size=0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.GradientStore(**kwargs)
    store = store_of(length=4)
    with pytest.raises(ValueError, match="codes of 4 numbers .*, and 8 .* are needed"):
        store.build(8)


@pytest.mark.backends("tensorflow")
def test_keras_has_what_the_store_relies_on():
    # In-place rows of a variable: an update must not copy a table of many megabytes.
    tf = pytest.importorskip("tensorflow")
    table = keras.Variable(np.zeros((8, 2), "float16"), dtype="float16")
    assert isinstance(table.value, tf.Variable)
