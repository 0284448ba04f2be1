"""Models with an adversarial layer inside."""

import keras
from keras import layers

import keras_structadv as ksa

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def flow_layer(**kwargs):
    kwargs = {"rate": 1.0, "max_displacement": (1.5, 1.5), "seed": 1, **kwargs}
    return ksa.AdversarialFlow(**kwargs)


def backbone():
    return keras.Sequential(
        [
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self, layer, rest, before=None):
        super().__init__()
        self.parts = [before or layers.Rescaling(2.0), layer]
        self.rest = rest

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return self.rest(x, training=training)


def sequential(layer, rest):
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(2.0), layer, rest]
    )


def functional(layer, rest):
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(2.0)(inputs)
    return keras.Model(inputs, rest(layer(x)))


def nested(layer, rest):
    augmentation = keras.Sequential([layers.Rescaling(2.0), layer])
    return keras.Sequential([keras.Input((8, 8, 1)), augmentation, rest])


HOSTS = [sequential, functional, nested, Subclassed]


def compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"], **kwargs)
    return model
