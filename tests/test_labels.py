"""Labels in every form, and wrong ones as targets."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_structadv.gradients.labels import (
    as_labels,
    classes_present,
    most_confident_wrong,
    most_likely,
    random_wrong,
)
from keras_structadv.gradients.loss import per_image_loss

MODEL = keras.Sequential(name="host")


def test_labels_take_the_form_of_others():
    logits = np.zeros((2, 3), "float32")
    loss = per_image_loss(MODEL, "categorical_crossentropy")
    sparse = per_image_loss(MODEL, "sparse_categorical_crossentropy")
    ids, one_hot = np.array([2, 0]), np.eye(3)[[2, 0]]
    for given in (ids, one_hot):
        np.testing.assert_array_equal(as_labels(given, logits, loss), one_hot)
        np.testing.assert_array_equal(as_labels(given, logits, sparse), ids)
        like = np.zeros((2, 1), "uint8")
        labels = ops.convert_to_numpy(as_labels(given, logits, loss, like=like))
        assert labels.shape == (2, 1) and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels[:, 0], ids)
        like = np.zeros((2, 3), "float16")
        labels = ops.convert_to_numpy(as_labels(given, logits, sparse, like=like))
        assert labels.dtype == np.float16
        np.testing.assert_array_equal(labels, one_hot)


def test_no_images_have_no_targets():
    logits = np.zeros((0, 3), "float32")
    for labels in (np.zeros(0, "int32"), np.zeros((0, 3), "float32")):
        for rule in (most_confident_wrong, random_wrong):
            assert tuple(rule(labels, logits).shape) == (0,)


def test_a_regression_has_no_most_likely_label():
    for predictions in (np.zeros((2, 1)), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="Received no labels.*Pass labels"):
            most_likely(predictions, per_image_loss(MODEL, "mse"))


def test_the_most_likely_label():
    predictions = np.array([[0.2, 0.9, 0.6], [0.8, 0.1, 0.2]])
    several = per_image_loss(MODEL, "binary_crossentropy")
    np.testing.assert_array_equal(
        most_likely(predictions, several), [[0, 1, 1], [1, 0, 0]]
    )
    one = per_image_loss(MODEL, "sparse_categorical_crossentropy")
    np.testing.assert_array_equal(most_likely(predictions, one), [1, 0])
    logits = per_image_loss(MODEL, keras.losses.BinaryCrossentropy(from_logits=True))
    np.testing.assert_array_equal(
        most_likely(np.array([[0.2], [-0.2]]), logits), [[1], [0]]
    )
    with pytest.raises(ValueError, match="no labels.*Pass labels"):
        most_likely(predictions[:, :1], per_image_loss(MODEL, "mse"))


def test_wrong_labels_are_wrong():
    predictions = np.array([[5.0, 1.0, 2.0], [0.0, 9.0, -1.0], [-3.0, -2.0, -9.0]])
    labels = np.array([0, 1, 2])
    np.testing.assert_array_equal(most_confident_wrong(labels, predictions), [2, 0, 1])
    one_hot = np.eye(3)
    np.testing.assert_array_equal(most_confident_wrong(one_hot, predictions), [2, 0, 1])
    many = np.zeros(3000, int)
    drawn = np.asarray(random_wrong(many, np.zeros((3000, 4)), seed=1))
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 1000) < 120)
    binary = np.array([[0.0], [1.0]])
    for choose in (most_confident_wrong, random_wrong):
        np.testing.assert_array_equal(choose(binary, np.full((2, 1), 0.7)), [[1], [0]])


VECTORS = [  # labels and the classes that are present in them
    ([1, 0, 0, 0], [0]),
    ([1, 1, 0, 0], [0, 1]),
    ([0, 1, 0, 1], [1, 3]),
    ([0, 0, 0, 0], []),
    ([1, 1, 1, 1], [0, 1, 2, 3]),
    ([0.7, 0.3, 0.0, 0.0], [0, 1]),  # MixUp
    ([0.025, 0.925, 0.025, 0.025], [1]),  # label smoothing
    ([0.4, 0.3, 0.2, 0.1], [0]),  # a teacher's probabilities
    ([0.25, 0.25, 0.25, 0.25], [0, 1, 2, 3]),
    ([-1, 1, -1, 1], [1, 3]),  # as hinge losses take them
]


@pytest.mark.parametrize("vector,present", VECTORS)
@pytest.mark.parametrize("shape", [(400,), (20, 5, 4)])
def test_a_wrong_class_is_one_that_is_not_present(vector, present, shape):
    labels = np.broadcast_to(np.array(vector), (*shape, 4))
    predictions = np.random.default_rng(0).normal(size=(*shape, 4)).astype("float32")
    found = ops.convert_to_numpy(classes_present(labels, predictions))
    expected = np.isin(np.arange(4), present)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    confident = ops.convert_to_numpy(most_confident_wrong(labels, predictions))
    drawn = ops.convert_to_numpy(random_wrong(labels, predictions, seed=1))
    assert confident.shape == drawn.shape == shape
    if len(present) == 4:
        assert (confident == -1).all() and (drawn == -1).all()
        return
    masked = np.where(expected, -np.inf, predictions)
    np.testing.assert_array_equal(confident, masked.argmax(-1))
    counts = np.bincount(drawn.ravel(), minlength=4)
    wrong = 4 - len(present)
    assert counts[present].sum() == 0 and counts.sum() == 400
    assert np.abs(counts[~expected] - 400 / wrong).max() < 4 * np.sqrt(400 / wrong)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_one_class_is_drawn_as_ever(classes):
    ids = np.random.default_rng(0).integers(0, classes, 50)
    predictions = np.zeros((50, classes), "float32")
    seed, again = keras.random.SeedGenerator(3), keras.random.SeedGenerator(3)
    for _ in range(3):
        step = keras.random.randint((50,), 1, classes, seed=again)
        drawn = random_wrong(ids, predictions, seed=seed)
        expected = (ids + ops.convert_to_numpy(step)) % classes
        np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (seed.state, again.state)))


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_the_wrong_classes_of_a_vector_are_equally_likely(smooth):
    labels = np.tile((1 - smooth) * np.eye(4)[2] + smooth / 4, (3000, 1))
    drawn = random_wrong(labels, np.zeros((3000, 4), "float32"), seed=1)
    counts = np.bincount(ops.convert_to_numpy(drawn), minlength=4)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3]] - 1000).max() < 100
