"""Images that are not in the range that was declared."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from tests.hosts import backbone, compiled
from tests.models import small_model


def bound(model=None, **kwargs):
    kwargs = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **kwargs}
    return ksa.AdversarialRecoloring(**kwargs).bind(model or small_model())


@pytest.mark.parametrize(
    "value_range,low,high",
    [
        ((0, 255), 0, 1),
        ((0, 255), -2.118, 2.64),
        ((0, 255), -1, 1),
        ((0, 1), 0, 255),
        ((-1, 1), -3, 3),
    ],
)
def test_images_in_another_range_are_named_once(value_range, low, high):
    rng = np.random.default_rng(0)
    images = rng.uniform(low, high, (6, 8, 8, 1)).astype("float32")
    layer = bound(value_range=value_range)
    with pytest.warns(UserWarning, match=r"values from.*e\.g\. value_range=\("):
        layer(images)
    layer(images)  # a second warning would be an error here


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_images_that_say_nothing_do_not_end_the_look(images, nothing):
    layer = bound(value_range=(0, 255))
    layer(np.full_like(images, nothing))
    with pytest.warns(UserWarning, match=r"value_range=\(0, 255\)"):
        layer(images)


@pytest.mark.parametrize("value_range", [(0, 255), (0, 1), (-1, 1)])
def test_images_in_their_range_are_not_named(images, value_range):
    low, high = value_range
    given = low + images * (high - low)
    for x in (given, given * 0.5 + low * 0.5, np.full_like(given, low)):
        bound(value_range=value_range)(x)


def test_the_value_range_is_that_at_the_layer(images, labels):
    def model_with(value_range):
        recolor = ksa.AdversarialRecoloring(0.05, value_range=value_range)
        parts = [layers.Rescaling(1 / 255), recolor, backbone()]
        return compiled(keras.Sequential([keras.Input((8, 8, 1)), *parts]))

    fit = {"verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    model_with((0, 1)).fit(255 * images, labels, **fit)
    fit = {"verbose": 0, "callbacks": [ksa.AdversarialTraining()]}
    with pytest.warns(UserWarning, match="value_range=.0, 255.*Pass the range"):
        model_with((0, 255)).fit(255 * images, labels, **fit)
