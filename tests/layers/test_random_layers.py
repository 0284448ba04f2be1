"""RandomFlow and RandomRecoloring: the contract of the adversarial layers, no model."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from tests.models import small_model

KINDS = [ksa.RandomFlow, ksa.RandomRecoloring]
TWINS = {
    ksa.RandomFlow: ksa.AdversarialFlow,
    ksa.RandomRecoloring: ksa.AdversarialRecoloring,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def made(kind, **arguments):
    strength = (1.0, 1.0) if issubclass(kind, ksa.AdversarialFlow) else (0.1, 0.1)
    arguments = {"rate": 1.0, "seed": 1, "value_range": (0, 1)} | arguments
    return kind(strength, **arguments)


def test_it_needs_no_model_and_reports_its_strength(kind, images, labels):
    layer = made(kind)
    changed, same = layer(images, labels)
    assert np.abs(ops.convert_to_numpy(changed) - images).max() > 0.01
    np.testing.assert_array_equal(same, labels)
    augmented = layer.augment(images)
    expected = layer.size_of(augmented.fields)
    if kind is ksa.RandomRecoloring:
        change = ops.convert_to_numpy(augmented.images) - images
        expected = np.sqrt(np.mean(change**2, axis=(1, 2, 3)))
    np.testing.assert_allclose(augmented.sizes, expected, rtol=1e-4)
    assert augmented.gain is None
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_it_is_paired_with_its_twin(kind, images, labels):
    many, theirs = np.tile(images, (4, 1, 1, 1)), np.tile(labels, 4)
    layer = made(kind, rate=0.5)
    twin = made(TWINS[kind], rate=0.5).bind(small_model())
    for _ in range(3):
        random, adversarial = layer.augment(many), twin.augment(many, theirs)
        for ours, other in zip(random.selection, adversarial.selection):
            np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("place", ["callback", "inside", "inside, driven"])
def test_it_trains(kind, place, images, labels):
    layer, model = made(kind), small_model()
    if place != "callback":
        model = keras.Sequential([layer, model])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    callbacks = {
        "callback": [ksa.AdversarialTraining(layer)],
        "inside": [],
        "inside, driven": [ksa.AdversarialTraining()],
    }[place]
    history = model.fit(images, labels, verbose=0, callbacks=callbacks).history
    assert "adversarial_loss_gain" not in history
    if callbacks:
        strength = 1.0 if kind is ksa.RandomFlow else 0.1
        np.testing.assert_allclose(history[layer.measure_name], strength, rtol=0.2)
    if place != "callback":  # in inference it is the identity
        np.testing.assert_allclose(
            model.predict(images, verbose=0),
            model.layers[-1].predict(images, verbose=0),
            rtol=1e-5,
        )


def test_there_is_nothing_to_reuse(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}.*no gradient to reuse"):
        ksa.AdversarialTraining(kind(), gradient="reuse")


def test_it_is_saved_and_loaded(kind, images, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), made(kind), small_model()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is kind
    assert loaded.layers[0].get_config() == model.layers[0].get_config()


@pytest.mark.backends("tensorflow")
def test_it_works_in_a_tf_data_map_and_in_a_pipeline(kind, images, labels):
    import tensorflow as tf

    layer = made(kind)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    for given, (changed, y) in zip(np.split(images, 2), data.map(layer)):
        assert np.abs(changed.numpy() - given).max() > 0.01
        assert y.shape == (3,)
    pipeline = keras.layers.Pipeline([keras.layers.RandomFlip(seed=1), layer])
    data = data.map(lambda x, y: {"images": x, "labels": y}).map(pipeline)
    assert [x["images"].shape for x in data] == [(3, 8, 8, 1)] * 2


def test_masks_boxes_and_points_move_along(images):
    layer = made(ksa.RandomFlow, bounding_box_format="xyxy")
    masks = (images > 0.5).astype("int32")
    out = layer(
        {
            "images": masks.astype("float32"),
            "segmentation_masks": masks,
            "keypoints": np.full((6, 1, 2), 4.0, "float32"),
            "bounding_boxes": {
                "boxes": np.array([[[1.0, 1.0, 6.0, 6.0]]] * 6, "float32"),
                "labels": np.ones((6, 1), "int32"),
            },
        }
    )
    moved = ops.convert_to_numpy(out["segmentation_masks"])
    assert (moved != masks).any()
    agree = (ops.convert_to_numpy(out["images"]) > 0.5) == (moved > 0)
    assert agree.mean() > 0.95
    assert np.abs(ops.convert_to_numpy(out["keypoints"]) - 4).max() > 0.05
    assert (ops.convert_to_numpy(out["bounding_boxes"]["boxes"])[:, 0, 0] != 1).any()


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("kind", [*KINDS, *TWINS.values()])
def test_fields_can_be_had_without_applying_them(kind, data_format, images, labels):
    first = data_format == "channels_first"
    given = images.transpose(0, 3, 1, 2) if first else images
    layer = made(kind, rate=0.1, data_format=data_format)
    if layer.takes_gradient:
        model = small_model()
        inputs = keras.Input(given.shape[1:])
        x = keras.layers.Permute((2, 3, 1))(inputs) if first else inputs
        wrapped = keras.Model(inputs, model(x))
        wrapped.compile("sgd", model.loss)
        layer.bind(wrapped)
    before = given.copy()
    fields = layer.fields(given, labels)
    np.testing.assert_array_equal(given, before)
    channels = 2 if issubclass(kind, ksa.AdversarialFlow) else 1
    assert tuple(fields.shape) == (6, 8, 8, channels)
    strength = 1.0 if channels == 2 else 0.1
    np.testing.assert_allclose(layer.size_of(fields), strength, rtol=1e-4)
    changed = ops.convert_to_numpy(layer.apply(images, fields))
    assert np.abs(changed - images).max(axis=(1, 2, 3)).min() > 0
    with pytest.raises(ValueError, match=r"\(8, 8, 1\).*rank 4"):
        layer.fields(images[0])
    with pytest.raises(ValueError, match="labels of shape"):
        layer.fields(given, labels[:3])


def test_fields_take_the_labels_of_several_outputs(images, labels):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(inputs)
    outputs = {name: keras.layers.Dense(3, name=name)(x) for name in "ab"}
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"a": loss, "b": loss})
    layer = made(ksa.AdversarialFlow).bind(model)
    fields = layer.fields(images, {"a": labels, "b": labels})
    assert tuple(fields.shape) == (6, 8, 8, 2)
