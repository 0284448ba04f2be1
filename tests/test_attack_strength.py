"""The rivals of `benchmarks.attack_strength` keep the bound and search within it."""

import math

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from benchmarks.attacked import Attacked, roughness_of  # noqa: E402
from benchmarks.flow_lbfgs import (  # noqa: E402
    Bounded,
    BoundedWithRoughness,
    minimise_each,
    optimised,
    total_variation,
)
from benchmarks.rigid_motions import by_art, largest_angle, rigid_flows  # noqa: E402

pytestmark = pytest.mark.backends("tensorflow")


def longest(flows):
    return np.linalg.norm(flows, axis=-1).max(axis=(1, 2))


@pytest.fixture
def flows():
    return np.random.default_rng(0).normal(0, 3, (4, 8, 8, 2)).astype("float32")


def test_each_row_reaches_its_own_minimum():
    aims = np.random.default_rng(0).normal(size=(5, 3))
    scales = np.array([[1.0], [10.0], [0.1], [100.0], [1.0]])

    def evaluate(points):
        rest = points - aims
        return (scales * rest**2).sum(axis=1), 2 * scales * rest

    ends, count = minimise_each(evaluate, np.zeros((5, 3)), 50)
    np.testing.assert_allclose(ends, aims, atol=1e-5)
    assert 1 < count <= 100


def test_bounds_hold_and_are_nearly_met(flows):
    bounded = Bounded(1.5)(flows, tf.constant(1.0)).numpy()
    assert (longest(bounded) < 1.5).all() and (longest(bounded) > 1.4).all()
    roughest = np.array([0.01, 0.1, 1.0, 100.0], "float32")
    bounded = BoundedWithRoughness(1.5, roughest)(flows, tf.constant(40.0)).numpy()
    shares = np.stack(
        [longest(bounded) / 1.5, np.sqrt(roughness_of(bounded).numpy() / roughest)]
    ).max(axis=0)
    assert (shares <= 1 + 1e-5).all() and (shares > 0.85).all()


def test_roughness_and_variation_of_a_shear():
    flow = np.zeros((1, 4, 4, 2), "float32")
    flow[0, :, :, 1] = 0.5 * np.arange(4)[:, None]
    assert roughness_of(flow).numpy() == pytest.approx(0.25 / 2)  # half of the pairs
    assert total_variation(flow).numpy() == pytest.approx(2 * 12 * 0.5, rel=1e-2)


@pytest.mark.parametrize("limit", [1.0, 2.0])
def test_rigid_motions_are_within_the_bound(limit):
    flows = rigid_flows((28, 28), limit, 11, 9)
    sizes = longest(flows)
    assert (sizes <= limit + 1e-5).all() and np.isclose(sizes, limit).sum() >= 6
    turned = flows[np.argmax(roughness_of(flows).numpy())]
    angle = largest_angle((28, 28), limit)
    expected = 4 * math.sin(angle / 2) ** 2
    assert roughness_of(turned[None]).numpy() == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def attacked():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).uniform(0, 255, (3, 4, 4, 1)).repeat(3, 1).repeat(3, 2)
    x = x.astype("float32")
    return Attacked(model, x, model.predict(x, verbose=0).argmax(axis=-1))


def test_lbfgs_raises_the_loss_within_the_bound(attacked):
    before = attacked.cross_entropy(attacked.logits(attacked.x)).numpy()
    found = optimised(attacked, Bounded(1.0), iterations=20)
    assert (found.losses > before + 0.01).all()
    # Fooled by no margin, it has no reason to go on.
    enough = optimised(attacked, Bounded(1.0), confidence=0.0, iterations=20)
    assert enough.losses.mean() < found.losses.mean()
    roughest = np.full(3, 1e-3)
    smooth = optimised(
        attacked, BoundedWithRoughness(1.0, roughest), frequencies=4, iterations=20
    )
    assert (smooth.roughness <= roughest * (1 + 1e-4)).all()


def test_art_attacks_within_the_bound(attacked):
    found = by_art(attacked, 2.0, angles=3)
    if found is None:
        pytest.skip("ART is not installed")
    before = attacked.cross_entropy(attacked.logits(attacked.x)).numpy()
    assert (found.losses[~found.right] > before[~found.right]).all()
    assert found.passes >= 2
