"""The gradient of the loss of each image."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import gradients_of, small_model


def loss_of(model, images, labels):
    """Returns the loss of each image in float64, (batch,)."""
    logits = np.asarray(model(images, training=False), "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


def test_it_is_the_derivative_of_the_loss(images, labels):
    model = small_model()
    gradients = gradients_of(model, images, labels)
    assert gradients.shape == images.shape and gradients.dtype == np.float32
    direction = np.random.default_rng(1).normal(size=images.shape).astype("float32")
    step = 1e-2
    ahead = loss_of(model, images + step * direction, labels)
    behind = loss_of(model, images - step * direction, labels)
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(
        (gradients * direction).sum(axis=(1, 2, 3)), expected, rtol=2e-2, atol=1e-4
    )


def test_the_images_among_other_inputs_of_their_rank(images, labels):
    first, second = (keras.Input((8, 8, 1), name=name) for name in ("images", "depth"))
    both = layers.Concatenate()([first, second])
    logits = layers.Dense(3)(layers.Flatten()(both))
    for names in (("images", "depth"), ("left", "right")):
        model = keras.Model(dict(zip(names, (first, second))), logits)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        x = dict(zip(names, (images, images[::-1])))
        if names[0] == "images":
            found = gradients_of(model, x, labels)
            assert found.shape == images.shape and np.abs(found).min(0).max() > 0
        else:
            with pytest.raises(ValueError, match="exactly one of rank 4, or name"):
                ksa.per_image_gradients(model, x, labels)


def test_an_image_does_not_see_its_batch(images, labels):
    model = small_model()
    gradients = gradients_of(model, images, labels)
    twice = gradients_of(model, np.tile(images, (2, 1, 1, 1)), np.tile(labels, 2))
    np.testing.assert_allclose(twice, np.tile(gradients, (2, 1, 1, 1)), atol=1e-6)
    alone = gradients_of(model, images[2:3], labels[2:3])
    np.testing.assert_allclose(alone, gradients[2:3], atol=1e-6)


class Noisy(keras.layers.Layer):
    """Draws from its seed and adds a loss also in inference."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return x + 0.01 * keras.random.normal(ops.shape(x), seed=self.generator)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_pass_leaves_no_trace(images, labels, compiled):
    tf = pytest.importorskip("tensorflow")
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l2")(inputs)
    x = layers.Dropout(0.5)(Noisy()(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.train_on_batch(images, labels)
    model(images, training=True)  # leaves losses behind

    def state():
        variables = (
            model.variables + model.optimizer.variables + model.metrics_variables
        )
        return [np.asarray(v.value).copy() for v in variables]

    before, losses = state(), [id(loss) for loss in model.layers[3].losses]
    assert len(before) > 10 and losses

    def run():
        return ksa.per_image_gradients(model, images, labels)

    gradients = tf.function(run)() if compiled else run()
    assert np.abs(gradients).max() > 0
    for old, new in zip(before, state()):
        np.testing.assert_array_equal(old, new)
    assert [id(loss) for loss in model.layers[3].losses] == losses


@pytest.mark.parametrize(
    "loss,activation,one_hot",
    [
        ("sparse_categorical_crossentropy", "softmax", False),
        ("categorical_crossentropy", "softmax", True),
        ("crossentropy", "softmax", False),
        ("crossentropy", "softmax", True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, False),
        (keras.losses.CategoricalCrossentropy(from_logits=True), None, True),
        (
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="sum"
            ),
            None,
            False,
        ),
        (
            lambda y, p: keras.losses.sparse_categorical_crossentropy(
                y, p, from_logits=True
            ),
            None,
            False,
        ),
        (
            lambda y, p: ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)
            ),
            None,
            False,
        ),
    ],
)
def test_every_way_to_name_a_loss(images, labels, loss, activation, one_hot):
    expected = gradients_of(small_model(), images, labels)
    keras.utils.set_random_seed(0)
    model = small_model(activation=activation, compiled=False)
    model.compile("sgd", loss)
    given = keras.utils.to_categorical(labels, 3) if one_hot else labels
    np.testing.assert_allclose(
        gradients_of(model, images, given), expected, rtol=1e-3, atol=1e-6
    )
    if isinstance(loss, keras.losses.Loss):
        assert loss.reduction in ("sum", "sum_over_batch_size")  # the user's own
    reshaped = given if one_hot else given[:, None]
    np.testing.assert_allclose(
        gradients_of(model, images, reshaped), expected, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("labels_rank", [1, 2])
@pytest.mark.parametrize("loss", ["binary_crossentropy", "crossentropy"])
def test_binary_labels_do_not_broadcast(images, loss, labels_rank):
    model = small_model(classes=1, activation="sigmoid", compiled=False)
    model.compile("sgd", loss)
    y = np.array([0, 1, 1, 0, 1, 0])
    gradients = gradients_of(model, images, y if labels_rank == 1 else y[:, None])
    alone = [gradients_of(model, images[i : i + 1], y[i : i + 1])[0] for i in range(6)]
    np.testing.assert_allclose(gradients, alone, atol=1e-6)


def test_a_loss_that_is_passed_wins(images, labels):
    model = small_model()
    doubled = gradients_of(
        model,
        images,
        labels,
        loss=lambda y, p: (
            2 * keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)
        ),
    )
    np.testing.assert_allclose(
        doubled, 2 * gradients_of(model, images, labels), rtol=1e-4, atol=1e-7
    )


def test_dense_predictions_take_the_mean_over_the_pixels(images):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same")]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    masks = np.random.default_rng(0).integers(0, 4, (6, 8, 8))
    gradients = gradients_of(model, images, masks)
    step = 1e-2 * np.sign(gradients)
    loss = model.loss
    for k in range(2):
        rise = loss(masks[k], model(images[k : k + 1] + step[k])[0]) - loss(
            masks[k], model(images[k : k + 1] - step[k])[0]
        )
        np.testing.assert_allclose(2 * (gradients * step)[k].sum(), rise, rtol=2e-2)
    own = model.predict(images, verbose=0).argmax(-1)
    np.testing.assert_allclose(
        gradients_of(model, images), gradients_of(model, images, own), atol=1e-7
    )


@pytest.mark.parametrize("one_hot", [False, True])
def test_targets_descend(images, labels, one_hot):
    model = small_model()
    form = keras.utils.to_categorical if one_hot else (lambda y, _: y)
    loss = "categorical_crossentropy" if one_hot else "sparse_categorical_crossentropy"
    arguments = {"loss": lambda y, p: keras.losses.get(loss)(y, p, from_logits=True)}
    towards = (labels + 1) % 3
    expected = -gradients_of(model, images, form(towards, 3), **arguments)
    actual = gradients_of(
        model, images, form(labels, 3), target=form(towards, 3), **arguments
    )
    np.testing.assert_allclose(actual, expected, atol=1e-7)
    ids = gradients_of(model, images, form(labels, 3), target=towards, **arguments)
    np.testing.assert_allclose(ids, expected, atol=1e-7)

    logits = model.predict(images, verbose=0)
    logits[np.arange(6), labels] = -np.inf
    runner_up = form(logits.argmax(-1), 3)
    np.testing.assert_allclose(
        gradients_of(
            model,
            images,
            form(labels, 3),
            target="most_confident_wrong",
            **arguments,
        ),
        -gradients_of(model, images, runner_up, **arguments),
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "loss,activation",
    [("binary_crossentropy", "sigmoid"), ("categorical_crossentropy", "softmax")],
)
@pytest.mark.parametrize("target", ["most_confident_wrong", "random"])
def test_classes_that_are_present_are_no_targets(images, loss, activation, target):
    model = small_model(classes=4, activation=activation, compiled=False)
    arguments = {"loss": loss}
    labels = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [1, 0, 1, 1]] * 2, "float32")
    if loss == "categorical_crossentropy":
        labels /= labels.sum(axis=1, keepdims=True)
    actual = gradients_of(model, images, labels, target=target, **arguments)
    towards = [
        -gradients_of(model, images, labels=np.eye(4)[[k] * 6], **arguments)
        for k in range(4)
    ]
    for k, y in enumerate(labels):
        near = [np.allclose(actual[k], towards[c][k], atol=1e-7) for c in range(4)]
        assert sum(near) == 1 and y[near.index(True)] == 0
    everything = np.ones((6, 4), "float32")
    none = gradients_of(model, images, everything, target=target, **arguments)
    np.testing.assert_array_equal(none, 0)
    labels[0] = 1
    mixed = gradients_of(model, images, labels, target=target, **arguments)
    np.testing.assert_array_equal(mixed[0], 0)
    assert np.abs(mixed[1:]).max(axis=(1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    "loss,activation",
    [
        ("sparse_categorical_crossentropy", "softmax"),
        ("categorical_crossentropy", "softmax"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None),
    ],
)
def test_without_labels_the_most_likely_is_taken(images, loss, activation):
    model = small_model(activation=activation, compiled=False)
    model.compile("sgd", loss)
    own = model.predict(images, verbose=0).argmax(-1)
    if loss == "categorical_crossentropy":
        own = keras.utils.to_categorical(own, 3)
    np.testing.assert_allclose(
        gradients_of(model, images), gradients_of(model, images, own), atol=1e-7
    )


@pytest.mark.parametrize("from_logits", [False, True])
def test_without_binary_labels_the_threshold_fits_the_output(images, from_logits):
    model = small_model(
        classes=1, activation=None if from_logits else "sigmoid", compiled=False
    )
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    middle = 0.0 if from_logits else 0.5
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].activation = keras.activations.linear
    bias = bias - np.median(model(images))  # half of the images on either side
    model.layers[-1].activation = keras.activations.get(
        None if from_logits else "sigmoid"
    )
    model.layers[-1].set_weights([kernel, bias])
    own = (model.predict(images, verbose=0) > middle).astype("float32")
    assert 0 < own.sum() < 6
    np.testing.assert_allclose(
        gradients_of(model, images), gradients_of(model, images, own), atol=1e-7
    )


def test_float16_gradients_do_not_vanish(images, labels):
    expected = gradients_of(small_model(), images, labels)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = small_model()
    finally:
        keras.config.set_dtype_policy("float32")

    for size in (1e-6, 1.0, 1e6):

        def scaled(y, p, size=size):
            return size * keras.losses.sparse_categorical_crossentropy(y, p, True)

        actual = gradients_of(half, images, labels, loss=scaled)
        assert actual.dtype == np.float32
        error = np.abs(actual - size * expected).max()
        assert error < 0.05 * size * np.abs(expected).max()


def test_saturated_softmax_gives_zero_and_not_nan(images, labels):
    model = small_model(activation="softmax")
    dense = model.layers[-1]
    dense.set_weights([1e6 * w for w in dense.get_weights()])
    own = model.predict(images, verbose=0).argmax(-1)
    np.testing.assert_array_equal(gradients_of(model, images, own), 0)


@pytest.mark.backends("tensorflow", "torch")
def test_integer_inputs_are_warned_of(images, labels):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="does not depend on the images.*uint8"):
        gradients = gradients_of(model, (images * 255).astype("uint8"), labels)
    np.testing.assert_array_equal(gradients, 0)


def test_a_model_that_was_never_called_is_built(images, labels):
    model = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.abs(gradients_of(model, images, labels)).max() > 0


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "float16"])
def test_every_dtype_of_images(images, labels, dtype):
    model = small_model()
    given = (images * 10).astype(dtype)
    expected = gradients_of(model, given.astype("float32"), labels)
    np.testing.assert_allclose(gradients_of(model, given, labels), expected, atol=1e-6)


@pytest.mark.backends("tensorflow", "jax")
def test_pixels_without_a_label_get_no_target(images):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 1)])
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    model.compile("sgd", loss)
    masks = np.random.default_rng(0).integers(0, 4, (6, 8, 8))
    masks[:, :4] = 255
    for target in (None, "most_confident_wrong", "random"):
        gradients = np.abs(gradients_of(model, images, masks, target=target))
        assert gradients[:, :4].max() == 0 and gradients[:, 4:].min() > 0


def test_multi_label_models_threshold_each_label(images):
    model = small_model(activation="sigmoid", compiled=False)
    model.compile("sgd", "binary_crossentropy")
    own = (model.predict(images, verbose=0) > 0.5).astype("float32")
    np.testing.assert_allclose(
        gradients_of(model, images), gradients_of(model, images, own), atol=1e-7
    )


def test_one_hot_targets_beside_class_ids(images, labels):
    model = small_model()
    towards = (labels + 1) % 3
    np.testing.assert_allclose(
        gradients_of(model, images, labels, target=np.eye(3)[towards]),
        gradients_of(model, images, labels, target=towards),
        atol=1e-7,
    )


def test_bad_input_is_named(images, labels):
    model = small_model()
    regression = small_model(classes=1, compiled=False)
    with pytest.raises(ValueError, match="no labels.*Pass labels"):
        ksa.per_image_gradients(regression, images, loss="mse")
    with pytest.raises(ValueError, match=r"labels of shape \(4,\).*\(6, 8, 8, 1\)"):
        ksa.per_image_gradients(model, images, labels[:4])
    with pytest.raises(ValueError, match=r"labels of shape \(6, 2\).*loss fails"):
        ksa.per_image_gradients(model, images, np.zeros((6, 2)))
    with pytest.raises(ValueError, match="labels that are no real numbers"):
        ksa.per_image_gradients(model, images, ["a"] * 6)
    with pytest.raises(ValueError, match="labels without a batch axis"):
        ksa.per_image_gradients(model, images, 1)
    with pytest.raises(ValueError, match="target='nearest'.*most_confident_wrong"):
        ksa.per_image_gradients(model, images, labels, target="nearest")
    with pytest.raises(ValueError, match="no compiled loss.*Compile"):
        ksa.per_image_gradients(small_model(compiled=False), images, labels)
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    two = keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(2)(x)])
    two.compile("sgd", "mse")
    with pytest.raises(ValueError, match="labels .* for a model with the outputs"):
        ksa.per_image_gradients(two, images, labels)
    with pytest.raises(ValueError, match="Received inputs of shapes.*name the images"):
        ksa.per_image_gradients(two, [images, images], labels)
