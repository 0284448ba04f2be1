"""What Keras, KerasCV, NSL and ART ask of their own layers, asked of these."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import small_model

KINDS = [ksa.AdversarialFlow, ksa.AdversarialRecoloring]
FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
COMMON = {
    "rate": 0.25,
    "target": "random",
    "steps": 3,
    "step_size": 0.5,
    "random_start": True,
    "loss": "sparse_categorical_crossentropy",
    "value_range": (-1, 1),
    "seed": 7,
    "data_format": "channels_first",
    "bounding_box_format": "rel_xywh",
    "name": "adversary",
}
ARGUMENTS = {  # no default among them
    ksa.AdversarialFlow: {
        "max_displacement": (0.5, 2.0),
        "smoothness": 30.0,
        "alpha": 0.5,
        "solver": "dense",
        **COMMON,
    },
    ksa.AdversarialRecoloring: {
        "magnitude": (0.05, 0.2),
        "coherence": 2.0,
        "damping": 0.01,
        "edge_scale": 0.1,
        "lam": 3.0,
        "rank": 4,
        "rtol": 0.01,
        "max_iterations": 80,
        **COMMON,
    },
}


def numpy(x):
    return ops.convert_to_numpy(x)


def dtypes(structure):
    return keras.tree.map_structure(
        lambda x: keras.backend.standardize_dtype(x.dtype), structure
    )


def strength(kind, value):
    """Returns arguments for a fixed strength; a value of 1 is a usual one."""
    if kind is ksa.AdversarialFlow:
        return {"max_displacement": (value, value)}
    return {"magnitude": (0.1 * value, 0.1 * value)}


def bound(kind, model=None, value=1.0, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    layer = kind(**strength(kind, value), **kwargs)
    return layer.bind(model or small_model())


def host(kind, jit_compile="auto", **kwargs):
    """Returns a model with an adversarial layer inside."""
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kind(**strength(kind, 1.0), **kwargs),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), FROM_LOGITS, jit_compile=jit_compile)
    return model


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def annotated(images, labels):
    """Returns a batch with everything that may belong to images."""
    boxes = np.tile(np.array([[1, 1, 5, 6], [2, 3, 7, 7]], "float32"), (6, 1, 1))
    return {
        "images": images,
        "labels": labels,
        "segmentation_masks": (images > 0.5).astype("uint8"),
        "bounding_boxes": {"boxes": boxes, "labels": np.tile([1, 2], (6, 1))},
        "keypoints": np.tile(np.array([[2, 3], [4, 5]], "float32"), (6, 1, 1)),
    }


# Keras' checks of a layer.


def constructor_arguments(kind):
    parameters = {}
    for cls in kind.__mro__:
        if cls.__module__.startswith("keras_structadv"):
            parameters |= inspect.signature(cls.__init__).parameters
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("self", "name", "dtype") and parameter.kind not in variadic
    }


def test_every_argument_is_an_attribute_and_in_the_config(kind):
    arguments, defaults = ARGUMENTS[kind], constructor_arguments(kind)
    assert set(defaults) == set(arguments) - {"name"}
    for name, default in defaults.items():
        assert arguments[name] != default, name
    layer = kind(**arguments)
    config = layer.get_config()
    for name, value in arguments.items():
        assert config[name] == value and getattr(layer, name) == value, name
    plain = kind().get_config()
    for name, default in defaults.items():
        if name != "data_format":  # None becomes Keras' own
            assert plain[name] == default, name


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "bfloat16"])
def test_serialization_as_every_object_of_keras(kind, dtype):
    layer = kind(**ARGUMENTS[kind], dtype=dtype)
    config = layer.get_config()
    assert kind.from_config(config).get_config() == config
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is kind
    assert json.dumps(keras.saving.serialize_keras_object(again)) == text
    assert set(dir(again)) == set(dir(layer))
    assert again.compute_dtype == layer.compute_dtype
    # Through JSON a pair becomes a list, and has to mean the same.
    for name, value in ARGUMENTS[kind].items():
        assert getattr(again, name) == value, name


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(name="own"),
        keras.losses.sparse_categorical_crossentropy,
        "crossentropy",
    ],
    ids=["object", "function", "name"],
)
def test_every_form_of_a_loss_is_serialized(kind, loss, images, labels):
    layer = kind(loss=loss, rate=1.0, seed=1, value_range=(0, 1))
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    softmax = small_model(activation="softmax", compiled=False)
    expected = numpy(layer.bind(softmax)(images, labels)[0])
    assert np.abs(expected - images).max() > 1e-3
    np.testing.assert_allclose(
        again.bind(softmax)(images, labels)[0], expected, atol=1e-6
    )


def test_the_only_variable_is_the_state_of_the_seed(kind, images, labels):
    layer = bound(kind)
    for _ in range(2):
        layer(images, labels)
        assert layer.built and layer.losses == []
        assert layer.trainable_weights == layer.non_trainable_weights == []
        assert layer.trainable_variables == []
        assert [v.path for v in layer.variables] == [layer.seed_generator.state.path]
    assert layer.count_params() == 0


@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.parametrize("dtype", ["mixed_float16", "float16", "bfloat16"])
def test_only_the_images_take_the_compute_dtype(kind, dtype, annotated):
    model = small_model()
    layer = bound(kind, model, dtype=dtype, bounding_box_format="xyxy")
    out = layer(annotated)
    expected = {**dtypes(annotated), "images": dtype.removeprefix("mixed_")}
    assert dtypes(out) == expected
    full = bound(kind, model, bounding_box_format="xyxy")(annotated)
    # The field itself is float32 whatever the dtype of the layer.
    np.testing.assert_array_equal(out["segmentation_masks"], full["segmentation_masks"])
    np.testing.assert_array_equal(out["keypoints"], full["keypoints"])
    atol = 5e-3 if dtype == "bfloat16" else 1e-3
    images = numpy(ops.cast(out["images"], "float32"))
    np.testing.assert_allclose(images, full["images"], atol=atol)
    at_rest = layer(annotated, training=False)
    assert dtypes(at_rest) == expected


@pytest.mark.backends("tensorflow", "torch")
def test_symbolic_outputs_are_those_of_a_call(kind, annotated):
    layer = bound(kind, dtype="mixed_float16", bounding_box_format="xyxy")

    def symbol(x):
        return keras.KerasTensor((None, *x.shape[1:]), dtype=str(x.dtype))

    def assert_agree(symbolic, eager):
        keras.tree.assert_same_structure(symbolic, eager)
        assert dtypes(symbolic) == dtypes(eager)
        for a, b in zip(keras.tree.flatten(symbolic), keras.tree.flatten(eager)):
            assert (6, *a.shape[1:]) == tuple(b.shape) and a.shape[0] is None

    images, labels = annotated["images"], annotated["labels"]
    weights = np.linspace(0, 1, 6)
    for arguments in (
        (images,),
        (images, labels),
        (images, labels, weights),
        (annotated,),
        ({"images": images},),
    ):
        symbols = keras.tree.map_structure(symbol, arguments)
        assert_agree(layer(*symbols), layer(*arguments))
    assert layer.compute_output_shape((None, 8, 8, 1)) == (None, 8, 8, 1)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_model_with_the_layer_learns_and_is_saved(
    kind, jit_compile, images, labels, tmp_path
):
    model = host(kind, jit_compile)
    history = model.fit(
        images,
        labels,
        batch_size=3,
        epochs=12,
        verbose=0,
        callbacks=[ksa.AdversarialTraining()],
    ).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert min(history["adversarial_loss_gain"]) > 0
    expected = model(images, training=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images, training=False), expected)
    np.testing.assert_allclose(
        again.predict(images, verbose=0), numpy(expected), atol=1e-5
    )
    assert again.layers[0].get_config() == model.layers[0].get_config()


def test_a_cloned_model_has_a_layer_of_its_own(kind, images, labels):
    model = host(kind)
    model.layers[0].bind(model)
    clone = keras.models.clone_model(model)
    old, new = model.layers[0], clone.layers[0]
    assert new is not old and new.get_config() == old.get_config()
    assert old.binding.model is model and new.binding.model is None
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        clone.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    new.bind(clone, loss=FROM_LOGITS)
    np.testing.assert_allclose(
        new(images, labels)[0], old(images, labels)[0], atol=1e-6
    )


def without_the_layer(model):
    return keras.Sequential([keras.Input((8, 8, 1)), *model.layers[1:]])


@pytest.mark.backends("tensorflow")
def test_the_layer_in_a_function_for_inference_is_the_identity(kind, images):
    tf = pytest.importorskip("tensorflow")
    model = host(kind)
    serve = tf.function(lambda x: model(x, training=False))
    expected = without_the_layer(model)(images)
    np.testing.assert_allclose(serve(images), expected, atol=1e-6)


@pytest.mark.backends("tensorflow")
def test_an_exported_model_is_the_plain_one(kind, images, tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = host(kind)
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    expected = without_the_layer(model)(images)
    np.testing.assert_allclose(served.serve(images), expected, atol=1e-5)
    # Bound as well, and called without a mode.
    model.layers[0].bind(model)
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


def test_python_labels_by_name(kind, images, labels):
    model = small_model()
    out = bound(kind, model)(images, labels=labels.tolist())
    np.testing.assert_array_equal(out[1], labels)
    np.testing.assert_array_equal(out[0], bound(kind, model)(images, labels)[0])


def test_arguments_by_name(kind, images, labels):
    model, weights = small_model(), np.linspace(0, 1, 6)
    named = bound(kind, model)(images=images, labels=labels, sample_weight=weights)
    placed = bound(kind, model)(images, labels, weights)
    assert len(named) == 3
    for a, b in zip(named, placed):
        np.testing.assert_array_equal(a, b)


def test_an_empty_batch_stays_empty(kind, images, labels):
    out = bound(kind)(images[:0], labels[:0])
    assert tuple(out[0].shape) == (0, 8, 8, 1) and tuple(out[1].shape) == (0,)


# Dicts, masks and data sets.


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "bool"])
def test_masks_move_along_the_field_in_their_dtype(dtype, channels, images, labels):
    model = small_model()
    masks = np.random.default_rng(0).integers(0, 9, (6, 8, 8, channels or 1))
    masks = (masks > 4 if dtype == "bool" else masks).astype(dtype)
    given = masks if channels else masks[..., 0]
    layer = bound(ksa.AdversarialFlow, model, 2.0)
    out = layer({"images": images, "labels": labels, "segmentation_masks": given})
    field = bound(ksa.AdversarialFlow, model, 2.0).augment(images, labels).fields
    expected = ksa.dense_image_warp(masks, field, interpolation="nearest")
    expected = numpy(expected) if channels else numpy(expected)[..., 0]
    moved = numpy(out["segmentation_masks"])
    assert moved.dtype == dtype and moved.shape == given.shape
    np.testing.assert_array_equal(moved, expected)
    assert np.mean(moved != given) > 0.05
    np.testing.assert_array_equal(out["labels"], labels)
    one = {"images": images[2], "labels": labels[2], "segmentation_masks": given[2]}
    alone = numpy(bound(ksa.AdversarialFlow, model, 2.0)(one)["segmentation_masks"])
    assert alone.dtype == dtype
    assert np.mean(alone == expected[2]) > 0.95  # rounding may tip a pixel


def part_of(data, which):
    return keras.tree.map_structure(lambda x: x[which], data)


@pytest.mark.backends("tensorflow")
def test_a_data_set_gives_what_a_call_gives(kind, annotated):
    tf = pytest.importorskip("tensorflow")
    model = small_model()

    def make():
        return bound(kind, model, 2.0, rate=0.5, bounding_box_format="xyxy")

    layer, direct = make(), make()
    data = {**annotated, "file": np.array([f"{k}.png" for k in range(6)])}
    sets = tf.data.Dataset.from_tensor_slices(data).batch(3)
    sets = sets.map(layer, num_parallel_calls=1)
    for _ in range(2):  # the second time with other draws, and other weights
        for start, out in zip((0, 3), sets):
            part = part_of(annotated, slice(start, start + 3))
            expected = direct(part)
            names = [f"{k}.png".encode() for k in range(start, start + 3)]
            assert list(out.pop("file").numpy()) == names
            assert dtypes(out) == dtypes(expected)
            for a, b in zip(keras.tree.flatten(out), keras.tree.flatten(expected)):
                np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-4)
            change = np.abs(out["images"] - part["images"]).max(axis=(1, 2, 3))
            assert (change > 0).sum() in (1, 2)
        model.set_weights([w + 0.2 for w in model.get_weights()])


@pytest.mark.backends("tensorflow")
def test_a_data_set_of_single_images(kind, annotated):
    tf = pytest.importorskip("tensorflow")
    model = small_model()
    layer, direct = bound(kind, model), bound(kind, model)
    keys = ("images", "labels", "segmentation_masks")
    annotated = {key: annotated[key] for key in keys}
    sets = tf.data.Dataset.from_tensor_slices(annotated).map(layer)
    for k, out in enumerate(sets.take(3)):
        expected = direct(part_of(annotated, k))
        assert dtypes(out) == dtypes(annotated)
        for a, b in zip(keras.tree.flatten(out), keras.tree.flatten(expected)):
            np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-4)
        assert np.abs(out["images"] - annotated["images"][k]).max() > 0.01


def test_other_keys_and_structures_pass_through(kind, images, labels):
    nested = {"a": [np.arange(6), "text"], "b": None}
    data = {"images": images, "labels": labels, "meta": nested, "weights": labels * 2.0}
    out = bound(kind)(data)
    assert list(out) == list(data)
    assert out["meta"] is nested and out["weights"] is data["weights"]
    np.testing.assert_array_equal(out["labels"], labels)


@pytest.mark.backends("tensorflow")
def test_ragged_images_are_named(kind, images, labels):
    tf = pytest.importorskip("tensorflow")
    ragged = tf.ragged.stack([tf.constant(images[0]), tf.constant(images[1, :5, :6])])
    layer = bound(kind)
    for given in (ragged, {"images": ragged, "labels": labels[:2]}):
        with pytest.raises(ValueError, match=r"ragged images.*[Rr]esiz"):
            layer(given)
    sets = tf.data.Dataset.from_tensors({"images": ragged, "labels": labels[:2]})
    with pytest.raises(ValueError, match=r"ragged images.*[Rr]esiz"):
        sets.map(layer)
    padded = layer(ragged.to_tensor(shape=(2, 8, 8, 1)), labels[:2])[0]
    assert tuple(padded.shape) == (2, 8, 8, 1) and np.isfinite(padded).all()


# Adversarial regularization.


def test_sample_weights_count_in_the_loss_and_not_in_the_direction(
    kind, images, labels
):
    results = []
    for weights in (np.ones(6), np.array([0, 3, 1, 2, 0, 5.0])):
        keras.utils.set_random_seed(0)
        model = host(kind)
        model.compile(keras.optimizers.SGD(0.1), FROM_LOGITS, run_eagerly=True)
        start = model.get_weights()
        history = model.fit(
            images,
            labels,
            sample_weight=weights,
            shuffle=False,
            batch_size=6,
            verbose=0,
            callbacks=[ksa.AdversarialTraining()],
        ).history
        by_hand = host(kind)
        by_hand.set_weights(start)
        moved = by_hand.layers[0].bind(by_hand)(images, labels)[0]
        loss = FROM_LOGITS(
            labels, by_hand(moved, training=False), sample_weight=weights
        )
        np.testing.assert_allclose(history["loss"][0], float(loss), rtol=1e-4)
        results.append((history["adversarial_loss_gain"][0], model.get_weights()[0]))
    (gain, kernel), (weighted_gain, weighted_kernel) = results
    np.testing.assert_allclose(gain, weighted_gain, rtol=1e-5)
    assert np.abs(kernel - weighted_kernel).max() > 1e-3


def test_sample_weights_do_not_change_the_images(kind, images, labels):
    model = small_model()
    out = bound(kind, model)(images, labels, np.linspace(0, 9, 6))
    np.testing.assert_array_equal(out[0], bound(kind, model)(images, labels)[0])


def own_loss(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p)


@pytest.mark.parametrize(
    "kind,place",
    [(KINDS[0], "constructor"), (KINDS[0], "bind"), (KINDS[0], "compile")]
    + [(KINDS[1], "constructor")],
)
def test_a_loss_means_the_same_in_every_form(kind, place, images, labels):
    one_hot = keras.utils.to_categorical(labels, 3)
    fields = []
    for loss, given in (
        ("sparse_categorical_crossentropy", labels),
        (keras.losses.SparseCategoricalCrossentropy(), labels),
        (keras.losses.SparseCategoricalCrossentropy(reduction="sum"), labels),
        (keras.losses.sparse_categorical_crossentropy, labels),
        (own_loss, labels),
        (own_loss, labels[:, None]),
        ("categorical_crossentropy", one_hot),
        (keras.losses.CategoricalCrossentropy(), one_hot),
    ):
        keras.utils.set_random_seed(0)
        model = small_model(activation="softmax", compiled=False)
        if place == "compile":
            model.compile("sgd", loss)
        arguments = {"loss": loss} if place == "constructor" else {}
        layer = bound(kind, model, **arguments)
        if place == "bind":
            layer.bind(model, loss=loss)
        fields.append(numpy(layer.augment(images, given).fields))
    assert np.abs(fields[0]).max() > 0.05
    for field in fields[1:]:
        np.testing.assert_allclose(field, fields[0], atol=2e-3)


@pytest.fixture
def two_outputs():
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="tanh")(inputs))
    outputs = {"class": layers.Dense(3)(x), "place": layers.Dense(2)(x)}
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.1),
        {"class": FROM_LOGITS, "place": "mse"},
        loss_weights={"class": 1.0, "place": 0.5},
    )
    return model


@pytest.mark.backends("tensorflow", "torch")
def test_two_outputs_add_their_losses(kind, two_outputs, images, labels):
    model = two_outputs
    places = np.random.default_rng(0).uniform(size=(6, 2)).astype("float32")
    given = {"class": labels, "place": places}
    layer = bound(kind, model)
    out, theirs = layer(images, given)
    np.testing.assert_array_equal(theirs["class"], labels)
    np.testing.assert_array_equal(theirs["place"], places)
    assert dtypes(theirs) == {"class": "int64", "place": "float32"}
    gradient = 0.0
    for name, weight, loss in (("class", 1.0, FROM_LOGITS), ("place", 0.5, "mse")):
        head = keras.Model(model.inputs, model.output[name])
        part = ksa.per_image_gradients(head, images, given[name], loss=loss)
        gradient = gradient + weight * numpy(part)
    size = numpy(layer.draw_strength(ops.array(images)))
    expected = layer.apply(
        ops.array(images), layer.make_field(ops.array(images), gradient, size)
    )
    np.testing.assert_allclose(out, expected, atol=1e-4)
    as_dict = bound(kind, model)({"images": images, "labels": given})
    np.testing.assert_allclose(as_dict["images"], out, atol=1e-6)


def test_two_outputs_are_trained(two_outputs, images, labels):
    places = np.random.default_rng(0).uniform(size=(6, 2)).astype("float32")
    given = {"class": labels, "place": places}
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow((1, 1), rate=1.0, seed=1))
    start = two_outputs.get_weights()
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    history = two_outputs.fit(images, given, **fit, callbacks=[callback]).history
    assert history["adversarial_loss_gain"][0] > 0
    trained = two_outputs.get_weights()
    two_outputs.set_weights(start)
    moved = bound(ksa.AdversarialFlow, two_outputs)(images, given)[0]
    two_outputs.train_on_batch(numpy(moved), given)
    for a, b in zip(trained, two_outputs.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-5)


# An attack.


@pytest.mark.backends("tensorflow", "torch")
def test_what_is_passed_stays_to_the_bit(kind, annotated):
    given = keras.tree.map_structure(np.array, annotated)
    for x in keras.tree.flatten(given):
        x.flags.writeable = False
    layer = bound(kind, value=2.0, steps=2, bounding_box_format="xyxy")
    out = layer(given)
    assert np.abs(numpy(out["images"]) - annotated["images"]).max() > 0.01
    for a, b in zip(keras.tree.flatten(given), keras.tree.flatten(annotated)):
        assert a.tobytes() == b.tobytes()
    tensors = keras.tree.map_structure(ops.convert_to_tensor, annotated)
    layer(tensors)
    for a, b in zip(keras.tree.flatten(tensors), keras.tree.flatten(annotated)):
        assert numpy(a).tobytes() == b.tobytes()


BAD = {
    None: {
        "rate": [-0.1, 1.1, float("nan"), None, "half"],
        "steps": [-1, 0, 1.0, None, "two"],
        "step_size": [0, -1, float("nan"), float("inf"), "1", True],
        "random_start": [None, 1, "yes", (0, 1)],
        "target": ["wrong", 3, True],
        "value_range": [None, 1, (0,), (1, 1), (0, float("inf")), ("a", "b")],
        "seed": [1.5, "seven"],
        "data_format": ["channels", 1],
        "bounding_box_format": ["coco", 4],
    },
    ksa.AdversarialFlow: {
        "max_displacement": [float("nan"), float("inf"), "3", (1, 0), (-1, 1), ()],
        "smoothness": [float("nan"), float("inf"), "100", True],
        "alpha": [0, float("nan"), float("inf"), "1"],
        "solver": [None, "DCT", 1],
    },
    ksa.AdversarialRecoloring: {
        "magnitude": [-1, float("nan"), float("inf"), "3", (0.1, None), ()],
        "coherence": [float("nan"), float("inf"), None, "1"],
        "damping": [-1, float("nan"), "1", True],
        "edge_scale": [0, -1, float("inf"), "1"],
        "lam": [0, float("nan"), float("inf"), "1"],
        "rank": [-1, 1.0, True, "4"],
        "rtol": [-0.1, float("nan"), None],
        "max_iterations": [0, None, True, "many"],
    },
}
CASES = [
    (kind, name, value)
    for kind in KINDS
    for table in (BAD[None], BAD[kind])
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize("kind,name,value", CASES, ids=str)
def test_bad_values_name_their_argument(kind, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        kind(**{name: value})


def accuracy(model, images, labels):
    return np.mean(numpy(model(images)).argmax(-1) == labels)


@pytest.mark.parametrize("target", [None, "most_confident_wrong"])
def test_a_trained_model_errs_more_often(kind, target, trained):
    model, x, y = trained
    x, y = x[:192], y[:192]
    shares = [accuracy(model, x, y)]
    for value in (1.0, 3.0):
        layer = kind(**strength(kind, value), rate=1.0, seed=0, target=target)
        out = numpy(layer.bind(model)(x, y)[0])
        assert np.isfinite(out).all()
        assert out.min() >= 0 and out.max() < 255 + 1e-3  # up to rounding
        shares.append(accuracy(model, out, y))
    assert shares[0] > 0.9
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < shares[0] - 0.1


def test_repeating_makes_the_attack_stronger(kind, trained):
    model, x, y = trained
    x, y = x[:128], y[:128]
    shares = []
    value = 1.5 if kind is ksa.AdversarialFlow else 0.5
    for steps in (1, 10):
        layer = kind(**strength(kind, value), rate=1.0, seed=0, steps=steps)
        shares.append(accuracy(model, numpy(layer.bind(model)(x, y)[0]), y))
    assert shares[1] < shares[0] - 0.05


def test_nothing_is_lost_where_nothing_can_be_done(kind, trained):
    model, x, y = trained
    flat = np.stack([np.zeros_like(x[0]), np.full_like(x[0], 255), x[0]])
    out = numpy(bound(kind, model, value_range=(0, 255))(flat, y[:3])[0])
    assert np.isfinite(out).all() and np.abs(out[2] - flat[2]).max() > 1
    if kind is ksa.AdversarialFlow:
        np.testing.assert_array_equal(out[:2], flat[:2])
