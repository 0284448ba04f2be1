"""Images, labels and dicts come back in the structure in which they were given."""

import keras
import numpy as np
import pytest

from tests.models import numpy, small_model


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
