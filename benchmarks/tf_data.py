"""What an adversarial layer costs in a `tf.data` pipeline and in the train step.

The small ResNet of `step_overhead` on 32x32x3 crops of photographs, batch 128; flow and
recolouring of half of the images. Epochs of all variants run in turn in one process.
Each row is the median over the rounds of the ratio to the plain epoch of that round.

    python -m benchmarks.tf_data [--rounds N] [--batches N] [--small]
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_structadv as ksa
from benchmarks.step_overhead import BATCH, small_resnet
from benchmarks.timing import interleave, machine, ratios
from benchmarks.training_step import fit_step, prepare


def load(batches: int, size: int) -> tf.data.Dataset:
    """Batches of images and labels, cached in memory."""
    count = size * batches
    (images, labels), _ = ksa.datasets.load_photographs(32, crops=-(-count // 10))
    order = np.random.default_rng(0).permutation(len(images))[:count]
    data = tf.data.Dataset.from_tensor_slices((images[order], labels[order]))
    return data.batch(size).cache()


def read(data: tf.data.Dataset) -> Callable[[], None]:
    """An epoch that only reads the data."""

    def epoch() -> None:
        for x, _ in data:
            x.numpy()

    return epoch


def train(
    model: keras.Model, data: tf.data.Dataset, callback: keras.callbacks.Callback
) -> Callable[[], None]:
    """An epoch of training with a callback."""
    step = fit_step(model, callback)
    batches = int(data.cardinality())

    def epoch() -> None:
        callback.on_epoch_begin(1)
        iterator = iter(data)
        for _ in range(batches):
            step(iterator)

    return epoch


def epochs(batches: int, size: int, kinds: dict) -> dict[str, Callable[[], None]]:
    """Functions that run one epoch of each variant, by name."""
    data = load(batches, size)
    first = tuple(x.numpy() for x in next(iter(data)))
    weights = small_resnet().get_weights()

    def model() -> keras.Model:
        made = small_resnet()
        made.set_weights(weights)
        return prepare(made, first)

    calls = {
        "reading the data": read(data),
        "plain": train(model(), data, keras.callbacks.Callback()),
    }
    for name, kind in kinds.items():
        trained = model()
        layer = kind().bind(trained, snapshot=True)
        mapped = data.map(layer, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
        calls[f"{name}, map alone"] = read(mapped)
        calls[f"{name}, map"] = train(trained, mapped, ksa.RefreshSnapshot(layer))
        for gradient, suffix in (("fresh", ""), ("reuse", ", reused")):
            callback = ksa.AdversarialTraining(kind(), gradient=gradient)
            calls[f"{name}, callback{suffix}"] = train(model(), data, callback)
    return calls


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument(
        "--small", action="store_true", help="flow, 4 images, one round"
    )
    options = parser.parse_args(arguments)
    size = BATCH
    kinds = {"flow": ksa.AdversarialFlow, "recolouring": ksa.AdversarialRecoloring}
    if options.small:
        size, options.batches, options.rounds = 4, 1, 1
        del kinds["recolouring"]
    seconds = interleave(epochs(options.batches, size, kinds), options.rounds)
    count = size * options.batches
    print(f"\n{machine()}; epochs of {options.batches} batches of {size}, 32x32x3")
    print(f"Median of {options.rounds} rounds (quartile range of the ratio)\n")
    print("| epoch | images a second | time, to plain |\n|---|---|---|")
    for name, (ratio, spread) in ratios(seconds, "plain").items():
        rate = count / np.median(seconds[name])
        print(f"| {name} | {rate:.0f} | {ratio:.2f} ({spread:.2f}) |")


if __name__ == "__main__":
    main()
