"""Which images of a batch a layer changes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from tests.models import numpy


@pytest.mark.parametrize("rate,count", [(0.0, 0), (0.1, 3), (0.5, 15), (1.0, 30)])
def test_rate_is_exact_where_it_can_be(bound, images, labels, rate, count):
    many, theirs = np.tile(images, (5, 1, 1, 1)), np.tile(labels, 5)
    layer = bound(rate=rate, strength=2)
    seen = set()
    for _ in range(4):
        moved = np.abs(numpy(layer(many, theirs)[0]) - many).max(axis=(1, 2, 3)) > 0
        assert moved.sum() == count
        seen |= set(np.flatnonzero(moved))
    if 0 < rate < 1:
        assert len(seen) > count  # others each time


@pytest.mark.backends("tensorflow", "torch")
def test_a_fraction_of_an_image_is_a_probability(bound, images, labels):
    layer = bound(rate=0.4, strength=2)  # of 6 images: 2.4
    counts = []
    for _ in range(60):
        moved = np.abs(numpy(layer(images, labels)[0]) - images).max(axis=(1, 2, 3))
        counts.append(int((moved > 0).sum()))
    assert set(counts) == {2, 3}
    assert abs(np.mean(counts) - 2.4) < 0.25
    layer = bound(rate=0.5, strength=2)
    moved = [np.any(numpy(layer(images[0])) != images[0]) for _ in range(60)]
    assert 15 < sum(moved) < 45


def test_the_gradient_is_computed_for_the_chosen_images_only(bound, images, labels):
    sizes = []

    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

        def call(self, x):
            sizes.append(x.shape[0])
            return self.dense(self.flatten(x))

    model = Counting()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(images)
    for rate, expected in ((0.5, 3), (0.4, 3), (1.0, 6), (0.1, 1)):
        sizes.clear()
        bound(model, rate=rate)(images, labels)
        assert sizes == [expected]
    sizes.clear()
    bound(model, rate=0.0)(images, labels)
    assert sizes == []


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("known", [False, True])
def test_small_rates_are_probabilities_in_batches_of_any_size(known, images):
    import tensorflow as tf

    layer = ksa.RandomFlow((2.0, 2.0), rate=0.02, value_range=(0, 1), seed=0)
    shape = (4 if known else None, 8, 8, 1)
    changed = tf.function(
        lambda x: tf.reduce_sum(layer.augment(x).active),
        input_signature=[tf.TensorSpec(shape, "float32")],
    )
    total = sum(float(changed(images[:4])) for _ in range(2000))
    assert 115 < total < 205  # 160 are expected, with a deviation of 12.5
    tiny = ksa.RandomFlow((2.0, 2.0), rate=1e-4, value_range=(0, 1), seed=0)
    count = tf.function(
        lambda x: tf.size(tiny.augment(x).active),
        input_signature=[tf.TensorSpec(shape, "float32")],
    )
    assert int(count(images[:4])) == 1  # one image, active with that probability
