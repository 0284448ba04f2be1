import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.fft

from keras_structadv.dct import dct2, dct_matrix, idct2, laplacian_eigenvalues
from keras_structadv.operators import ScreenedPoisson


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 8), (32, 17)])
def test_dct2_is_the_orthonormal_dct_of_scipy(shape):
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = scipy.fft.dctn(x.astype("float64"), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(dct2(x), expected, atol=1e-5)
    np.testing.assert_allclose(idct2(dct2(x)), x, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (4, 4), (3, 7)])
def test_laplacian_eigenvalues_are_those_of_the_matrix(shape):
    laplacian = ScreenedPoisson(*shape, smoothness=1.0).to_dense() - np.eye(
        shape[0] * shape[1]
    )
    expected = np.linalg.eigvalsh(laplacian)
    np.testing.assert_allclose(
        np.sort(laplacian_eigenvalues(*shape).ravel()), expected, atol=1e-6
    )


def test_the_cached_matrix_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        dct_matrix(4)[0, 0] = 1.0


@pytest.mark.backends("tensorflow")
def test_a_graph_without_xla_gives_the_same():
    # There, oneDNN's product of a batch of planes and one matrix ends the process.
    import tensorflow as tf

    planes = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype("float32")
    np.testing.assert_allclose(tf.function(dct2)(planes), dct2(planes), atol=1e-5)
    np.testing.assert_allclose(tf.function(idct2)(planes), idct2(planes), atol=1e-5)


@pytest.mark.slow
def test_512_pixels_need_less_than_one_gibibyte_above_the_images():
    # A process of its own: the peak of this one is from other tests.
    script = """
import json, resource
import numpy as np
import keras_structadv as ksa

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

rng = np.random.default_rng(0)
ksa.adversarial_flow(np.ones((1, 8, 8, 3)), np.ones((1, 8, 8, 3)))
images = rng.uniform(size=(8, 512, 512, 3)).astype("float32")
gradients = rng.normal(size=images.shape).astype("float32")
before = peak()
flow = np.asarray(ksa.adversarial_flow(images, gradients, max_displacement=2.0))
warped = np.asarray(ksa.dense_image_warp(images, flow))
longest = np.linalg.norm(flow, axis=-1).max(axis=(1, 2))
print(json.dumps([peak() - before, longest.tolist(), bool(np.isfinite(warped).all())]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    used, longest, finite = json.loads(run.stdout.splitlines()[-1])
    assert used < 2**30
    np.testing.assert_allclose(longest, 2.0, rtol=1e-5)
    assert finite
