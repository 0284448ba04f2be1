"""Files of a gradient store, and writes of whole batches."""

import os
import socket
import stat
import subprocess
import zipfile

import keras
import numpy as np
import pytest
from keras import backend, ops

import keras_structadv as ksa
from keras_structadv import files
from keras_structadv.training.fingerprint import fingerprint
from keras_structadv.training.store_file import Table, read_table
from tests.damage import Evil, bomb, damaged, npz_by_hand, peak_memory, small_files


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


def test_a_damaged_file_is_refused_or_means_the_same(tmp_path):
    made, _ = store(64)
    path = tmp_path / "store.npz"
    made.save(path)
    whole, wanted = path.read_bytes(), read_table(path)
    refused = 0
    for content in damaged(whole):
        path.write_bytes(content)
        try:
            found = read_table(path)
        except ValueError as error:
            assert str(path) in str(error) and "Delete it" in str(error)
            refused += 1
            continue
        for one, other in zip(found, wanted):
            np.testing.assert_array_equal(one, other)
    assert refused > 45


def test_a_hostile_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "store.npz"
    made, _ = store(64)
    good = {"keys": ((65, 4), "<f4", bytes(65 * 16))}
    good |= {"codes": ((65, 8), "<f2", bytes(65 * 16))}
    good |= {"layout": ((), "<U1", bytes(4)), "epochs": ((), "<i8", bytes(8))}
    npz_by_hand(path, **good)
    ksa.GradientStore(64, size=2).load(path)  # by hand, and right
    strange = (
        {"keys": ((10**13, 4), "<f4", bytes(64))},
        {"keys": ((65, 10**12), "<f4", bytes(64))},
        {"keys": ((-65, 4), "<f4", bytes(65 * 16))},
        {"keys": ((65, 4), "<i4", bytes(65 * 16))},
        {"codes": ((65,), "<f2", bytes(130))},
        {"codes": ((65, 0), "<f2", b"")},
        {"codes": ((64, 8), "<f2", bytes(64 * 16))},
        {"codes": ((65, 8), "<f2", b"\xff" * 65 * 16)},  # NaN
        {"keys": ((65, 4), "<f4", b"\x7f" * 65 * 16)},  # 3e38
        {"layout": ((), "|O", bytes(8))},
        {"layout": ((), "<U1000000000", bytes(4))},
        {"epochs": ((2,), "<i8", bytes(16))},
    )
    for change in strange:
        npz_by_hand(path, **{**good, **change})
        with peak_memory() as peak, pytest.raises(ValueError, match="Delete it"):
            ksa.GradientStore(64, size=2).load(path)
        assert peak.bytes < 2**20, change
    arrays = dict(zip(Table._fields, read_table_of(made, tmp_path / "good.npz")))
    evil = np.array([Evil(tmp_path / "evil")], object)
    np.savez(path, **{**arrays, "codes": evil})
    with pytest.raises(ValueError, match="neither numbers nor text"):
        ksa.GradientStore(64, size=2).load(path)
    assert not (tmp_path / "evil").exists()
    bomb(path, Table._fields, 2**24)
    with peak_memory() as peak, pytest.raises(ValueError, match="bytes"):
        ksa.GradientStore(64, size=2).load(path)
    assert peak.bytes < 2**20


def read_table_of(made, path):
    made.save(path)
    return read_table(path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    made, _ = store(64)
    with subprocess.Popen(["sleep", "60"]) as other:
        host = socket.gethostname()
        theirs = tmp_path / f"store.npz.{host}-{other.pid}.new"
        for path in (theirs, tmp_path / "store.npz.elsewhere-1.new"):
            path.touch()
        made.save(tmp_path / "store.npz")
        assert theirs.exists()  # its process may still be writing
        other.kill()
    made.save(tmp_path / "store.npz")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["store.npz", "store.npz.elsewhere-1.new"]


def test_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    def left(number):
        folder = tmp_path / f"report.json.{socket.gethostname()}-{number}.new"
        folder.mkdir()
        (folder / "report.npz").touch()
        return folder

    killed, of_another_user = left(1111111), left(2222222)

    def kill(number, signal):
        assert signal == 0
        raise ProcessLookupError if number == 1111111 else PermissionError

    monkeypatch.setattr(files.os, "kill", kill)
    files.remove_leftovers(tmp_path / "report.json")
    assert not killed.exists() and of_another_user.exists()


def test_an_array_of_an_unknown_format_is_refused(tmp_path):
    path = tmp_path / "store.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keys.npy", np.lib.format.magic(3, 0) + bytes(64))
    with pytest.raises(ValueError, match=r"keys.npy has an unknown format \(3, 0\)"):
        files.read_arrays(path, ["keys"], 2**20)


def test_a_backup_of_the_epoch_of_the_model_is_restored(tmp_path):
    kept = ksa.GradientStore(64, size=2, backup_dir=tmp_path)
    kept.build(8)
    keys = fingerprint(ops.arange(4)[:, None])

    def codes_after(epochs):
        again = ksa.GradientStore(64, size=2, backup_dir=tmp_path)
        again.restore()
        again.restore(epochs)
        return ops.convert_to_numpy(again.read(keys)[0])[0, 0]

    for epochs in (1, 2, 3):
        kept.write(keys, ops.full((4, 8), epochs / 4))
        kept.back_up(epochs)
    assert codes_after(3) == 0.75 and codes_after(2) == 0.5
    # An epoch is done again: the older backup must stay that of the model.
    kept.back_up(3)
    assert codes_after(2) == 0.5
    with pytest.warns(UserWarning, match="after epoch 3.*resumes after epoch 5"):
        assert codes_after(5) == 0.75
    (tmp_path / "gradient_store.npz").unlink()  # killed while it was written
    assert codes_after(2) == 0.5
    kept.remove_backup()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bytes_left", [100, 20_000])
def test_a_full_disk_leaves_the_old_file(tmp_path, bytes_left):
    made, _ = store()
    path = tmp_path / "store.npz"
    made.save(path)
    before = path.read_bytes()
    with small_files(bytes_left), pytest.raises(OSError, match="too large"):
        made.save(path)
    assert path.read_bytes() == before and len([*tmp_path.iterdir()]) == 1
