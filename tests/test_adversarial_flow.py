import json

import keras
import numpy as np
import pytest
from conftest import small_model
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.flow import random_flow


def numpy(x):
    return ops.convert_to_numpy(x)


def bound(model=None, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    return ksa.AdversarialFlow(**kwargs).bind(model or small_model())


# What it does to a trained model.


def losses(model, images, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    return numpy(loss(labels, model(images, training=False)))


def batches(images, labels, count=10, size=64):
    for k in range(count):
        yield images[k * size : (k + 1) * size], labels[k * size : (k + 1) * size]


def test_the_loss_rises_more_than_under_a_random_flow(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(1.5, 1.5), rate=1.0).bind(model)
    beats_random = 0
    for images, labels in batches(x, y):
        before = losses(model, images, labels).mean()
        adversarial = losses(model, layer(images, labels)[0], labels).mean()
        flow = random_flow(images, smoothness=100.0, max_displacement=1.5, seed=0)
        random = losses(model, ksa.dense_image_warp(images, flow), labels).mean()
        assert adversarial > before
        beats_random += adversarial > random
    assert beats_random >= 9


def test_the_loss_falls_towards_a_target(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(1.5, 1.5), rate=1.0).bind(model)
    for images, labels in batches(x, y):
        data = {"images": images, "labels": labels, "targets": labels}
        moved = layer(data)["images"]
        before = losses(model, images, labels).mean()
        assert losses(model, moved, labels).mean() < before
    wrong = (y[:64] + 1) % 10
    data = {"images": x[:64], "labels": y[:64], "targets": wrong}
    before = losses(model, x[:64], wrong).mean()
    assert losses(model, layer(data)["images"], wrong).mean() < before


@pytest.mark.parametrize("target", ["most_confident_wrong", "random"])
def test_wrong_targets_raise_the_loss_of_the_label(trained, target):
    model, x, y = trained
    layer = ksa.AdversarialFlow((1.5, 1.5), rate=1.0, target=target).bind(model)
    moved = layer(x[:256], y[:256])[0]
    before = losses(model, x[:256], y[:256]).mean()
    assert losses(model, moved, y[:256]).mean() > before


def test_more_steps_raise_the_loss_further(trained):
    model, x, y = trained
    means = []
    for steps in (1, 3, 6):
        layer = ksa.AdversarialFlow((0.5, 0.5), rate=1.0, steps=steps).bind(model)
        means.append(losses(model, layer(x[:128], y[:128])[0], y[:128]).mean())
    assert means[0] < means[1] < means[2]


def test_the_gain_is_the_first_order_rise(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(max_displacement=(0.05, 0.05), rate=1.0).bind(model)
    augmented = layer.augment(x[:128], y[:128])
    rise = losses(model, augmented.images, y[:128]) - losses(model, x[:128], y[:128])
    np.testing.assert_allclose(numpy(augmented.gain).mean(), rise.mean(), rtol=0.1)


def test_the_first_order_prediction_matches_the_loss_along_the_flow():
    # d.(I + gamma P)^-1 d / alpha, on an image that is smooth enough for it.
    y, x = np.mgrid[:32, :32] / 31
    image = np.sin(5 * y) * np.cos(4 * x) + 0.5 * np.sin(3 * x + 2 * y)
    image = image[None, ..., None].astype("float32")
    label = np.array([1])
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.AveragePooling2D(4),
            layers.Conv2D(8, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gradient = ksa.per_image_gradients(model, image, label)
    flow = numpy(ksa.adversarial_flow(image, gradient, alpha=1.0, max_displacement=1e9))
    d = numpy(gradient) * np.stack(np.gradient(image[0, ..., 0]), axis=-1)[None]
    predicted = -(d * flow).sum()
    assert predicted > 0
    step = 0.05 / np.abs(flow).max()
    ahead = losses(model, ksa.dense_image_warp(image, step * flow), label)
    behind = losses(model, ksa.dense_image_warp(image, -step * flow), label)
    measured = (ahead - behind)[0] / (2 * step)
    np.testing.assert_allclose(measured, predicted, rtol=0.05)


# The contract of a call.


def test_structures_in_are_structures_out(images, labels):
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


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64", "float16"])
def test_labels_are_never_cast(images, labels, dtype):
    given = labels.astype(dtype)
    assert numpy(bound()(images, given)[1]).dtype == given.dtype
    out = bound()({"images": images, "labels": given})
    assert numpy(out["labels"]).dtype == given.dtype


def test_nothing_that_was_passed_is_changed(images, labels):
    layer = bound()
    data = {"images": images, "labels": labels, "extra": ["a"]}
    before = {k: np.array(v) for k, v in data.items()}
    out = layer(data)
    assert out is not data and list(data) == ["images", "labels", "extra"]
    assert out["extra"] is data["extra"]
    for key, value in before.items():
        np.testing.assert_array_equal(data[key], value)


def test_python_data_and_numpy_numbers_are_taken(images, labels):
    layer = bound(smoothness=np.float32(100), rate=np.float64(1), steps=np.int64(1))
    expected = numpy(layer(images, labels)[0])
    out = bound(layer.binding.model)(images, labels.tolist())
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    np.testing.assert_array_equal(out[1], labels)
    assert tuple(layer(images[0], 1)[0].shape) == (8, 8, 1)
    data = {"images": images, "labels": labels.tolist()}
    assert tuple(layer(data)["images"].shape) == images.shape


def test_inference_is_the_identity(images, labels):
    layer = ksa.AdversarialFlow(rate=1.0)  # and needs no model
    np.testing.assert_array_equal(layer(images, training=False), images)
    out = layer(images, labels, training=False)
    np.testing.assert_array_equal(out[0], images)
    out = layer({"images": images, "labels": labels}, training=False)
    np.testing.assert_array_equal(out["images"], images)


def test_one_image_is_a_batch_of_one(images, labels):
    model = small_model()
    layer = bound(model, max_displacement=(1, 1))
    batch = numpy(layer(images, labels)[0])
    out = layer(images[3], labels[3])
    assert tuple(out[0].shape) == (8, 8, 1) and tuple(out[1].shape) == ()
    np.testing.assert_allclose(out[0], batch[3], atol=1e-5)
    out = layer({"images": images[3], "labels": labels[3], "targets": labels[2]})
    assert tuple(out["images"].shape) == (8, 8, 1)


def test_a_flow_does_not_depend_on_its_batch(images, labels):
    model = small_model()
    layer = bound(model, max_displacement=(1, 1))
    once = layer.augment(images, labels).fields
    twice = layer.augment(np.tile(images, (2, 1, 1, 1)), np.tile(labels, 2)).fields
    np.testing.assert_allclose(twice[:6], once, atol=1e-5)
    np.testing.assert_allclose(twice[6:], once, atol=1e-5)


def test_without_labels_the_most_likely_is_taken(images):
    model = small_model()
    own = model.predict(images, verbose=0).argmax(-1)
    np.testing.assert_allclose(
        bound(model)(images), bound(model)(images, own)[0], atol=1e-6
    )


def test_the_live_weights_are_read(images, labels):
    model = small_model()
    layer = bound(model, max_displacement=(1, 1))
    before = numpy(layer(images, labels)[0])
    model.set_weights([w + 0.3 for w in model.get_weights()])
    after = numpy(layer(images, labels)[0])
    assert np.abs(after - before).max() > 0.01


def test_the_drawn_displacements(images, labels):
    many = np.tile(images, (100, 1, 1, 1))
    layer = bound(max_displacement=3.0)
    fields = numpy(layer.augment(many, np.tile(labels, 100)).fields)
    drawn = np.linalg.norm(fields, axis=-1).max(axis=(1, 2))
    assert 0 <= drawn.min() < 0.1 and 2.9 < drawn.max() <= 3.0 + 1e-5
    assert abs(drawn.mean() - 1.5) < 0.15
    layer = bound(max_displacement=(2.0, 2.5))
    fields = numpy(layer.augment(many, np.tile(labels, 100)).fields)
    drawn = np.linalg.norm(fields, axis=-1).max(axis=(1, 2))
    assert 2.0 - 1e-5 <= drawn.min() and drawn.max() <= 2.5 + 1e-5


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1e-3}, {"steps": 2}])
def test_the_sizes_are_the_longest_displacements(images, labels, kwargs):
    images[1] = 0.5  # nothing can move in it
    augmented = bound(rate=0.5, **kwargs).augment(images, labels)
    expected = np.linalg.norm(numpy(augmented.fields), axis=-1).max(axis=(1, 2))
    np.testing.assert_allclose(augmented.sizes, expected, atol=1e-5)
    augmented = bound(rate=1.0, **kwargs).augment(images, labels)
    assert numpy(augmented.sizes)[1] == 0 and numpy(augmented.sizes)[0] > 0


def test_seeds(images, labels):
    model = small_model()

    def twice(seed):
        layer = bound(model, seed=seed, rate=0.5)
        return [numpy(layer(images, labels)[0]) for _ in range(2)]

    first, second = twice(1)
    np.testing.assert_array_equal(twice(1), [first, second])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(twice(2)[0] - first).max() > 0.01


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_data_formats_agree(images, labels, data_format):
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


# Which images.


@pytest.mark.parametrize("rate,count", [(0.0, 0), (0.1, 3), (0.5, 15), (1.0, 30)])
def test_rate_is_exact_where_it_can_be(images, labels, rate, count):
    many, theirs = np.tile(images, (5, 1, 1, 1)), np.tile(labels, 5)
    layer = bound(rate=rate, max_displacement=(2, 2))
    seen = set()
    for _ in range(4):
        moved = np.abs(numpy(layer(many, theirs)[0]) - many).max(axis=(1, 2, 3)) > 0
        assert moved.sum() == count
        seen |= set(np.flatnonzero(moved))
    if 0 < rate < 1:
        assert len(seen) > count  # others each time


def test_a_fraction_of_an_image_is_a_probability(images, labels):
    layer = bound(rate=0.4, max_displacement=(2, 2))  # of 6 images: 2.4
    counts = []
    for _ in range(60):
        moved = np.abs(numpy(layer(images, labels)[0]) - images).max(axis=(1, 2, 3))
        counts.append(int((moved > 0).sum()))
    assert set(counts) == {2, 3}
    assert abs(np.mean(counts) - 2.4) < 0.25
    layer = bound(rate=0.5, max_displacement=(2, 2))
    moved = [np.any(numpy(layer(images[0])) != images[0]) for _ in range(60)]
    assert 15 < sum(moved) < 45


def test_the_gradient_is_computed_for_the_chosen_images_only(images, labels):
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


# Graphs.


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_xla_gives_the_eager_result(images, labels, rate, steps):
    tf = pytest.importorskip("tensorflow")
    model = small_model()
    eager = bound(model, rate=rate, steps=steps)(images, labels)[0]
    layer = bound(model, rate=rate, steps=steps)
    compiled = tf.function(lambda x, y: layer(x, y), jit_compile=True)
    np.testing.assert_allclose(compiled(images, labels)[0], eager, atol=1e-5 * steps)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rate", [0.4, 0.5, 1.0])
def test_an_unknown_batch_size(images, labels, rate, jit_compile):
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


def test_in_a_tf_data_map(images, labels):
    tf = pytest.importorskip("tensorflow")
    layer = bound(max_displacement=(2, 2))
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


def test_symbolic_outputs_have_the_right_form():
    layer = ksa.AdversarialFlow(dtype="float16")
    x, y = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    out = layer(x)
    assert out.shape == (None, 8, 8, 1) and out.dtype == "float16"
    out = layer(x, y)
    assert out[0].dtype == "float16" and out[1].dtype == "int32"
    out = layer({"images": x, "labels": y})
    assert out["images"].dtype == "float16" and out["labels"].dtype == "int32"


def test_jit_compile_auto_of_the_host_stays(images, labels):
    def host(with_layer):
        start = [ksa.AdversarialFlow()] if with_layer else []
        model = keras.Sequential([keras.Input((8, 8, 1)), *start, layers.Flatten()])
        model.compile(loss="mse", jit_compile="auto")
        return model

    assert host(True).jit_compile == host(False).jit_compile
    layer = host(True).layers[0]
    assert layer.supports_jit and all(x.supports_jit for x in layer._flatten_layers())


# What it holds.


def test_the_model_is_neither_tracked_nor_saved(images, labels):
    model = small_model()
    layer = bound(model)
    layer(images, labels)
    assert layer.weights == [] and layer.trainable_variables == []
    assert "model" not in str(layer.get_config())


def test_config_round_trip():
    arguments = {
        "max_displacement": (0.5, 2.0),
        "smoothness": 30.0,
        "alpha": 0.5,
        "solver": "sparse",
        "rate": 0.25,
        "target": "random",
        "steps": 3,
        "loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        "value_range": (0, 1),
        "seed": 7,
        "data_format": "channels_first",
        "name": "adversary",
        "dtype": "float16",
    }
    layer = ksa.AdversarialFlow(**arguments)
    config = layer.get_config()
    assert set(arguments) <= set(config)
    again = ksa.AdversarialFlow.from_config(config)
    assert again.get_config() == config
    assert again.loss.get_config() == arguments["loss"].get_config()
    for name in set(arguments) - {"loss", "dtype"}:
        assert getattr(again, name) == arguments[name], name
    assert again.compute_dtype == "float16"
    numbers = ksa.AdversarialFlow(
        np.float32(2), smoothness=np.int64(3), rate=np.float32(0.5), steps=np.int64(2)
    )
    assert '"smoothness": 3.0' in json.dumps(numbers.get_config())
    default = ksa.AdversarialFlow()
    assert ksa.AdversarialFlow.from_config(default.get_config()).rate == 0.5


def test_a_saved_model_with_the_layer_loads(images, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            ksa.AdversarialFlow(2.0, loss="mse"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].max_displacement == 2.0 and again.layers[0].loss == "mse"
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_mixed_precision(images, labels):
    expected = bound(small_model(), max_displacement=(1, 1)).augment(images, labels)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = bound(small_model(), max_displacement=(1, 1))
    finally:
        keras.config.set_dtype_policy("float32")
    out = layer(images, labels)
    assert numpy(out[0]).dtype == np.float16
    np.testing.assert_array_equal(out[1], labels)
    fields = layer.augment(images, labels).fields
    assert numpy(fields).dtype == np.float32
    np.testing.assert_allclose(fields, expected.fields, atol=0.05)


# Bad images and bad arguments.


@pytest.mark.parametrize("bad", [0.0, 0.7, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [False, True])
def test_a_bad_image_stays_and_leaves_its_neighbours_alone(images, labels, bad, whole):
    model = small_model()
    expected = numpy(bound(model)(images, labels)[0])
    given = images.copy()
    if whole:
        given[2] = bad
    else:
        given[2, 3, 3] = bad
    out = numpy(bound(model)(given, labels)[0])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(out[others], expected[others], atol=1e-6)
    if whole or not np.isfinite(bad):
        np.testing.assert_array_equal(out[2], given[2])


def test_a_saturated_model_changes_nothing(images):
    model = small_model(activation="softmax")
    model.layers[-1].set_weights([1e6 * w for w in model.layers[-1].get_weights()])
    np.testing.assert_array_equal(bound(model)(images), images)


def test_a_model_that_ignores_the_image_changes_nothing(images, labels):
    inputs = keras.Input((8, 8, 1))
    constant = layers.Dense(3, kernel_initializer="zeros")(layers.Flatten()(inputs))
    model = keras.Model(inputs, constant)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_array_equal(bound(model)(images, labels)[0], images)


@pytest.mark.parametrize("shape", [(1, 9, 1), (9, 1, 1), (1, 1, 3), (2, 2, 1)])
def test_tiny_images(shape):
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tiny = np.random.default_rng(0).uniform(size=(4, *shape)).astype("float32")
    out = numpy(bound(model)(tiny, np.array([0, 1, 2, 0]))[0])
    assert np.isfinite(out).all() and out.shape == tiny.shape
    assert (np.abs(out - tiny).max() > 0) == (max(shape[:2]) > 1)


@pytest.mark.parametrize("dtype", ["uint8", "float64", "int32", "float16"])
def test_every_dtype_of_images(images, labels, dtype):
    model = small_model()
    given = (images * 10).astype(dtype)
    out = numpy(bound(model)(given, labels)[0])
    assert out.dtype == np.float32
    expected = numpy(bound(model)(given.astype("float32"), labels)[0])
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_an_unbound_layer_says_what_to_do(images):
    with pytest.raises(
        ValueError, match="before it was bound.*bind.*AdversarialTraining"
    ):
        ksa.AdversarialFlow(rate=1.0)(images)


def test_an_uncompiled_model_says_what_to_do(images, labels):
    layer = bound(small_model(compiled=False))
    with pytest.raises(ValueError, match="no compiled loss.*Compile"):
        layer(images, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    layer.bind(small_model(compiled=False), loss=loss)
    assert np.abs(numpy(layer(images, labels)[0]) - images).max() > 0


def test_bad_input_is_named(images, labels):
    layer = bound()
    with pytest.raises(ValueError, match=r"labels of shape \(4,\) for images"):
        layer(images, labels[:4])
    with pytest.raises(ValueError, match=r"targets of shape \(2,\)"):
        layer({"images": images, "labels": labels, "targets": labels[:2]})
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\).*rank 3"):
        layer(images[0, ..., 0])
    with pytest.raises(ValueError, match=r"keys \['labels', 'x'\].*\"images\""):
        layer({"x": images, "labels": labels})
    with pytest.raises(NotImplementedError, match="labels of shape .*masks"):
        layer(images, images[..., 0] > 0.5)
    with pytest.raises(NotImplementedError, match="segmentation_masks"):
        layer({"images": images, "segmentation_masks": images})
    with pytest.raises(TypeError, match="model='resnet'"):
        layer.bind("resnet")
    with pytest.raises(NotImplementedError, match="snapshot"):
        layer.bind(small_model(), snapshot=True)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"rate": 1.5}, "rate=1.5"),
        ({"rate": "all"}, "rate='all'"),
        ({"target": "nearest"}, "target='nearest'.*targets"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": True}, "steps=True"),
        ({"max_displacement": None}, "max_displacement=None"),
        ({"max_displacement": (1, 2, 3)}, "max_displacement="),
        ({"smoothness": 1e39}, "smoothness=1e"),
        ({"value_range": (1, 0)}, r"value_range=\(1, 0\)"),
        ({"data_format": "NHWC"}, "data_format='NHWC'"),
        ({"max_displacement": -1}, "max_displacement=-1"),
        ({"max_displacement": (3, 2)}, r"max_displacement=\(3, 2\)"),
        ({"smoothness": -1}, "smoothness=-1"),
        ({"alpha": -1}, "alpha=-1"),
        ({"solver": "lu"}, "solver='lu'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ksa.AdversarialFlow(**kwargs)
