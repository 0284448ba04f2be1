"""The layers among those of Keras and of KerasCV."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.backends import keras_version
from tests.models import small_model

SOFT = keras.losses.CategoricalCrossentropy(from_logits=True)
EACH = {  # of the same seed at each call, for equal results
    "flip": lambda model, **kwargs: layers.RandomFlip(seed=1, **kwargs),
    "shift": lambda model, **kwargs: layers.RandomTranslation(
        0.2, 0.2, seed=2, **kwargs
    ),
    "flow": lambda model, **kwargs: flow(model, **kwargs),
    "recolor": lambda model, **kwargs: recolor(model, **kwargs),
    "scale": lambda model: layers.Rescaling(0.5, offset=0.25),
}
ORDERS = [
    "flow recolor",
    "recolor flow",
    "flip flow shift recolor",
    "recolor shift flow flip",
]


def numpy(x):
    return ops.convert_to_numpy(x)


def flow(model, **kwargs):
    kwargs = {"rate": 1.0, "seed": 3, **kwargs}
    return ksa.AdversarialFlow((1.5, 1.5), 100.0, **kwargs).bind(model)


def recolor(model, **kwargs):
    kwargs = {"magnitude": (0.1, 0.1), "rate": 1.0, "seed": 4, **kwargs}
    return ksa.AdversarialRecoloring(value_range=(0, 1), **kwargs).bind(model)


def stages(order, model, **kwargs):
    return [EACH[name](model, **kwargs) for name in order.split()]


def one_by_one(stages, data):
    for stage in stages:
        data = stage(data)
    return data


def largest_change(before, after):
    return np.abs(numpy(after) - numpy(before)).max(axis=(1, 2, 3))


def only_batch(data, stage):
    """Returns what a stage makes of data as the one batch of a data set."""
    tf = pytest.importorskip("tensorflow")
    batches = tf.data.Dataset.from_tensor_slices(data).batch(6)
    return next(iter(batches.map(stage, num_parallel_calls=2)))


def assert_equal(actual, expected, atol=1e-5):
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected)):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=atol)


@pytest.fixture
def keras_cv():
    return pytest.importorskip("keras_cv")


@pytest.fixture
def colours(images):
    return np.concatenate([images, images[::-1], 1 - images], axis=-1)


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def colour_model():
    return small_model(shape=(8, 8, 3))


@pytest.fixture
def discs():
    """Returns images of a disc on slanted ground, and a model that looks at them."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(6, 10, (6, 2, 1, 1))
    y, x = np.mgrid[:16, :16]
    distance = np.hypot(y - centres[:, 0], x - centres[:, 1])
    red = 1 / (1 + np.exp(2 * (distance - 4)))
    ground = np.broadcast_to((y + x) / 40, red.shape)
    images = np.stack([red, ground, 1 - red], axis=-1).astype("float32")
    return small_model(shape=(16, 16, 3)), images


def is_disc(images):
    return numpy(images)[..., :1] > 0.5


def assert_masks_moved(before, after, images):
    """Asserts that masks are on the discs, and that they would not be had they stayed.

    Up to pixels on the rim: masks move to the nearest pixel, images in between.
    """
    assert set(np.unique(after)) == {0, 1}
    wrong, stale = (np.mean(masks != is_disc(images)) for masks in (after, before))
    assert wrong < 0.03 and wrong < 0.4 * stale


# keras.layers.Pipeline.


@pytest.mark.parametrize("order", [*ORDERS, "flip flow scale recolor"])
def test_a_pipeline_is_one_layer_after_the_other(order, model, images):
    out = layers.Pipeline(stages(order, model))(images)
    np.testing.assert_allclose(out, one_by_one(stages(order, model), images), atol=1e-6)
    ours = ("flow", "recolor")
    rest = " ".join(name for name in order.split() if name not in ours)
    without = one_by_one(stages(rest, model), images)
    assert largest_change(without, out).min() > 0.01  # of each image


@pytest.mark.parametrize(
    "order,as_data_set",
    [
        *((order, False) for order in ORDERS),
        ("flow recolor", True),
        ("flip flow shift recolor", True),
    ],
)
def test_a_pipeline_of_dicts(order, as_data_set, model, images, labels):
    data = {
        "images": images,
        "labels": labels,
        "segmentation_masks": (images > 0.5).astype("uint8"),
        "names": np.arange(6),
    }
    known = {key: x for key, x in data.items() if key != "names"}
    expected = one_by_one(stages(order, model), known)
    pipeline = layers.Pipeline(stages(order, model))
    out = only_batch(data, pipeline) if as_data_set else pipeline(data)
    np.testing.assert_array_equal(out.pop("names"), data["names"])
    assert_equal(out, expected)
    np.testing.assert_array_equal(out["labels"], labels)
    if order == "flow recolor":  # Keras' own layers cast labels in a data set
        assert numpy(out["labels"]).dtype == "int64"
        assert numpy(out["segmentation_masks"]).dtype == "uint8"
    assert np.any(numpy(out["segmentation_masks"]) != data["segmentation_masks"])
    assert largest_change(images, out["images"]).min() > 0.01


def test_the_labels_decide_also_behind_other_layers(model, images, labels):
    def run(labels):
        pipeline = layers.Pipeline(stages("flip flow", model))
        return numpy(pipeline({"images": images, "labels": labels})["images"])

    other = labels.copy()
    other[2] = 0
    changed = largest_change(run(labels), run(other))
    assert changed[2] > 0.01
    np.testing.assert_allclose(np.delete(changed, 2), 0, atol=1e-6)


def test_a_pipeline_at_inference_is_the_identity(model, images, labels):
    pipeline = layers.Pipeline(stages("flip flow shift recolor", model))
    out = pipeline({"images": images, "labels": labels}, training=False)
    np.testing.assert_array_equal(out["images"], images)


@pytest.mark.parametrize(
    "order",
    [
        *("flow", "flip flow"),
        pytest.param(
            "flow shift",
            marks=pytest.mark.skipif(
                keras_version() < (3, 14), reason="RandomTranslation blends masks"
            ),
        ),
    ],
)
def test_masks_stay_on_what_they_mark(order, discs):
    model, images = discs
    masks = is_disc(images).astype("float32")
    out = layers.Pipeline(stages(order, model))(
        {"images": images, "segmentation_masks": masks}
    )
    assert_masks_moved(masks, numpy(out["segmentation_masks"]), out["images"])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_our_layers_alone_keep_the_dtype_of_masks(dtype, discs):
    model, images = discs
    data = {"images": images, "segmentation_masks": is_disc(images).astype(dtype)}
    out = layers.Pipeline(stages("flow recolor", model))(data)
    moved = numpy(out["segmentation_masks"])
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, numpy(flow(model)(data)["segmentation_masks"]))
    assert np.any(moved != data["segmentation_masks"])


def box_of(masks):
    boxes = []
    for mask in masks[..., 0]:
        y, x = np.nonzero(mask)
        boxes.append([[x.min(), y.min(), x.max() + 1, y.max() + 1]])
    return np.array(boxes, "float32")


@pytest.mark.parametrize("order", ["flow", "flip flow", "flow flip recolor"])
def test_boxes_stay_around_what_they_hold(order, discs):
    model, images = discs
    boxes = {"boxes": box_of(is_disc(images)), "labels": np.full((6, 1), 2)}
    made = stages(order, model, bounding_box_format="xyxy")
    out = layers.Pipeline(made)({"images": images, "bounding_boxes": boxes})
    moved = numpy(out["bounding_boxes"]["boxes"])
    expected = box_of(is_disc(out["images"]))
    assert np.abs(moved - boxes["boxes"]).max() > 1
    assert np.abs(moved - expected).mean() < 0.5
    assert np.abs(moved - expected).max() <= 1.5
    np.testing.assert_array_equal(out["bounding_boxes"]["labels"], boxes["labels"])


def test_a_pipeline_is_saved_and_loaded(model, images):
    pipeline = layers.Pipeline(stages("flip flow recolor", model))
    config = keras.saving.serialize_keras_object(pipeline)
    again = keras.saving.deserialize_keras_object(config)
    assert [type(layer) for layer in again.layers] == [
        layers.RandomFlip,
        ksa.AdversarialFlow,
        ksa.AdversarialRecoloring,
    ]
    for old, new in zip(pipeline.layers, again.layers):
        assert new.get_config() == old.get_config()
    for layer in again.layers[1:]:
        assert layer.binding.model is None
        layer.bind(model)
    np.testing.assert_allclose(again(images), pipeline(images), atol=1e-6)


@pytest.mark.parametrize("composite", [keras.Sequential, layers.Pipeline])
def test_among_others_inside_a_model(composite, images, labels, tmp_path):
    inside = [
        layers.RandomFlip(seed=1),
        ksa.AdversarialFlow((1, 1), rate=1.0, seed=3),
    ]
    host = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            composite(inside),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    host.compile("sgd", loss)
    history = host.fit(
        images, labels, verbose=0, callbacks=[ksa.AdversarialTraining()]
    ).history
    assert host.layers[0].layers[1].binding.model is None
    np.testing.assert_allclose(history["mean_displacement"], 1, rtol=1e-5)
    expected = host.predict(images, verbose=0)
    flat = images.reshape(6, -1) @ host.get_weights()[0] + host.get_weights()[1]
    np.testing.assert_allclose(expected, flat, atol=1e-5)
    host.save(tmp_path / "host.keras")
    again = keras.saving.load_model(tmp_path / "host.keras")
    np.testing.assert_array_equal(again.predict(images, verbose=0), expected)
    assert again.layers[0].layers[1].max_displacement == (1, 1)


# KerasCV's.


def test_an_augmenter_of_both_kinds(keras_cv, colour_model, colours, labels):
    seen = []
    hue = keras_cv.layers.RandomHue(0.3, (0, 1))

    def recorded(data):
        seen.append(hue(data))
        return seen[-1]

    made = stages("flow recolor", colour_model)
    augmenter = keras_cv.layers.Augmenter(
        [keras_cv.layers.RandomFlip(), recorded, *made]
    )
    out = augmenter({"images": colours, "labels": labels})
    expected = one_by_one(stages("flow recolor", colour_model), seen[0])
    assert_equal(out, expected)
    np.testing.assert_array_equal(out["labels"], labels)
    assert largest_change(seen[0]["images"], out["images"]).min() > 0.01
    # KerasCV's layers behind ours take what ours return.
    after = keras_cv.layers.Augmenter([*made, keras_cv.layers.Rescaling(0.5)])
    again = stages("flow recolor", colour_model)
    for layer, other in zip(again, made):
        layer.seed_generator.state.assign(other.seed_generator.state)
    expected = 0.5 * numpy(one_by_one(again, colours))
    np.testing.assert_allclose(after(colours), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["CutMix", "MixUp"])
def test_mixed_images_are_moved_for_their_soft_labels(
    name, keras_cv, colour_model, colours, labels
):
    mix, seen = getattr(keras_cv.layers, name)(seed=1), []

    def recorded(data):
        seen.append(mix(data))
        return seen[-1]

    soft = keras.utils.to_categorical(labels, 3).astype("float32")
    data = {"images": ops.array(colours), "labels": ops.array(soft)}
    made = flow(colour_model, loss=SOFT)
    out = keras_cv.layers.Augmenter([recorded, made])(data)
    mixed = seen[0]
    assert np.any(numpy(mixed["labels"]) != soft)
    np.testing.assert_array_equal(out["labels"], mixed["labels"])
    gradients = ksa.per_image_gradients(
        colour_model, mixed["images"], mixed["labels"], loss=SOFT
    )
    field = ksa.adversarial_flow(
        mixed["images"], gradients, smoothness=100.0, max_displacement=1.5
    )
    expected = ksa.dense_image_warp(mixed["images"], field)
    np.testing.assert_allclose(out["images"], expected, atol=1e-4)
    assert largest_change(mixed["images"], out["images"]).min() > 0.01
    tf = pytest.importorskip("tensorflow")
    sets = tf.data.Dataset.from_tensor_slices({"images": colours, "labels": soft})
    out = next(iter(sets.batch(6).map(keras_cv.layers.Augmenter([mix, made]))))
    np.testing.assert_allclose(out["labels"].numpy().sum(axis=1), 1, atol=1e-5)
    assert np.isfinite(out["images"]).all()


def test_masks_move_with_the_image_in_an_augmenter(keras_cv, discs):
    model, images = discs
    masks = is_disc(images).astype("float32")
    data = {"images": images, "segmentation_masks": masks}
    for before in (False, True):
        made = [flow(model), keras_cv.layers.RandomFlip("horizontal", rate=1.0)]
        out = keras_cv.layers.Augmenter(made[::-1] if before else made)(data)
        flipped = masks[:, :, ::-1]
        assert_masks_moved(flipped, numpy(out["segmentation_masks"]), out["images"])


def test_boxes_in_the_form_of_keras_cv(keras_cv, discs):
    model, images = discs
    tight = box_of(is_disc(images))
    none = np.full_like(tight, -1)
    data = {
        "images": ops.array(images),
        "bounding_boxes": {
            "boxes": ops.array(np.concatenate([tight, none], axis=1)),
            "classes": ops.array(np.tile([[2.0, -1.0]], (6, 1))),
        },
    }
    flip = keras_cv.layers.RandomFlip(
        "horizontal", rate=1.0, bounding_box_format="xyxy"
    )
    made = flow(model, bounding_box_format="xyxy")
    out = made(data)["bounding_boxes"]
    assert set(out) == {"boxes", "classes"}
    np.testing.assert_array_equal(out["classes"], np.tile([[2, -1]], (6, 1)))
    np.testing.assert_array_equal(numpy(out["boxes"])[:, 1:], none)

    def dense(data):
        boxes = keras_cv.bounding_box.to_dense(data["bounding_boxes"])
        return {**data, "bounding_boxes": boxes}

    for order in ([made, flip, dense], [flip, dense, made]):
        out = keras_cv.layers.Augmenter(order)(data)
        expected = box_of(is_disc(out["images"]))
        moved = numpy(out["bounding_boxes"]["boxes"])[:, :1]
        assert np.abs(moved - expected).mean() < 0.5
        assert np.abs(moved - expected).max() <= 1.5
        np.testing.assert_array_equal(numpy(out["bounding_boxes"]["classes"])[:, 0], 2)
    # Those of KerasCV leave ragged boxes; without a conversion that is named.
    with pytest.raises(ValueError, match="ragged.*make ragged ones dense"):
        keras_cv.layers.Augmenter([flip, made])(data)


@pytest.mark.parametrize("order", ["flow", "recolor"])
def test_a_random_augmentation_pipeline_takes_image_by_image(
    order, keras_cv, colour_model, colours, labels
):
    pipeline = keras_cv.layers.RandomAugmentationPipeline(
        stages(order, colour_model), augmentations_per_image=2, seed=1
    )
    colours, labels = colours[:3], labels[:3]
    out = pipeline({"images": colours, "labels": labels})
    (by_hand,) = stages(order, colour_model)
    for k in range(3):
        expected = colours[k]
        for _ in range(2):
            expected = numpy(by_hand(expected, labels[k])[0])
        np.testing.assert_allclose(out["images"][k], expected, atol=1e-5)
    assert numpy(out["labels"]).dtype == labels.dtype
    np.testing.assert_array_equal(out["labels"], labels)


def test_a_random_augmentation_pipeline_of_both_kinds(
    keras_cv, colour_model, colours, labels
):
    pipeline = keras_cv.layers.RandomAugmentationPipeline(
        [
            flow(colour_model),
            recolor(colour_model),
            keras_cv.layers.RandomHue((0.2, 0.3), (0, 1)),
        ],
        augmentations_per_image=2,
        rate=1.0,
        seed=1,
    )
    # KerasCV's layers cast the labels, which its loop over images does not expect.
    data = {"images": colours, "labels": labels.astype("float32")}
    out = pipeline(data)
    np.testing.assert_array_equal(out["labels"], labels)
    assert largest_change(colours, out["images"]).min() > 0.01
    masks = (colours[:3, ..., :1] > 0.5).astype("float32")
    out = pipeline({"images": colours[:3], "segmentation_masks": masks})
    assert set(np.unique(out["segmentation_masks"])) == {0, 1}
    assert np.any(numpy(out["segmentation_masks"]) != masks)


def test_a_random_augmentation_pipeline_in_a_data_set(
    keras_cv, colour_model, colours, labels
):
    pipeline = keras_cv.layers.RandomAugmentationPipeline(
        [flow(colour_model)], augmentations_per_image=1, seed=1
    )
    data = {"images": colours, "labels": labels}
    out = only_batch(data, pipeline)
    expected = flow(colour_model)(data)["images"]  # all of the same displacement
    np.testing.assert_allclose(out["images"], expected, atol=1e-4)
    np.testing.assert_array_equal(out["labels"], labels)


def test_a_random_augmentation_pipeline_is_saved(keras_cv, colour_model):
    made = stages("flow recolor", colour_model)
    pipeline = keras_cv.layers.RandomAugmentationPipeline(
        [*made, keras_cv.layers.RandomHue(0.1, (0, 1))], augmentations_per_image=1
    )
    config = keras.saving.serialize_keras_object(pipeline)
    again = keras.saving.deserialize_keras_object(config)
    for old, new in zip(made, again.layers):
        assert type(new) is type(old) and new.get_config() == old.get_config()


@pytest.mark.parametrize(
    "order,as_data_set", [("flow", False), ("flow", True), ("recolor", False)]
)
def test_random_apply_leaves_the_other_images(
    order, as_data_set, keras_cv, colour_model, colours, labels
):
    (layer,) = stages(order, colour_model)
    maybe = keras_cv.layers.RandomApply(layer, rate=0.5, seed=3)
    data = {"images": colours, "labels": labels}
    out = only_batch(data, maybe) if as_data_set else maybe(data)
    changed = largest_change(colours, out["images"]) > 0
    assert 0 < changed.sum() < 6
    (whole,) = stages(order, colour_model)
    expected = numpy(whole(data)["images"])
    np.testing.assert_allclose(
        numpy(out["images"])[changed], expected[changed], atol=1e-4
    )
    np.testing.assert_array_equal(out["labels"], labels)


def test_random_choice_takes_one_of_ours(keras_cv, colour_model, colours, labels):
    data = {"images": colours, "labels": labels}
    choice = keras_cv.layers.RandomChoice(stages("flow recolor", colour_model), seed=3)
    out = numpy(choice(data)["images"])
    moved, painted = (
        numpy(stage(data)["images"]) for stage in stages("flow recolor", colour_model)
    )
    by_flow, by_colour = largest_change(out, moved), largest_change(out, painted)
    np.testing.assert_allclose(np.minimum(by_flow, by_colour), 0, atol=1e-4)
    assert by_flow.max() > 0.01 and by_colour.max() > 0.01  # both were taken
    batchwise = keras_cv.layers.RandomChoice(
        stages("flow", colour_model), batchwise=True, seed=3
    )
    np.testing.assert_allclose(batchwise(data)["images"], moved, atol=1e-6)


def test_layers_of_keras_cv_in_a_pipeline_of_keras(
    keras_cv, colour_model, colours, labels
):
    pipeline = layers.Pipeline(
        [keras_cv.layers.RandomSaturation((1.0, 1.0)), *stages("flow", colour_model)]
    )
    out = pipeline({"images": colours, "labels": labels})
    assert_equal(out["labels"], ops.array(labels))
    assert largest_change(colours, out["images"]).min() > 0.01


@pytest.mark.parametrize("snapshot", [False, True])
def test_training_on_a_data_set_with_such_a_pipeline(
    snapshot, keras_cv, colour_model, colours, labels
):
    tf = pytest.importorskip("tensorflow")
    adversary = ksa.AdversarialFlow((1, 1), rate=1.0).bind(
        colour_model, snapshot=snapshot
    )
    augmenter = keras_cv.layers.Augmenter([keras_cv.layers.RandomFlip(), adversary])
    data = tf.data.Dataset.from_tensor_slices({"images": colours, "labels": labels})
    data = data.batch(3).map(augmenter, num_parallel_calls=2)
    data = data.map(lambda x: (x["images"], x["labels"]))
    start = colour_model.get_weights()[0]
    callbacks = [ksa.RefreshSnapshot(adversary)] if snapshot else []
    history = colour_model.fit(data, epochs=3, verbose=0, callbacks=callbacks).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert np.abs(colour_model.get_weights()[0] - start).max() > 1e-4
