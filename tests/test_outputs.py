"""Losses of one output and of several."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from tests.models import gradients_of, small_model


@pytest.mark.parametrize("target", [None, "most_confident_wrong", "random"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_predictions_of_rank_one(images, target, with_labels):
    flat = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    dense = layers.Dense(1, activation="sigmoid")
    column = keras.Sequential([flat, dense])
    inputs = keras.Input((8, 8, 1))
    rank_one = keras.Model(inputs, layers.Reshape(())(dense(flat(inputs))))
    assert rank_one(images).shape == (6,)
    y = np.array([0, 1, 1, 0, 1, 0]) if with_labels else None
    arguments = {"loss": "binary_crossentropy", "target": target}
    np.testing.assert_allclose(
        gradients_of(rank_one, images, y, **arguments),
        gradients_of(column, images, y, **arguments),
        atol=1e-5,
    )


@pytest.mark.parametrize("target", [None, "most_confident_wrong", "labels"])
@pytest.mark.parametrize("count", [1, 3])
def test_vectors_for_one_output_are_refused(images, target, count):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    model.add(layers.Dense(1))
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    target = np.zeros((count, 1)) if target == "labels" else target
    with pytest.raises(ValueError, match=rf"labels of shape \({count}, 2\)"):
        ksa.per_image_gradients(
            model, images[:count], np.eye(2)[[0] * count], target=target
        )


def test_one_loss_and_one_output_in_a_list_or_a_dict(images, labels):
    expected = gradients_of(small_model(), images, labels)
    keras.utils.set_random_seed(0)
    model = small_model(compiled=False)
    wrapped = keras.Model(model.inputs, {"out": model.outputs[0]})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for losses in ([loss], {"out": loss}):
        wrapped.compile("sgd", losses)
        actual = gradients_of(wrapped, images, {"out": labels})
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_several_outputs_add_up_with_their_weights(images, labels):
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    kind, size = layers.Dense(3, name="kind"), layers.Dense(1, name="size")
    two = keras.Model(inputs, [kind(x), size(x)])
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"]
    sizes = np.linspace(0, 1, 6)[:, None]
    parts = []
    for output, loss, y in zip(two.outputs, losses, (labels, sizes)):
        one = keras.Model(inputs, output)
        one.compile("sgd", loss)
        parts.append(np.array(ksa.per_image_gradients(one, images, y)))
    for loss, weights, expected in (
        (losses, None, parts[0] + parts[1]),
        (losses, [2.0, 0.5], 2 * parts[0] + 0.5 * parts[1]),
        (
            {"kind": losses[0], "size": "mse"},
            {"kind": 1, "size": 3},
            parts[0] + 3 * parts[1],
        ),
    ):
        two.compile("sgd", loss, loss_weights=weights)
        for y in ([labels, sizes], (labels, sizes), {"size": sizes, "kind": labels}):
            actual = ksa.per_image_gradients(two, images, y)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    two.compile("sgd", [losses[0], None])
    actual = ksa.per_image_gradients(two, images, [labels, None])
    np.testing.assert_allclose(actual, parts[0], rtol=1e-4, atol=1e-6)
    actual = ksa.per_image_gradients(two, images, [labels, sizes], loss=[None, "mse"])
    np.testing.assert_allclose(actual, parts[1], rtol=1e-4, atol=1e-6)
    two.compile("sgd", losses)
    target = (labels + 1) % 3
    one = keras.Model(inputs, two.outputs[0])
    one.compile("sgd", losses[0])
    expected = ksa.per_image_gradients(one, images, labels, target=target)
    actual = ksa.per_image_gradients(
        two, images, [labels, sizes], target=[target, None]
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_no_output_has_a_loss(images, labels):
    inputs = keras.Input((8, 8, 1))
    outputs = [layers.Dense(3)(layers.Flatten()(inputs)) for _ in range(2)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", [None, None])
    with pytest.raises(ValueError, match="no compiled loss"):
        ksa.per_image_gradients(model, images, [labels, labels])


def test_outputs_without_names(images, labels):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = small_model(), small_model()

        def call(self, x):
            return [self.first(x), self.second(x)]

    model = Two()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", [loss, loss])
    both = gradients_of(model, images, [labels, labels])
    expected = [
        gradients_of(one, images, labels) for one in (model.first, model.second)
    ]
    np.testing.assert_allclose(both, sum(expected), atol=1e-6)
    with pytest.raises(ValueError, match=r"with the outputs \[0, 1\]"):
        ksa.per_image_gradients(model, images, labels)
