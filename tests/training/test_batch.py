"""What `fit` is given: masks, weights of pixels, ids, further inputs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import (
    assert_same_weights,
    bind_as_fit_does,
    build,
    layer,
    loss_from_logits,
    recolor,
    reuse,
    two_inputs,
)


def test_one_input_in_a_list_or_a_dict(images, labels):
    def fit(x):
        inputs = keras.Input((8, 8, 1), name="im")
        keras.utils.set_random_seed(0)
        structure = {"im": inputs} if isinstance(x, dict) else inputs
        x_out = layers.Dense(3, name="out")(layers.Flatten()(inputs))
        model = keras.Model(structure, x_out)
        model.compile("sgd", [loss_from_logits])
        callback = ksa.AdversarialTraining(layer())
        model.fit(x, labels, shuffle=False, verbose=0, callbacks=[callback])
        return model

    bare = fit(images)
    assert_same_weights(fit([images]), bare)
    assert_same_weights(fit({"im": images}), bare)


def test_labels_that_are_masks_move_with_the_images(images):
    """Exactly where the image is 1: what the model sees shows whether they fit."""
    seen = []

    def keep(labels, predictions):
        seen.append((labels, predictions))
        return ops.mean(ops.square(predictions - ops.cast(labels, "float32")), -1)

    def fit(gradient, masks):
        seen.clear()
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(1, 1)])
        model.layers[0].set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
        model.compile(keras.optimizers.SGD(0.0), keep, run_eagerly=True)
        mover = ksa.AdversarialFlow(max_displacement=(2, 2), rate=0.5, seed=1)
        callback = ksa.AdversarialTraining(mover, gradient=gradient)
        fit = {"shuffle": False, "epochs": 2, "verbose": 0, "callbacks": [callback]}
        model.fit(images, masks, **fit)
        return tuple(map(ops.convert_to_numpy, seen[-1]))

    for gradient in ("fresh", "reuse"):
        masks = (images > 0.5).astype("int32")
        moved, image = fit(gradient, masks)
        assert moved.shape == masks.shape and set(np.unique(moved)) == {0, 1}
        assert (moved != masks).mean() > 0.01
        assert ((image > 0.5) != moved).mean() < 0.05
        assert ((image > 0.5) != masks).mean() > ((image > 0.5) != moved).mean()
        flat, _ = fit(gradient, masks[..., 0])
        np.testing.assert_array_equal(np.ravel(flat), np.ravel(moved))


@pytest.mark.parametrize("rank", [3, 4])
def test_weights_of_pixels_move_with_the_masks(rank, images):
    """They are where the mask is: so they have to be afterwards."""
    seen = []

    class Watch(keras.Model):
        def __init__(self):
            super().__init__()
            self.pixels = layers.Conv2D(2, 1)

        def call(self, x, training=None):
            return self.pixels(x)

        def train_step(self, data):
            seen.append(keras.tree.map_structure(ops.convert_to_numpy, data))
            return super().train_step(data)

    masks = (images > 0.5).astype("int32")
    masks = masks if rank == 4 else masks[..., 0]
    for gradient in ("fresh", "reuse"):
        model = Watch()
        model.compile("sgd", loss_from_logits, run_eagerly=True)
        mover = ksa.AdversarialFlow(max_displacement=(2, 2), rate=1.0, seed=1)
        callback = ksa.AdversarialTraining(mover, gradient=gradient)
        weights = 1.0 + masks.astype("float32").reshape(6, 8, 8)
        fit = {"shuffle": False, "epochs": 2, "verbose": 0, "callbacks": [callback]}
        model.fit(images, masks, sample_weight=weights, **fit)
        _, labels, weights = seen[-1]
        assert (labels != masks).any()
        np.testing.assert_array_equal(weights, 1 + labels.reshape(6, 8, 8))


def test_labels_of_another_size_are_not_left_behind(images):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 2, strides=2)])
    model.compile("sgd", loss_from_logits)
    masks = np.zeros((6, 4, 4, 1), "int32")
    with pytest.raises(
        ValueError, match="would stay while the image moves. Resize masks"
    ):
        model.fit(
            images, masks, verbose=0, callbacks=[ksa.AdversarialTraining(layer())]
        )


@pytest.mark.parametrize("execution", ["dict", "lists", "inside"])
def test_several_inputs_and_outputs(execution, images, labels):
    scale = np.array([[0.1], [1], [4], [-1], [2], [3]], "float32")
    x = {"images": images, "scale": scale}
    y = {"kind": labels, "size": np.linspace(0, 1, 6)[:, None].astype("float32")}
    x_plain, y_plain = x, y
    gradients = ksa.per_image_gradients(two_inputs(), x, y)
    mover = layer(rate=0.5).bind(two_inputs())
    by_hand = two_inputs()
    moved = mover({**x, "labels": y})["images"]
    by_hand.train_on_batch({**x, "images": ops.convert_to_numpy(moved)}, y)
    model, callback = two_inputs(), ksa.AdversarialTraining(layer(rate=0.5))
    if execution == "lists":
        model = keras.Model(list(model.input.values()), list(model.output.values()))
        model.compile(
            keras.optimizers.SGD(0.05),
            [loss_from_logits, "mse"],
            loss_weights=[1.0, 0.3],
        )
        x, y = list(x.values()), list(y.values())
        again = ksa.per_image_gradients(model, x, y)
        np.testing.assert_allclose(again, gradients, rtol=1e-3, atol=1e-6)
    if execution == "inside":
        inputs = {k: keras.Input(v.shape[1:], name=k) for k, v in model.input.items()}
        inner = model
        passed = {**inputs, "images": layer(rate=0.5)(inputs["images"])}
        model = keras.Model(inputs, inner(passed))
        model.compile(keras.optimizers.SGD(0.05), inner.loss, loss_weights=[1.0, 0.3])
        callback = ksa.AdversarialTraining()
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[callback], **fit).history
    assert history["adversarial_loss_gain"][0] > 0
    assert_same_weights(model, by_hand)
    plain = two_inputs()
    plain.train_on_batch(x_plain, y_plain)
    assert np.abs(plain.get_weights()[0] - model.get_weights()[0]).max() > 1e-5


def test_ids_that_are_no_integers_are_named(images, labels):
    x = {"images": images, "ids": np.linspace(0, 1, 6)}
    with pytest.raises(ValueError, match="ids of dtype.*one integer"):
        build("subclassed").fit(x, labels, verbose=0, callbacks=[reuse(layer())])


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_ids_are_unpacked_where_nothing_is_augmented(gradient, images, labels):
    model, plain = build("functional"), build("functional")
    model.fit(
        {"images": images, "ids": np.arange(6)},
        labels,
        batch_size=6,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(layer(rate=0.0), gradient=gradient)],
    )
    plain.fit(images, labels, batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(model, plain, atol=1e-6)


def test_recolouring_from_a_basis_in_the_data(images, labels, tmp_path):
    basis = ksa.precompute_basis(
        images, tmp_path / "basis.npy", rank=4, value_range=(0, 1), verbose=0
    )
    model = build("functional")
    data = {"images": images, "basis": np.asarray(basis)}
    model.fit(
        data,
        labels,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(recolor(rate=1.0))],
    )
    by_hand = build("functional")
    given = bind_as_fit_does(recolor(rate=1.0), by_hand)
    moved = given({**data, "labels": labels})["images"]
    by_hand.train_on_batch(ops.convert_to_numpy(moved), labels)
    assert_same_weights(model, by_hand, atol=1e-4)
    model = build("functional")
    history = model.fit(
        {**data, "ids": np.arange(6)},
        labels,
        epochs=2,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(recolor(rate=1.0), gradient="reuse")],
    ).history
    assert history["gradient_hit_rate"] == [0, 1]
    assert history["mean_magnitude"][1] > 0
    with pytest.raises(ValueError, match="inputs .*basis.* for a model with 1"):
        build("functional").fit(
            data, labels, verbose=0, callbacks=[ksa.AdversarialTraining(layer())]
        )
    both = ksa.AdversarialTraining([layer(), recolor()])
    with pytest.raises(ValueError, match="moves the images.*first in the list"):
        build("functional").fit(data, labels, verbose=0, callbacks=[both])
