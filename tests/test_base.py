"""What every adversarial layer promises, whatever its field is."""

import keras
import numpy as np
import pytest
from conftest import small_model
from keras import layers, ops

import keras_structadv as ksa


def numpy(x):
    return ops.convert_to_numpy(x)


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


@pytest.mark.backends("tensorflow", "torch")
def test_structures_in_are_structures_out(bound, images, labels):
    layer = bound()
    weights = np.linspace(0, 1, 6)
    assert tuple(layer(images).shape) == images.shape
    out = layer(images, labels)
    assert isinstance(out, tuple) and len(out) == 2
    out = layer(images, labels, weights)
    assert isinstance(out, tuple) and len(out) == 3
    np.testing.assert_array_equal(out[2], weights)
    assert "float64" == keras.backend.standardize_dtype(out[2].dtype)
    data = {"images": images, "labels": labels, "name": np.arange(6), "other": weights}
    out = layer(data)
    assert set(out) == set(data)
    np.testing.assert_array_equal(out["name"], data["name"])
    assert np.abs(numpy(out["images"]) - images).max() > 0.01


@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64", "float16"])
def test_labels_are_never_cast(bound, images, labels, dtype):
    given = labels.astype(dtype)
    assert numpy(bound()(images, given)[1]).dtype == given.dtype
    out = bound()({"images": images, "labels": given})
    assert numpy(out["labels"]).dtype == given.dtype


def test_nothing_that_was_passed_is_changed(bound, images, labels):
    layer = bound()
    data = {"images": images, "labels": labels, "extra": ["a"]}
    before = {k: np.array(v) for k, v in data.items()}
    out = layer(data)
    assert out is not data and list(data) == ["images", "labels", "extra"]
    assert out["extra"] is data["extra"]
    for key, value in before.items():
        np.testing.assert_array_equal(data[key], value)


def test_inference_is_the_identity(kind, images, labels):
    layer = kind(rate=1.0)  # and needs no model
    np.testing.assert_array_equal(layer(images, training=False), images)
    out = layer(images, labels, training=False)
    np.testing.assert_array_equal(out[0], images)
    out = layer({"images": images, "labels": labels}, training=False)
    np.testing.assert_array_equal(out["images"], images)


def test_one_image_is_a_batch_of_one(bound, images, labels):
    model = small_model()
    layer = bound(model, strength=1)
    batch = numpy(layer(images, labels)[0])
    out = layer(images[3], labels[3])
    assert tuple(out[0].shape) == (8, 8, 1) and tuple(out[1].shape) == ()
    np.testing.assert_allclose(out[0], batch[3], atol=1e-5)
    out = layer({"images": images[3], "labels": labels[3], "targets": labels[2]})
    assert tuple(out["images"].shape) == (8, 8, 1)


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


def test_the_live_weights_are_read(bound, images, labels):
    model = small_model()
    layer = bound(model, strength=1)
    before = numpy(layer(images, labels)[0])
    model.set_weights([w + 0.3 for w in model.get_weights()])
    after = numpy(layer(images, labels)[0])
    assert np.abs(after - before).max() > 0.01


def test_seeds(bound, images, labels):
    model = small_model()

    def twice(seed):
        layer = bound(model, seed=seed, rate=0.5)
        return [numpy(layer(images, labels)[0]) for _ in range(2)]

    first, second = twice(1)
    np.testing.assert_array_equal(twice(1), [first, second])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(twice(2)[0] - first).max() > 0.01


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_data_formats_agree(bound, images, labels, data_format):
    first = data_format == "channels_first"
    inputs = keras.Input((1, 8, 8) if first else (8, 8, 1))
    x = layers.Permute((2, 3, 1))(inputs) if first else inputs
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    keras.utils.set_random_seed(0)
    reference = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)]
    )
    model.set_weights(reference.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = {"loss": loss, "rate": 0.5, "steps": 2}
    expected = numpy(bound(reference, **arguments)(images, labels)[0])
    given = images.transpose(0, 3, 1, 2) if first else images
    layer = bound(model, data_format=data_format, **arguments)
    actual = numpy(layer(given, labels)[0])
    if first:
        actual = actual.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


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


@pytest.mark.backends("tensorflow")
def test_in_a_tf_data_map(bound, images, labels):
    tf = pytest.importorskip("tensorflow")
    layer = bound(strength=2)
    whole = tf.data.Dataset.from_tensor_slices((images, labels))
    x, y = next(iter(whole.batch(4).map(layer, num_parallel_calls=2)))
    assert np.abs(x - images[:4]).max() > 0.01
    np.testing.assert_array_equal(y, labels[:4])
    assert [len(y) for _, y in whole.batch(4).map(layer)] == [4, 2]
    x, y = next(iter(whole.map(layer)))
    assert x.shape == (8, 8, 1) and np.abs(x - images[0]).max() > 0.01
    dicts = whole.batch(6).map(lambda x, y: {"images": x, "labels": y, "id": y})
    out = next(iter(dicts.map(layer)))
    assert set(out) == {"images", "labels", "id"}
    assert np.abs(out["images"] - images).max() > 0.01


def test_symbolic_outputs_have_the_right_form(kind):
    layer = kind(dtype="float16")
    x, y = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    out = layer(x)
    assert out.shape == (None, 8, 8, 1) and out.dtype == "float16"
    out = layer(x, y)
    assert out[0].dtype == "float16" and out[1].dtype == "int32"
    out = layer({"images": x, "labels": y})
    assert out["images"].dtype == "float16" and out["labels"].dtype == "int32"


def test_jit_compile_auto_of_the_host_stays(kind, images, labels):
    def host(with_layer):
        start = [kind()] if with_layer else []
        model = keras.Sequential([keras.Input((8, 8, 1)), *start, layers.Flatten()])
        model.compile(loss="mse", jit_compile="auto")
        return model

    assert host(True).jit_compile == host(False).jit_compile
    layer = host(True).layers[0]
    assert layer.supports_jit and all(x.supports_jit for x in layer._flatten_layers())


def test_the_model_is_neither_tracked_nor_saved(bound, images, labels):
    model = small_model()
    layer = bound(model)
    layer(images, labels)
    assert layer.weights == [] and layer.trainable_variables == []
    assert "model" not in str(layer.get_config())


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


@pytest.mark.parametrize("dtype", ["uint8", "float64", "int32", "float16"])
def test_every_dtype_of_images(bound, images, labels, dtype):
    model = small_model()
    given = (images * 10).astype(dtype)
    out = numpy(bound(model, value_range=(0, 10))(given, labels)[0])
    assert out.dtype == np.float32
    expected = numpy(
        bound(model, value_range=(0, 10))(given.astype("float32"), labels)[0]
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_an_unbound_layer_says_what_to_do(kind, images):
    with pytest.raises(
        ValueError, match="before it was bound.*bind.*AdversarialTraining"
    ):
        kind(rate=1.0)(images * 255)


def test_an_uncompiled_model_says_what_to_do(bound, images, labels):
    layer = bound(small_model(compiled=False))
    with pytest.raises(ValueError, match="no compiled loss.*Compile"):
        layer(images, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    layer.bind(small_model(compiled=False), loss=loss)
    assert np.abs(numpy(layer(images, labels)[0]) - images).max() > 0
