"""dense_image_warp equals that of TensorFlow Addons 0.23.0, values and gradients.

The fast tests compare with tfa_arrays.npz. The slow one builds the environment of
TensorFlow Addons in tests/parity/.venv and makes the arrays afresh. To store them:

    tests/parity/.venv/bin/python tests/parity/make_tfa_arrays.py \
        tests/parity/tfa_arrays.npz
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import backend, ops

from keras_structadv import dense_image_warp

HERE = Path(__file__).parent
SCRIPT = HERE / "make_tfa_arrays.py"
VENV = HERE / ".venv"
REQUIREMENTS = ["tensorflow-cpu==2.15.1", "tensorflow-addons==0.23.0"]
INPUTS = ("image", "flow", "cotangent")

# Four times the largest difference measured, with XLA, which rounds in another order.
# Without it there is none.
ATOL = 1e-6


def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


STORED = load(HERE / "tfa_arrays.npz")
NAMES = sorted({key.split(".")[0] for key in STORED})

needs_gradients = pytest.mark.skipif(
    backend.backend() != "tensorflow",
    reason=f"The gradients are tf.GradientTape's; Keras runs on {backend.backend()}.",
)


def case_of(arrays, name):
    return {
        key.split(".")[1]: array
        for key, array in arrays.items()
        if key.split(".")[0] == name
    }


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ATOL)


def assert_same_values(case):
    warped = dense_image_warp(case["image"], case["flow"])
    assert_same(ops.convert_to_numpy(warped), case["warped"])


def assert_same_gradients(case, jit_compile):
    def step(image, flow, cotangent):
        with tf.GradientTape() as tape:
            tape.watch([image, flow])
            warped = dense_image_warp(image, flow)
        gradients = tape.gradient(warped, [image, flow], output_gradients=cotangent)
        return warped, *gradients

    if jit_compile:
        step = tf.function(step, jit_compile=True)
    warped, image_gradient, flow_gradient = step(
        *(tf.constant(case[key]) for key in INPUTS)
    )
    assert_same(warped, case["warped"])
    assert_same(image_gradient, case["image_gradient"])
    # Not where TensorFlow Addons has no gradient by a tie: see make_tfa_arrays.py.
    tie = is_tie(case["flow"])
    assert_same(flow_gradient.numpy()[~tie], case["flow_gradient"][~tie])


def is_tie(flow):
    """Returns whether dy and dx each lead to an integer before the last pixel."""
    height, width = flow.shape[1:3]
    grid = np.stack(np.meshgrid(range(height), range(width), indexing="ij"), axis=-1)
    coordinate = grid.astype("float32") - flow
    inside = (coordinate >= 0) & (coordinate < np.array([height - 1, width - 1]))
    return inside & (coordinate == np.floor(coordinate))


@pytest.mark.parametrize("name", NAMES)
def test_values(name):
    assert_same_values(case_of(STORED, name))


@needs_gradients
@pytest.mark.parametrize("jit_compile", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, jit_compile):
    assert_same_gradients(case_of(STORED, name), jit_compile)


@pytest.mark.parametrize("name", NAMES)
def test_left_out_gradients_are_zero(name):
    # So that no pixel is left out for any other reason than the one that is written.
    case = case_of(STORED, name)
    tie = is_tie(case["flow"])
    assert not case["flow_gradient"][tie].any()
    assert tie.any() == name.startswith(("zero", "integer"))


@pytest.mark.rare
def test_arrays_made_afresh(tmp_path):
    python = tfa_python()
    path = tmp_path / "tfa_arrays.npz"
    result = run(python, SCRIPT, path)
    assert result.returncode == 0, result.stderr
    fresh = load(path)

    assert fresh.keys() == STORED.keys()
    for key, array in fresh.items():
        if key.split(".")[1] in INPUTS:
            np.testing.assert_array_equal(array, STORED[key])
        else:
            assert_same(array, STORED[key])
    for name in NAMES:
        case = case_of(fresh, name)
        assert_same_values(case)
        if backend.backend() == "tensorflow":
            assert_same_gradients(case, jit_compile=False)


def tfa_python():
    """Returns the Python of the environment, built if it is not there yet."""
    python = VENV / "bin" / "python"
    # Written last, so an environment without it, or of other versions, is built anew.
    stamp = VENV / "installed"
    wanted = "\n".join(REQUIREMENTS)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    base = sys.executable
    if sys.version_info[:2] != (3, 11):
        base = shutil.which("python3.11")
    if base is None:
        pytest.skip("TensorFlow Addons needs Python 3.11, and python3.11 is not here.")
    for command in (
        [base, "-m", "venv", "--clear", VENV],
        [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
    ):
        result = run(*command)
        if result.returncode != 0:
            said = (result.stderr or result.stdout).strip().splitlines()[-5:]
            pytest.skip("\n".join(["No environment of TensorFlow Addons:", *said]))
    stamp.write_text(wanted)
    return python


def run(*command):
    # Nothing of this environment: paths to other packages and flags that its
    # TensorFlow may not know.
    foreign = ("PYTHON", "VIRTUAL_ENV", "TF_", "XLA_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    return subprocess.run(command, env=env, capture_output=True, text=True)
