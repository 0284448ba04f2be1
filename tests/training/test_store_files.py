"""Files of a gradient store, and writes of whole batches."""

import os
import stat

import keras
import numpy as np
import pytest
from keras import backend, ops

import keras_structadv as ksa
from keras_structadv.training.fingerprint import fingerprint


def store(capacity=4096):
    made = ksa.GradientStore(capacity, size=2)
    made.build(8)
    keys = fingerprint(ops.arange(4)[:, None])
    made.write(keys, ops.ones((4, 8)))
    return made, keys


def test_a_saved_store_is_a_file_like_any_other(tmp_path):
    made, keys = store()
    made.save(tmp_path / "store.npz")
    (tmp_path / "plain").touch()
    mode, plain = (
        stat.S_IMODE(os.stat(tmp_path / name).st_mode)
        for name in ("store.npz", "plain")
    )
    assert mode == plain
    other = ksa.GradientStore(4096, size=2)
    other.load(tmp_path / "store.npz")
    assert ops.convert_to_numpy(other.read(keys)[1]).all()


def test_an_error_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    made, _ = store()
    path = tmp_path / "store.npz"
    made.save(path)
    before = path.read_bytes()

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="no space"):
        made.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store.npz"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of it", None])
def test_a_damaged_file_says_what_to_do(tmp_path, content):
    made, _ = store()
    path = tmp_path / "store.npz"
    made.save(path)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ValueError, match="truncated or no gradient store.*Delete it"):
        ksa.GradientStore(4096, size=2).load(path)
    with pytest.raises(FileNotFoundError):
        ksa.GradientStore(4096, size=2).load(tmp_path / "another.npz")


def test_a_store_that_was_not_built_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="not built"):
        ksa.GradientStore().save(tmp_path / "store.npz")


@pytest.mark.parametrize("name", ["capacity", "size"])
@pytest.mark.parametrize("value", [True, 0, 2.0, "8"])
def test_counts_are_integers(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}.*integer >= 1"):
        ksa.GradientStore(**{name: value})


@pytest.mark.backends("tensorflow")
def test_a_write_makes_no_table_of_pairs():
    import tensorflow as tf

    made, _ = store(capacity=4096)
    count = 1000

    @tf.function
    def write(keys, codes):
        made.write(keys, codes)

    keys = fingerprint(ops.arange(count)[:, None])
    graph = write.get_concrete_function(keys, ops.ones((count, 8))).graph
    sizes = [
        output.shape.num_elements() or 0
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.dtype != tf.resource
    ]
    assert max(sizes) < count**2 / 10


def test_the_last_of_equal_keys_is_written_whole():
    made = ksa.GradientStore(4096, size=2)
    made.build(8)
    random = np.random.default_rng(0)
    names = random.integers(0, 20, 300)
    codes = random.uniform(0.1, 1, (300, 1)) * np.ones((1, 8))
    keys = fingerprint(ops.convert_to_tensor(names.astype("int32"))[:, None])
    made.write(keys, ops.convert_to_tensor(codes, "float32"))
    read, found = (ops.convert_to_numpy(x) for x in made.read(keys))
    last = {name: codes[place, 0] for place, name in enumerate(names)}
    for name, code, there in zip(names, read, found):
        if there:  # whose place no other key took
            np.testing.assert_allclose(code, last[name], rtol=1e-3)
    assert found.mean() > 0.8


@pytest.mark.backends("tensorflow", "jax")
def test_zeros_of_both_signs_are_one_image_in_compiled_code():
    images = np.zeros((2, 4, 4, 1), "float32")
    images[1] = -0.0
    assert np.signbit(images[1]).all()
    if backend.backend() == "jax":
        import jax

        compiled = jax.jit(fingerprint)
    else:
        import tensorflow as tf

        compiled = tf.function(fingerprint, jit_compile=True)
    keys = ops.convert_to_numpy(compiled(keras.ops.convert_to_tensor(images)))
    np.testing.assert_array_equal(keys[0], keys[1])
