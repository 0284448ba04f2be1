"""What an adversarial layer costs in a `tf.data` pipeline, and in the train step.

The small ResNet of `step_overhead`, crops of photographs, 32x32x3, batch 128, flow and
recolouring at half of the images. An epoch of each variant in turn in one process; the
median over the rounds of its ratio to the plain epoch of the same round.

    python -m benchmarks.tf_data [--rounds N] [--batches N]
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import keras_structadv as ksa
from benchmarks.step_overhead import BATCH, small_resnet
from benchmarks.timing import interleave, machine, ratios


def epochs(batches: int) -> dict:
    """Returns, by name, functions that go through the data once."""
    count = BATCH * batches
    (images, labels), _ = ksa.datasets.load_photographs(32, crops=-(-count // 10))
    order = np.random.default_rng(0).permutation(len(images))[:count]
    data = tf.data.Dataset.from_tensor_slices((images[order], labels[order]))
    data = data.batch(BATCH).cache()
    model = small_resnet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    model.optimizer.build(model.trainable_variables)

    def train(step, data):
        step = tf.function(step)

        def epoch():
            for x, y in data:
                logs = step(x, y)
            return keras.tree.map_structure(np.asarray, logs)

        return epoch

    def read(data):
        def epoch():
            for x, _ in data:
                x.numpy()

        return epoch

    def plain(x, y):
        return model.train_step((x, y))

    def in_step(layer, gradient):
        callback = ksa.AdversarialTraining(layer.bind(model), gradient=gradient)
        callback.set_params({})
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
        step = callback.augmented(model.train_step)
        return train(lambda x, y: step((x, y)), data)

    def mapped(layer):
        layer.bind(model, snapshot=True)
        augmented = data.map(layer, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
        trained = train(plain, augmented)

        def epoch():
            layer.binding.snapshot.refresh()
            return trained()

        return read(augmented), epoch

    calls = {"reading the data": read(data), "plain": train(plain, data)}
    for name, kind in (
        ("flow", ksa.AdversarialFlow),
        ("recolouring", ksa.AdversarialRecoloring),
    ):
        calls[f"{name}, map alone"], calls[f"{name}, map"] = mapped(kind())
        calls[f"{name}, callback"] = in_step(kind(), "fresh")
        calls[f"{name}, callback, reused"] = in_step(kind(), "reuse")
    return calls


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=10)
    options = parser.parse_args()
    seconds = interleave(epochs(options.batches), options.rounds)
    count = BATCH * options.batches
    print(f"\n{machine()}; epochs of {options.batches} batches of {BATCH}, 32x32x3")
    print(f"Median of {options.rounds} rounds (quartile range of the ratio)\n")
    print("| epoch | images a second | time, to plain |\n|---|---|---|")
    for name, (ratio, spread) in ratios(seconds, "plain").items():
        rate = count / np.median(seconds[name])
        print(f"| {name} | {rate:.0f} | {ratio:.2f} ({spread:.2f}) |")


if __name__ == "__main__":
    main()
