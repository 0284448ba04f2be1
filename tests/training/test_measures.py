"""What `History` tells, and the warning about changes that gain nothing."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from tests.models import bind_as_fit_does, small_model


def fit(model, x, y, layer, gradient="fresh", **arguments):
    callback = ksa.AdversarialTraining(layer, gradient=gradient)
    arguments = {"batch_size": 3, "shuffle": False} | arguments
    return model.fit(x, y, verbose=0, callbacks=[callback], **arguments).history


@pytest.mark.parametrize("steps", [1, 10])
def test_the_magnitude_is_what_the_images_got_after_clipping(steps, images, labels):
    model = small_model()
    layer = ksa.AdversarialRecoloring(
        (0.7, 0.7), rate=1.0, steps=steps, value_range=(0, 1), seed=1
    )
    changed = bind_as_fit_does(layer, model)(images, labels)[0]
    changed = keras.ops.convert_to_numpy(changed)
    change = np.sqrt(np.mean((changed - images) ** 2, axis=(1, 2, 3)))
    assert np.abs(change - 0.7).min() > 0.01  # clipped
    reported = fit(model, images, labels, layer, batch_size=6)["mean_magnitude"]
    np.testing.assert_allclose(reported, change.mean(), rtol=1e-4)


def test_a_reused_magnitude_is_measured_likewise(images, labels):
    layer = ksa.AdversarialRecoloring((0.9, 0.9), rate=1.0, value_range=(0, 1))
    history = fit(small_model(), images, labels, layer, "reuse", epochs=2)
    assert history["mean_magnitude"][0] == 0
    assert 0.1 < history["mean_magnitude"][1] < 0.8


def test_an_image_that_is_not_finite_does_not_spoil_the_magnitude(images, labels):
    images = images.copy()
    images[1, 2, 3] = np.nan
    layer = ksa.AdversarialRecoloring((0.1, 0.1), rate=1.0, value_range=(0, 1))
    augmented = layer.bind(small_model()).augment(images, labels)
    sizes = keras.ops.convert_to_numpy(augmented.sizes)
    assert sizes[1] == 0 and np.all(np.delete(sizes, 1) > 0.05)


def saturated():
    """Returns a model whose loss does not change with the image."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(3, kernel_initializer="zeros"),
            layers.Softmax(),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_changes_that_gain_nothing_are_warned_of_once(gradient, images, labels):
    layer = ksa.AdversarialFlow((1.0, 1.0), rate=1.0, value_range=(0, 1))
    model = saturated()
    if gradient == "reuse":
        # Images that moved under the same ids: what was kept does not fit them.
        model.layers[1].set_weights([np.ones((64, 3)), np.zeros(3)])
        model.layers[1].kernel.assign(np.linspace(-1, 1, 192).reshape(64, 3))
        model.evaluate(images, labels, verbose=0)
        data = {"images": images, "ids": np.arange(6)}

        class Turned(ksa.AdversarialFlow):
            def decode(self, *args, **kwargs):
                return -super().decode(*args, **kwargs)

        layer, images = Turned((1.0, 1.0), rate=1.0, value_range=(0, 1)), data
    with pytest.warns(UserWarning, match="raised the loss by .* not adversarial") as w:
        fit(model, images, labels, layer, gradient, epochs=4)
    assert len([x for x in w if "not adversarial" in str(x.message)]) == 1


def test_changes_that_were_not_wanted_are_not_warned_of(images, labels):
    callback = ksa.AdversarialTraining(
        ksa.AdversarialFlow(value_range=(0, 1)), schedule=lambda epoch: 0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model().fit(images, labels, verbose=0, callbacks=[callback])


def test_layers_that_change_nothing_are_not_warned_of(images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small_model(), images, labels, ksa.AdversarialFlow(0, value_range=(0, 1)))


def test_two_layers_with_one_seed_choose_other_images(images, labels):
    layers_ = [
        kind(rate=0.5, seed=3, value_range=(0, 1))
        for kind in (ksa.AdversarialFlow, ksa.AdversarialRecoloring)
    ]
    draws = [keras.ops.convert_to_numpy(x.draw_uniform(50)) for x in layers_]
    assert np.abs(np.corrcoef(*draws)[0, 1]) < 0.5
    twice = [ksa.AdversarialFlow(seed=3) for _ in range(2)]
    with pytest.raises(ValueError, match="same seed=3.*different seeds"):
        fit(small_model(), images, labels, twice)
