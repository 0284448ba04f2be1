import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers import recoloring_basis
from tests.damage import Evil, damaged, peak_memory, small_files


@pytest.fixture(scope="module")
def images():
    (x, _), _ = ksa.datasets.load_photographs(size=12, crops=1)
    return x


@pytest.fixture(autouse=True)
def without_the_solve(request, monkeypatch):
    """Puts something quick in the place of the basis where only the file matters."""

    def quick(operator, rank):
        values = ops.transpose(operator.diagonal(), (3, 0, 1, 2))[..., None]
        return values * np.arange(1, rank + 1, dtype="float32")

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(ksa.basis, "recoloring_basis", quick)


def compute(images, path, rank=3, batch_size=4, **kwargs):
    return ksa.precompute_basis(
        images, path, rank, batch_size=batch_size, verbose=0, **kwargs
    )


@pytest.mark.slow
def test_it_is_the_basis_of_each_image(images, tmp_path):
    basis = compute(images, tmp_path / "new" / "basis.npy", dtype="float32")
    assert basis.shape == (10, 12, 12, 3, 3) and basis.dtype == np.float32
    assert not basis.flags.writeable
    expected = recoloring_basis(EdgePreserving(images.astype("float32") / 255), 3)
    for found, wanted in zip(basis, np.asarray(expected)):
        # Eigenvectors have no sign, and those of the constants no order.
        found, wanted = (v.reshape(-1, 3) for v in (found, wanted))
        np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=0.01)
    assert sorted(os.listdir(tmp_path / "new")) == ["basis.npy", "basis.npy.json"]
    plain = np.load(tmp_path / "new" / "basis.npy")
    np.testing.assert_array_equal(plain, basis)


def test_a_complete_file_is_only_opened(images, tmp_path, monkeypatch):
    first = compute(images, tmp_path / "basis.npy")
    assert first.dtype == np.float16
    monkeypatch.setattr(ksa.basis, "recoloring_basis", None)
    np.testing.assert_array_equal(compute(images, tmp_path / "basis.npy"), first)


SCRIPT = """
    import sys
    import keras_structadv as ksa
    (images, _), _ = ksa.datasets.load_photographs(size=12, crops=1)
    ksa.precompute_basis(images, sys.argv[1], 3, batch_size=1, verbose=0)
"""


@pytest.mark.fused
@pytest.mark.rare
@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_file(images, tmp_path):
    whole, killed = tmp_path / "whole.npy", tmp_path / "killed.npy"
    compute(images, whole, batch_size=1)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(killed)]
    )
    record = tmp_path / "killed.npy.json"
    deadline = time.monotonic() + 120
    done = 0
    while done == 0 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
        done = json.loads(record.read_text())["done"] if record.exists() else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(record.read_text())["done"]
    assert 0 < done < len(images), "it was not killed in the middle"
    assert not killed.exists()
    compute(images, killed, batch_size=1)
    assert killed.read_bytes() == whole.read_bytes()


def test_an_interrupted_run_does_not_compute_again(images, tmp_path, monkeypatch):
    path = tmp_path / "basis.npy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 8)
        compute(images, path)
    assert not path.exists()
    write, written = ksa.basis._write, []

    def counting(record, content):
        write(record, content)
        written.append(content["done"])

    monkeypatch.setattr(ksa.basis, "_write", counting)
    compute(images, path)
    assert written == [10]
    np.testing.assert_array_equal(compute(images, path), np.load(path))


def test_a_truncated_file_is_named(images, tmp_path):
    path = tmp_path / "basis.npy"
    compute(images, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="basis.npy is truncated.*[Dd]elete it"):
        compute(images, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="basis.npy is truncated"):
        compute(images, path)
    np.savez(tmp_path / "other.npz", np.zeros(3))
    (tmp_path / "other.npz").rename(path)
    with pytest.raises(ValueError, match="basis.npy is truncated or not an array"):
        compute(images, path)


def interrupt(monkeypatch, done):
    """Lets the run stop once that many images are done."""
    write = ksa.basis._write

    def interrupted(record, content):
        write(record, content)
        if content["done"] == done:
            raise KeyboardInterrupt

    monkeypatch.setattr(ksa.basis, "_write", interrupted)


def test_a_truncated_part_is_named_and_not_filled_with_zeros(
    images, tmp_path, monkeypatch
):
    path, part = tmp_path / "basis.npy", tmp_path / "basis.npy.part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 8)
        compute(images, path)
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(ValueError, match="basis.npy.part is truncated"):
        compute(images, path)


def test_a_file_put_in_the_place_of_an_unfinished_one_is_kept(
    images, tmp_path, monkeypatch
):
    path = tmp_path / "basis.npy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 8)
        compute(images, path)
    np.save(path, np.arange(3))
    with pytest.raises(ValueError, match="record .* is of an unfinished run"):
        compute(images, path)
    np.testing.assert_array_equal(np.load(path), [0, 1, 2])


def test_a_run_that_did_nothing_is_no_obstacle(images, tmp_path, monkeypatch):
    path = tmp_path / "basis.npy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ksa.basis, "recoloring_basis", None)
        interrupt(patch, 0)
        compute(images, path, rank=5)
    assert compute(images[:2], path).shape == (2, 12, 12, 3, 3)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"rank": 2}, r"shape=\[10, 12, 12, 3, 3\].*another path"),
        ({"coherence": 2.0}, "coherence=1.0, not coherence=2.0"),
        ({"value_range": (0, 256)}, "value_range="),
        ({"dtype": "float32"}, "dtype=float16, not dtype=float32"),
    ],
)
def test_a_file_of_other_arguments_is_named(images, tmp_path, change, message):
    path = tmp_path / "basis.npy"
    compute(images, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        compute(images, path, **change)
    assert path.read_bytes() == before


def test_foreign_files_are_named(images, tmp_path):
    path = tmp_path / "basis.npy"
    compute(images, path)
    with pytest.raises(ValueError, match="computed for other images"):
        compute(images[::-1], path)
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(
        ValueError, match="mine.npy exists, but its record .* cannot be read"
    ):
        compute(images, tmp_path / "mine.npy")
    (tmp_path / "basis.npy.json").write_text("{")
    with pytest.raises(
        ValueError, match="basis.npy exists, but its record .* cannot be read"
    ):
        compute(images, path)
    assert len(np.load(tmp_path / "mine.npy")) == 3


def test_an_array_of_another_shape_is_named(images, tmp_path):
    path = tmp_path / "basis.npy"
    compute(images, path)
    np.save(path, np.load(path)[:, :6])
    with pytest.raises(ValueError, match="holds float16 of shape .*, not float16"):
        compute(images, path)


def test_images_in_a_list(images, tmp_path):
    listed = compute(list(images), tmp_path / "listed.npy")
    np.testing.assert_array_equal(listed, compute(images, tmp_path / "array.npy"))


def test_bad_arguments_are_named(images, tmp_path):
    with pytest.raises(ValueError, match="dtype='int8'"):
        compute(images, tmp_path / "basis.npy", dtype="int8")
    with pytest.raises(ValueError, match="rank=0"):
        compute(images, tmp_path / "basis.npy", rank=0)
    with pytest.raises(ValueError, match=r"images of shape \(12, 12, 3\)"):
        compute(images[0], tmp_path / "basis.npy")
    for given, arguments, message in (
        (images, {"rank": 433}, "rank=433 for 10 images of 432 values"),
        (images[:0], {}, "0 images"),
        (images, {"batch_size": 0}, "batch_size=0"),
        (images, {"value_range": (1, 0)}, r"value_range=\(1, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            compute(given, tmp_path / "basis.npy", **arguments)
    assert os.listdir(tmp_path) == []


def test_an_image_that_is_not_finite_is_named(images, tmp_path):
    given = images.astype("float32")
    given[6, 2, 2, 0] = np.nan
    with pytest.raises(ValueError, match="Image 6 has values that are not finite"):
        compute(given, tmp_path / "basis.npy")
    assert os.listdir(tmp_path) == []  # so that the mended images can follow
    compute(np.nan_to_num(given), tmp_path / "basis.npy")


@pytest.mark.parametrize("name", ["basis.npy", "basis.npy.json"])
def test_a_damaged_file_is_refused_or_means_the_same(images, tmp_path, name):
    images, path = images[:2], tmp_path / name
    wanted = np.array(compute(images, tmp_path / "basis.npy", rank=1))
    whole = path.read_bytes()
    contents = damaged(whole)

    def computed(images, path):
        return ksa.precompute_basis(images, path, 1, batch_size=4, verbose=0)

    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            basis = computed(images, tmp_path / "basis.npy")
        except ValueError as error:
            assert "basis.npy" in str(error) and "elete" in str(error), error
            refused += 1
        else:
            np.testing.assert_array_equal(basis, wanted)
    assert refused > 45


def test_a_hostile_file_is_refused_before_it_is_read(images, tmp_path):
    path, record = tmp_path / "basis.npy", tmp_path / "basis.npy.json"
    compute(images, path)
    whole, about = path.read_bytes(), json.loads(record.read_text())
    with open(path, "wb") as file:
        shape = {"descr": "<f2", "fortran_order": False, "shape": (10**13, 9)}
        np.lib.format.write_array_header_1_0(file, shape)
    with peak_memory() as peak, pytest.raises(ValueError, match="truncated"):
        compute(images, path)
    np.save(path, np.array([Evil(tmp_path / "evil")], object))
    with pytest.raises(ValueError, match="not an array"):
        compute(images, path)
    assert not (tmp_path / "evil").exists() and peak.bytes < 2**25
    path.write_bytes(whole)
    for change in (
        '{"done": 1e400}',
        "[" * 20_000,
        " " * 2**17,
        json.dumps({**about, "done": 11}),
        json.dumps({**about, "done": -1}),
        json.dumps({**about, "done": "ten"}),
        json.dumps([*about]),
    ):
        record.write_text(change)
        with pytest.raises(ValueError, match="its record .* cannot be read"):
            compute(images, path)
    path.rename(tmp_path / "basis.npy.part")
    record.write_text(json.dumps({**about, "checksum": about["checksum"] ^ 1}))
    with pytest.raises(ValueError, match="damaged: its checksum"):
        compute(images, path)


def test_a_full_disk_leaves_what_is_done(images, tmp_path):
    whole, path = tmp_path / "whole.npy", tmp_path / "basis.npy"
    compute(images, whole, batch_size=1)
    write, done = ksa.basis._write, []

    def written(record, content):
        write(record, content)
        done.append(content["done"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ksa.basis, "_write", written)
        # A file that may not grow is refused as a whole, before anything is computed.
        with small_files(1000), pytest.raises(OSError, match="too large"):
            compute(images, path, batch_size=1)
        assert done == [0] and not path.exists()
    compute(images, path, batch_size=1)
    assert path.read_bytes() == whole.read_bytes()


def test_a_full_disk_does_not_end_the_process(images, tmp_path):
    # A full disk ends a process that writes through a memory map.
    disk = tmp_path / "disk"
    disk.mkdir()
    given = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(given, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"there is no mount ({error})")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr}")
    script = FULL_DISK.format(path=disk / "basis.npy")
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        )
        assert "No space left on device" in ended.stderr, ended.stderr
        assert ended.returncode == 1
        done = json.loads((disk / "basis.npy.json").read_text())["done"]
        assert 0 < done < 10
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        subprocess.run([sys.executable, "-c", script], check=True)
        compute(images, tmp_path / "whole.npy", batch_size=1, dtype="float32")
        found = (disk / "basis.npy").read_bytes()
        assert found == (tmp_path / "whole.npy").read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


FULL_DISK = """
import numpy as np
from keras import ops
import keras_structadv as ksa

def quick(operator, rank):
    values = ops.transpose(operator.diagonal(), (3, 0, 1, 2))[..., None]
    return values * np.arange(1, rank + 1, dtype="float32")

ksa.basis.recoloring_basis = quick
ksa.basis.fused = lambda function, in_eager=False: function
(images, _), _ = ksa.datasets.load_photographs(size=12, crops=1)
ksa.precompute_basis(images, "{path}", 3, batch_size=1, verbose=0, dtype="float32")
"""
