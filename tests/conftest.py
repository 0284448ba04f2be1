"""Fixtures, and which of the tests run on which backend."""

import functools

import keras
import numpy as np
import pytest
from keras import backend, layers

import keras_structadv as ksa
from keras_structadv import basis
from keras_structadv.layers import adversarial_recoloring
from keras_structadv.training import reuse_step
from tests.models import small_model

# On the other backends the numerics and the layers are tested, not all around them.
if backend.backend() != "tensorflow":
    collect_ignore = [
        f"test_{name}.py"
        for name in (
            *("api", "basis", "controls", "datasets", "distribution", "experiments"),
            *("notebooks", "pipelines", "policies", "tf_data", "usages", "variants"),
            "visualization",
        )
    ]
    collect_ignore += [
        f"training/test_{name}.py"
        for name in (
            *("adversarial_training", "after_fit", "batch", "fresh_step", "history"),
            *("kept_gradients", "refresh_snapshot", "reuse_step", "stopping"),
        )
    ]
    collect_ignore += ["distribution_worker.py", "faults", "parity", "usages"]


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("backends")
        if marker and backend.backend() not in marker.args:
            item.add_marker(pytest.mark.skip(reason=f"is of {marker.args}"))
        # test_backends.py holds the numbers of every backend, also those of an audit.
        rare = "audit" in item.path.parts or item.get_closest_marker("slow")
        if backend.backend() != "tensorflow" and rare:
            item.add_marker(pytest.mark.rare)


if backend.backend() == "torch":
    import torch

    # Predictions have a gradient there, and NumPy refuses such arrays.
    torch.Tensor.__array__ = lambda self, dtype=None, copy=None: np.asarray(
        self.detach().cpu().numpy(), dtype
    )


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def unfused(request, monkeypatch):
    """Leaves XLA out of what is not compiled as a whole: the same values, sooner.

    Tests marked `fused` run as a user does.
    """
    if not request.node.get_closest_marker("fused"):
        for module in (basis, reuse_step):
            monkeypatch.setattr(
                module, "fused", lambda function, in_eager=False: function
            )
        for module in (adversarial_recoloring, reuse_step):
            monkeypatch.setattr(module, "shared", functools.partial)


@pytest.fixture
def images():
    """Returns six smooth images, so that small flows change them in proportion."""
    y, x = np.mgrid[:8, :8] / 8
    waves = [np.sin(3 * y + k) * np.cos((2 + k) * x / 2 - k) for k in range(6)]
    return (0.5 + 0.5 * np.stack(waves)[..., None]).astype("float32")


@pytest.fixture
def labels():
    return np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="session")
def trained():
    """Returns a model trained on digits, and the held-out digits as floats."""
    keras.utils.set_random_seed(0)
    (x, y), (x_test, y_test) = ksa.datasets.load_digits(400)
    model = keras.Sequential([keras.Input((16, 16, 1)), layers.Rescaling(1 / 255)])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(x, y, 64, 15, verbose=0)
    assert model.evaluate(x_test, y_test, verbose=0)[1] > 0.9
    return model, x_test.astype("float32"), y_test


# For what every adversarial layer promises, whatever its field is.


@pytest.fixture(params=[ksa.AdversarialFlow, ksa.AdversarialRecoloring])
def kind(request):
    return request.param


@pytest.fixture
def bound(kind):
    """Returns a function that makes a bound layer; a strength of 1 is a usual one."""

    def make(model=None, strength=None, **kwargs):
        kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
        if strength is not None:
            strength *= 1.0 if kind is ksa.AdversarialFlow else 0.1
            name = "max_displacement" if kind is ksa.AdversarialFlow else "magnitude"
            kwargs[name] = (strength, strength)
        return kind(**kwargs).bind(model or small_model())

    return make
