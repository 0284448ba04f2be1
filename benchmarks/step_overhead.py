"""What adversarial augmentation adds to a training step.

A small ResNet on 32x32x3 crops of photographs, batch 128; every variant in turn in one
process, the median over the rounds of its ratio to the plain step of the same round.

    python -m benchmarks.step_overhead [--rounds N] [--only SUBSTRING]
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_structadv as ksa
from benchmarks.timing import interleave, machine, ratios

BATCH = 128


def small_resnet() -> keras.Model:
    """Returns a ResNet with three stages of one residual block each."""
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
    return keras.Model(inputs, layers.Dense(10)(x))


def variants() -> dict:
    """Returns, by name, functions `(images, labels) -> results` of one step."""
    model = small_resnet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    model.optimizer.build(model.trainable_variables)

    def plain(images, labels):
        return model.train_step((images, labels))

    def gradient_only(images, labels):
        gradients = ksa.per_image_gradients(model, images, labels)
        # Whatever uses the gradient has to wait for it. Without this the two passes
        # would run at the same time, and seem cheaper than they can be.
        with tf.control_dependencies([gradients]):
            images = tf.identity(images)
        return plain(images, labels), gradients

    def augmented(layer, gradient):
        callback = ksa.AdversarialTraining(layer.bind(model), gradient=gradient)
        callback.set_params({})
        callback.set_model(model)
        callback.on_train_begin()
        step = callback.augmented(model.train_step)
        return lambda images, labels: step((images, labels))

    def keras_layer(layer):
        return lambda images, labels: plain(layer(images, training=True), labels)

    return {
        "plain": plain,
        "gradient only": gradient_only,
        **{
            f"{name}, rate {rate:g}{suffix}": augmented(kind(rate=rate), gradient)
            for name, kind in (
                ("flow", ksa.AdversarialFlow),
                ("recolouring", ksa.AdversarialRecoloring),
            )
            for gradient, suffix in (("fresh", ""), ("reuse", ", reused gradients"))
            for rate in (1.0, 0.5)
        },
        "keras RandomElasticTransform": keras_layer(layers.RandomElasticTransform()),
        "keras RandAugment": keras_layer(layers.RandAugment()),
    }


def measure(jit_compile: bool, rounds: int, only: str) -> dict[str, np.ndarray]:
    """Returns the seconds of each variant that runs, in each round."""
    (images, labels), _ = ksa.datasets.load_photographs(32, crops=-(-BATCH // 10))
    order = np.random.default_rng(0).permutation(len(images))[:BATCH]
    images = tf.constant(images[order], "float32")
    labels = tf.constant(labels[order])
    calls = {}
    for name, step in variants().items():
        if only not in name and name not in ("plain", "gradient only"):
            continue
        compiled = tf.function(step, jit_compile=jit_compile)
        try:
            compiled(images, labels)
        except tf.errors.OpError as error:
            print(f"{name}: {str(error).splitlines()[0][:100]}")
            continue
        calls[name] = lambda f=compiled: keras.tree.map_structure(
            np.asarray, f(images, labels)
        )
    return interleave(calls, rounds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="steps whose name contains it")
    options = parser.parse_args()
    rounds = options.rounds
    print(f"\n{machine()}; batch {BATCH}, 32x32x3")
    print(f"Ratio within a round: median of {rounds} rounds (quartile range)")
    for jit_compile in (False, True):
        seconds = measure(jit_compile, rounds, options.only)
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
