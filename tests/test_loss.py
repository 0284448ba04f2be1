"""The loss of each image alone."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_structadv.gradients.loss import only_entry, per_image_loss

MODEL = keras.Sequential(name="host")


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
        keras.losses.SparseCategoricalCrossentropy(ignore_class=1),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (5, 4, 3)])
def test_it_is_the_loss_of_each_image_alone(loss, shape):
    rng = np.random.default_rng(0)
    predictions = rng.uniform(0.1, 1, (*shape, 6)).astype("float32")
    labels = rng.integers(0, 6, shape)
    alone = [loss(labels[k : k + 1], predictions[k : k + 1]) for k in range(5)]
    if loss.get_config().get("ignore_class") is not None:
        # Keras divides by the pixels that count; here every image divides by all.
        counted = (labels != 1).reshape(5, -1).mean(axis=1)
        alone = np.nan_to_num(np.stack(alone)) * counted
    actual = per_image_loss(MODEL, loss)(labels, predictions)
    np.testing.assert_allclose(actual, np.stack(alone), rtol=1e-5)
    assert loss.reduction is not None


def test_functions_and_names_of_losses():
    y, p = np.array([[1.0], [0.0]]), np.array([[0.7], [0.4]], "float32")
    expected = -np.log([0.7, 0.6])
    for loss in ("binary_crossentropy", "crossentropy", "ce"):
        for labels in (y, y[:, 0]):
            actual = per_image_loss(MODEL, loss)(labels, p)
            np.testing.assert_allclose(actual, expected, rtol=1e-5)
    mean = per_image_loss(MODEL, lambda y, p: ops.mean(ops.square(y - p)))(y, p)
    np.testing.assert_allclose(mean, [0.125, 0.125], rtol=1e-5)


def test_several_losses_for_one_output_are_refused():
    with pytest.raises(ValueError, match=r"loss=\['mse', 'mae'\] for one output"):
        per_image_loss(MODEL, ["mse", "mae"])


def test_the_only_entry():
    assert only_entry(["mse"]) == only_entry({"a": ("mse",)}) == only_entry("mse")
    assert only_entry([3]) == [3]  # the label of one image
    assert only_entry([1, 2]) == [1, 2]
