"""What a layer computes, whatever its field is."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.models import numpy, small_model


def test_a_field_does_not_depend_on_its_batch(bound, images, labels):
    model = small_model()
    layer = bound(model, strength=1)
    once = layer.augment(images, labels).fields
    twice = layer.augment(np.tile(images, (2, 1, 1, 1)), np.tile(labels, 2)).fields
    np.testing.assert_allclose(twice[:6], once, atol=1e-5)
    np.testing.assert_allclose(twice[6:], once, atol=1e-5)


def test_without_labels_the_most_likely_is_taken(bound, images):
    model = small_model()
    own = model.predict(images, verbose=0).argmax(-1)
    np.testing.assert_allclose(
        bound(model)(images), bound(model)(images, own)[0], atol=1e-6
    )


def test_seeds(bound, images, labels):
    model = small_model()

    def twice(seed):
        layer = bound(model, seed=seed, rate=0.5)
        return [numpy(layer(images, labels)[0]) for _ in range(2)]

    first, second = twice(1)
    np.testing.assert_array_equal(twice(1), [first, second])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(twice(2)[0] - first).max() > 0.01


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_xla_gives_the_eager_result(bound, images, labels, rate, steps):
    tf = pytest.importorskip("tensorflow")
    model = small_model()
    eager = bound(model, rate=rate, steps=steps)(images, labels)[0]
    layer = bound(model, rate=rate, steps=steps)
    compiled = tf.function(lambda x, y: layer(x, y), jit_compile=True)
    np.testing.assert_allclose(compiled(images, labels)[0], eager, atol=1e-5 * steps)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rate", [0.4, 0.5, 1.0])
def test_an_unknown_batch_size(bound, images, labels, rate, jit_compile):
    tf = pytest.importorskip("tensorflow")
    model = small_model()
    layer = bound(model, rate=rate)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 8, 8, 1)),
            tf.TensorSpec((None,), tf.int64),
        ],
        jit_compile=jit_compile,
    )
    def augment(x, y):
        return layer(x, y)

    for size in (6, 5, 1):
        out, theirs = augment(images[:size], labels[:size])
        assert out.shape == (size, 8, 8, 1)
        np.testing.assert_array_equal(theirs, labels[:size])
    eager = bound(model, rate=rate)(images, labels)[0]
    again = bound(model, rate=rate)
    layer.seed_generator.state.assign(again.seed_generator.state)
    np.testing.assert_allclose(augment(images, labels)[0], eager, atol=1e-5)


def test_mixed_precision(bound, images, labels):
    expected = bound(small_model(), strength=1).augment(images, labels)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = bound(small_model(), strength=1)
    finally:
        keras.config.set_dtype_policy("float32")
    out = layer(images, labels)
    assert numpy(out[0]).dtype == np.float16
    np.testing.assert_array_equal(out[1], labels)
    fields = layer.augment(images, labels).fields
    assert numpy(fields).dtype == np.float32
    np.testing.assert_allclose(fields, expected.fields, atol=0.05)


def test_a_saturated_model_changes_nothing(bound, images):
    model = small_model(activation="softmax")
    model.layers[-1].set_weights([1e6 * w for w in model.layers[-1].get_weights()])
    np.testing.assert_array_equal(bound(model)(images), images)


def test_a_model_that_ignores_the_image_changes_nothing(bound, images, labels):
    inputs = keras.Input((8, 8, 1))
    constant = layers.Dense(3, kernel_initializer="zeros")(layers.Flatten()(inputs))
    model = keras.Model(inputs, constant)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_array_equal(bound(model)(images, labels)[0], images)
