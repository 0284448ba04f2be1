"""Models that several test modules train, and how they train them."""

import keras
import numpy as np
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.layers.passes import during_train_step
from keras_structadv.training.fit import Fit


def numpy(x):
    return ops.convert_to_numpy(x)


def small_model(classes=3, shape=(8, 8, 1), compiled=True, activation=None):
    """Returns a small network that is smooth, so that derivatives can be compared."""
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(classes, activation=activation),
        ]
    )
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not activation)
        model.compile("sgd", loss, metrics=["accuracy"])
    return model


def loss_from_logits(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(x))


class OwnStep(Subclassed):
    """Steps with half of the gradient, and reports so."""

    def train_step(self, data):
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), sample_weight)
        variables = self.trainable_variables
        halves = [0.5 * g for g in tape.gradient(loss, variables)]
        self.optimizer.apply(halves, variables)
        return {"loss": loss, "own": 1.0}


def functional():
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def two_inputs():
    """Returns a model whose gradient depends on what is given beside the images."""
    keras.utils.set_random_seed(0)
    inputs = {
        "images": keras.Input((8, 8, 1), name="images"),
        "scale": keras.Input((1,), name="scale"),
    }
    scale = layers.Reshape((1, 1, 1))(inputs["scale"])
    x = layers.Flatten()(ops.tanh(inputs["images"] * scale))
    x = layers.Dense(8, activation="tanh")(x)
    outputs = {
        "kind": layers.Dense(3, name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    model = keras.Model(inputs, outputs)
    loss = {"kind": loss_from_logits, "size": "mse"}
    weights = {"kind": 1.0, "size": 0.3}
    model.compile(keras.optimizers.SGD(0.05), loss, loss_weights=weights)
    return model


KINDS = {
    "sequential": lambda: small_model(compiled=False),
    "functional": functional,
    "subclassed": Subclassed,
    "own train_step": OwnStep,
}


def build(kind, loss=loss_from_logits, metrics=("accuracy",), **compile_arguments):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    if kind != "own train_step":
        compile_arguments = {"metrics": list(metrics), **compile_arguments}
    model.compile(keras.optimizers.SGD(0.05), loss, **compile_arguments)
    model(np.zeros((1, 8, 8, 1)))
    return model


def layer(**kwargs):
    return ksa.AdversarialFlow(
        **{"rate": 0.5, "seed": 1, "max_displacement": (1, 2), **kwargs}
    )


def recolor(**kwargs):
    return ksa.AdversarialRecoloring(
        **{"value_range": (0, 1), "rate": 0.5, "seed": 2, **kwargs}
    )


def bind_as_fit_does(layer, model):
    """Binds a layer; returns its call with the statistics of the batch, as in `fit`."""
    layer.bind(model)

    def call(*args, **kwargs):
        with during_train_step():
            return layer(*args, **kwargs)

    return call


def reuse(layer=None, **kwargs):
    return ksa.AdversarialTraining(
        layer or ksa.AdversarialFlow(1.0, seed=1), gradient="reuse", **kwargs
    )


class Recorder(ksa.AdversarialFlow):
    """Keeps the images and the flows of every batch; for eager steps."""

    def __init__(self, **kwargs):
        super().__init__(max_displacement=(1, 1), rate=1.0, seed=1, **kwargs)
        self.seen = []

    def decode(self, images, codes, size, strength):
        flow = super().decode(images, codes, size, strength)
        self.seen.append((ops.convert_to_numpy(images), ops.convert_to_numpy(flow)))
        return flow


def one_step_by_hand(model, images, labels, sample_weight=None, **kwargs):
    """Trains on a batch that the layer augmented outside of the train step."""
    moved = bind_as_fit_does(layer(**kwargs), model)(images, labels)[0]
    model.train_on_batch(ops.convert_to_numpy(moved), labels, sample_weight)


def assert_same_weights(a, b, atol=1e-5):
    for x, y in zip(a.get_weights(), b.get_weights()):
        np.testing.assert_allclose(x, y, atol=atol)


def assert_plain(model):
    assert "train_step" not in vars(model)
    assert not isinstance(model.train_function, Fit)


def gradients_of(model, images, labels=None, **kwargs):
    return ops.convert_to_numpy(
        ksa.per_image_gradients(model, images, labels, **kwargs)
    )
