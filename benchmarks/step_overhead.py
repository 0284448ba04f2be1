"""What adversarial augmentation adds to a training step.

A small ResNet on 32x32x3 crops of photographs, batch 128. Each variant is a model of
its own with the same initial weights, and takes the training steps of `fit`. All
variants run in turn in one process. Each row is the median over the rounds of the ratio
to the plain step of the same round.

    python -m benchmarks.step_overhead [--rounds N] [--only SUBSTRING] [--small]
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_structadv as ksa
from benchmarks.timing import interleave, machine, ratios
from benchmarks.training_step import Batch, fit_step, prepare, repeated

BATCH = 128
UNKNOWN = ", size unknown"  # of the batch, when the graph is built


def small_resnet(kind: type[keras.Model] = keras.Model) -> keras.Model:
    """A ResNet of three stages with one residual block each, of class `kind`."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        y = layers.BatchNormalization()(x)
        y = layers.ReLU()(y)
        if x.shape[-1] != filters or strides > 1:
            x = layers.Conv2D(filters, 1, strides=strides, use_bias=False)(y)
        y = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(
            y
        )
        y = layers.BatchNormalization()(y)
        y = layers.ReLU()(y)
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        x = layers.Add()([x, y])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return kind(inputs, layers.Dense(10)(x))


class GradientOnly(keras.Model):
    """Computes the gradient of every image before each plain step."""

    def train_step(self, data: tuple) -> dict:
        """Logs the size of the gradient, so that no compiler drops it."""
        images, labels = data
        gradients = ksa.per_image_gradients(self, images, labels)
        # Augmentation has to wait for the gradient. Without this dependency the two
        # passes would overlap and cost less than any augmentation can.
        with tf.control_dependencies([gradients]):
            images = tf.identity(images)
        logs = super().train_step((images, labels))
        return {**logs, "gradient": tf.reduce_sum(tf.abs(gradients))}


def behind(layer: layers.Layer) -> type[keras.Model]:
    """A class of models that augment the images with a layer in the train step."""

    class Behind(keras.Model):
        def train_step(self, data: tuple) -> dict:
            images, labels = data
            return super().train_step((layer(images, training=True), labels))

    return Behind


def variants() -> dict[str, tuple[type[keras.Model], keras.callbacks.Callback]]:
    """The class of the model and the callback of each variant, by name."""
    plain = keras.callbacks.Callback
    reused = "flow, rate 1, reused gradients"
    return {
        "plain": (keras.Model, plain()),
        f"plain{UNKNOWN}": (keras.Model, plain()),
        reused + UNKNOWN: (
            keras.Model,
            ksa.AdversarialTraining(ksa.AdversarialFlow(rate=1.0), gradient="reuse"),
        ),
        "gradient only": (GradientOnly, plain()),
        **{
            f"{name}, rate {rate:g}{suffix}": (
                keras.Model,
                ksa.AdversarialTraining(kind(rate=rate), gradient=gradient),
            )
            for name, kind in (
                ("flow", ksa.AdversarialFlow),
                ("recolouring", ksa.AdversarialRecoloring),
            )
            for gradient, suffix in (("fresh", ""), ("reuse", ", reused gradients"))
            for rate in (1.0, 0.5)
        },
        **{
            f"{name}, rate 1, {label}": (
                keras.Model,
                ksa.AdversarialTraining(kind(rate=1.0, **arguments)),
            )
            for name, kind in (
                ("flow", ksa.AdversarialFlow),
                ("recolouring", ksa.AdversarialRecoloring),
            )
            for label, arguments in (
                ("random start", {"random_start": True}),
                ("three steps", {"steps": 3}),
            )
        },
        "keras RandomElasticTransform": (
            behind(layers.RandomElasticTransform()),
            plain(),
        ),
        "keras RandAugment": (behind(layers.RandAugment()), plain()),
    }


class Step:
    """The training step of a variant in its second epoch, where gradients are reused.

    Args:
        kind: the class of the model.
        callback: the callback.
        weights: initial weights.
        batch: images and labels, the same for every step.
        jit_compile: whether XLA compiles the step.
        known_size: whether the graph is built for the size of the batch.
    """

    def __init__(
        self,
        kind: type[keras.Model],
        callback: keras.callbacks.Callback,
        weights: list[np.ndarray],
        batch: Batch,
        jit_compile: bool,
        known_size: bool,
    ):
        model = small_resnet(kind)
        model.set_weights(weights)
        self.step = fit_step(prepare(model, batch, jit_compile), callback)
        self.iterator = repeated(batch, known_size)
        for _ in range(2):  # compiles, and stores the gradients to reuse
            self()
        callback.on_epoch_begin(1)

    def __call__(self) -> None:
        """Trains on the batch once."""
        self.logs = self.step(self.iterator)


def measure(
    jit_compile: bool, rounds: int, only: str, size: int = BATCH
) -> dict[str, np.ndarray]:
    """The seconds of each variant in each round; prints which do not compile."""
    (images, labels), _ = ksa.datasets.load_photographs(32, crops=-(-size // 10))
    order = np.random.default_rng(0).permutation(len(images))[:size]
    batch = images[order].astype("float32"), labels[order]
    weights = small_resnet().get_weights()
    steps = {}
    for name, (kind, callback) in variants().items():
        if only not in name and name not in ("plain", "gradient only"):
            continue
        known = not name.endswith(UNKNOWN)
        try:
            steps[name] = Step(kind, callback, weights, batch, jit_compile, known)
        except tf.errors.OpError as error:
            print(f"{name}: {str(error).splitlines()[0][:100]}")
    seconds = interleave(steps, rounds)
    for name, step in steps.items():
        hits = step.logs.get("gradient_hit_rate", 1.0)
        assert hits == 1, f"{name}: only {hits} of the images had a gradient to reuse"
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="steps whose name contains it")
    parser.add_argument("--small", action="store_true", help="4 images, one round")
    options = parser.parse_args(arguments)
    rounds, size = (1, 4) if options.small else (options.rounds, BATCH)
    print(f"\n{machine()}; batch {size}, 32x32x3")
    print(f"Ratio within a round: median of {rounds} rounds (quartile range)")
    for jit_compile in (False, True):
        seconds = measure(jit_compile, rounds, options.only, size)
        plain = ratios(seconds, "plain")
        gradient = ratios(seconds, "gradient only")
        print(
            f"\n| step, {'with' if jit_compile else 'without'} XLA | to plain |", end=""
        )
        print(" to gradient only |\n|---|---|---|")
        for name in seconds:
            print("| {} | {:.2f} ({:.2f}) |".format(name, *plain[name]), end="")
            print(" {:.3f} ({:.3f}) |".format(*gradient[name]), flush=True)


if __name__ == "__main__":
    main()
