"""What `History` says of the layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import assert_plain, build, layer, loss_from_logits, reuse


def test_the_gain_is_the_mean_over_the_augmented_images(images, labels):
    model = build("subclassed", metrics=())
    model.optimizer.learning_rate = 0.0
    fit = {"batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(
        images, labels, **fit, callbacks=[ksa.AdversarialTraining(layer())]
    ).history
    by_hand = layer().bind(build("subclassed"))
    for epoch in range(2):
        gains = [
            float(by_hand.augment(images[k : k + 2], labels[k : k + 2]).gain[0])
            for k in range(0, 6, 2)
        ]
        np.testing.assert_allclose(
            history["adversarial_loss_gain"][epoch], np.mean(gains), rtol=1e-3
        )


def test_a_bad_image_does_not_spoil_the_gain(images, labels):
    images[1] = np.nan
    model = build("sequential")
    seen = []

    class Watch(ksa.AdversarialFlow):
        def augment(self, *args, **kwargs):
            augmented = super().augment(*args, **kwargs)
            seen.append(ops.convert_to_numpy(augmented.gain))
            return augmented

    model.compile("sgd", loss_from_logits, run_eagerly=True)
    callback = ksa.AdversarialTraining(Watch(rate=1.0))
    model.fit(images, labels, shuffle=False, verbose=0, callbacks=[callback])
    assert np.isfinite(seen[0]).all() and seen[0][1] == 0


def test_the_history_has_the_means_of_the_training(images, labels):
    """Validation comes before the end of the epoch, and has means of its own."""
    model = build("functional")
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.F1Score(average=None)],
    )
    y = np.eye(3, dtype="float32")[labels]
    history = model.fit(
        images,
        y,
        verbose=0,
        validation_data=(images, np.roll(y, 1, axis=0)),
        callbacks=[ksa.AdversarialTraining(layer(rate=0.0))],
    ).history
    assert np.shape(history["f1_score"]) == (1, 3)  # one for each class
    expected = build("functional")  # with the same weights
    expected.compile(keras.optimizers.SGD(0.0), model.loss)
    logs = expected.fit(images, y, verbose=0).history
    np.testing.assert_allclose(history["loss"], logs["loss"], rtol=1e-5)
    assert abs(history["loss"][0] - history["val_loss"][0]) > 1e-3


@pytest.mark.fused
def test_history_tells_the_hits_and_the_displacement(images, labels):
    model = build("sequential")
    layer = ksa.AdversarialFlow(max_displacement=(0.7, 0.7), rate=0.5)
    fit = {"batch_size": 2, "epochs": 3, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[reuse(layer)]).history
    assert history["gradient_hit_rate"] == [0, 1, 1]
    np.testing.assert_allclose(history["mean_displacement"], [0, 0.7, 0.7], rtol=1e-5)
    assert history["adversarial_loss_gain"][0] == 0
    assert history["adversarial_loss_gain"][1] > 0
    assert_plain(model)


@pytest.mark.fused
@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_the_gain_stays_positive_and_the_seeds_reproduce(gradient):
    (x, y), _ = ksa.datasets.load_colour_glyphs(train_typefaces=1)
    x, y = x[: 3 * 47], y[: 3 * 47]

    def train(seed):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((28, 28, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.Flatten(),
                layers.Dense(47),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-3), loss_from_logits)
        adversary = ksa.AdversarialRecoloring(0.2, seed=seed)
        callback = ksa.AdversarialTraining(adversary, gradient=gradient)
        return model.fit(x, y, 47, 4, verbose=0, callbacks=[callback]).history

    first = train(1)
    start = 0 if gradient == "fresh" else 1
    assert np.all(np.array(first["adversarial_loss_gain"][start:]) > 0)
    np.testing.assert_allclose(train(1)["loss"], first["loss"], rtol=1e-4)
    assert abs(train(2)["loss"][-1] - first["loss"][-1]) > 1e-4
