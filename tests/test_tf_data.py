"""Layers in a `tf.data` pipeline, against a snapshot of the live model."""

import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_structadv.gradients import Inference, WeightSnapshot
from tests.hosts import flow_layer
from tests.models import small_model

tf = pytest.importorskip("tensorflow")


def pipeline(layer, *data, batch=6):
    data = tf.data.Dataset.from_tensor_slices(data if len(data) > 1 else data[0])
    return data.batch(batch).map(layer, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def shift(model, by=0.3):
    """Changes the weights unevenly, so that the direction of the gradient changes."""
    random = np.random.default_rng(0)
    model.set_weights(
        [w + by * random.normal(size=w.shape) for w in model.get_weights()]
    )


def test_every_structure(images, labels):
    model = small_model()
    layer = flow_layer().bind(model, snapshot=True)
    expected = ops.convert_to_numpy(flow_layer().bind(model)(images, labels)[0])
    weights = np.linspace(0, 1, 6)

    x, y = next(iter(pipeline(layer, images, labels)))
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_array_equal(y, labels)
    x, y, w = next(iter(pipeline(layer, images, labels, weights)))
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_array_equal(w, weights)
    assert w.dtype == tf.float64
    out = next(
        iter(pipeline(layer, {"images": images, "labels": labels, "id": weights}))
    )
    np.testing.assert_allclose(out["images"], expected, atol=1e-5)
    np.testing.assert_array_equal(out["id"], weights)
    x, y = next(iter(pipeline(layer, {"images": images}, labels)))
    np.testing.assert_allclose(x["images"], expected, atol=1e-5)
    np.testing.assert_array_equal(y, labels)
    single = tf.data.Dataset.from_tensor_slices((images, labels)).map(layer)
    np.testing.assert_allclose(next(iter(single))[0], expected[0], atol=1e-5)
    unknown = tf.data.Dataset.from_generator(
        lambda: zip(images, labels),
        output_signature=(tf.TensorSpec((8, 8, 1)), tf.TensorSpec((), tf.int64)),
    )
    batches = [x for x, _ in unknown.batch(4).map(layer, num_parallel_calls=2)]
    assert [len(x) for x in batches] == [4, 2]
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_a_snapshot_changes_only_when_it_is_refreshed(images, labels):
    model = small_model()
    layer = flow_layer().bind(model, snapshot=True)
    data = pipeline(layer, images, labels)
    first = next(iter(data))[0]
    shift(model)
    np.testing.assert_array_equal(next(iter(data))[0], first)
    layer.binding.snapshot.refresh()
    second = next(iter(data))[0]
    assert np.abs(second - first).max() > 0.01
    live = flow_layer().bind(model)(images, labels)[0]
    np.testing.assert_allclose(second, live, atol=1e-5)


class AllEqual(layers.Layer):
    """Has weights that are always set to one number, and returns their extremes."""

    def build(self, shape):
        self.parts = [self.add_weight(shape=(i % 5 + 1, 3000)) for i in range(24)]

    def call(self, x):
        lowest = ops.stack([ops.min(w) for w in self.parts])
        highest = ops.stack([ops.max(w) for w in self.parts])
        return ops.stack([ops.min(lowest), ops.max(highest)])[None] + 0 * x


def mixtures(values_of, calls):
    """Returns how many parallel calls saw two sets of weights, and how many sets."""
    model = keras.Sequential([keras.Input((2,)), AllEqual()])
    snapshot = WeightSnapshot(model)
    values = values_of(snapshot)
    stop = threading.Event()

    def refresh():
        number = 0
        while not stop.is_set():
            number += 1
            for weight in model.weights:
                weight.assign(np.full(weight.shape, number, "float32"))
            snapshot.refresh()

    def call(_):
        return Inference(model, values())(tf.zeros((1, 2)))[0]

    data = tf.data.Dataset.range(calls).map(call, num_parallel_calls=16).prefetch(64)
    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        extremes = np.array([np.array(x) for x in data])
    finally:
        stop.set()
        thread.join()
    return (extremes[:, 0] != extremes[:, 1]).sum(), len(np.unique(extremes))


@pytest.mark.slow
def test_parallel_calls_never_mix_two_sets_of_weights():
    mixed, sets = mixtures(lambda snapshot: snapshot.values, 10_000)
    assert mixed == 0 and sets > 20
    # The live model does mix them, so that the check can fail.
    mixed, _ = mixtures(lambda snapshot: tuple, 2_000)
    assert mixed > 0


@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16", "float64"])
def test_weights_of_every_dtype_are_copied(dtype, images):
    class Odd(layers.Layer):
        def build(self, shape):
            self.flag = self.add_weight(
                shape=(3,), dtype="bool", initializer="zeros", trainable=False
            )
            self.count = self.add_weight(
                shape=(), dtype="int8", initializer="ones", trainable=False
            )
            self.none = self.add_weight(shape=(0, 2))

        def call(self, x):
            return x

    keras.config.set_dtype_policy(dtype)
    try:
        model = small_model()
        model.add(Odd())
        model.build((None, 8, 8, 1))
    finally:
        keras.config.set_dtype_policy("float32")
    values = WeightSnapshot(model).values()
    assert len(values) == len(model.variables)
    for variable, value in values:
        assert keras.backend.standardize_dtype(value.dtype) == variable.dtype
        np.testing.assert_array_equal(
            ops.convert_to_numpy(value), ops.convert_to_numpy(variable)
        )
    out = flow_layer().bind(model, snapshot=True)(images)
    assert np.abs(out - images).max() > 0


def test_a_model_with_other_inputs_takes_them_from_the_dict(images, labels):
    inputs = {
        "images": keras.Input((8, 8, 1), name="images"),
        "scale": keras.Input((1,), name="scale"),
    }
    x = layers.Multiply()(
        [inputs["images"], layers.Reshape((1, 1, 1))(inputs["scale"])]
    )
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(ops.tanh(x))))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    scale = np.array([[0.1], [1], [4], [-1], [2], [3]], "float32")
    layer = flow_layer(rate=0.5).bind(model, snapshot=True)
    data = pipeline(layer, {"images": images, "scale": scale}, labels)
    x, _ = next(iter(data))
    np.testing.assert_array_equal(x["scale"], scale)
    layer = flow_layer().bind(model)
    out = layer({"images": images, "scale": scale, "labels": labels})
    for i in range(6):  # each with its own scale
        one = {"images": images[i : i + 1], "scale": scale[i : i + 1]}
        alone = layer({**one, "labels": labels[i : i + 1]})["images"][0]
        np.testing.assert_allclose(out["images"][i], alone, atol=1e-5)
    history = model.fit(data, epochs=2, verbose=0, callbacks=[]).history
    assert np.isfinite(history["loss"]).all()


def test_a_snapshot_of_other_variables_says_so(images):
    model = small_model()
    layer = flow_layer().bind(model, snapshot=True)
    model.layers[-1].enable_lora(2)
    with pytest.raises(ValueError, match="not those of the snapshot.*Bind again"):
        layer.binding.snapshot.refresh()
